// Command cart is the Cart service. It reads its configuration from the environment, logs to
// standard error, and stops on SIGINT or SIGTERM. docs/configuration.md lists the variables.
package main

import (
	"context"
	"log/slog"
	"os"

	"ordersystem.dev/services/cart"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/process"
)

func main() {
	os.Exit(process.Main(func(ctx context.Context, e *env.Env, log *slog.Logger) error {
		cfg := cart.ConfigFromEnv(e)
		if err := e.Err(); err != nil {
			return err
		}
		log = log.With("service", "cart")
		log.Info("starting", "config", cfg)
		return cart.Run(ctx, cfg, log, nil)
	}))
}
