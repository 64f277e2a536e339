// Package outbox is a transactional outbox. Messages are written in the same transaction as the
// state that they describe. Committed messages are published in order, at least once. Messages of a
// transaction that was rolled back are never published.
package outbox

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

// Schema makes the table. A service has a copy of it among its migrations, because a migration
// stays as it was applied. A test of the service compares the two.
//
//go:embed schema.sql
var Schema string

// Box is the outbox in one database. It is safe for concurrent use, but Relay runs only once at a
// time.
type Box struct {
	db  *sqldb.DB
	log *slog.Logger

	// rows is the number of rows in the table, with those that are acknowledged and not deleted
	// yet. bytes is their size.
	rows  atomic.Int64
	bytes atomic.Int64
	acked acknowledged
	// committed has the pages that Kafka has committed and that are not known to be readable. Only the
	// relay uses it.
	committed []committedPage
	// completed is set once the transactions of earlier processes are completed.
	completed bool
	// published stores the offset after the last published message of each partition, in the
	// transaction that deletes the rows. The partitions lack the IDs of their topics.
	published func(tx *sqldb.Tx, next map[broker.Partition]int64) error
	// wake has a token if rows were committed since the relay last looked, and deletable if rows were
	// acknowledged since deleteUntil last looked.
	wake, deletable chan struct{}

	failures                        *prometheus.CounterVec
	acks                            prometheus.Histogram
	descRows, descBytes, descOldest *prometheus.Desc
}

// Open counts the rows that an earlier run has left, and registers the metrics. Their names start
// with prefix. If published is not nil, it stores where the messages are: it gets the offset after the
// last message of each partition that got one, in the transaction that deletes their rows. The
// partitions lack the IDs of their topics.
func Open(
	ctx context.Context, db *sqldb.DB, log *slog.Logger, reg prometheus.Registerer, prefix string,
	published func(tx *sqldb.Tx, next map[broker.Partition]int64) error,
) (*Box, error) {
	b := &Box{
		db: db, log: log, published: published, wake: make(chan struct{}, 1), deletable: make(chan struct{}, 1),
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
	}
	var rows, bytes int64
	err := db.Query(ctx, "SELECT "+totals+" FROM outbox", func(r *sql.Rows) error { return r.Scan(&rows, &bytes) })
	if err != nil {
		return nil, fmt.Errorf("count the outbox: %w", err)
	}
	b.rows.Store(rows)
	b.bytes.Store(bytes)
	b.descRows = prometheus.NewDesc(prefix+"_outbox_rows",
		"Messages accepted and not yet removed after their acknowledgement.", nil, nil)
	b.descBytes = prometheus.NewDesc(prefix+"_outbox_bytes",
		"Size in bytes of these messages, without what the database adds.", nil, nil)
	b.descOldest = prometheus.NewDesc(prefix+"_outbox_oldest_seconds",
		"Age in seconds of the oldest message that Kafka has not acknowledged, 0 when there is none; "+
			"not shown when it cannot be read.", nil, nil)
	reg.MustRegister(b.failures, b.acks, b)
	return b, nil
}

// Describe is part of prometheus.Collector.
func (b *Box) Describe(ch chan<- *prometheus.Desc) {
	ch <- b.descRows
	ch <- b.descBytes
	ch <- b.descOldest
}

// Collect is part of prometheus.Collector. It reads the oldest row, which is one step in the order
// of the table, on a read connection. The age is absent if it cannot be read: 0 would mean that no
// message waits.
func (b *Box) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(b.descRows, prometheus.GaugeValue, float64(b.rows.Load()))
	ch <- prometheus.MustNewConstMetric(b.descBytes, prometheus.GaugeValue, float64(b.bytes.Load()))
	oldest, err := b.oldest()
	if err != nil {
		b.log.Warn("the age of the oldest outbox row is unknown", "err", err)
		return
	}
	ch <- prometheus.MustNewConstMetric(b.descOldest, prometheus.GaugeValue, oldest.Seconds())
}

// Rows returns the number of messages in the outbox, with those that are acknowledged and not
// removed yet.
func (b *Box) Rows() int64 { return b.rows.Load() }

// Bytes returns the size of these messages.
func (b *Box) Bytes() int64 { return b.bytes.Load() }

// oldest returns the age of the first row that is not acknowledged, or 0 if there is none.
func (b *Box) oldest() (age time.Duration, err error) {
	// Prometheus passes no context to a collector.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	last, _, _ := b.acked.get()
	const query = "SELECT created_at FROM outbox WHERE id > ? ORDER BY id LIMIT 1"
	err = b.db.Query(ctx, query, func(r *sql.Rows) error {
		var at int64
		err := r.Scan(&at)
		age = max(0, time.Since(time.UnixMilli(at)))
		return err
	}, last)
	return age, err
}

// Add writes messages in the caller's transaction and wakes the relay once it is committed. It also
// deletes what was acknowledged meanwhile: under load the deletion costs no commit of its own. It is
// called at most once in a transaction.
func (b *Box) Add(tx *sqldb.Tx, at time.Time, ms []contract.Message) error {
	if err := b.deleteAcked(tx); err != nil {
		return err
	}
	const columns = 5
	args := make([]any, 0, columns*len(ms))
	added, size := int64(len(ms)), int64(0)
	for _, m := range ms {
		headers := encodeHeaders(m.Headers)
		args = append(args, m.Topic, m.Key, m.Value, headers, at.UnixMilli())
		size += int64(len(m.Key) + len(m.Value) + len(headers))
	}
	const insert = "INSERT INTO outbox(topic, record_key, value, headers, created_at) VALUES "
	changed, err := tx.ExecRows(insert, columns, "", args)
	if err := sqldb.ExpectRows(added, changed, err); err != nil {
		return fmt.Errorf("insert into the outbox: %w", err)
	}
	tx.AfterCommit(func() {
		b.rows.Add(added)
		b.bytes.Add(size)
		select {
		case b.wake <- struct{}{}:
		default:
			// The relay has a token already.
		}
	})
	return nil
}

// totals counts rows and their bytes. SQLite knows the length of a value without reading it.
const totals = `count(*),
	coalesce(sum(coalesce(length(record_key), 0) + coalesce(length(value), 0) + length(headers)), 0)`

// deleteAcked deletes acknowledged rows in a transaction, as many as a disk that is almost full has
// room for. It is an error if a row among them was never published: its event would be lost. Rows
// that are gone already are no error. A commit that reported an error has taken effect all the same,
// so the rows in the table are counted again.
func (b *Box) deleteAcked(tx *sqldb.Tx) error {
	last, acked, next := b.acked.get()
	if acked == 0 {
		return nil
	}
	most, err := tx.DeleteLimit()
	if err != nil {
		return err
	}
	want := min(acked, most)
	var stored map[broker.Partition]int64
	if b.published != nil && want == acked {
		stored = next
		if err := b.published(tx, stored); err != nil {
			return fmt.Errorf("store the published positions: %w", err)
		}
	}
	var to, size int64
	const first = "(SELECT * FROM outbox WHERE id <= ? ORDER BY id LIMIT ?)"
	err = tx.Query("SELECT coalesce(max(id), 0), "+totals+" FROM "+first,
		func(r *sql.Rows) error { return r.Scan(&to, new(int64), &size) }, last, most)
	if err != nil {
		return fmt.Errorf("measure what was acknowledged in the outbox: %w", err)
	}
	deleted, err := tx.Exec("DELETE FROM outbox WHERE id <= ?", to)
	if err == nil && deleted < want {
		return b.recount(tx, last, acked, deleted, stored)
	}
	if err := sqldb.ExpectRows(want, deleted, err); err != nil {
		return fmt.Errorf("delete what was acknowledged from the outbox: %w", err)
	}
	tx.AfterCommit(func() {
		b.acked.deleted(want, stored)
		b.rows.Add(-want)
		b.bytes.Add(-size)
	})
	return nil
}

// recount takes the number of rows from the table, after only deleted of the acked rows up to the ID
// last were there to delete. stored are the positions that the transaction stores.
func (b *Box) recount(
	tx *sqldb.Tx, last, acked, deleted int64, stored map[broker.Partition]int64,
) error {
	var rows, size, left int64
	err := tx.Query("SELECT "+totals+", count(*) FILTER (WHERE id <= ?) FROM outbox",
		func(r *sql.Rows) error { return r.Scan(&rows, &size, &left) }, last)
	if err != nil {
		return fmt.Errorf("count the outbox: %w", err)
	}
	if left > 0 {
		return fmt.Errorf("delete what was acknowledged from the outbox: %w",
			&sqldb.CountError{Changed: deleted, Want: acked})
	}
	tx.AfterCommit(func() {
		b.acked.deleted(acked, stored)
		b.rows.Store(rows)
		b.bytes.Store(size)
		b.log.Warn("acknowledged rows were gone already: a commit that failed has taken effect",
			"rows", acked-deleted)
	})
	return nil
}

// Row is a message that waits in the table.
type Row struct {
	ID int64
	contract.Message
}

// rowColumns are the columns that scanRow reads.
const rowColumns = "id, topic, record_key, value, headers"

// scanRow reads a row. size is its bytes, as totals counts them.
func scanRow(rows *sql.Rows) (r Row, size int, err error) {
	var headers []byte
	if err := rows.Scan(&r.ID, &r.Topic, &r.Key, &r.Value, &headers); err != nil {
		return r, 0, err
	}
	if r.Headers, err = decodeHeaders(headers); err != nil {
		return r, 0, fmt.Errorf("row %d: %w", r.ID, err)
	}
	return r, len(r.Key) + len(r.Value) + len(headers), nil
}

// Waiting returns the rows that have one of these record keys, in the order of their IDs. It reads the
// keys of the whole table, once.
func (b *Box) Waiting(tx *sqldb.Tx, keys map[string]bool) ([]Row, error) {
	if b.rows.Load() == 0 || len(keys) == 0 {
		return nil, nil
	}
	var ids []any
	err := tx.Query("SELECT id, record_key FROM outbox ORDER BY id", func(rows *sql.Rows) error {
		var id int64
		// Valid during the call only, and so without a copy.
		var key sql.RawBytes
		err := rows.Scan(&id, &key)
		if err == nil && keys[string(key)] {
			ids = append(ids, id)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the keys of the outbox: %w", err)
	}
	var waiting []Row
	err = tx.QueryIn("SELECT "+rowColumns+" FROM outbox WHERE id IN ", ids, " ORDER BY id",
		func(rows *sql.Rows) error {
			r, _, err := scanRow(rows)
			waiting = append(waiting, r)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return waiting, nil
}

// Last returns the ID of the newest row. In the transaction of an Add, this is its last message.
func (b *Box) Last(tx *sqldb.Tx) (id int64, err error) {
	err = tx.Query("SELECT coalesce(max(id), 0) FROM outbox", func(r *sql.Rows) error { return r.Scan(&id) })
	if err != nil {
		return 0, fmt.Errorf("read the outbox: %w", err)
	}
	return id, nil
}

// Published reports whether Kafka has all rows up to this ID.
func (b *Box) Published(ctx context.Context, id int64) (bool, error) {
	if last, _, _ := b.acked.get(); last >= id {
		return true, nil
	}
	// A row that was discarded is never acknowledged.
	var waits bool
	err := b.db.Query(ctx, "SELECT EXISTS (SELECT 1 FROM outbox WHERE id <= ?)",
		func(r *sql.Rows) error { return r.Scan(&waits) }, id)
	if err != nil {
		return false, fmt.Errorf("read the outbox: %w", err)
	}
	return !waits, nil
}

// Discard deletes rows that were published, as the topics show. None of them may be acknowledged.
func (b *Box) Discard(tx *sqldb.Tx, rows []Row) error {
	ids := make([]any, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	if len(ids) == 0 {
		return nil
	}
	var size int64
	err := tx.QueryIn("SELECT "+totals+" FROM outbox WHERE id IN ", ids, "", func(r *sql.Rows) error {
		var some int64
		err := r.Scan(new(int64), &some)
		size += some
		return err
	})
	if err != nil {
		return fmt.Errorf("measure what is published of the outbox: %w", err)
	}
	deleted, err := tx.ExecRows("DELETE FROM outbox WHERE id IN (VALUES ", 1, ")", ids)
	if err := sqldb.ExpectRows(int64(len(ids)), deleted, err); err != nil {
		return fmt.Errorf("delete what is published from the outbox: %w", err)
	}
	tx.AfterCommit(func() {
		b.rows.Add(-deleted)
		b.bytes.Add(-size)
	})
	return nil
}

// acknowledged is how far Kafka has acknowledged the outbox. Both numbers change together, so that
// a deletion can check that it deletes exactly the acknowledged rows.
type acknowledged struct {
	mu sync.Mutex
	// last is an ID: every row up to it is acknowledged.
	last int64
	// rows is how many of these rows are still in the table.
	rows int64
	// next has the offset after the last acknowledged message of each partition, as far as it is not
	// stored yet. A transaction stores only what has moved.
	next map[broker.Partition]int64
}

func (a *acknowledged) get() (last, rows int64, next map[broker.Partition]int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last, a.rows, maps.Clone(a.next)
}

// add acknowledges n more rows, up to the ID last.
func (a *acknowledged) add(last, n int64, next map[broker.Partition]int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last, a.rows = last, a.rows+n
	if a.next == nil {
		a.next = make(map[broker.Partition]int64)
	}
	for p, at := range next {
		a.next[p] = max(a.next[p], at)
	}
}

// deleted notes that n acknowledged rows were deleted, and that positions were stored.
func (a *acknowledged) deleted(n int64, stored map[broker.Partition]int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rows -= n
	for p, at := range stored {
		if a.next[p] == at {
			delete(a.next, p)
		}
	}
}

// encodeHeaders writes each key and value behind its length, as a varint. The length of a value is
// one too large, because 0 stands for no value: a dead letter has exactly the headers of its
// record.
func encodeHeaders(hs []contract.Header) []byte {
	b := make([]byte, 0, 48*len(hs))
	for _, h := range hs {
		b = binary.AppendUvarint(b, uint64(len(h.Key)))
		b = append(b, h.Key...)
		if h.Value == nil {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(h.Value))+1)
		b = append(b, h.Value...)
	}
	return b
}

var errHeaders = errors.New("the headers of an outbox row are damaged")

// decodeHeaders reads what encodeHeaders has written.
func decodeHeaders(b []byte) ([]contract.Header, error) {
	hs := make([]contract.Header, 0, 8)
	for len(b) > 0 {
		key, rest, err := cut(b, 0)
		if err != nil {
			return nil, err
		}
		value, rest, err := cut(rest, 1)
		if err != nil {
			return nil, err
		}
		hs, b = append(hs, contract.Header{Key: string(key), Value: value}), rest
	}
	return hs, nil
}

// cut returns the field at the start of b and the rest. The length before the field is larger than
// the field by bias. If it is below bias, there is no field: nil.
func cut(b []byte, bias uint64) (field, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		return nil, nil, errHeaders
	}
	b = b[size:]
	if n < bias {
		return nil, b, nil
	}
	if n -= bias; n > uint64(len(b)) {
		return nil, nil, errHeaders
	}
	return b[:n:n], b[n:], nil
}
