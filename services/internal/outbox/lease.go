package outbox

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/sqldb"
)

const (
	// leaseTime is how long a lease is valid without a renewal. A replica that is gone holds up what
	// is published by this.
	leaseTime = 3 * time.Second
	// renewEvery is the time between two renewals.
	renewEvery = time.Second
	// contendEvery is the time between two looks at the lease of another process.
	contendEvery = 250 * time.Millisecond
	// releaseTimeout is what the release of a lease may take. Without one it expires.
	releaseTimeout = time.Second
)

// lease decides which of several processes publishes the outbox. Its times are those of the database's
// clock. It keeps the processes from fighting; that a process which has lost it publishes nothing more is
// decided by Kafka. A database of one process has no lease: it is always held.
type lease struct {
	db  *sqldb.DB
	log *slog.Logger
	// owner names this process.
	owner string
	// valid is for how long the lease is valid without a renewal.
	valid time.Duration
}

func newLease(db *sqldb.DB, log *slog.Logger) *lease {
	return &lease{db: db, log: log, owner: rand.Text(), valid: leaseTime}
}

// holder is who holds the lease, as the database has it.
type holder struct {
	owner          string
	epoch, expires int64
}

// left returns for how long h holds the lease after now, which is by the database's clock. It is not positive if
// the lease is not held. One that lasts for longer than any lease is from before that clock went back, and nobody
// may wait for its end. A holder that is there renews it within a second.
func (l *lease) left(h holder, now time.Time) time.Duration {
	left := time.UnixMilli(h.expires).Sub(now)
	if h.owner == "" || left > l.valid {
		return 0
	}
	return left
}

// take waits until it has taken the lease. The lease is valid until a time of this process, unless it is
// renewed. The error is not nil if ctx ends before.
func (l *lease) take(ctx context.Context) (epoch int64, until time.Time, err error) {
	if !l.db.Shared() {
		return 0, time.Time{}, nil
	}
	var seen holder
	// free is when the lease that was seen expires, as far as is known.
	var free time.Time
	for failing, waiting := false, false; ; {
		now, err := l.holder(ctx)
		if err == nil && now != seen {
			// A lease that was never seen may have expired long ago. One that was is renewed just now.
			if free = time.Now(); seen.expires != 0 {
				free = free.Add(l.valid)
			}
			seen = now
		}
		if err == nil && (now.owner == "" || !time.Now().Before(free)) {
			var left time.Duration
			if epoch, until, left, err = l.tryTake(ctx); err == nil && left == 0 {
				l.log.Info("this replica publishes the outbox", "epoch", epoch)
				return epoch, until, nil
			}
			free = time.Now().Add(left)
		}
		switch {
		case err != nil && !failing:
			l.log.Warn("the lease of the outbox cannot be read; trying again", "err", err)
		case err == nil && !waiting:
			l.log.Info("another replica publishes the outbox; waiting for its lease", "epoch", now.epoch)
			waiting = true
		}
		failing = err != nil
		if !backoff.Sleep(ctx, contendEvery) {
			return 0, time.Time{}, context.Cause(ctx)
		}
	}
}

// holder reads who holds the lease.
func (l *lease) holder(ctx context.Context) (h holder, err error) {
	err = l.db.Query(ctx, "SELECT owner, epoch, expires_at FROM relay WHERE key = 0",
		func(r *sql.Rows) error { return r.Scan(&h.owner, &h.epoch, &h.expires) })
	return h, err
}

// tryTake takes the lease, unless another process holds it. left is how long it still does.
func (l *lease) tryTake(ctx context.Context) (epoch int64, until time.Time, left time.Duration, err error) {
	err = l.db.Tx(ctx, func(tx *sqldb.Tx) error {
		var h holder
		// It may wait for a holder that stalls in a transaction, so the clocks are read after it.
		if err := tx.Query("SELECT owner, epoch, expires_at FROM relay WHERE key = 0"+tx.ForUpdate(),
			func(r *sql.Rows) error { return r.Scan(&h.owner, &h.epoch, &h.expires) }); err != nil {
			return err
		}
		// The own clock first, so this process never holds the lease for longer than the database says.
		until = time.Now().Add(l.valid)
		now, err := tx.Now()
		if err != nil {
			return err
		}
		if left = l.left(h, now); left > 0 {
			return nil
		}
		epoch, left = h.epoch+1, 0
		return tx.Write("write the lease", 1,
			"UPDATE relay SET owner = ?, epoch = ?, expires_at = ? WHERE key = 0 AND epoch = ?",
			l.owner, epoch, now.Add(l.valid).UnixMilli(), h.epoch)
	})
	if err != nil {
		return 0, time.Time{}, 0, fmt.Errorf("take the lease: %w", err)
	}
	return epoch, until, left, nil
}

// hold renews the lease until release is called. held ends then, and with ErrLeaseLost as its cause as
// soon as the lease is over, by this process's clock, or another process has taken it. held has the
// values of ctx and does not end with it.
func (l *lease) hold(ctx context.Context, epoch int64, until time.Time) (held context.Context, release func()) {
	held, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	if !l.db.Shared() {
		return held, func() { lose(nil) }
	}
	over := time.AfterFunc(time.Until(until), func() { lose(ErrLeaseLost) })
	renewing, stop := context.WithCancel(held)
	var renewals sync.WaitGroup
	renewals.Go(func() {
		for backoff.Sleep(renewing, renewEvery) {
			renewed, until, err := l.renew(renewing, epoch)
			switch {
			case err != nil && renewing.Err() == nil:
				l.log.Warn("the lease of the outbox was not renewed; trying again", "err", err)
			case err == nil && !renewed:
				lose(ErrLeaseLost)
			case err == nil:
				over.Reset(time.Until(until))
			}
		}
	})
	return held, func() {
		over.Stop()
		stop()
		renewals.Wait()
		lose(nil)
		if err := l.release(ctx, epoch); err != nil {
			l.log.Warn("the lease of the outbox was not released; it expires", "err", err)
		}
	}
}

// renew reports whether this process still holds the lease, and until when.
func (l *lease) renew(ctx context.Context, epoch int64) (renewed bool, until time.Time, err error) {
	err = l.db.Tx(ctx, func(tx *sqldb.Tx) error {
		until = time.Now().Add(l.valid)
		now, err := tx.Now()
		if err != nil {
			return err
		}
		changed, err := tx.Exec("UPDATE relay SET expires_at = ? WHERE key = 0 AND epoch = ? AND owner = ?",
			now.Add(l.valid).UnixMilli(), epoch, l.owner)
		renewed = changed == 1
		return err
	})
	return renewed, until, err
}

// release lets another process take the lease at once. It does nothing if one has it already.
func (l *lease) release(ctx context.Context, epoch int64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return l.db.Tx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE relay SET owner = '' WHERE key = 0 AND epoch = ? AND owner = ?", epoch, l.owner)
		return err
	})
}

// guard returns ErrLeaseLost in a transaction if another process has taken the lease since epoch. Else it
// returns up to which ID no row is left, and no other process takes the lease before the transaction ends.
func (l *lease) guard(tx *sqldb.Tx, epoch int64) (done int64, err error) {
	now := int64(-1)
	err = tx.Query("SELECT epoch, done FROM relay WHERE key = 0"+tx.ForUpdate(),
		func(r *sql.Rows) error { return r.Scan(&now, &done) })
	if err != nil {
		return 0, fmt.Errorf("look up the lease: %w", err)
	}
	if now != epoch {
		return 0, ErrLeaseLost
	}
	return done, nil
}

// begun notes that Kafka refuses all who held the lease before epoch.
func (l *lease) begun(ctx context.Context, epoch int64) error {
	return l.note(ctx, epoch, "UPDATE relay SET begun = epoch WHERE key = 0")
}

// agreed notes that the store agrees with the topics.
func (l *lease) agreed(ctx context.Context, epoch int64) error {
	return l.note(ctx, epoch, "UPDATE relay SET agreed = epoch WHERE key = 0")
}

func (l *lease) note(ctx context.Context, epoch int64, update string) error {
	if !l.db.Shared() {
		return nil
	}
	return l.db.Tx(ctx, func(tx *sqldb.Tx) error {
		if _, err := l.guard(tx, epoch); err != nil {
			return err
		}
		return tx.Write("write the lease", 1, update)
	})
}

// agreement reports what the process that holds the lease now has noted.
func (l *lease) agreement(ctx context.Context) (begun, agreed bool, err error) {
	err = l.db.Tx(ctx, func(tx *sqldb.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		return tx.Query("SELECT owner, expires_at, begun = epoch, agreed = epoch FROM relay WHERE key = 0",
			func(r *sql.Rows) error {
				var h holder
				err := r.Scan(&h.owner, &h.expires, &begun, &agreed)
				held := l.left(h, now) > 0
				begun, agreed = begun && held, agreed && held
				return err
			})
	})
	return begun, agreed, err
}
