package web_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

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
	const unknown = "There is nothing at this path. This service has: GET /order/break, GET /order/find."
	for _, c := range []struct {
		method, target string
		status         int
		text           string
	}{
		{"GET", "/Order/Find?OrderId=A%20b", 200, "A b"},
		{"GET", "/ORDER/FIND?ORDERID=Case%26Kept&orderid=2", 200, "Case&Kept|2"},
		{"GET", "/order/find", 200, ""},
		{"GET", "/order/find/?orderid=x", 200, "x"},
		{"GET", "/order/find//", 404, unknown},
		// The recorder keeps the body that a server leaves out.
		{"HEAD", "/order/find?orderid=x", 200, "x"},
		{"GET", "//order/find", 404, unknown},
		{"GET", "/order/lost", 404, unknown},
		{"DELETE", "/order/FIND", 405, "This path takes GET, not DELETE."},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.target, nil))
		if w.Code != c.status || w.Body.String() != c.text {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.target, w.Code, w.Body, c.status, c.text)
		}
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	for _, ctx := range []context.Context{t.Context(), left} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic of a handler is swallowed: the connection would not break")
				}
			}()
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/order/break", nil))
		}()
	}
	// Nothing that a client makes up becomes a label.
	want := map[string]uint64{
		"200 GET /order/find": 5, "404 other other": 3, "aborted GET /order/break": 1, "gone GET /order/break": 1,
		"405 other other": 1,
	}
	if diff := cmp.Diff(want, counted(t, reg)); diff != "" {
		t.Errorf("requests counted by code, method and route (-want +got):\n%s", diff)
	}
}

// A client that has left hides no failure. What failed because it left is none.
func TestAFailureCountsWithoutItsClient(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	h := web.Routes{{Method: "GET", Path: "/order/fail", Handler: func(w http.ResponseWriter, r *http.Request) {
		err := errors.New("the database is away")
		if r.URL.RawQuery == "ended" {
			err = fmt.Errorf("read the order: %w", r.Context().Err())
		}
		web.Problem{Status: 503, Text: err.Error()}.UnlessGone(r, err).Write(w, r)
	}}}.Handler(reg)
	left, leave := context.WithCancel(t.Context())
	leave()
	for _, target := range []string{"/order/fail", "/order/fail?ended"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(left, "GET", target, nil))
	}
	want := map[string]uint64{"503 GET /order/fail": 1, "gone GET /order/fail": 1}
	if diff := cmp.Diff(want, counted(t, reg)); diff != "" {
		t.Errorf("requests counted by code, method and route (-want +got):\n%s", diff)
	}
}

// counted returns how many requests were counted, by code, method and route.
func counted(t *testing.T, reg *prometheus.Registry) map[string]uint64 {
	t.Helper()
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
	return got
}
