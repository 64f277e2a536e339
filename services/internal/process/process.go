// Package process is what every main function does: a logger, configuration from the environment, signals, and an exit code.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"ordersystem.dev/services/internal/env"
)

// Main runs a program until it ends, or until SIGINT or SIGTERM asks it to, and returns its exit code: 2 for a configuration that is
// wrong, 1 for a failure. A second signal ends the process at once.
func Main(run func(ctx context.Context, e *env.Env, log *slog.Logger) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	e := env.New(os.Getenv)
	log := logger(e)
	if err := run(ctx, e, log); err != nil {
		if _, wrong := errors.AsType[*env.Error](err); wrong {
			fmt.Fprintf(os.Stderr, "The configuration is wrong:\n%v\n", err)
			return 2
		}
		log.Error("stopped by an error", "err", err)
		return 1
	}
	return 0
}

// logger writes text for a person at a terminal and JSON for a machine, unless LOG_FORMAT says which.
func logger(e *env.Env) *slog.Logger {
	var level slog.Level
	name := e.OneOf("LOG_LEVEL", "info", "debug", "warn", "error")
	_ = level.UnmarshalText([]byte(name)) // one of the above, all of which it knows
	options := &slog.HandlerOptions{Level: level}
	format := e.OneOf("LOG_FORMAT", "auto", "text", "json")
	if info, err := os.Stderr.Stat(); format == "text" || (format == "auto" && err == nil && info.Mode()&os.ModeCharDevice != 0) {
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options))
}
