// Package outbox is a transactional outbox. Messages are written in the same transaction as the
// state that they describe. Committed messages are published in order, at least once. Messages of a
// transaction that was rolled back are never published.
//
// Any number of processes may add messages to one outbox, and one of them publishes it. What they
// have to agree about stands in the database.
package outbox

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

// Schema makes the table of the messages, and LedgerSchema the rows about it. A service has a copy of
// both among its migrations, because a migration stays as it was applied. A test of the service
// compares them.
//
//go:embed schema.sql
var Schema string

// LedgerSchema is described with Schema.
//
//go:embed ledger.sql
var LedgerSchema string

// ErrLeaseLost reports that this process does not hold the lease, or not any more: another replica
// publishes the outbox.
var ErrLeaseLost = errors.New("another replica publishes the outbox")

// Box is the outbox in one database. It is safe for concurrent use, but Relay runs only once at a
// time.
type Box struct {
	db    *sqldb.DB
	log   *slog.Logger
	lease *lease
	// term is nil while this process does not hold the lease.
	term atomic.Pointer[term]
	// published stores the offset after the last published message of each partition, in the
	// transaction that deletes the rows. The partitions lack the IDs of their topics.
	published func(tx *sqldb.Tx, next map[broker.Partition]int64) error
	// wake has a token if this process has committed rows since its relay last looked.
	wake chan struct{}

	failures                                  *prometheus.CounterVec
	acks                                      prometheus.Histogram
	descRows, descBytes, descOldest, descHeld *prometheus.Desc
}

// Open makes the rows about the outbox if they are missing, and registers the metrics. Their names
// start with prefix. If published is not nil, it stores where the messages are: it gets the offset
// after the last message of each partition that got one, in the transaction that deletes their rows.
// The partitions lack the IDs of their topics.
func Open(
	ctx context.Context, db *sqldb.DB, log *slog.Logger, reg prometheus.Registerer, prefix string,
	published func(tx *sqldb.Tx, next map[broker.Partition]int64) error,
) (*Box, error) {
	b := &Box{
		db: db, log: log, lease: newLease(db, log), published: published, wake: make(chan struct{}, 1),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "_delivery_failures_total",
			Help: "Times that Kafka refused a message, or the client did, by Kafka's or librdkafka's code. " +
				"It is sent again, and what follows waits for it.",
		}, []string{"code"}),
		acks: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    prefix + "_produce_ack_seconds",
			Help:    "Time in seconds from handing a message to the Kafka client until its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 24), NativeHistogramBucketFactor: 1.1,
		}),
		descRows: prometheus.NewDesc(prefix+"_outbox_rows",
			"Messages accepted and not yet removed after their acknowledgement, by all replicas; "+
				"not shown when that cannot be read.", nil, nil),
		descBytes: prometheus.NewDesc(prefix+"_outbox_bytes",
			"Size in bytes of these messages, without what the database adds.", nil, nil),
		descOldest: prometheus.NewDesc(prefix+"_outbox_oldest_seconds",
			"Age in seconds of the oldest of these messages, 0 when there is none; "+
				"not shown when it cannot be read.", nil, nil),
		descHeld: prometheus.NewDesc(prefix+"_outbox_lease_held",
			"1 if this process publishes the outbox, 0 if it does not: one replica does.", nil, nil),
	}
	if err := db.Tx(ctx, b.prepare); err != nil {
		return nil, fmt.Errorf("prepare the outbox: %w", err)
	}
	reg.MustRegister(b.failures, b.acks, b)
	return b, nil
}

// prepare makes the rows of the ledger and of the relay. In a database of one process it also brings
// them in line with the table: the release before, which does not know them, may have run since.
func (b *Box) prepare(tx *sqldb.Tx) error {
	for _, insert := range []string{
		"INSERT INTO ledger(key, head, head_bytes) VALUES (0, 0, 0) ON CONFLICT DO NOTHING",
		`INSERT INTO relay(key, owner, epoch, expires_at, begun, agreed, done, done_bytes)
			VALUES (0, '', 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING`,
	} {
		if _, err := tx.Exec(insert); err != nil {
			return err
		}
	}
	if b.db.Shared() {
		return nil
	}
	var first, last, bytes int64
	err := tx.Query("SELECT coalesce(min(id), 0), coalesce(max(id), 0), "+size+" FROM outbox",
		func(r *sql.Rows) error { return r.Scan(&first, &last, &bytes) })
	if err != nil {
		return err
	}
	l, err := b.Lock(tx)
	if err != nil {
		return err
	}
	head, done := max(l.Head, last), max(l.Head, last)
	if last > 0 {
		done = first - 1
	}
	if err := tx.Write("write how far the outbox is published", 1,
		"UPDATE relay SET done = ?, done_bytes = 0", done); err != nil {
		return err
	}
	return tx.Write("write the ledger of the outbox", 1, "UPDATE ledger SET head = ?, head_bytes = ?", head, bytes)
}

// Describe is part of prometheus.Collector.
func (b *Box) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{b.descRows, b.descBytes, b.descOldest, b.descHeld} {
		ch <- d
	}
}

// Collect is part of prometheus.Collector. It reads a few rows, and waits for no transaction. What
// cannot be read is absent: 0 would mean that no message waits.
func (b *Box) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	held := 0.0
	if b.Leads() {
		held = 1
	}
	gauge(b.descHeld, held)
	// Prometheus passes no context to a collector.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	rows, bytes, err := b.Backlog(ctx)
	if err != nil {
		b.log.Warn("the size of the outbox is unknown", "err", err)
		return
	}
	gauge(b.descRows, float64(rows))
	gauge(b.descBytes, float64(bytes))
	oldest, err := b.oldest(ctx)
	if err != nil {
		b.log.Warn("the age of the oldest outbox row is unknown", "err", err)
		return
	}
	gauge(b.descOldest, oldest.Seconds())
}

// backlog is the rest of a SELECT of how much is in the outbox, from the first row of the table: how much was
// ever added, and how much of that is gone.
const backlog = `head, head_bytes,
	(SELECT done FROM relay WHERE key = 0), (SELECT done_bytes FROM relay WHERE key = 0)
	FROM ledger WHERE key = 0`

// Backlog returns the number of messages in the outbox, with those that are acknowledged and not
// removed yet, and their size. A message that was found in the topics counts until those before it are
// gone.
func (b *Box) Backlog(ctx context.Context) (rows, bytes int64, err error) {
	err = b.db.Query(ctx, "SELECT "+backlog, func(r *sql.Rows) error {
		var done, doneBytes int64
		err := r.Scan(&rows, &bytes, &done, &doneBytes)
		rows, bytes = rows-done, bytes-doneBytes
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("read the ledger of the outbox: %w", err)
	}
	return rows, bytes, nil
}

// Head returns the ID of the newest message that was ever added, or 0 before the first one.
func (b *Box) Head(ctx context.Context) (head int64, err error) {
	err = b.db.Query(ctx, "SELECT head FROM ledger WHERE key = 0", func(r *sql.Rows) error { return r.Scan(&head) })
	if err != nil {
		return 0, fmt.Errorf("read the ledger of the outbox: %w", err)
	}
	return head, nil
}

// oldest returns the age of the first row, or 0 if there is none.
func (b *Box) oldest(ctx context.Context) (age time.Duration, err error) {
	const query = `SELECT created_at FROM outbox
		WHERE id > (SELECT done FROM relay WHERE key = 0) ORDER BY id LIMIT 1`
	err = b.db.Query(ctx, query, func(r *sql.Rows) error {
		// Unix time in milliseconds.
		var at int64
		err := r.Scan(&at)
		age = max(0, time.Since(time.UnixMilli(at)))
		return err
	})
	return age, err
}

// Published reports whether Kafka has all rows up to this ID.
func (b *Box) Published(ctx context.Context, id int64) (bool, error) {
	if t := b.term.Load(); t != nil && t.lastAcked() >= id && t.sameServer() == nil {
		return true, nil
	}
	var waits bool
	const query = `SELECT EXISTS (SELECT 1 FROM outbox
		WHERE id > (SELECT done FROM relay WHERE key = 0) AND id <= ?)`
	err := b.db.Query(ctx, query, func(r *sql.Rows) error { return r.Scan(&waits) }, id)
	if err != nil {
		return false, fmt.Errorf("read the outbox: %w", err)
	}
	return !waits, nil
}

// Lock locks the ledger until the transaction ends, and returns it. Each transaction that decides what
// to add calls it before it reads anything. So the transactions of all replicas come one after the
// other, and what one of them has read stays true.
func (b *Box) Lock(tx *sqldb.Tx) (*Ledger, error) {
	l := &Ledger{box: b, tx: tx}
	// With the time, as that would take another round trip.
	err := tx.Query("SELECT "+tx.Clock()+", "+backlog+tx.ForUpdate(), func(r *sql.Rows) error {
		var now, done, doneBytes int64
		err := r.Scan(&now, &l.Head, &l.headBytes, &done, &doneBytes)
		l.Rows, l.Bytes, l.Now = l.Head-done, l.headBytes-doneBytes, time.UnixMilli(now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lock the ledger of the outbox: %w", err)
	}
	return l, nil
}

// Leads reports whether this process holds the lease. A database of one process has none to wait for.
func (b *Box) Leads() bool {
	t := b.term.Load()
	return !b.db.Shared() || t != nil && t.holds()
}

// Guard returns ErrLeaseLost if this process does not hold the lease. Else no other process takes it
// before the transaction ends.
func (b *Box) Guard(tx *sqldb.Tx) error {
	if !b.db.Shared() {
		return nil
	}
	t := b.term.Load()
	if t == nil {
		return ErrLeaseLost
	}
	_, err := b.lease.guard(tx, t.epoch)
	return err
}

// Agreement reports how far the replica that holds the lease has come: whether Kafka has refused its
// predecessor, and whether the begin of its relay has succeeded. Both are false while no replica holds
// the lease.
func (b *Box) Agreement(ctx context.Context) (begun, agreed bool, err error) {
	return b.lease.agreement(ctx)
}

// Relay publishes the outbox in the order of its rows until ctx ends. Then it finishes the page in
// hand, which may take up to stopTimeout. Where several processes use the database, it does so while
// this one holds the lease, and waits for the lease at other times.
//
// Each time that it has taken the transactional IDs, it calls begin, unless that is nil, before it
// publishes. If begin fails, it publishes nothing and tries again.
//
// It returns broker.ErrProducerFenced if a process that does not share the database takes an ID: that
// one publishes the same orders from another store.
func (b *Box) Relay(ctx context.Context, to Target, begin func(ctx context.Context) error) error {
	r, err := newRelay(b, to, begin)
	if err != nil {
		return err
	}
	defer r.transactions.Close()
	return r.run(ctx)
}
