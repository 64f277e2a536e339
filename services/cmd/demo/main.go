// Command demo runs the whole system in one process: a Kafka of its own (a fake one, kept on disk),
// the Cart service, the Order service and the lag collector. Each is the same as everywhere else.
// What is under DATA_DIR is kept between runs, also after a kill -9.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/cart"
	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/process"
	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/order"
)

func main() { os.Exit(process.Main(run)) }

// run starts all parts and waits until one fails or ctx ends.
func run(ctx context.Context, e *env.Env, log *slog.Logger) error {
	dir := e.String("DATA_DIR", "data/demo")
	// Everything below writes to dir.
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	kafka, err := fakekafka.New(filepath.Join(dir, "kafka"), 0)
	if err != nil {
		return err
	}
	defer kafka.Close()
	cfg, err := readConfig(e, dir, kafka.ListenAddrs()[0])
	if err != nil {
		return err
	}
	// A port that is taken is reported before anything runs.
	lagOps, err := web.Listen(cfg.lagAddr)
	if err != nil {
		return err
	}
	defer lagOps.Close()
	collector, err := newCollector(kafka.ListenAddrs(), log.With("service", "lag"))
	if err != nil {
		return err
	}

	// There is room for the one report of each service, which may come before it is received.
	cartAddrs, orderAddrs := make(chan addrs, 1), make(chan addrs, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return collector.Run(ctx) })
	g.Go(func() error { return serveLag(ctx, log, lagOps, collector) })
	g.Go(func() error { return cart.Run(ctx, cfg.cart, log.With("service", "cart"), into(cartAddrs)) })
	g.Go(func() error { return order.Run(ctx, cfg.order, log.With("service", "order"), into(orderAddrs)) })
	g.Go(func() error {
		c, cartReady := awaitReady(ctx, cartAddrs)
		o, orderReady := awaitReady(ctx, orderAddrs)
		if cartReady && orderReady {
			fmt.Printf(welcome, port(c.api), port(o.api), port(lagOps.Addr()), kafka.ListenAddrs()[0], dir)
		}
		return nil
	})
	return g.Wait()
}

// lock keeps a second demo out of dir, because the fake Kafka does not lock its files. The lock
// ends with the process.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("a demo runs in %s already; stop it, or set DATA_DIR to another folder: %w", dir, err)
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// config is the configuration of all parts.
type config struct {
	cart  cart.Config
	order order.Config
	// lagAddr is where the lag collector serves its metrics.
	lagAddr env.Addr
}

// readConfig reads the variables of each service, with a prefix. The demo itself sets the address
// of Kafka and the folders for data.
func readConfig(e *env.Env, dir, brokers string) (config, error) {
	service := func(prefix, name string) *env.Env {
		fixed := map[string]string{
			prefix + "KAFKA_BROKERS": brokers,
			prefix + "DATA_DIR":      filepath.Join(dir, name),
		}
		return env.New(func(variable string) string {
			if value, ok := fixed[variable]; ok {
				return value
			}
			return os.Getenv(variable)
		}).WithPrefix(prefix)
	}
	cartEnv, orderEnv := service("CART_", "cart"), service("ORDER_", "order")
	cfg := config{
		cart:    cart.ConfigFromEnv(cartEnv),
		order:   order.ConfigFromEnv(orderEnv),
		lagAddr: e.Addr("LAG_OPS_ADDR", ":8001"),
	}
	return cfg, errors.Join(e.Err(), cartEnv.Err(), orderEnv.Err())
}

// newCollector makes a lag collector of all groups, with an objective for the Order service.
func newCollector(brokers []string, log *slog.Logger) (*lag.Collector, error) {
	collector, err := lag.New(lag.Config{
		Name:     "demo",
		Kafka:    kafkaconfig.Client{Brokers: brokers, ClientID: "lag-collector"},
		Interval: time.Second,
		Groups:   regexp.MustCompile(""),
	}, log)
	if err != nil {
		return nil, err
	}
	// Short enough to be seen in a demo.
	const oldest = 5 * time.Second
	collector.Want(map[string][]lag.Objective{contract.GroupOrder: {{Age: oldest}}})
	return collector, nil
}

// serveLag serves the metrics of the collector until ctx ends.
func serveLag(ctx context.Context, log *slog.Logger, listener net.Listener, collector *lag.Collector) error {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collector)
	// The demo is for people who look at the metrics: without the group there is nothing to see.
	ready := func() error { return lagKnown(collector) }
	endpoints := web.Ops{Ready: ready, Registry: metrics}
	return web.ServeOps(ctx, log, listener, endpoints.Handler())
}

// lagKnown returns nil once the lag of the Order service is known.
func lagKnown(c *lag.Collector) error {
	if err := c.Err(); err != nil {
		return err
	}
	s := c.Snapshot()
	if s == nil || s.Groups[contract.GroupOrder] == nil || s.Groups[contract.GroupOrder].Members == 0 {
		return errors.New("the Order service is not in its group yet")
	}
	return nil
}
