// Command lag-collector measures the lag of consumer groups and shows it as metrics for Prometheus.
// It needs no Kubernetes. It reads the same configuration file as the lag operator; see docs/lag.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/process"
	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/lag/config"
)

func main() { os.Exit(process.Main(run)) }

// run polls the clusters and serves what it reads of them until ctx ends.
func run(ctx context.Context, e *env.Env, log *slog.Logger) error {
	cfg, err := config.ForCollector(e)
	if err != nil {
		return err
	}
	log = log.With("service", "lag-collector")
	log.Info("starting", "config", cfg)
	if keys := cfg.OfOperator(); keys != nil {
		log.Warn("some keys of the file have no effect here: they are for the lag operator", "keys", keys)
	}
	ops, err := web.Listen(cfg.OpsAddr)
	if err != nil {
		return err
	}
	defer ops.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)

	clusters := make([]*lag.Collector, len(cfg.Clusters))
	for i, c := range cfg.Clusters {
		if clusters[i], err = lag.New(c.Config, log); err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		registry.MustRegister(clusters[i])
	}
	ready := func() error {
		var errs []error
		for i, c := range clusters {
			errs = append(errs, readable(cfg.Clusters[i].Name, c))
		}
		return errors.Join(errs...)
	}
	endpoints := web.Ops{Ready: ready, Registry: registry}

	log.Info("listening", "ops", ops.Addr().String())
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range clusters {
		g.Go(func() error { return c.Run(ctx) })
	}
	g.Go(func() error { return web.ServeOps(ctx, log, ops, endpoints.Handler()) })
	err = g.Wait()
	log.Info("stopped")
	return err
}

// readable returns why the lag in a cluster is not known. It returns nil if the last poll succeeded.
func readable(name string, c *lag.Collector) error {
	if err := c.Err(); err != nil {
		return err
	}
	if c.Snapshot() == nil {
		return fmt.Errorf("cluster %s has not been read yet", name)
	}
	return nil
}
