package sqldb

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// failure is the first error after which a database must not be used any more. Make it with
// newFailure. It is safe for concurrent use.
type failure struct {
	mu sync.Mutex
	// reason is nil until then.
	reason error
	// known is closed once reason is set.
	known chan struct{}
}

func newFailure() *failure { return &failure{known: make(chan struct{})} }

// err returns the reason, or nil.
func (f *failure) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reason
}

// set keeps the first reason.
func (f *failure) set(reason error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reason == nil {
		f.reason = reason
		close(f.known)
	}
}

// Watch is part of engine. The process must end after an error: its next start recovers from the WAL.
//
// A disk that has failed an fsync may report success for the next one, and may have dropped the
// data in between. So an error of a write or an fsync cannot be waited out; the same holds for an
// error of a checkpoint, and for a file that turns out to be damaged.
func (db *sqlite) Watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-db.failed.known:
		return db.failed.err()
	}
}

// Err is part of engine. It returns what Watch would return now.
func (db *sqlite) Err() error { return db.failed.err() }

// noted returns err. If err means that the database must not be used any more, Watch returns from
// then on.
func (db *sqlite) noted(err error) error {
	if _, damaged := damage(err); damaged || brokenDisk(err) {
		db.failed.set(fmt.Errorf("%s must not be used any more, restart to recover what was committed: %w",
			db.path, err))
	}
	return err
}

// damage reports whether err says that the file is not a whole database, and returns SQLite's part
// of err.
func damage(err error) (sqlite3.Error, bool) {
	e, is := errors.AsType[sqlite3.Error](err)
	return e, is && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB)
}

// IsFull reports whether err says that the disk had no room. A database has written nothing then.
func IsFull(err error) bool {
	if code, is := errors.AsType[syscall.Errno](err); is {
		return noRoom(code)
	}
	e, is := errors.AsType[sqlite3.Error](err)
	return is && (e.Code == sqlite3.ErrFull || e.Code == sqlite3.ErrIoErr && noRoom(e.SystemErrno))
}

func noRoom(code syscall.Errno) bool { return code == syscall.ENOSPC || code == syscall.EDQUOT }

// brokenDisk reports whether err is a failed access to the disk. A full disk is none: nothing is
// written then, and it heals.
func brokenDisk(err error) bool {
	e, is := errors.AsType[sqlite3.Error](err)
	if !is || e.Code != sqlite3.ErrIoErr || noRoom(e.SystemErrno) {
		return false
	}
	switch e.ExtendedCode {
	case sqlite3.ErrIoErrNoMem, sqlite3.ErrIoErrSHMOpen, sqlite3.ErrIoErrSHMSize, sqlite3.ErrIoErrSHMMap:
		// The memory that connections share could not grow. It holds no data.
		return false
	default:
		return true
	}
}
