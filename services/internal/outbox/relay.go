package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

const (
	readRows     = 1000                   // rows read from the table at a time
	inFlight     = 10_000                 // rows handed to the client and not acknowledged
	cleanupAfter = 50 * time.Millisecond  // after an acknowledgement, its row is deleted by then
	retryMin     = 100 * time.Millisecond // first pause after a failure, doubled up to retryMax
	retryMax     = 5 * time.Second
	flushTime    = 5 * time.Second // for what is in flight when a producer is given up in order
)

// Relay publishes the outbox in the order of its rows until ctx ends; then, and when the TLS files have changed, it waits a little for
// what is in flight.
//
// After a failed delivery nothing is sent again on its own: a later version of the same order could have overtaken it. The relay
// drops the producer, which ends everything in flight, and starts again at the lowest row that was not acknowledged. What had
// arrived all the same is published twice, in order; consumers tell it by its event ID.
//
// One relay per outbox: two would break the order.
func (b *Box) Relay(ctx context.Context, cfg broker.Config) error {
	pause := retryMin
	for ctx.Err() == nil {
		before := b.acked.Load()
		err := b.relaySession(ctx, cfg)
		if err == nil { // ctx has ended, or the next producer has other TLS files
			continue
		}
		if b.acked.Load() > before {
			pause = retryMin
		}
		b.log.Warn("the relay to Kafka starts over at the first unacknowledged row", "rows", b.rows.Load(), "pause", pause, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMax)
	}
	return nil
}

// relaySession publishes with one producer. It returns the first failure, or nil when ctx has ended or the producer is out of date.
func (b *Box) relaySession(ctx context.Context, cfg broker.Config) (err error) {
	w := &window{box: b, progress: make(chan struct{}, 1)}
	p, err := broker.NewProducer(cfg, b.log, w.delivered)
	if err != nil {
		return err
	}
	defer p.Close()
	defer func() {
		if err != nil && ctx.Err() == nil {
			return
		}
		final, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		if flushErr := p.Flush(final); flushErr != nil {
			w.abandon()
			b.log.Info("a producer ends with unacknowledged rows; the next one sends them again", "rows", b.rows.Load(), "err", flushErr)
		}
		err = errors.Join(err, b.deleteIdle(context.WithoutCancel(ctx))) // what was acknowledged in time is not sent again
	}()

	var cleanup <-chan time.Time
	last := b.acked.Load() // the last row handed to the producer
	more := true           // rows may be waiting in the table
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
				b.log.Warn("acknowledged rows stay in the outbox for now", "rows", b.rows.Load(), "err", err)
				cleanup = time.After(retryMax) // publishing need not stop for it
			}
		}
	}
}

// sendFrom hands the next rows after id last to the producer. It returns the last id that the producer took, 0 when there was none,
// and whether there may be more.
func (b *Box) sendFrom(ctx context.Context, p *broker.Producer, w *window, last int64) (sent int64, more bool, err error) {
	// A page takes milliseconds, so it need not be cut off; with a context that can end, go-sqlite3 starts a goroutine for each row.
	rows, err := b.db.Read.QueryContext(context.WithoutCancel(ctx), "SELECT id, topic, record_key, value, headers FROM outbox WHERE id > ? ORDER BY id LIMIT ?", last, readRows)
	if err != nil {
		return 0, true, ignoreEnd(ctx, fmt.Errorf("read the outbox: %w", err))
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
				return sent, true, nil // an acknowledgement makes room
			}
			if w.failure() == nil { // else it is counted
				b.failures.WithLabelValues(broker.Code(err)).Inc()
			}
			return sent, true, fmt.Errorf("produce row %d to %s: %w", id, m.Topic, err)
		}
		sent = id
	}
	return sent, n == readRows, ignoreEnd(ctx, rows.Err())
}

// ignoreEnd drops the error of a read that was cut off because the relay is to stop.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// deleteIdle deletes acknowledged rows when no caller's transaction has done so.
func (b *Box) deleteIdle(ctx context.Context) error {
	if b.rows.Load() == 0 {
		return nil
	}
	var deleted int64
	err := b.db.Tx(ctx, func(tx *sqldb.Tx) (err error) {
		deleted, err = b.deleteAcked(tx)
		return err
	})
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	b.rows.Add(-deleted)
	return nil
}

// window is what was handed to one producer and is not acknowledged, in order. A tag is the place of a row in the whole sequence.
type window struct {
	box      *Box
	progress chan struct{} // an acknowledgement or a failure came

	mu        sync.Mutex
	base      int64 // tag of rows[0]
	rows      []sentRow
	first     error
	abandoned bool // the producer is closed in order, and what it gives up has not failed
}

type sentRow struct {
	id    int64
	at    time.Time
	acked bool
}

func (w *window) add(id int64, at time.Time) (tag int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows = append(w.rows, sentRow{id: id, at: at})
	return w.base + int64(len(w.rows)) - 1
}

// takeBack removes the row added last, which the producer did not take.
func (w *window) takeBack() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows = w.rows[:len(w.rows)-1]
}

func (w *window) room() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.rows) < inFlight
}

func (w *window) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}

func (w *window) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned = true
}

// delivered runs on the producer's goroutine. Rows are acknowledged in order per partition only, so the end of the acknowledged
// ones is where the first gap is.
func (w *window) delivered(tag int64, err error) {
	w.mu.Lock()
	if err != nil {
		if w.first == nil && !w.abandoned { // the ones after it only fail because the producer is dropped
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
			w.box.acked.Store(w.rows[n-1].id)
			w.rows, w.base = w.rows[n:], w.base+int64(n)
		}
	}
	w.mu.Unlock()
	select {
	case w.progress <- struct{}{}:
	default:
	}
}
