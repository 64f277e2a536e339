package sqldb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"
)

// lockWait is how long Open waits for the lock. It is a little longer than a service takes to stop.
const lockWait = 25 * time.Second

// ErrInUse reports that another process holds the database.
var ErrInUse = errors.New("the database is in use by another process")

// takeLock takes the exclusive lock on file. It waits for a predecessor, because Kubernetes starts
// the successor of a deleted pod while that one still finishes its requests.
func takeLock(ctx context.Context, file *os.File, log *slog.Logger) error {
	over := time.After(lockWait)
	for logged := false; ; logged = true {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		if !logged {
			log.Warn("another process has the database: waiting for its end",
				"path", strings.TrimSuffix(file.Name(), ".lock"), "at_most", lockWait)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", file.Name(), context.Cause(ctx))
		case <-over:
			return fmt.Errorf("%w (it holds %s)", ErrInUse, file.Name())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
