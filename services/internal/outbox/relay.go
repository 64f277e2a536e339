package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

const (
	// pageRows and pageBytes limit what one transaction publishes. Large pages make a backlog
	// drain fast. Without a backlog a page is what came while the previous one was committed.
	pageRows  = 10_000
	pageBytes = 8 << 20
	// growth is how many times as many rows a page may have as the one before it.
	growth = 4
	// cleanupAfter is when an acknowledged row is deleted at the latest, if all goes well.
	cleanupAfter = 50 * time.Millisecond
	// retryMin and retryMax are the first and the longest pause after a failure.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
	// stopTimeout is what the relay gets for the page in hand when it is told to stop.
	stopTimeout = 5 * time.Second
)

// Target is where a relay publishes.
type Target struct {
	Kafka broker.Config
	// TransactionalIDs are the IDs of the relay's two producers.
	TransactionalIDs [2]string
	// Topics are all topics that the outbox may have messages for.
	Topics []string
}

// Relay publishes the outbox in the order of its rows until ctx ends. Then it finishes the page in
// hand, which may take up to stopTimeout.
//
// It publishes page by page, each in one transaction. A relay that died, or whose request is still
// under way, can therefore not add an old version behind a newer one: Kafka refuses it as soon as this
// relay has taken both transactional IDs. After a failure the relay drops its producers and starts again
// at the first row that was not acknowledged. If Kafka had committed that page all the same, it is
// published twice, in order. Consumers recognise the repetition by the event IDs.
//
// Two producers, one with each ID, publish the pages in turn. For some milliseconds after a transaction
// Kafka refuses the next one of the same ID, and librdkafka then waits for 20 ms.
//
// A row is acknowledged when consumers can read its message. That Kafka has committed it is not enough:
// see broker.Transactions. A page that cannot be read for too long makes the relay take its IDs again,
// which completes the transaction.
//
// If another relay takes an ID, Relay returns broker.ErrProducerFenced. It does not take the ID back:
// another process publishes the same orders from another store.
//
// Each time that the relay has taken the IDs, it calls begin, unless that is nil, before it publishes. If
// begin fails, the relay publishes nothing and tries again.
func (b *Box) Relay(ctx context.Context, to Target, begin func(ctx context.Context) error) error {
	transactions, err := broker.NewTransactions(to.Kafka, to.Topics...)
	if err != nil {
		return err
	}
	defer transactions.Close()
	retry := backoff.Backoff{Min: retryMin, Max: retryMax}
	for ctx.Err() == nil {
		before, _, _ := b.acked.get()
		err := b.relaySession(ctx, to, transactions, begin)
		switch {
		case err == nil:
			// ctx has ended, or the next producers have other TLS files.
			continue
		case errors.Is(err, broker.ErrProducerFenced):
			return fmt.Errorf("another process publishes to the same topics from its own store; "+
				"stop one of the two: %w", err)
		case ctx.Err() != nil:
			b.log.Info("the relay ends with unpublished rows; the next start publishes them",
				"rows", b.rows.Load(), "err", err)
			return nil
		case errors.Is(err, broker.ErrUnreadable):
			b.log.Warn("the relay takes its transactional IDs again, to complete its last transaction", "err", err)
			continue
		}
		b.failures.WithLabelValues(broker.Code(err)).Inc()
		if now, _, _ := b.acked.get(); now > before {
			retry.Reset()
		}
		wait := retry.Next()
		b.log.Warn("the relay to Kafka starts again at the first unacknowledged row",
			"rows", b.rows.Load(), "pause", wait, "err", err)
		backoff.Sleep(ctx, wait)
	}
	return nil
}

// relaySession publishes with one pair of producers. It returns the first failure, or nil when ctx has
// ended or the producers have outdated TLS files.
func (b *Box) relaySession(
	ctx context.Context, to Target, transactions *broker.Transactions, begin func(ctx context.Context) error,
) error {
	var pair [2]*broker.Producer
	for i, id := range to.TransactionalIDs {
		p, err := broker.NewProducer(to.Kafka, id, b.log)
		if err != nil {
			return err
		}
		defer p.Close()
		pair[i] = p
	}
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-pair[0].Renewed():
			stop()
		case <-pair[1].Renewed():
			stop()
		case <-ctx.Done():
		}
	})
	defer watching.Wait()
	defer stop()
	// The page in hand gets some time after ctx has ended.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		backoff.Sleep(work, stopTimeout)
		cancel()
	})()

	// The first producer publishes the first page. So a relay that has lost the first ID publishes
	// nothing, even if two of them take the IDs at the same time.
	complete := !b.completed || len(b.committed) > 0
	for i, p := range pair {
		if complete {
			if err := transactions.Complete(work, to.TransactionalIDs[i]); err != nil {
				return err
			}
		}
		if err := p.Fence(work); err != nil {
			return err
		}
	}
	b.acknowledge(b.committed)
	b.committed, b.completed = nil, true
	// What earlier sessions have published is in the table no more, and their positions are.
	if err := b.deleteIdle(ctx); err != nil {
		return err
	}
	if begin != nil {
		if err := begin(work); err != nil {
			return err
		}
	}
	var deleting sync.WaitGroup
	deleting.Go(func() { b.deleteUntil(ctx) })
	err := b.publishPages(ctx, work, pair, transactions)
	stop()
	if deleting.Wait(); err != nil {
		return err
	}
	return b.deleteIdle(ctx)
}

// publishPages publishes one page after the other until ctx ends, or until the first failure. While one
// page is published, it waits until the page before it can be read, and reads the page behind it if
// there are rows enough to fill that.
func (b *Box) publishPages(
	ctx, work context.Context, pair [2]*broker.Producer, transactions *broker.Transactions,
) error {
	// readable gets the result when the last page can be read. waiting is set until then.
	readable, waiting := make(chan error, 1), false
	var beside sync.WaitGroup
	defer beside.Wait()
	work, stop := context.WithCancel(work)
	defer stop()
	confirm := func(err error) error {
		if waiting = false; err != nil {
			return err
		}
		b.acknowledge(b.committed[:1])
		b.committed = b.committed[1:]
		return nil
	}
	last, _, _ := b.acked.get()
	// The first page has one row, and each has growth times as many as the one before it. So a row that
	// Kafka refuses holds up the rows behind it, and in the end none before it.
	limit := 1
	read := func() (page, error) { return b.nextPage(last, limit) }
	next := read
	// One page more is published after ctx has ended.
	for turn, ended := 0, false; !ended; {
		ended = ctx.Err() != nil
		rows, err := next()
		if err != nil {
			return err
		}
		next = read
		if len(rows.messages) > 0 {
			last, limit = rows.last, min(growth*limit, pageRows)
			if rows.full {
				next = ahead(&beside, read)
			}
			end, err := b.publish(work, pair[turn], rows)
			if err != nil {
				return err
			}
			turn = 1 - turn
			if waiting {
				if err := confirm(<-readable); err != nil {
					return err
				}
			}
			waiting = true
			beside.Go(func() { readable <- transactions.AwaitReadable(work, end) })
			continue
		}
		select {
		case <-ctx.Done():
		case <-b.wake:
		case err := <-readable:
			if err := confirm(err); err != nil {
				return err
			}
		}
	}
	if waiting {
		return confirm(<-readable)
	}
	return nil
}

// page is what one transaction publishes.
type page struct {
	messages []contract.Message
	// last is the ID of the last row.
	last int64
	// full is set if the page has as much as it may have.
	full bool
}

// committedPage is a page that Kafka has committed, without its messages.
type committedPage struct {
	// last is the ID of the last row, and rows is how many there are.
	last, rows int64
	// next has the offset after the last message of each partition.
	next map[broker.Partition]int64
}

// ahead calls read at once, and returns a function that waits for its result.
func ahead(wg *sync.WaitGroup, read func() (page, error)) func() (page, error) {
	var rows page
	var err error
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		rows, err = read()
	})
	return func() (page, error) {
		<-done
		return rows, err
	}
}

// nextPage reads the first rows behind the ID last, up to limit rows and pageBytes.
func (b *Box) nextPage(last int64, limit int) (page, error) {
	var next page
	size := 0
	// A page takes milliseconds, so it need not be cut off.
	err := b.db.Query(context.Background(),
		"SELECT "+rowColumns+" FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
		func(rows *sql.Rows) error {
			if size >= pageBytes {
				return sqldb.ErrStop
			}
			r, n, err := scanRow(rows)
			next.messages, next.last = append(next.messages, r.Message), r.ID
			size += n
			return err
		}, last, limit)
	if err != nil {
		return page{}, fmt.Errorf("read the outbox: %w", err)
	}
	next.full = len(next.messages) == limit || size >= pageBytes
	return next, nil
}

// publish publishes a page, and returns the offset after the last message of each partition. The page is
// acknowledged when it can be read.
func (b *Box) publish(
	ctx context.Context, p *broker.Producer, rows page,
) (next map[broker.Partition]int64, err error) {
	begin := time.Now()
	if next, err = p.Publish(ctx, rows.messages); err != nil {
		return nil, fmt.Errorf("publish %d rows up to %d: %w", len(rows.messages), rows.last, err)
	}
	seconds := time.Since(begin).Seconds()
	for range rows.messages {
		b.acks.Observe(seconds)
	}
	b.committed = append(b.committed, committedPage{rows.last, int64(len(rows.messages)), next})
	return next, nil
}

// acknowledge acknowledges the rows of pages, and lets deleteUntil delete them.
func (b *Box) acknowledge(pages []committedPage) {
	for _, p := range pages {
		b.acked.add(p.last, p.rows, p.next)
	}
	select {
	case b.deletable <- struct{}{}:
	default:
		// It has a token already.
	}
}

// deleteUntil deletes acknowledged rows until ctx ends. So the deletion of a backlog does not wait for
// the end of its publication.
func (b *Box) deleteUntil(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.deletable:
		}
		for pause := cleanupAfter; backoff.Sleep(ctx, pause); pause = retryMax {
			err := b.deleteIdle(ctx)
			if err == nil {
				break
			}
			b.log.Warn("acknowledged rows stay in the outbox for now", "rows", b.rows.Load(), "err", err)
		}
	}
}

// deleteIdle deletes acknowledged rows when no caller's transaction has done so. It does so even if
// ctx has ended.
func (b *Box) deleteIdle(ctx context.Context) error {
	for {
		if _, rows, _ := b.acked.get(); rows == 0 {
			return nil
		}
		if err := b.db.Tx(context.WithoutCancel(ctx), b.deleteAcked); err != nil {
			return err
		}
	}
}
