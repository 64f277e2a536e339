package cart

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	groupMost   = 256 // changes that share a transaction
	keyLifetime = 24 * time.Hour
	sweepEvery  = time.Minute
	probeEvery  = time.Second // while the store cannot be written
	sweepMost   = 1000        // expired keys deleted in one transaction, so that no request waits long
)

// store holds the orders and their outbox. One goroutine, run, decides and writes all changes: those that come while a commit is
// under way share the next one and its fsync (group commit), so fsyncs per order fall as load rises.
type store struct {
	db         *sqldb.DB
	box        *outbox.Box
	log        *slog.Logger
	maxBacklog int64
	now        func() time.Time

	queue   chan *pending
	stopped chan struct{} // run has ended
	group   prometheus.Histogram
	failure atomic.Pointer[error] // why the store cannot be written
	full    bool                  // the backlog was, at the last group; run's own

	mu       sync.Mutex
	inFlight map[string]struct{} // idempotency keys of requests under way
}

// pending is a change that waits for its group's commit.
type pending struct {
	change change
	answer answer
	err    error
	done   chan struct{}
}

func openStore(ctx context.Context, dir string, maxBacklog int, log *slog.Logger, reg prometheus.Registerer) (*store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	// FULL: an order that was answered 200 survives a power loss.
	db, err := sqldb.Open(ctx, filepath.Join(dir, "cart.db"), sqldb.Full, files, log)
	if err != nil {
		return nil, err
	}
	box, err := outbox.Open(ctx, db, log, reg, "cart")
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s := &store{
		db: db, box: box, log: log, maxBacklog: int64(maxBacklog), now: time.Now,
		queue: make(chan *pending, groupMost), stopped: make(chan struct{}), inFlight: map[string]struct{}{},
		group: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cart_commit_requests", Help: "Requests that shared one commit.", Buckets: prometheus.ExponentialBuckets(1, 2, 9),
		}),
	}
	reg.MustRegister(s.group)
	return s, nil
}

func (s *store) close() error { return s.db.Close() }

// submit hands a change to the next group and waits for its outcome. A change that was queued is carried out even when the client
// has gone by then; with an Idempotency-Key, it can ask again.
func (s *store) submit(ctx context.Context, c change) (answer, error) {
	if c.key != "" {
		if !s.take(c.key) {
			return answer{}, errKeyInFlight
		}
		defer s.release(c.key)
	}
	p := &pending{change: c, done: make(chan struct{})}
	select {
	case s.queue <- p:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	case <-s.stopped:
		return answer{}, fmt.Errorf("%w: the service is stopping", errUnavailable)
	}
	select {
	case <-p.done:
		return p.answer, p.err
	case <-s.stopped:
		select {
		case <-p.done: // it was in the last group
			return p.answer, p.err
		default:
			return answer{}, fmt.Errorf("%w: the service is stopping", errUnavailable)
		}
	}
}

func (s *store) take(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.inFlight[key]; taken {
		return false
	}
	s.inFlight[key] = struct{}{}
	return true
}

func (s *store) release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inFlight, key)
}

// run writes changes in groups until ctx ends; whoever submits must have stopped by then.
func (s *store) run(ctx context.Context) error {
	defer close(s.stopped)
	sweep := time.NewTimer(sweepEvery)
	defer sweep.Stop()
	probing := false // the sweep comes soon, to find out whether the store can be written again
	group := make([]*pending, 0, groupMost)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			sweep.Reset(s.sweep(ctx))
			probing = s.err() != nil
			continue
		case p := <-s.queue:
			group = append(group[:0], p)
		}
		for waiting := true; waiting && len(group) < groupMost; {
			select {
			case p := <-s.queue:
				group = append(group, p)
			default:
				waiting = false
			}
		}
		s.commit(ctx, group)
		for _, p := range group {
			close(p.done)
		}
		if s.err() != nil && !probing { // once: requests that keep coming must not put it off
			probing = true
			sweep.Reset(probeEvery)
		}
	}
}

// commit decides a group and writes it in one transaction.
func (s *store) commit(ctx context.Context, group []*pending) {
	s.group.Observe(float64(len(group)))
	err := s.db.Tx(context.WithoutCancel(ctx), func(tx *sqldb.Tx) error {
		l, err := s.read(tx, group)
		if err != nil {
			return err
		}
		for _, p := range group {
			p.answer, p.err = l.decide(p.change)
			if errors.Is(p.err, errUnavailable) {
				s.log.Error("a request failed for a fault of ours", "order_id", p.change.orderID, "err", p.err)
			}
		}
		if full := l.room <= 0; full != s.full {
			s.full = full
			s.log.Warn("the backlog to Kafka", "full", full, "rows", s.box.Rows(), "limit", s.maxBacklog)
		}
		return s.write(tx, l)
	})
	if err != nil {
		s.outcome(err)
		for _, p := range group {
			p.answer, p.err = answer{}, fmt.Errorf("%w: %w", errUnavailable, err)
		}
		return
	}
	// That it works again is for the sweep to report: on a disk that is almost full, every other batch
	// still fits.
}

// err is why the store cannot be written, nil when it can.
func (s *store) err() error {
	if failure := s.failure.Load(); failure != nil {
		return fmt.Errorf("the store cannot be written: %w", *failure)
	}
	return nil
}

// outcome keeps whether the store can be written, and logs when that changes: under load a full disk fails many groups.
func (s *store) outcome(err error) {
	before := s.failure.Load()
	switch {
	case err == nil && before != nil:
		s.failure.Store(nil)
		s.log.Info("the store can be written again")
	case err != nil:
		s.failure.Store(&err)
		if before == nil {
			s.log.Error("the store cannot be written; clients are told so, and nothing is lost that they were told is stored", "err", err)
		}
	}
}

// read loads what the group's decisions depend on.
func (s *store) read(tx *sqldb.Tx, group []*pending) (*ledger, error) {
	l := &ledger{
		now: s.now().UTC().Truncate(time.Millisecond), room: s.maxBacklog - s.box.Rows(),
		orders: make(map[string]answer, len(group)), answers: map[string]storedAnswer{},
		changed: make(map[string]bool, len(group)), newKeys: map[string]bool{},
	}
	ids := make([]any, 0, len(group))
	var keys []any
	for _, p := range group {
		ids = append(ids, p.change.orderID)
		if p.change.key != "" {
			keys = append(keys, p.change.key)
		}
	}
	err := tx.QueryIn("SELECT order_id, version, body FROM orders WHERE order_id IN ", ids, "", func(rows *sql.Rows) error {
		var id string
		var a answer
		err := rows.Scan(&id, &a.version, &a.body)
		l.orders[id] = a
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read orders: %w", err)
	}
	now := l.now.UnixMilli()
	err = tx.QueryIn("SELECT idempotency_key, fingerprint, version, body, expires_at FROM idempotency_keys WHERE idempotency_key IN ", keys, "", func(rows *sql.Rows) error {
		var key string
		var a storedAnswer
		var expires int64
		err := rows.Scan(&key, &a.fingerprint, &a.version, &a.body, &expires)
		if expires > now {
			l.answers[key] = a
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read idempotency keys: %w", err)
	}
	return l, nil
}

// write writes what the ledger holds.
func (s *store) write(tx *sqldb.Tx, l *ledger) error {
	if len(l.messages) == 0 {
		return nil
	}
	if err := writeOrders(tx, l.changed, l.orders); err != nil {
		return err
	}
	keys := make([]any, 0, 5*len(l.newKeys))
	for key := range l.newKeys {
		a := l.answers[key]
		keys = append(keys, key, a.fingerprint, a.version, a.body, l.now.Add(keyLifetime).UnixMilli())
	}
	if _, err := tx.ExecRows("INSERT INTO idempotency_keys(idempotency_key, fingerprint, version, body, expires_at) VALUES ", 5,
		` ON CONFLICT(idempotency_key) DO UPDATE SET fingerprint = excluded.fingerprint, version = excluded.version,
			body = excluded.body, expires_at = excluded.expires_at`, keys); err != nil {
		return fmt.Errorf("write idempotency keys: %w", err)
	}
	return s.box.Add(tx, l.now, l.messages)
}

// writeOrders inserts or replaces the named orders; a version never goes back.
func writeOrders[V any](tx *sqldb.Tx, names map[string]V, orders map[string]answer) error {
	args := make([]any, 0, 3*len(names))
	for id := range names {
		args = append(args, id, orders[id].version, orders[id].body)
	}
	if _, err := tx.ExecRows("INSERT INTO orders(order_id, version, body) VALUES ", 3,
		` ON CONFLICT(order_id) DO UPDATE SET version = excluded.version, body = excluded.body
			WHERE excluded.version > orders.version`, args); err != nil {
		return fmt.Errorf("write orders: %w", err)
	}
	return nil
}

// sweep deletes expired idempotency keys and says when to sweep again. It writes in any case, to find out whether the store can be.
func (s *store) sweep(ctx context.Context) time.Duration {
	var n int64
	err := s.db.Tx(context.WithoutCancel(ctx), func(tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(`DELETE FROM idempotency_keys WHERE idempotency_key IN
			(SELECT idempotency_key FROM idempotency_keys WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)`, s.now().UnixMilli(), sweepMost)
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE rebuilt SET at = at")
		return err
	})
	s.outcome(err)
	switch {
	case err != nil:
		return probeEvery
	case n == sweepMost:
		return 100 * time.Millisecond
	default:
		return sweepEvery
	}
}

// isRebuilt says whether the store holds what the topics held when it was made.
func (s *store) isRebuilt(ctx context.Context) (bool, error) {
	var n int
	if err := s.db.Read.QueryRowContext(ctx, "SELECT count(*) FROM rebuilt").Scan(&n); err != nil {
		return false, fmt.Errorf("read whether the store is rebuilt: %w", err)
	}
	return n > 0, nil
}

// restore writes orders as the topics have them.
func (s *store) restore(ctx context.Context, orders map[string]answer) error {
	return s.db.Tx(ctx, func(tx *sqldb.Tx) error { return writeOrders(tx, orders, orders) })
}

func (s *store) markRebuilt(ctx context.Context) error {
	return s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO rebuilt(at) VALUES (?)", s.now().UnixMilli())
		return err
	})
}
