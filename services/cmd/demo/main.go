// Command demo is the whole system in one process: a Kafka of its own (a fake one, kept on disk), the Cart service, the Order service
// and what tells the consumers' lag, each as it is everywhere else. What is under DATA_DIR is kept between runs, and through a kill -9.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
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

func run(ctx context.Context, e *env.Env, log *slog.Logger) error {
	dir := e.String("DATA_DIR", "data/demo")
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

	// The services read the same variables as on their own, each under its prefix, but for what the demo decides.
	service := func(prefix, name string) *env.Env {
		decided := map[string]string{
			prefix + "KAFKA_BROKERS": kafka.ListenAddrs()[0],
			prefix + "DATA_DIR":      filepath.Join(dir, name),
		}
		return env.New(func(variable string) string {
			if v, ok := decided[variable]; ok {
				return v
			}
			return os.Getenv(variable)
		}).WithPrefix(prefix)
	}
	cartEnv, orderEnv := service("CART_", "cart"), service("ORDER_", "order")
	cartConfig, orderConfig := cart.ConfigFromEnv(cartEnv), order.ConfigFromEnv(orderEnv)
	lagAddr := e.Addr("LAG_OPS_ADDR", ":8001")
	if err := errors.Join(e.Err(), cartEnv.Err(), orderEnv.Err()); err != nil {
		return err
	}

	lagOps, err := web.Listen(lagAddr)
	if err != nil {
		return err
	}
	defer lagOps.Close()
	collector, err := lag.New(lag.Config{
		Name: "demo", Kafka: kafkaconfig.Client{Brokers: kafka.ListenAddrs()}, Interval: time.Second, Groups: regexp.MustCompile(""),
	}, log.With("service", "lag"))
	if err != nil {
		return err
	}
	collector.Want(map[string][]lag.Objective{contract.GroupOrder: {{Age: objective}}})
	lagMetrics := prometheus.NewRegistry()
	lagMetrics.MustRegister(collector)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return collector.Run(ctx) })
	g.Go(func() error {
		return web.Serve(ctx, log, lagOps, web.Ops{Ready: func() error { return told(collector) }, Registry: lagMetrics}.Handler())
	})
	listening := make(chan addrs, 2)
	report := func(api, ops net.Addr) { listening <- addrs{api, ops} }
	// One after the other, as each reports on the same channel.
	g.Go(func() error { return cart.Run(ctx, cartConfig, log.With("service", "cart"), report) })
	var c, o addrs
	select {
	case c = <-listening:
	case <-ctx.Done():
		return g.Wait()
	}
	g.Go(func() error { return order.Run(ctx, orderConfig, log.With("service", "order"), report) })
	select {
	case o = <-listening:
	case <-ctx.Done():
		return g.Wait()
	}
	g.Go(func() error {
		for _, a := range []addrs{c, o} {
			if !ready(ctx, a.ops) {
				return nil
			}
		}
		fmt.Printf(welcome, port(c.api), port(o.api), port(lagOps.Addr()), kafka.ListenAddrs()[0], dir)
		return nil
	})
	return g.Wait()
}

type addrs struct{ api, ops net.Addr }

// objective is how old what the Order service has not read may be.
const objective = 5 * time.Second

// told is nil once the lag of the Order service is known.
func told(c *lag.Collector) error {
	if err := c.Err(); err != nil {
		return err
	}
	if s := c.Snapshot(); s == nil || s.Groups[contract.GroupOrder] == nil || s.Groups[contract.GroupOrder].Members == 0 {
		return errors.New("the Order service is not in its group yet")
	}
	return nil
}

const welcome = `
The order system runs. Try, in another terminal:

  curl -X POST http://localhost:%[1]d/Order/create-order -d '{"OrderId": "test-order-101", "ItemsNum": 3}'
  curl -X PUT http://localhost:%[1]d/Order/update-order -d '{"orderId": "test-order-101", "status": "Shipped"}'
  curl 'http://localhost:%[2]d/order/order-details?orderId=test-order-101'
  curl 'http://localhost:%[2]d/order/getAllOrderIdsFromTopic?topicName=order-updated-topic'

How many seconds the Order service is behind, and all else that is known of the lag:

  curl http://localhost:%[3]d/metrics | grep kafka_consumergroup_topic_max_lag_seconds

Kafka clients reach its broker at %[4]s. Stop it with Ctrl-C; the orders stay in %[5]s, delete that folder to start anew.

`

func port(a net.Addr) int { return a.(*net.TCPAddr).Port }

// ready waits until a service says that it is ready; false when ctx ended before.
func ready(ctx context.Context, ops net.Addr) bool {
	url := fmt.Sprintf("http://localhost:%d/readyz", port(ops))
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return false
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return true
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return false
}

// lock keeps a second demo out of dir: the embedded broker does not guard its files by itself. The lock ends with the process.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("a demo runs in %s already; stop it, or set DATA_DIR to another folder: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
