package order

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/web"
)

// Run runs the service until ctx ends or something fails for good. started, if not nil, is told the addresses once both are bound.
//
// It stops from the outside in: the API stops accepting, answers who waits and drains; then the consumer finishes its batch; then
// the ops endpoints close, and the store.
func Run(ctx context.Context, cfg Config, log *slog.Logger, started func(api, ops net.Addr)) (err error) {
	cfg.Kafka.ClientID, cfg.Kafka.Stats = "order", broker.NewStats()
	api, err := web.Listen(cfg.HTTPAddr)
	if err != nil {
		return err
	}
	defer api.Close() // by the server before, if it came to run
	ops, err := web.Listen(cfg.OpsAddr)
	if err != nil {
		return err
	}
	defer ops.Close()

	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), cfg.Kafka.Stats)
	m := newMetrics(reg)

	st, err := openStore(ctx, cfg.DataDir, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	if st.box, err = outbox.Open(ctx, st.db, log, reg, "order"); err != nil {
		return err
	}

	admin, err := broker.NewAdmin(cfg.Kafka, log)
	if err != nil {
		return err
	}
	defer admin.Close()
	auditor, err := newAuditor(filepath.Join(cfg.DataDir, "audit"), cfg.Kafka, admin, m, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, auditor.close()) }()

	v, lookups := newView(), newWaiters()
	handler := &consumer{store: st, waiters: lookups, view: v, metrics: m, log: log, now: time.Now, next: map[broker.Partition]int64{}}
	member := broker.NewConsumer(cfg.Kafka, broker.ConsumerConfig{
		Group: contract.GroupOrder, Topics: []string{contract.TopicCreated, contract.TopicUpdated},
	}, admin, log)
	reg.MustRegister(memberMetrics{member},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "order_waiting_lookups", Help: "Look-ups that wait for their order to change.",
		}, func() float64 { return float64(lookups.count()) }))

	g, ctx := errgroup.WithContext(ctx) // ends when told to stop, and at the first failure
	s := &server{
		store: st, view: v, waiters: lookups, auditor: auditor, log: log, stopping: ctx,
		pace: pace{grace: 30 * time.Second, rate: 1 << 20},
	}
	ready := func() error {
		if ctx.Err() != nil {
			return errors.New("stopping")
		}
		missing := v.ready()
		if trouble := member.Err(); missing != nil && trouble != nil {
			return fmt.Errorf("%w; %w", missing, trouble)
		}
		return missing
	}
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	probed, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOps()
	g.Go(func() error {
		defer stopWork()
		return web.Serve(ctx, log, api, s.handler(reg))
	})
	g.Go(func() error {
		defer stopOps()
		inner, work := errgroup.WithContext(work)
		inner.Go(func() error { member.Run(work, handler); return nil })
		inner.Go(func() error { return st.box.Relay(work, cfg.Kafka) })
		return inner.Wait()
	})
	g.Go(func() error {
		return web.Serve(probed, log, ops, web.Ops{Ready: ready, Registry: reg, OpenAPI: contract.OrderOpenAPI, AsyncAPI: contract.AsyncAPI}.Handler())
	})
	g.Go(func() error { return v.catchUp(ctx, admin, st, log) })
	log.Info("order is listening", "api", api.Addr().String(), "ops", ops.Addr().String())
	if started != nil {
		started(api.Addr(), ops.Addr())
	}
	err = g.Wait()
	log.Info("order has stopped")
	return err
}
