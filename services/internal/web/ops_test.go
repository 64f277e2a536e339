package web_test

import (
	"errors"
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
