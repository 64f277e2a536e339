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
	// pollBusy and pollIdle are the times between two looks for rows of other processes: while rows
	// came within busyFor, and later.
	pollBusy = 5 * time.Millisecond
	pollIdle = 50 * time.Millisecond
	busyFor  = time.Second
	// retryMin and retryMax are the first and the longest pause after a failure.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
	// stopTimeout is what the relay gets for the page in hand when it is told to stop.
	stopTimeout = 5 * time.Second
	// fencedAgain is the time within which a second loss of the transactional IDs, with the lease in
	// hand, is no accident.
	fencedAgain = time.Minute
)

// Target is where a relay publishes. Its names, and those in the outbox, are without the prefix of
// the installation.
type Target struct {
	Kafka broker.Config
	// TransactionalIDs are the IDs of the relay's two producers.
	TransactionalIDs [2]string
	// Topics are all topics that the outbox may have messages for.
	Topics []string
}

// relay publishes an outbox.
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
// A relay that loses an ID does not take it back by itself: it asks the lease. If another process has that,
// it waits for it.
type relay struct {
	*Box
	to Target
	// begin is called before a session publishes; nil: nothing is to be done.
	begin        func(ctx context.Context) error
	transactions *broker.Transactions
	// fenced is when an ID was lost last although the lease was not.
	fenced time.Time
}

// newRelay returns a relay. The caller closes its transactions.
func newRelay(b *Box, to Target, begin func(ctx context.Context) error) (*relay, error) {
	transactions, err := broker.NewTransactions(to.Kafka, to.Kafka.Names(to.Topics)...)
	if err != nil {
		return nil, err
	}
	return &relay{Box: b, to: to, begin: begin, transactions: transactions}, nil
}

// run publishes while this process holds the lease, until ctx ends.
func (r *relay) run(ctx context.Context) error {
	for ctx.Err() == nil {
		epoch, until, err := r.lease.take(ctx)
		if err != nil {
			// ctx has ended.
			return nil
		}
		if err := r.runTerm(ctx, epoch, until); err != nil {
			return err
		}
	}
	return nil
}

// runTerm publishes until ctx ends, or the lease is lost, or what is known of the outbox has turned out to
// be wrong.
func (r *relay) runTerm(ctx context.Context, epoch int64, until time.Time) error {
	held, release := r.lease.hold(ctx, epoch, until)
	defer release()
	t := newTerm(r.Box, epoch)
	t.over = held.Done()
	r.term.Store(t)
	defer r.term.Store(nil)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(held, stop)()
	retry := backoff.Backoff{Min: retryMin, Max: retryMax}
	for ctx.Err() == nil {
		before := t.lastAcked()
		err := r.session(ctx, held, t)
		switch {
		case held.Err() != nil || errors.Is(err, ErrLeaseLost):
			r.log.Warn("the lease of the outbox is lost: another replica publishes", "epoch", epoch, "err", err)
			return nil
		case err == nil:
			// ctx has ended, or the next producers have other TLS files.
			continue
		case errors.Is(err, broker.ErrProducerFenced):
			return r.isFenced(ctx, epoch, err)
		case ctx.Err() != nil:
			r.log.Info("the relay ends with unpublished rows; the next one publishes them", "err", err)
			return nil
		case errors.Is(err, errMoved), errors.Is(err, errOtherServer):
			r.log.Warn("the relay begins again with what the database has", "err", err)
			return nil
		case errors.Is(err, broker.ErrUnreadable):
			r.log.Warn("the relay takes its transactional IDs again, to complete its last transaction", "err", err)
			continue
		}
		r.failures.WithLabelValues(broker.Code(err)).Inc()
		if t.lastAcked() > before {
			retry.Reset()
		}
		wait := retry.Next()
		r.log.Warn("the relay to Kafka starts again at the first unacknowledged row", "pause", wait, "err", err)
		backoff.Sleep(ctx, wait)
	}
	return nil
}

// isFenced decides what follows from the loss of a transactional ID, which err reports. It returns nil if
// the lease is to be taken again.
func (r *relay) isFenced(ctx context.Context, epoch int64, err error) error {
	foreign := fmt.Errorf("another process publishes to the same topics from its own store; "+
		"stop one of the two: %w", err)
	if !r.db.Shared() {
		return foreign
	}
	now, failed := r.lease.holder(ctx)
	switch {
	case failed != nil || now.epoch != epoch:
		r.log.Warn("another replica has taken the transactional IDs; waiting for its lease",
			"epoch", epoch, "err", errors.Join(err, failed))
		return nil
	case time.Since(r.fenced) < fencedAgain:
		return foreign
	}
	// A former holder can take the IDs late: it was stalled between its lease and that.
	r.log.Warn("the transactional IDs were taken although this replica has the lease; taking them once more",
		"epoch", epoch, "err", err)
	r.fenced = time.Now()
	return nil
}

// session publishes with one pair of producers. It returns the first failure, or nil when ctx has ended or
// the producers have outdated TLS files. It publishes nothing after held has ended, and ctx ends with held.
func (r *relay) session(ctx, held context.Context, t *term) error {
	var pair [2]*broker.Producer
	ids := r.to.Kafka.Names(r.to.TransactionalIDs[:])
	for i, id := range ids {
		p, err := broker.NewProducer(r.to.Kafka, id, r.log)
		if err != nil {
			return err
		}
		defer p.Close()
		pair[i] = p
	}
	ctx, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() {
		select {
		case <-pair[0].Renewed():
			stop()
		case <-pair[1].Renewed():
			stop()
		case <-ctx.Done():
		}
	})
	defer beside.Wait()
	defer stop()
	// The page in hand gets some time after ctx has ended, but none after held has.
	work, cancel := context.WithCancel(held)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		backoff.Sleep(work, stopTimeout)
		cancel()
	})()

	// The first producer publishes the first page. So a relay that has lost the first ID publishes
	// nothing, even if two of them take the IDs at the same time.
	complete := !t.completed || len(t.committed) > 0
	for i, p := range pair {
		// Fence would wait in silence for a coordinator that is busy. Take returns why.
		if err := r.transactions.Take(work, ids[i]); err != nil {
			return err
		}
		if complete {
			if err := r.transactions.Complete(work); err != nil {
				// What was committed and cannot be read may be aborted now. So it is published again.
				t.committed, t.completed = nil, false
				return err
			}
			// Fence would wait in silence for the markers of that, too.
			if err := r.transactions.Take(work, ids[i]); err != nil {
				return err
			}
		}
		if err := p.Fence(work); err != nil {
			return err
		}
	}
	// Who takes the lease from now on takes the IDs after this relay. Who took it before has lost them to
	// this relay, which must not publish.
	if err := r.lease.begun(work, t.epoch); err != nil {
		return err
	}
	t.acknowledge(t.committed)
	t.committed, t.completed = nil, true
	// What earlier sessions have published is in the table no more, and their positions are.
	if err := t.deleteAll(work); err != nil {
		return err
	}
	if r.begin != nil {
		if err := r.begin(work); err != nil {
			return err
		}
	}
	if err := r.lease.agreed(work, t.epoch); err != nil {
		return err
	}
	if err := t.load(work); err != nil {
		return err
	}
	deleted := make(chan error, 1)
	beside.Go(func() {
		err := t.deleteUntil(ctx)
		stop()
		deleted <- err
	})
	err := r.publishPages(ctx, work, pair, t)
	stop()
	if err := errors.Join(err, <-deleted); err != nil {
		return err
	}
	return t.deleteAll(work)
}

// publishPages publishes one page after the other until ctx ends, or until the first failure. While one
// page is published, it waits until the page before it can be read, and reads the page behind it if
// there are rows enough to fill that.
func (r *relay) publishPages(ctx, work context.Context, pair [2]*broker.Producer, t *term) error {
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
		t.acknowledge(t.committed[:1])
		t.committed = t.committed[1:]
		return nil
	}
	last := t.lastAcked()
	// The first page has one row, and each has growth times as many as the one before it. So a row that
	// Kafka refuses holds up the rows behind it, and in the end none before it.
	limit := 1
	read := func() (page, error) { return r.nextPage(last, limit) }
	next := read
	var poll poll
	// One page more is published after ctx has ended.
	for turn, ended := 0, false; !ended; {
		ended = ctx.Err() != nil
		rows, err := next()
		if err == nil {
			err = t.sameServer()
		}
		if err != nil {
			return err
		}
		next = read
		if len(rows.messages) > 0 {
			poll.found()
			last, limit = rows.last, min(growth*limit, pageRows)
			if rows.full {
				next = ahead(&beside, read)
			}
			end, err := r.publish(work, pair[turn], rows)
			if err != nil {
				return err
			}
			t.committed = append(t.committed, committedPage{rows.last, int64(len(rows.messages)), end})
			turn = 1 - turn
			if waiting {
				if err := confirm(<-readable); err != nil {
					return err
				}
			}
			waiting = true
			beside.Go(func() { readable <- r.transactions.AwaitReadable(work, end) })
			continue
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-poll.next(r.db.Shared()):
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

// poll is when to look for rows of other processes, which wake nobody here.
type poll struct{ last time.Time }

// found notes that there were rows.
func (p *poll) found() { p.last = time.Now() }

// next returns a channel that gets a value when it is time, or nil if there are no other processes.
func (p *poll) next(shared bool) <-chan time.Time {
	switch {
	case !shared:
		return nil
	case time.Since(p.last) < busyFor:
		return time.After(pollBusy)
	default:
		return time.After(pollIdle)
	}
}

// page is what one transaction publishes.
type page struct {
	messages []contract.Message
	// last is the ID of the last row.
	last int64
	// full is set if the page has as much as it may have.
	full bool
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
func (r *relay) nextPage(last int64, limit int) (next page, err error) {
	size := 0
	// A page takes milliseconds, so it need not be cut off.
	err = r.db.Query(context.Background(), "SELECT "+rowColumns+" FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
		func(rows *sql.Rows) error {
			if size >= pageBytes {
				return sqldb.ErrStop
			}
			row, n, err := scanRow(rows)
			if err != nil {
				return err
			}
			row.Topic = r.to.Kafka.Name(row.Topic)
			next.messages, next.last = append(next.messages, row.Message), row.ID
			size += n
			return nil
		}, last, limit)
	if err != nil {
		return page{}, fmt.Errorf("read the outbox: %w", err)
	}
	next.full = len(next.messages) == limit || size >= pageBytes
	return next, nil
}

// publish publishes a page, and returns the offset after the last message of each partition. The page is
// acknowledged when it can be read.
func (r *relay) publish(
	ctx context.Context, p *broker.Producer, rows page,
) (next map[broker.Partition]int64, err error) {
	begin := time.Now()
	if next, err = p.Publish(ctx, rows.messages); err != nil {
		return nil, fmt.Errorf("publish %d rows up to %d: %w", len(rows.messages), rows.last, err)
	}
	seconds := time.Since(begin).Seconds()
	for range rows.messages {
		r.acks.Observe(seconds)
	}
	return next, nil
}
