package web_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/web"
)

func TestRoutesIgnoreCase(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	h := web.Routes{
		{Method: "GET", Path: "/order/find", Handler: func(w http.ResponseWriter, r *http.Request) {
			web.WriteText(w, 200, strings.Join(r.URL.Query()["orderid"], "|"))
		}},
		{Method: "GET", Path: "/order/break", Handler: func(w http.ResponseWriter, _ *http.Request) {
			web.WriteText(w, 200, "half of it")
			panic(http.ErrAbortHandler)
		}},
	}.Handler(reg)
	for _, c := range []struct {
		method, target string
		status         int
		text           string
	}{
		{"GET", "/Order/Find?OrderId=A%20b", 200, "A b"},
		{"GET", "/ORDER/FIND?ORDERID=Case%26Kept&orderid=2", 200, "Case&Kept|2"},
		{"GET", "/order/find", 200, ""},
		{"HEAD", "/order/find?orderid=x", 200, "x"}, // the recorder keeps the body that a server leaves out
		{"GET", "//order/find", 404, "There is nothing at this path. This service has: GET /order/break, GET /order/find."},
		{"GET", "/order/lost", 404, "There is nothing at this path. This service has: GET /order/break, GET /order/find."},
		{"DELETE", "/order/FIND", 405, "This path takes GET, not DELETE."},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.target, nil))
		if w.Code != c.status || w.Body.String() != c.text {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.target, w.Code, w.Body, c.status, c.text)
		}
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the handler's panic did not get through: the connection would not break")
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/order/break", nil))
	}()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, m := range families[0].GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetValue())
		}
		got[strings.Join(labels, " ")] = m.GetHistogram().GetSampleCount()
	}
	// Nothing that a client makes up becomes a label.
	if diff := cmp.Diff(map[string]uint64{"200 GET /order/find": 4, "404 other other": 2, "aborted GET /order/break": 1, "405 other other": 1}, got); diff != "" {
		t.Errorf("requests counted by code, method and route (-want +got):\n%s", diff)
	}
}

func TestProblemsAreTextOrJSON(t *testing.T) {
	t.Parallel()
	problem := web.Problem{Status: 503, Text: "Try later.", RetryAfter: 1500 * time.Millisecond}
	const details = `{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Try later."}`
	for accept, want := range map[string][2]string{
		"":                                   {"text/plain; charset=utf-8", "Try later."},
		"*/*":                                {"text/plain; charset=utf-8", "Try later."},
		"text/html, nonsense;;":              {"text/plain; charset=utf-8", "Try later."},
		"application/json;q=0":               {"text/plain; charset=utf-8", "Try later."},
		"application/json":                   {"application/problem+json", details},
		"text/html, APPLICATION/json; q=0.5": {"application/problem+json", details},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		problem.Write(w, r)
		got := [2]string{w.Header().Get("Content-Type"), w.Body.String()}
		if got != want || w.Code != 503 || w.Header().Get("Retry-After") != "2" {
			t.Errorf("Accept %q: %d %q, Retry-After %q, want %q", accept, w.Code, got, w.Header().Get("Retry-After"), want)
		}
	}
}

func TestServeDrains(t *testing.T) {
	t.Parallel()
	ln, err := web.Listen(env.Addr{Value: "127.0.0.1:0", Variable: "HTTP_ADDR"})
	if err != nil {
		t.Fatal(err)
	}
	entered, finish := make(chan struct{}), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() {
		served <- web.Serve(ctx, slog.New(slog.DiscardHandler), ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-finish
			web.WriteText(w, 200, "done")
		}))
	}()
	answer := make(chan string)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		answer <- string(body) + errorText(err)
	}()
	<-entered
	stop()
	for { // until nothing is accepted any more
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
	}
	close(finish)
	if got := <-answer; got != "done" {
		t.Errorf("the request under way was answered %q, want %q", got, "done")
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestATakenPortNamesItsVariable(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = web.Listen(env.Addr{Value: ln.Addr().String(), Variable: "CART_HTTP_ADDR"})
	if err == nil || !strings.Contains(err.Error(), "set CART_HTTP_ADDR to move it") {
		t.Errorf("err = %v, want it to name the variable", err)
	}
}

func TestOps(t *testing.T) {
	t.Parallel()
	var missing error
	reg, library := prometheus.NewRegistry(), prometheus.NewRegistry()
	h := web.Ops{
		Ready: func() error { return missing }, Registry: reg, More: []prometheus.Gatherer{library},
		OpenAPI: []byte("openapi: 3.1.0\n"), AsyncAPI: []byte("asyncapi: 3.0.0\n"),
	}.Handler()
	own, others := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "own_seconds", Help: "Own."}), prometheus.NewCounter(prometheus.CounterOpts{Name: "library_calls_total", Help: "A library's."})
	reg.MustRegister(own)
	library.MustRegister(others)
	own.(prometheus.ExemplarObserver).ObserveWithExemplar(1, prometheus.Labels{"offset": "4711"})
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	check := func(path string, status int, text string) {
		t.Helper()
		if code, body := get(path); code != status || !strings.Contains(body, text) {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, status, text)
		}
	}
	check("/healthz", 200, "ok")
	check("/readyz", 200, "ready")
	check("/openapi.yaml", 200, "openapi: 3.1.0")
	check("/asyncapi.yaml", 200, "asyncapi: 3.0.0")
	check("/metrics", 200, "own_seconds_count 1\n")
	check("/metrics", 200, "library_calls_total 0\n")
	check("/metrics", 200, "service_ready 1\n")
	missing = errors.New("topic order-created-topic is missing")
	check("/readyz", 503, "not ready: topic order-created-topic is missing")
	check("/healthz", 200, "ok")
	check("/metrics", 200, "service_ready 0\n")

	// Exemplars are for those who ask for the format that has them.
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "application/openmetrics-text") || !strings.Contains(w.Body.String(), `# {offset="4711"} 1`) {
		t.Errorf("%v\n%s", w.Header(), w.Body)
	}
	if _, body := get("/metrics"); strings.Contains(body, "4711") {
		t.Errorf("the plain format: %s", body)
	}

	// A program that serves nothing else has nothing to describe.
	h = web.Ops{Ready: func() error { return nil }, Registry: prometheus.NewRegistry()}.Handler()
	check("/openapi.yaml", 404, "")
	check("/asyncapi.yaml", 404, "")
}
