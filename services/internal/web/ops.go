package web

import (
	"net/http"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Ops are the endpoints for those who run a service, on a port of their own.
type Ops struct {
	// Ready returns nil when the service can do its work, else what is missing. It is called at
	// each probe and each scrape, from several goroutines.
	Ready func() error
	// Registry holds the metrics of the service.
	Registry *prometheus.Registry
	// More are shown beside the Registry: a library may keep its metrics in a registry of its own.
	More []prometheus.Gatherer
	// OpenAPI describes the HTTP API; nil when there is none but this one.
	OpenAPI []byte
	// AsyncAPI describes the topics; nil when there are none.
	AsyncAPI []byte
	// Listings show what the service stores. Their keys are paths. Like the metrics they are open to
	// everybody who reaches the port.
	Listings map[string]http.Handler
	// Commands change something when they are sent with POST. Their keys are paths. They are taken
	// only from the machine or the pod itself, because nothing else authenticates who sends them.
	Commands map[string]http.Handler
}

// Handler serves /healthz (the process runs), /readyz (it can do its work now), /metrics,
// /openapi.yaml and /asyncapi.yaml if there are such documents, the listings and the commands. It adds
// the metric service_ready, which shows what /readyz does, so it must be called only once per Registry.
func (o Ops) Handler() http.Handler {
	o.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "service_ready", Help: "1 if /readyz responds with 200 now, else 0.",
	}, func() float64 {
		if o.Ready() != nil {
			return 0
		}
		return 1
	}))
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		WriteText(w, http.StatusOK, "ok\n")
	})
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			WriteText(w, http.StatusServiceUnavailable, "not ready: "+err.Error()+"\n")
			return
		}
		WriteText(w, http.StatusOK, "ready\n")
	})
	all := append(prometheus.Gatherers{o.Registry}, o.More...)
	// Only the OpenMetrics format has exemplars.
	m.Handle("GET /metrics", promhttp.HandlerFor(all, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	for path, document := range map[string][]byte{"/openapi.yaml": o.OpenAPI, "/asyncapi.yaml": o.AsyncAPI} {
		if document == nil {
			continue
		}
		m.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/yaml")
			_, _ = w.Write(document)
		})
	}
	for path, listing := range o.Listings {
		m.Handle("GET "+path, listing)
	}
	for path, command := range o.Commands {
		m.HandleFunc("POST "+path, refuseOtherOrigins(fromLoopback(command)))
	}
	return m
}

// fromLoopback refuses a request from another address than a loopback one.
func fromLoopback(h http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() {
			Problem{
				Status: http.StatusForbidden,
				Text: "This is taken only from the machine or the pod of the service. In Kubernetes, send it through " +
					"`kubectl port-forward` to the port of the operations endpoints (docs/operations.md).\n",
			}.Write(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}
}
