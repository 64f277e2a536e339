// Package cart is the Cart service: it takes orders over HTTP, stores each with its event in one transaction, and publishes the
// events to Kafka in order. It does not consume: what became of an order downstream is the Order service's to tell.
package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/web"
)

// Run is the service until ctx ends; then it stops accepting, drains, flushes and closes, in that order. started, if not nil, is
// told the addresses once they are bound.
func Run(ctx context.Context, cfg Config, log *slog.Logger, started func(api, ops net.Addr)) (err error) {
	cfg.Kafka.ClientID, cfg.Kafka.Stats = "cart", broker.NewStats()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), cfg.Kafka.Stats)

	api, err := web.Listen(cfg.HTTPAddr)
	if err != nil {
		return err
	}
	defer api.Close()
	ops, err := web.Listen(cfg.OpsAddr)
	if err != nil {
		return err
	}
	defer ops.Close()

	store, err := openStore(ctx, cfg.DataDir, cfg.MaxBacklog, log, reg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()

	admin, err := broker.NewAdmin(cfg.Kafka, log)
	if err != nil {
		return err
	}
	defer admin.Close()

	srv := &server{store: store, log: log}
	ready := newReadiness()
	if started != nil {
		started(api.Addr(), ops.Addr())
	}
	log.Info("cart is listening", "api", api.Addr().String(), "ops", ops.Addr().String())

	// Each stage ends after the one before it, so that nothing that was accepted is left behind: the API drains, the store writes what
	// is queued, the relay publishes it, and the operations endpoints answer to the last.
	g, stop := errgroup.WithContext(ctx)
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStore()
	relayCtx, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()
	opsCtx, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOps()

	g.Go(func() error {
		defer stopStore()
		defer context.AfterFunc(stop, func() { ready.set(errors.New("stopping")) })()
		return web.Serve(stop, log, api, srv.handler(reg))
	})
	g.Go(func() error {
		defer stopRelay()
		return store.run(storeCtx)
	})
	g.Go(func() error {
		defer stopOps()
		return store.box.Relay(relayCtx, cfg.Kafka)
	})
	g.Go(func() error {
		return web.Serve(opsCtx, log, ops, web.Ops{Ready: func() error { return errors.Join(ready.err(), store.err()) }, Registry: reg, OpenAPI: contract.CartOpenAPI, AsyncAPI: contract.AsyncAPI}.Handler())
	})
	g.Go(func() error {
		return prepare(stop, cfg, admin, store, srv, ready, log)
	})
	err = g.Wait()
	log.Info("cart has stopped")
	return err
}

// prepare opens the API once the store is whole, and waits until the topics were seen. A store that is whole needs no Kafka: orders
// are accepted while it is away.
func prepare(ctx context.Context, cfg Config, admin *broker.Admin, s *store, srv *server, ready *readiness, log *slog.Logger) error {
	rebuilt, err := s.isRebuilt(ctx)
	if err != nil {
		return err
	}
	srv.open.Store(rebuilt)
	if rebuilt {
		defer time.AfterFunc(time.Second, ready.unlessToldOtherwise).Stop()
	}
	_, err = admin.AwaitTopics(ctx, func(err error) {
		if _, unreachable := errors.AsType[*broker.UnreachableError](err); unreachable && rebuilt {
			err = nil
		}
		ready.set(err)
	}, contract.TopicCreated, contract.TopicUpdated)
	for pause := 100 * time.Millisecond; err == nil && !rebuilt; pause = min(2*pause, 5*time.Second) {
		ready.set(errors.New("rebuilding the store from the topics"))
		failure := rebuild(ctx, cfg.Kafka, admin, s, log)
		if rebuilt = failure == nil; rebuilt {
			break
		}
		log.Warn("the store could not be rebuilt; trying again", "pause", pause, "err", failure)
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(pause):
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("await the topics: %w", err)
	}
	srv.open.Store(true)
	ready.set(nil)
	log.Info("cart is ready")
	return nil
}

// readiness is what /readyz says.
type readiness struct {
	starting error
	missing  atomic.Pointer[error]
}

func newReadiness() *readiness {
	r := &readiness{starting: errors.New("starting")}
	r.missing.Store(&r.starting)
	return r
}

func (r *readiness) set(err error) { r.missing.Store(&err) }

// unlessToldOtherwise makes the service ready when nothing is known yet: with a whole store it need not wait until Kafka answers, or
// is known to be away.
func (r *readiness) unlessToldOtherwise() {
	var none error
	r.missing.CompareAndSwap(&r.starting, &none)
}

func (r *readiness) err() error { return *r.missing.Load() }
