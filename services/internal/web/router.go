package web

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Routes are a service's endpoints: a path in lower case, a method, a handler.
type Routes []Route

// Route is one endpoint.
type Route struct {
	Method, Path string
	Handler      http.HandlerFunc
}

// Handler serves the routes whatever the case of a request's path and query names, measures them, and answers what is not there
// with what is.
func (rs Routes) Handler(reg prometheus.Registerer) http.Handler {
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds", Help: "Time in seconds to answer a request; what a look-up was told to wait counts.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18), NativeHistogramBucketFactor: 1.1,
	}, []string{"route", "method", "code"})
	reg.MustRegister(durations)

	router := mux.NewRouter().SkipClean(true) // a redirect would turn a POST into a GET
	allowed := map[string][]string{}
	var all []string
	for _, route := range rs {
		methods := []string{route.Method}
		if route.Method == http.MethodGet {
			methods = append(methods, http.MethodHead) // RFC 9110 section 9.1; net/http leaves the body out
		}
		router.Handle(route.Path, measure(durations, route.Path, route.Method, route.Handler)).Methods(methods...)
		allowed[route.Path] = append(allowed[route.Path], route.Method)
		all = append(all, route.Method+" "+route.Path)
	}
	slices.Sort(all)
	router.NotFoundHandler = measure(durations, "other", "other", func(w http.ResponseWriter, r *http.Request) {
		Problem{Status: http.StatusNotFound, Text: "There is nothing at this path. This service has: " + strings.Join(all, ", ") + "."}.Write(w, r)
	})
	router.MethodNotAllowedHandler = measure(durations, "other", "other", func(w http.ResponseWriter, r *http.Request) {
		allow := strings.Join(allowed[r.URL.Path], ", ")
		w.Header().Set("Allow", allow)
		Problem{Status: http.StatusMethodNotAllowed, Text: fmt.Sprintf("This path takes %s, not %.16s.", allow, r.Method)}.Write(w, r)
	})
	return FoldCase(router)
}

func measure(durations *prometheus.HistogramVec, route, method string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sw := statusWriter{ResponseWriter: w, status: http.StatusOK}
		code := "aborted" // by a panic, which breaks the connection off
		defer func() { durations.WithLabelValues(route, method, code).Observe(time.Since(start).Seconds()) }()
		next(&sw, r)
		code = strconv.Itoa(sw.status)
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Ops are the endpoints for those who run a service, on a port of their own.
type Ops struct {
	Ready    func() error // nil, or what is missing
	Registry *prometheus.Registry
	More     []prometheus.Gatherer // shown beside the Registry, as what a library keeps in one of its own
	OpenAPI  []byte                // describes what the service serves; nil when that is nothing but this
	AsyncAPI []byte                // describes the topics; likewise
}

// Handler serves /healthz (the process turns), /readyz (it can do its work now), /metrics, where service_ready says what /readyz does,
// and /openapi.yaml and /asyncapi.yaml as far as there are any. It is made once per Registry.
func (o Ops) Handler() http.Handler {
	o.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "service_ready", Help: "1 when /readyz answers 200 at this moment, else 0.",
	}, func() float64 {
		if o.Ready() != nil {
			return 0
		}
		return 1
	}))
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { WriteText(w, http.StatusOK, "ok\n") })
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			WriteText(w, http.StatusServiceUnavailable, "not ready: "+err.Error()+"\n")
			return
		}
		WriteText(w, http.StatusOK, "ready\n")
	})
	all := append(prometheus.Gatherers{o.Registry}, o.More...)
	m.Handle("GET /metrics", promhttp.HandlerFor(all, promhttp.HandlerOpts{EnableOpenMetrics: true})) // without it no exemplars
	for path, document := range map[string][]byte{"/openapi.yaml": o.OpenAPI, "/asyncapi.yaml": o.AsyncAPI} {
		if document == nil {
			continue
		}
		m.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/yaml")
			_, _ = w.Write(document)
		})
	}
	return m
}
