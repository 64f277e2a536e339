package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

// cleanupAfter is when an acknowledged row is deleted, if all goes well.
const cleanupAfter = 50 * time.Millisecond

// errMoved reports that rows were deleted of which this term knows nothing: a commit of its own, which
// reported an error, has taken effect.
var errMoved = errors.New("acknowledged rows were gone already: a commit that failed has taken effect")

// errOtherServer reports that the database is on another server. What the relay remembers may be gone
// there, and new rows may have the IDs of rows that were published.
var errOtherServer = errors.New("the database is on another server, or was started again")

// term is the time for which this process holds the lease. What a relay remembers belongs to it and ends
// with it: another process may have published and deleted rows since.
type term struct {
	db    *sqldb.DB
	log   *slog.Logger
	lease *lease
	epoch int64
	// serverChanges is that of db at the begin.
	serverChanges int64
	// over is closed when the lease is lost.
	over <-chan struct{}
	// published is that of the Box.
	published func(tx *sqldb.Tx, next map[broker.Partition]int64) error

	// deletable has a token if rows were acknowledged since deleteUntil last looked.
	deletable chan struct{}
	// committed has the pages that Kafka has committed and that are not known to be readable. Only the
	// relay uses it.
	committed []committedPage
	// completed is set once the transactions of earlier processes are completed.
	completed bool

	mu sync.Mutex
	// done is an ID: no row up to it is left.
	done int64
	// last is an ID: every row up to it is acknowledged, and rows is how many of them are left.
	last, rows int64
	// next has the offset after the last acknowledged message of each partition, as far as it is not
	// stored yet. A transaction stores only what has moved.
	next map[broker.Partition]int64
}

// committedPage is a page that Kafka has committed, without its messages.
type committedPage struct {
	// last is the ID of the last row, and rows is how many there are.
	last, rows int64
	// next has the offset after the last message of each partition.
	next map[broker.Partition]int64
}

func newTerm(b *Box, epoch int64) *term {
	return &term{
		db: b.db, log: b.log, lease: b.lease, epoch: epoch, serverChanges: b.db.ServerChanges(),
		published: b.published,
		deletable: make(chan struct{}, 1), next: make(map[broker.Partition]int64),
	}
}

// holds reports whether the lease is not lost. The relay may still be busy with what it cannot finish.
func (t *term) holds() bool {
	select {
	case <-t.over:
		return false
	default:
		return true
	}
}

// load reads where the relay begins. All that was acknowledged is deleted by then.
func (t *term) load(ctx context.Context) error {
	var done int64
	err := t.db.Query(ctx, "SELECT done FROM relay WHERE key = 0", func(r *sql.Rows) error { return r.Scan(&done) })
	if err != nil {
		return fmt.Errorf("read how far the outbox is published: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done, t.last = done, done
	return nil
}

// sameServer returns errOtherServer if what was just read may be from another server than what this term
// knows.
func (t *term) sameServer() error {
	if t.db.ServerChanges() != t.serverChanges {
		return errOtherServer
	}
	return nil
}

// lastAcked returns an ID: every row up to it is acknowledged.
func (t *term) lastAcked() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// acknowledge acknowledges the rows of pages, and lets deleteUntil delete them.
func (t *term) acknowledge(pages []committedPage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range pages {
		t.last, t.rows = p.last, t.rows+p.rows
		for at, next := range p.next {
			t.next[at] = max(t.next[at], next)
		}
	}
	select {
	case t.deletable <- struct{}{}:
	default:
		// It has a token already.
	}
}

// deleteUntil deletes acknowledged rows until ctx ends. So the deletion of a backlog does not wait for
// the end of its publication. It returns an error only if the term is over.
func (t *term) deleteUntil(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.deletable:
		}
		for pause := cleanupAfter; backoff.Sleep(ctx, pause); pause = retryMax {
			err := t.deleteAll(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			if errors.Is(err, ErrLeaseLost) || errors.Is(err, errMoved) || errors.Is(err, errOtherServer) {
				return err
			}
			t.log.Warn("acknowledged rows stay in the outbox for now", "err", err)
		}
	}
}

// deleteAll deletes all acknowledged rows, unless ctx ends before.
func (t *term) deleteAll(ctx context.Context) error {
	for {
		t.mu.Lock()
		rows := t.rows
		t.mu.Unlock()
		if rows == 0 {
			return nil
		}
		if err := t.db.Tx(ctx, t.delete); err != nil {
			return err
		}
	}
}

// delete deletes acknowledged rows in a transaction, as many as one may delete. It is an error if a
// row among them was never published: its event would be lost.
func (t *term) delete(tx *sqldb.Tx) error {
	t.mu.Lock()
	known, last, acked, next := t.done, t.last, t.rows, maps.Clone(t.next)
	t.mu.Unlock()
	done, err := t.lease.guard(tx, t.epoch)
	if err != nil {
		return err
	}
	if err := t.sameServer(); err != nil {
		return err
	}
	if done != known {
		return errMoved
	}
	most, err := tx.DeleteLimit()
	if err != nil {
		return err
	}
	to, want, stored := last, acked, next
	if acked > most {
		// The positions are those of all that is acknowledged.
		want, stored = most, nil
		err := tx.Query(`SELECT max(id) FROM
			(SELECT id FROM outbox WHERE id > ? AND id <= ? ORDER BY id LIMIT ?) AS deletable`,
			func(r *sql.Rows) error { return r.Scan(&to) }, done, last, most)
		if err != nil {
			return fmt.Errorf("read what was acknowledged in the outbox: %w", err)
		}
	}
	var bytes int64
	err = tx.Query("SELECT "+size+" FROM outbox WHERE id > ? AND id <= ?",
		func(r *sql.Rows) error { return r.Scan(&bytes) }, done, to)
	if err != nil {
		return fmt.Errorf("measure what was acknowledged in the outbox: %w", err)
	}
	if t.published != nil && len(stored) > 0 {
		if err := t.published(tx, stored); err != nil {
			return fmt.Errorf("store the published positions: %w", err)
		}
	}
	if err := tx.Write("delete what was acknowledged from the outbox", want,
		"DELETE FROM outbox WHERE id > ? AND id <= ?", done, to); err != nil {
		return err
	}
	if err := tx.Write("write how far the outbox is published", 1,
		"UPDATE relay SET done = ?, done_bytes = done_bytes + ? WHERE key = 0 AND epoch = ?",
		to, bytes, t.epoch); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.done, t.rows = to, t.rows-want
		for p, at := range stored {
			if t.next[p] == at {
				delete(t.next, p)
			}
		}
	})
	return nil
}
