// Package outbox publishes messages that were written in the same transaction as the state they speak of (the transactional outbox
// pattern): what was committed is published, in order, at least once; what was rolled back never is.
package outbox

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/sqldb"
)

// Schema makes the table. A service has a copy of it among its migrations, held equal by a test: migrations are files that stay as
// they were applied.
//
//go:embed schema.sql
var Schema string

// Box is the outbox in one database.
type Box struct {
	db  *sqldb.DB
	log *slog.Logger

	rows  atomic.Int64 // in the table, with those that are acknowledged and not deleted yet
	acked acknowledged
	wake  chan struct{} // has a token when rows were committed since the relay last looked

	failures             *prometheus.CounterVec
	acks                 prometheus.Histogram
	descRows, descOldest *prometheus.Desc
}

// Open counts what an earlier run left and registers the metrics, their names starting with prefix.
func Open(ctx context.Context, db *sqldb.DB, log *slog.Logger, reg prometheus.Registerer, prefix string) (*Box, error) {
	b := &Box{
		db: db, log: log, wake: make(chan struct{}, 1),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "_delivery_failures_total",
			Help: "Times that Kafka refused a message, or the client did, by Kafka's or librdkafka's code. It is sent again, and what follows waits for it.",
		}, []string{"code"}),
		acks: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "_produce_ack_seconds", Help: "Time in seconds from handing a message to the Kafka client until its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 24), NativeHistogramBucketFactor: 1.1,
		}),
	}
	var rows int64
	if err := db.Read.QueryRowContext(ctx, "SELECT count(*) FROM outbox").Scan(&rows); err != nil {
		return nil, fmt.Errorf("count the outbox: %w", err)
	}
	b.rows.Store(rows)
	b.descRows = prometheus.NewDesc(prefix+"_outbox_rows", "Messages accepted and not yet removed after their acknowledgement.", nil, nil)
	b.descOldest = prometheus.NewDesc(prefix+"_outbox_oldest_seconds",
		"Age in seconds of the oldest message that Kafka has not acknowledged, 0 when there is none; not shown when it cannot be read.", nil, nil)
	reg.MustRegister(b.failures, b.acks, b)
	return b, nil
}

// Describe is part of prometheus.Collector.
func (b *Box) Describe(ch chan<- *prometheus.Desc) {
	ch <- b.descRows
	ch <- b.descOldest
}

// Collect looks for the oldest row: one step in the table's own order, on a connection that no writer waits for.
func (b *Box) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(b.descRows, prometheus.GaugeValue, float64(b.rows.Load()))
	oldest, err := b.oldest()
	if err != nil {
		b.log.Warn("the age of the oldest outbox row is unknown", "err", err)
		return
	}
	ch <- prometheus.MustNewConstMetric(b.descOldest, prometheus.GaugeValue, oldest.Seconds())
}

// Rows is the number of messages in the outbox.
func (b *Box) Rows() int64 { return b.rows.Load() }

func (b *Box) oldest() (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second) // a scrape has none to pass on
	defer cancel()
	last, _ := b.acked.get()
	var at int64
	err := b.db.Read.QueryRowContext(ctx, "SELECT created_at FROM outbox WHERE id > ? ORDER BY id LIMIT 1", last).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return max(0, time.Since(time.UnixMilli(at))), err
}

// Add writes messages in the caller's transaction and wakes the relay once it is committed. It also
// deletes what was acknowledged meanwhile: under load the deletion costs no commit of its own.
func (b *Box) Add(tx *sqldb.Tx, at time.Time, ms []contract.Message) error {
	if err := b.deleteAcked(tx); err != nil {
		return err
	}
	const columns = 5
	args := make([]any, 0, columns*len(ms))
	for _, m := range ms {
		args = append(args, m.Topic, m.Key, m.Value, encodeHeaders(m.Headers), at.UnixMilli())
	}
	added := int64(len(ms))
	changed, err := tx.ExecRows("INSERT INTO outbox(topic, record_key, value, headers, created_at) VALUES ", columns, "", args)
	if err := sqldb.ExpectRows(added, changed, err); err != nil {
		return fmt.Errorf("insert into the outbox: %w", err)
	}
	tx.AfterCommit(func() {
		b.rows.Add(added)
		select {
		case b.wake <- struct{}{}:
		default: // it is awake
		}
	})
	return nil
}

// deleteAcked deletes the acknowledged rows in a transaction. A row among them that was never published,
// or one that is gone already, is an error: an event would be lost, or another process has the database.
func (b *Box) deleteAcked(tx *sqldb.Tx) error {
	last, want := b.acked.get()
	if want == 0 {
		return nil
	}
	deleted, err := tx.Exec("DELETE FROM outbox WHERE id <= ?", last)
	if err := sqldb.ExpectRows(want, deleted, err); err != nil {
		return fmt.Errorf("delete what was acknowledged from the outbox: %w", err)
	}
	tx.AfterCommit(func() {
		b.acked.deleted(deleted)
		b.rows.Add(-deleted)
	})
	return nil
}

// acknowledged is how far Kafka has acknowledged the outbox.
type acknowledged struct {
	mu   sync.Mutex
	last int64 // every row up to this ID is acknowledged
	rows int64 // how many of those rows are still in the table
}

func (a *acknowledged) get() (last, rows int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last, a.rows
}

// add moves the end to last, with n rows more before it.
func (a *acknowledged) add(last, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last, a.rows = last, a.rows+n
}

func (a *acknowledged) deleted(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rows -= n
}

// encodeHeaders writes keys and values with their lengths before them, a value's plus one, as 0 stands for no value: a dead letter
// carries the headers it came with to the byte.
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

// cut takes a length, less bias, and as many bytes; a length below the bias is no value.
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
