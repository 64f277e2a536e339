package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
)

const (
	// readRows is how many rows are read from the table at a time.
	readRows = 1000
	// inFlight is how many rows are handed to the client and not acknowledged, at most.
	inFlight = 10_000
	// cleanupAfter is when an acknowledged row is deleted at the latest, if all goes well.
	cleanupAfter = 50 * time.Millisecond
	// retryMin and retryMax are the first and the longest pause after a failure.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
	// flushTime is what a producer gets for its rows in flight when it is given up in order.
	flushTime = 5 * time.Second
)

// Relay publishes the outbox in the order of its rows until ctx ends. Then it waits up to flushTime
// for the rows in flight; so it does when the TLS files have changed.
//
// After a failed delivery the row is not sent again on its own: a later version of the same order
// could have overtaken it. The relay drops the producer, which ends everything in flight, and
// starts again at the first row that was not acknowledged. Rows behind it that had arrived are
// published twice, in order. Consumers recognise them by their event ID.
//
// There is one relay per outbox: two would break the order.
func (b *Box) Relay(ctx context.Context, cfg broker.Config) error {
	retry := backoff.Backoff{Min: retryMin, Max: retryMax}
	for ctx.Err() == nil {
		before, _ := b.acked.get()
		err := b.relaySession(ctx, cfg)
		if err == nil {
			// ctx has ended, or the next producer has other TLS files.
			continue
		}
		if now, _ := b.acked.get(); now > before {
			retry.Reset()
		}
		wait := retry.Next()
		b.log.Warn("the relay to Kafka starts over at the first unacknowledged row",
			"rows", b.rows.Load(), "pause", wait, "err", err)
		backoff.Sleep(ctx, wait)
	}
	return nil
}

// relaySession publishes with one producer. It returns the first failure, or nil when ctx has ended
// or the producer has outdated TLS files.
func (b *Box) relaySession(ctx context.Context, cfg broker.Config) (err error) {
	w := &window{box: b, progress: make(chan struct{}, 1)}
	p, err := broker.NewProducer(cfg, b.log, w.delivered)
	if err != nil {
		return err
	}
	defer p.Close()
	defer func() {
		if err == nil || ctx.Err() != nil {
			err = errors.Join(err, b.flush(ctx, p, w))
		}
	}()

	var cleanup <-chan time.Time
	// last is the ID of the last row handed to the producer.
	last, _ := b.acked.get()
	// more is true if rows may be waiting in the table.
	more := true
	for {
		if more && w.room() {
			sent, full, err := b.sendFrom(ctx, p, w, last)
			if err != nil {
				return err
			}
			if sent > 0 {
				last = sent
			}
			if more = full; more && sent > 0 {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.Renewed():
			return nil
		case <-b.wake:
			more = true
		case <-w.progress:
			if err := w.failure(); err != nil {
				return err
			}
			if cleanup == nil {
				cleanup = time.After(cleanupAfter)
			}
		case <-cleanup:
			cleanup = nil
			if err := b.deleteIdle(ctx); err != nil {
				// Publishing need not stop for it.
				b.log.Warn("acknowledged rows stay in the outbox for now", "rows", b.rows.Load(), "err", err)
				cleanup = time.After(retryMax)
			}
		}
	}
}

// sendFrom hands the next rows after ID last to the producer. It returns the last ID that the
// producer took, 0 if there was none, and whether there may be more rows.
func (b *Box) sendFrom(ctx context.Context, p *broker.Producer, w *window, last int64) (
	sent int64, more bool, err error,
) {
	// A page takes milliseconds, so it need not be cut off. If the context can end, go-sqlite3
	// starts a goroutine for each row.
	rows, err := b.db.Read.QueryContext(context.WithoutCancel(ctx),
		"SELECT id, topic, record_key, value, headers FROM outbox WHERE id > ? ORDER BY id LIMIT ?", last, readRows)
	if err != nil {
		return 0, true, fmt.Errorf("read the outbox: %w", err)
	}
	defer rows.Close()
	now := time.Now()
	n := 0
	for ; rows.Next(); n++ {
		var id int64
		var m contract.Message
		var headers []byte
		if err := rows.Scan(&id, &m.Topic, &m.Key, &m.Value, &headers); err != nil {
			return sent, true, fmt.Errorf("read the outbox: %w", err)
		}
		if m.Headers, err = decodeHeaders(headers); err != nil {
			return sent, true, fmt.Errorf("row %d: %w", id, err)
		}
		tag := w.add(id, now)
		if err := p.Produce(m, tag); err != nil {
			w.takeBack()
			if errors.Is(err, broker.ErrQueueFull) {
				// An acknowledgement makes room, and the session comes back then.
				return sent, true, nil
			}
			// After a failed delivery this is a consequence, and the cause is counted already.
			if w.failure() == nil {
				b.failures.WithLabelValues(broker.Code(err)).Inc()
			}
			return sent, true, fmt.Errorf("produce row %d to %s: %w", id, m.Topic, err)
		}
		sent = id
	}
	if err := rows.Err(); err != nil {
		return sent, true, fmt.Errorf("read the outbox: %w", err)
	}
	return sent, n == readRows, nil
}

// flush waits for the rows in flight, and deletes those that were acknowledged in time, so that
// they are not sent again.
func (b *Box) flush(ctx context.Context, p *broker.Producer, w *window) error {
	final, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if err := p.Flush(final); err != nil {
		w.abandon()
		b.log.Info("a producer ends with unacknowledged rows; the next one sends them again",
			"rows", b.rows.Load(), "err", err)
	}
	return b.deleteIdle(ctx)
}

// deleteIdle deletes acknowledged rows when no caller's transaction has done so. It does so even if
// ctx has ended.
func (b *Box) deleteIdle(ctx context.Context) error {
	if _, rows := b.acked.get(); rows == 0 {
		return nil
	}
	return b.db.Tx(context.WithoutCancel(ctx), b.deleteAcked)
}

// window holds the rows that were handed to one producer and are not acknowledged, in order. The
// tag of a row is its position in the sequence of all rows of the producer. A window is safe for
// concurrent use.
type window struct {
	box *Box
	// progress has a token if there was an acknowledgement or a failure.
	progress chan struct{}

	mu sync.Mutex
	// base is the tag of rows[0].
	base int64
	rows []sentRow
	// first is the first failure of a delivery.
	first error
	// abandoned is set when the producer is closed in order. The rows that it gives up have not
	// failed.
	abandoned bool
}

// sentRow is a row of the table, as the window knows it.
type sentRow struct {
	id    int64
	at    time.Time
	acked bool
}

// add appends a row and returns its tag.
func (w *window) add(id int64, at time.Time) (tag int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows = append(w.rows, sentRow{id: id, at: at})
	return w.base + int64(len(w.rows)) - 1
}

// takeBack removes the row that was added last, because the producer did not take it.
func (w *window) takeBack() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows = w.rows[:len(w.rows)-1]
}

// room reports whether the producer may get more rows.
func (w *window) room() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.rows) < inFlight
}

// failure returns the first failure of a delivery, or nil.
func (w *window) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}

// abandon makes later failures not count.
func (w *window) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned = true
}

// delivered takes the result of one row. It runs on the producer's goroutine. Rows are acknowledged
// in order per partition only, so the outbox is acknowledged up to the first gap.
func (w *window) delivered(tag int64, err error) {
	w.mu.Lock()
	if err != nil {
		// The rows after the first failure only fail because the producer is dropped.
		if w.first == nil && !w.abandoned {
			w.box.failures.WithLabelValues(broker.Code(err)).Inc()
			w.first = fmt.Errorf("deliver row %d: %w", w.rows[tag-w.base].id, err)
		}
	} else {
		row := &w.rows[tag-w.base]
		row.acked = true
		w.box.acks.Observe(time.Since(row.at).Seconds())
		n := 0
		for n < len(w.rows) && w.rows[n].acked {
			n++
		}
		if n > 0 {
			w.box.acked.add(w.rows[n-1].id, int64(n))
			w.rows, w.base = w.rows[n:], w.base+int64(n)
		}
	}
	w.mu.Unlock()
	select {
	case w.progress <- struct{}{}:
	default:
	}
}
