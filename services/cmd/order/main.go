// Command order is the Order service. It reads its configuration from the environment, logs to
// standard error, and stops on SIGINT or SIGTERM. docs/configuration.md lists the variables.
package main

import (
	"context"
	"log/slog"
	"os"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/process"
	"ordersystem.dev/services/order"
)

func main() {
	os.Exit(process.Main(func(ctx context.Context, e *env.Env, log *slog.Logger) error {
		cfg := order.ConfigFromEnv(e)
		if err := e.Err(); err != nil {
			return err
		}
		log = log.With("service", "order")
		log.Info("starting", "config", cfg)
		return order.Run(ctx, cfg, log, nil)
	}))
}
