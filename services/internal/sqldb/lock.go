package sqldb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockWait is how long TakeLock waits. It is a little longer than a service takes to stop.
const lockWait = 25 * time.Second

// ErrInUse reports that another process holds the lock.
var ErrInUse = errors.New("in use by another process")

// Lock keeps all other processes from what is at a path. It ends with the process.
type Lock struct{ file *os.File }

// TakeLock takes the lock for a path, which is on a file beside it. It waits for a predecessor, because
// Kubernetes starts the successor of a deleted pod while that one still finishes its requests. It returns
// ErrInUse if that one does not end within lockWait.
func TakeLock(ctx context.Context, path string, log *slog.Logger) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	l := &Lock{file}
	if err := l.take(ctx, path, log); err != nil {
		return nil, errors.Join(err, l.Release())
	}
	return l, nil
}

// take waits for the lock.
func (l *Lock) take(ctx context.Context, path string, log *slog.Logger) error {
	over := time.After(lockWait)
	for logged := false; ; logged = true {
		err := syscall.Flock(int(l.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", l.file.Name(), err)
		}
		if !logged {
			log.Warn("another process has the lock: waiting for its end", "path", path, "at_most", lockWait)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", l.file.Name(), context.Cause(ctx))
		case <-over:
			return fmt.Errorf("%w (it holds %s)", ErrInUse, l.file.Name())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Release gives the lock up.
func (l *Lock) Release() error {
	// Closing the file is not enough: a child process between its fork and its exec has it open too, and
	// so would keep the lock.
	return errors.Join(syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN), l.file.Close())
}
