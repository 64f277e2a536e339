package process_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"testing"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/process"
)

func TestExitCodes(t *testing.T) {
	t.Setenv("LIMIT", "none")
	signalled := func(ctx context.Context) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	for name, c := range map[string]struct {
		run  func(context.Context, *env.Env, *slog.Logger) error
		want int
	}{
		"an end":    {func(context.Context, *env.Env, *slog.Logger) error { return nil }, 0},
		"a failure": {func(context.Context, *env.Env, *slog.Logger) error { return errors.New("disk is gone") }, 1},
		"a wrong configuration": {func(_ context.Context, e *env.Env, _ *slog.Logger) error {
			e.Int("LIMIT", 1, 1, 9)
			return e.Err()
		}, 2},
		"a signal": {func(ctx context.Context, _ *env.Env, _ *slog.Logger) error {
			if err := signalled(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		}, 0},
		"a signal while it waits": {func(ctx context.Context, _ *env.Env, _ *slog.Logger) error {
			return fmt.Errorf("open the store: %w", signalled(ctx))
		}, 0},
		"a failure beside the end of a wait": {func(ctx context.Context, _ *env.Env, _ *slog.Logger) error {
			return errors.Join(fmt.Errorf("open the store: %w", signalled(ctx)), errors.New("disk is gone"))
		}, 1},
		"a failure after a signal": {func(ctx context.Context, _ *env.Env, _ *slog.Logger) error {
			_ = signalled(ctx)
			return errors.New("disk is gone")
		}, 1},
	} {
		if got := process.Main(c.run); got != c.want {
			t.Errorf("%s: exit code %d, want %d", name, got, c.want)
		}
	}
}
