// Package web is what the HTTP servers of all services share: listening and draining, routes that
// ignore case, problems as responses, request metrics, and the operations endpoints with their client.
package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/env"
)

const (
	// Drain is how long requests under way may take once the server is asked to stop.
	Drain = 10 * time.Second
	// Linger is the [Server.Linger] of an API.
	Linger = time.Second
)

// Listen binds a TCP address. When the port is taken, the error names the variable that moves it.
func Listen(addr env.Addr) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr.Value)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port of %s is taken by another program (on macOS, AirPlay holds 5000 and 7000); "+
			"set %s to move it, for example %s=:15000: %w",
			addr.Value, addr.Variable, addr.Variable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s=%s: %w", addr.Variable, addr.Value, err)
	}
	return ln, nil
}

// Server serves requests on a listener.
type Server struct {
	Log *slog.Logger
	// Registry gets the metrics of the connections, unless it is nil.
	Registry prometheus.Registerer
	// Certificate makes it a server of HTTPS, unless it is nil.
	Certificate *Certificate
	// Connections is how many connections there are at most.
	Connections int
	// Linger is how long a client may leave a connection idle and still be sure that a stop does not
	// close it under the client's next request. A stop takes up to twice as long.
	Linger time.Duration
}

// Serve serves requests on ln until ctx ends. Then it ends connections with their next response, as
// long as one was idle for less than Linger. At last it stops accepting and waits for the requests
// under way, at most Drain. It closes ln.
func (s Server) Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	limited := newLimitListener(ln, s.Connections, s.Certificate == nil)
	if s.Registry != nil {
		limited.register(s.Registry)
	}
	// A stop and the limit of connections end a connection with a response, as HTTP/1 can.
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	srv := &http.Server{
		Protocols:         protocols,
		Handler:           limited.handler(h),
		ConnState:         limited.connState,
		ConnContext:       limited.connContext,
		ErrorLog:          stdlog.New(errorLog{s.Log}, "", 0),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       15 * time.Second,
		// Longer than a look-up may wait. A long response moves its own deadline: see PacedWriter.
		WriteTimeout:   60 * time.Second,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: mostHeaderBytes,
	}
	serve := srv.Serve
	if s.Certificate != nil {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.Certificate.get}
		serve = func(ln net.Listener) error { return srv.ServeTLS(ln, "", "") }
		if s.Registry != nil {
			s.Certificate.register(s.Registry)
		}
	}
	var g errgroup.Group
	served := make(chan struct{})
	g.Go(func() error {
		select {
		case <-served:
			return nil
		case <-ctx.Done():
		}
		limited.retire(s.Linger)
		final, cancel := context.WithTimeout(context.WithoutCancel(ctx), Drain)
		defer cancel()
		if err := srv.Shutdown(final); err != nil {
			return errors.Join(fmt.Errorf("drain %s: %w", ln.Addr(), err), srv.Close())
		}
		return nil
	})
	g.Go(func() error {
		limited.run()
		return nil
	})
	g.Go(func() error {
		defer close(served)
		if err := serve(limited); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", ln.Addr(), err)
		}
		return nil
	})
	return g.Wait()
}

// errorLog writes what an http.Server reports to a log.
type errorLog struct{ log *slog.Logger }

// Write is part of io.Writer.
func (l errorLog) Write(line []byte) (int, error) {
	level := slog.LevelError
	// Anybody who connects can cause these: a load balancer's probe, a client that speaks plain HTTP. Only
	// the text tells them apart.
	if bytes.HasPrefix(line, []byte("http: TLS handshake error")) {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "http server", "says", string(bytes.TrimSpace(line)))
	return len(line), nil
}

// ServeOps serves the operations endpoints until ctx ends. See [Ops].
func ServeOps(ctx context.Context, log *slog.Logger, ln net.Listener, h http.Handler) error {
	return Server{Log: log, Connections: opsConnections}.Serve(ctx, ln, h)
}
