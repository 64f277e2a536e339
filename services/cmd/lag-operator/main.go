// Command lag-operator measures the lag of consumer groups. It shows the lag as metrics for
// Prometheus and in the status of ConsumerGroups in Kubernetes. It reads its configuration from a
// file that the environment names; see docs/lag.md.
package main

import (
	"context"
	"log/slog"
	"os"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/process"
	"ordersystem.dev/services/operator"
)

func main() {
	os.Exit(process.Main(func(ctx context.Context, e *env.Env, log *slog.Logger) error {
		cfg, err := operator.ConfigFromEnv(e)
		if err != nil {
			return err
		}
		log = log.With("service", "lag-operator")
		log.Info("starting", "config", cfg)
		kube, err := operator.Connect(log)
		if err != nil {
			return err
		}
		return operator.Run(ctx, cfg, log, kube, nil)
	}))
}
