package process_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"syscall"
	"testing"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/process"
)

func TestExitCodes(t *testing.T) {
	t.Setenv("LIMIT", "none")
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
			if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		}, 0},
	} {
		if got := process.Main(c.run); got != c.want {
			t.Errorf("%s: exit code %d, want %d", name, got, c.want)
		}
	}
}
