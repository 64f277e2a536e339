// Package process does what every main function of the services does: it makes a logger, reads the
// environment, handles signals, and chooses the exit code.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"ordersystem.dev/services/internal/env"
)

// Main calls run with a context that ends on SIGINT or SIGTERM, and returns the exit code of the
// process: 2 if run returned an *env.Error, 1 for any other error, and 0 without one, or if a signal
// ended what run waited for. A second signal ends the process at once.
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
		if ctx.Err() != nil && onlyCanceled(err) {
			log.Info("stopped by a signal", "meanwhile", err)
			return 0
		}
		log.Error("stopped by an error", "err", err)
		return 1
	}
	return 0
}

// onlyCanceled reports whether an error says that a context has ended, and nothing else.
func onlyCanceled(err error) bool {
	joined, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err)
	if !ok {
		return errors.Is(err, context.Canceled)
	}
	return !slices.ContainsFunc(joined.Unwrap(), func(part error) bool { return !onlyCanceled(part) })
}

// logger returns a logger to standard error at LOG_LEVEL. It writes text on a terminal and JSON
// elsewhere, unless LOG_FORMAT sets the format.
func logger(e *env.Env) *slog.Logger {
	var level slog.Level
	name := e.OneOf("LOG_LEVEL", "info", "debug", "warn", "error")
	// UnmarshalText knows all the names above.
	_ = level.UnmarshalText([]byte(name))
	options := &slog.HandlerOptions{Level: level}
	format := e.OneOf("LOG_FORMAT", "auto", "text", "json")
	info, err := os.Stderr.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	if format == "text" || format == "auto" && terminal {
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options))
}
