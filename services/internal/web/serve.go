// Package web is what the HTTP servers of all services share: listening and draining, routes that
// ignore case, problems as responses, request metrics, and the operations endpoints.
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/env"
)

// Drain is how long requests under way may take once the server is asked to stop.
const Drain = 10 * time.Second

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

// Serve serves requests on ln until ctx ends, on so many connections at most. Then it stops
// accepting and waits for those under way, at most Drain. It closes ln. If reg is not nil, it gets the
// metrics of the connections.
func Serve(
	ctx context.Context, log *slog.Logger, reg prometheus.Registerer, ln net.Listener, connections int, h http.Handler,
) error {
	limited := newLimitListener(ln, connections)
	if reg != nil {
		limited.register(reg)
	}
	srv := &http.Server{
		Handler:           limited.handler(h),
		ConnState:         limited.connState,
		ConnContext:       limited.connContext,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		// Longer than a look-up may wait. A long response moves its own deadline: see PacedWriter.
		WriteTimeout:   60 * time.Second,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: mostHeaderBytes,
	}
	var g errgroup.Group
	served := make(chan struct{})
	g.Go(func() error {
		select {
		case <-served:
			return nil
		case <-ctx.Done():
		}
		final, cancel := context.WithTimeout(context.WithoutCancel(ctx), Drain)
		defer cancel()
		if err := srv.Shutdown(final); err != nil {
			return errors.Join(fmt.Errorf("drain %s: %w", ln.Addr(), err), srv.Close())
		}
		return nil
	})
	g.Go(func() error {
		defer close(served)
		if err := srv.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", ln.Addr(), err)
		}
		return nil
	})
	return g.Wait()
}
