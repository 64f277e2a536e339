package web_test

import (
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/web"
)

func TestOps(t *testing.T) {
	t.Parallel()
	var missing error
	reg, library := prometheus.NewRegistry(), prometheus.NewRegistry()
	h := web.Ops{
		Ready: func() error { return missing }, Registry: reg, More: []prometheus.Gatherer{library},
		OpenAPI: []byte("openapi: 3.1.0\n"), AsyncAPI: []byte("asyncapi: 3.0.0\n"),
	}.Handler()
	own := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "own_seconds", Help: "Own."})
	others := prometheus.NewCounter(prometheus.CounterOpts{Name: "library_calls_total", Help: "A library's."})
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

	// Only a client that asks for the OpenMetrics format gets exemplars.
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "application/openmetrics-text") ||
		!strings.Contains(w.Body.String(), `# {offset="4711"} 1`) {
		t.Errorf("%v\n%s", w.Header(), w.Body)
	}
	if _, body := get("/metrics"); strings.Contains(body, "4711") {
		t.Errorf("the plain format: %s", body)
	}

	// A program without an API and topics has no documents.
	h = web.Ops{Ready: func() error { return nil }, Registry: prometheus.NewRegistry()}.Handler()
	check("/openapi.yaml", 404, "")
	check("/asyncapi.yaml", 404, "")
}

// Nothing authenticates who sends a command, so only those get through who are on the machine or in
// the pod.
func TestCommandsAreTakenOnlyFromLoopback(t *testing.T) {
	t.Parallel()
	h := web.Ops{
		Ready: func() error { return nil }, Registry: prometheus.NewRegistry(),
		Commands: map[string]http.Handler{"/do": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			web.WriteText(w, http.StatusOK, "done")
		})},
	}.Handler()
	for _, tt := range []struct {
		method, from string
		header       http.Header
		status       int
		text         string
	}{
		{"POST", "127.0.0.1:1234", nil, 200, "done"},
		{"POST", "[::1]:1234", nil, 200, "done"},
		{"POST", "[::ffff:127.0.0.1]:1234", nil, 200, "done"},
		{"POST", "10.1.2.3:1234", nil, 403, "kubectl port-forward"},
		{"POST", "10.1.2.3:1234", http.Header{"X-Forwarded-For": {"127.0.0.1"}}, 403, "kubectl port-forward"},
		{"POST", "127.0.0.1:1234", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403, "another origin"},
		{"GET", "127.0.0.1:1234", nil, 405, ""},
	} {
		r := httptest.NewRequest(tt.method, "/do", nil)
		r.RemoteAddr = tt.from
		maps.Copy(r.Header, tt.header)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.text) {
			t.Errorf("%s from %s %v: %d %q, want %d %q",
				tt.method, tt.from, tt.header, w.Code, w.Body, tt.status, tt.text)
		}
	}
}
