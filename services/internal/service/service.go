// Package service starts and stops a service: its two listeners, its metrics, its readiness, and
// the order in which its parts end.
package service

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/bearer"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/web"
)

// Config is the part of a service that New needs.
type Config struct {
	Endpoints
	// OpenAPI describes the API, and AsyncAPI the topics. Both are YAML.
	OpenAPI, AsyncAPI []byte
}

// Endpoints are where a service listens, and for whom.
type Endpoints struct {
	// API is the address for clients.
	API env.Addr
	// Ops is the address of the operations endpoints, see web.Ops.
	Ops env.Addr
	// TLSCert and TLSKey are the files of the API's certificate; empty: plain HTTP.
	TLSCert, TLSKey string
	// Auth says which tokens the API takes.
	Auth bearer.Config
}

// EndpointsFromEnv reads HTTP_ADDR, OPS_ADDR, which is by default one port above, HTTP_TLS_CERT,
// HTTP_TLS_KEY and AUTH_*. api is the default of HTTP_ADDR.
func EndpointsFromEnv(e *env.Env, api string) Endpoints {
	http := e.Addr("HTTP_ADDR", api)
	ends := Endpoints{
		API: http, Ops: e.Addr("OPS_ADDR", http.Next()),
		TLSCert: e.String("HTTP_TLS_CERT", ""), TLSKey: e.String("HTTP_TLS_KEY", ""),
		Auth: bearer.ConfigFromEnv(e),
	}
	if (ends.TLSCert == "") != (ends.TLSKey == "") {
		// One of the two is missing.
		e.Required("HTTP_TLS_CERT", "/etc/tls/tls.crt")
		e.Required("HTTP_TLS_KEY", "/etc/tls/tls.key")
	}
	return ends
}

// LogValue returns the endpoints for the log.
func (e Endpoints) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("http_addr", e.API.Value), slog.String("ops_addr", e.Ops.Value),
		slog.String("http_tls_cert", e.TLSCert), slog.String("http_tls_key", e.TLSKey),
		slog.Any("auth", e.Auth),
	)
}

// Service holds what every service has. New makes one, Prepare may come before Run, Run runs it, and
// Close releases it.
type Service struct {
	// Registry has the collectors for Go and the process. A service adds its own.
	Registry *prometheus.Registry
	// Ready is why the service is not ready. It is "starting" until the service sets it.
	Ready *Readiness
	// Auth checks the tokens of requests to the API.
	Auth *bearer.Guard
	// Listings and Commands are those of the operations endpoints, see web.Ops. They are set before Run.
	Listings, Commands map[string]http.Handler

	cfg Config
	log *slog.Logger
	// certificate is that of the API; nil: plain HTTP.
	certificate *web.Certificate
	// api and ops are bound, and closed by Close or at the end of Run.
	api, ops net.Listener
}

// New binds both addresses, so that a port that is taken shows before anything else happens.
// Nothing is served before Prepare or Run.
func New(cfg Config, log *slog.Logger) (*Service, error) {
	s := &Service{Registry: prometheus.NewRegistry(), Ready: &Readiness{}, cfg: cfg, log: log}
	s.Registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	var err error
	if cfg.TLSCert != "" {
		if s.certificate, err = web.NewCertificate(cfg.TLSCert, cfg.TLSKey, log); err != nil {
			return nil, err
		}
	}
	if s.Auth, err = bearer.New(cfg.Auth, s.Registry, log); err != nil {
		return nil, err
	}
	s.Ready.AddCheck(s.Auth.Err)
	if s.api, err = web.Listen(cfg.API); err != nil {
		return nil, err
	}
	if s.ops, err = web.Listen(cfg.Ops); err != nil {
		return nil, errors.Join(err, s.api.Close())
	}
	return s, nil
}

// Close releases the addresses of a service that did not come to run. After Run it does nothing.
func (s *Service) Close() {
	_ = s.api.Close()
	_ = s.ops.Close()
}

// Prepare calls prepare, which may wait for long, such as for a database. Meanwhile probes and metrics
// are served, and clients are refused. Then the addresses are free for Run again.
func (s *Service) Prepare(ctx context.Context, prepare func(ctx context.Context) error) error {
	ops := web.Ops{
		Ready: s.Ready.Err, Registry: prometheus.NewRegistry(), More: []prometheus.Gatherer{s.Registry},
		OpenAPI: s.cfg.OpenAPI, AsyncAPI: s.cfg.AsyncAPI,
	}.Handler()
	refuse := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		web.Problem{
			Status:     http.StatusServiceUnavailable,
			Text:       "The service is starting. Try again shortly.",
			RetryAfter: 2 * time.Second,
		}.Write(w, r)
	})
	var serving errgroup.Group
	serveCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	serving.Go(func() error { return s.apiServer(nil).Serve(serveCtx, lent{s.api.(*net.TCPListener)}, refuse) })
	serving.Go(func() error { return web.ServeOps(serveCtx, s.log, lent{s.ops.(*net.TCPListener)}, ops) })
	err := prepare(ctx)
	stop()
	return errors.Join(err, serving.Wait(),
		s.api.(*net.TCPListener).SetDeadline(time.Time{}), s.ops.(*net.TCPListener).SetDeadline(time.Time{}))
}

// lent is a listener that a server gives back: it stays bound.
type lent struct{ *net.TCPListener }

// Close ends Accept.
func (l lent) Close() error { return l.SetDeadline(time.Unix(1, 0)) }

// ServeAPI serves clients until ctx ends, and then drains. It is a Task.
func (s *Service) ServeAPI(ctx context.Context, h http.Handler) error {
	server := s.apiServer(s.Registry)
	server.Linger = web.Linger
	return server.Serve(ctx, s.api, h)
}

func (s *Service) apiServer(reg prometheus.Registerer) web.Server {
	return web.Server{
		Log: s.log, Registry: reg, Certificate: s.certificate, Connections: web.APIConnections(),
	}
}

// Run runs the stages until ctx ends or a task fails, and then stops them one after the other. The
// operations endpoints are the last stage, so that probes and metrics are served to the end.
// If started is not nil, Run calls it with the bound addresses before anything is served.
func (s *Service) Run(ctx context.Context, started func(api, ops net.Addr), stages ...Stage) error {
	ops := web.Ops{
		Ready:    s.Ready.Err,
		Registry: s.Registry,
		OpenAPI:  s.cfg.OpenAPI,
		AsyncAPI: s.cfg.AsyncAPI,
		Listings: s.Listings,
		Commands: s.Commands,
	}.Handler()
	stages = append(slices.Clone(stages), Stage{
		func(ctx context.Context) error { return web.ServeOps(ctx, s.log, s.ops, ops) },
		s.Auth.Run,
	})
	if started != nil {
		started(s.api.Addr(), s.ops.Addr())
	}
	s.log.Info("listening", "api", s.api.Addr().String(), "ops", s.ops.Addr().String())
	err := run(ctx, s.Ready.stop, stages)
	s.log.Info("stopped")
	return err
}
