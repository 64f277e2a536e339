package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/sqldb"
)

const (
	// batchMost is how many changes share a transaction at most.
	batchMost = 256
	// sweepEvery is the pause between two sweeps of expired idempotency keys.
	sweepEvery = time.Minute
	// sweepSoon is the pause when a sweep has left expired keys behind.
	sweepSoon = 100 * time.Millisecond
	// probeEvery is the pause between two sweeps while the store cannot be written.
	probeEvery = time.Second
)

// committer takes changes from many requests and hands them to the store in batches. Changes that
// come while a commit is under way share the next one and its fsync (group commit), so there are
// fewer fsyncs per order as load rises. So do those that come while another replica has the ledger locked.
type committer struct {
	store *store
	log   *slog.Logger
	// limit is what may wait for Kafka.
	limit room
	// now is the time of new events.
	now       func() time.Time
	batchSize prometheus.Histogram

	queue chan *pending
	// stopped is closed when run has ended.
	stopped chan struct{}
	// health has why the store cannot be written.
	health sqldb.Health
	// full is true if the backlog was full at the last batch. Only run uses it.
	full bool

	mu sync.Mutex
	// inFlight has the idempotency keys of requests under way.
	inFlight map[string]struct{}
}

// pending is a change that waits for the commit of its batch. result is set before done is closed.
type pending struct {
	change change
	result result
	done   chan struct{}
}

// newCommitter makes a committer and registers its metric. limit is how many events and bytes may
// wait for Kafka.
func newCommitter(s *store, limit room, log *slog.Logger, reg prometheus.Registerer) *committer {
	c := &committer{
		store: s, log: log, limit: limit, now: time.Now,
		batchSize: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "cart_commit_requests",
			Help:    "Requests that shared one commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 9),
		}),
		queue:    make(chan *pending, batchMost),
		stopped:  make(chan struct{}),
		inFlight: map[string]struct{}{},
	}
	reg.MustRegister(c.batchSize)
	return c
}

// submit hands a change to the next batch and waits for its result. It is safe for concurrent use.
//
// A change that is in the queue is carried out even if ctx ends. A client that wants to know the
// result asks again with the same Idempotency-Key.
func (c *committer) submit(ctx context.Context, requested change) (orderState, error) {
	if err := c.away(); err != nil {
		return orderState{}, err
	}
	if requested.key != "" {
		if !c.take(requested.key) {
			return orderState{}, errKeyInFlight
		}
		defer c.release(requested.key)
	}
	p := &pending{change: requested, done: make(chan struct{})}
	select {
	case c.queue <- p:
	case <-ctx.Done():
		return orderState{}, ctx.Err()
	case <-c.stopped:
		return orderState{}, errStopping
	}
	select {
	case <-p.done:
		return p.result.order, p.result.err
	case <-c.stopped:
	}
	// run has ended: a batch that it has committed is done by now, and any other is lost.
	select {
	case <-p.done:
		return p.result.order, p.result.err
	default:
		return orderState{}, errStopping
	}
}

// take reports whether no other request with this key is under way.
func (c *committer) take(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.inFlight[key]; taken {
		return false
	}
	c.inFlight[key] = struct{}{}
	return true
}

// release ends what take began.
func (c *committer) release(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.inFlight, key)
}

// run commits batches until ctx ends. No request may be under way by then: a change that is queued
// later is refused.
func (c *committer) run(ctx context.Context) error {
	defer close(c.stopped)
	sweep := time.NewTimer(sweepEvery)
	defer sweep.Stop()
	// probing is true if the next sweep comes after probeEvery.
	probing := false
	batch := make([]*pending, 0, batchMost)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			sweep.Reset(c.sweep(ctx))
			probing = c.err() != nil
			continue
		case p := <-c.queue:
			batch = c.collect(append(batch[:0], p))
		}
		batch = c.commit(ctx, batch)
		for _, p := range batch {
			close(p.done)
		}
		// Only at the first failure: requests that keep coming must not put the probe off.
		if c.err() != nil && !probing {
			probing = true
			sweep.Reset(probeEvery)
		}
	}
}

// collect adds the changes that are waiting now, until the batch is full.
func (c *committer) collect(batch []*pending) []*pending {
	for len(batch) < batchMost {
		select {
		case p := <-c.queue:
			batch = append(batch, p)
		default:
			return batch
		}
	}
	return batch
}

// commit has a batch decided and written, and sets the result of each change in it. It returns the batch with
// those that have joined it.
func (c *committer) commit(ctx context.Context, batch []*pending) []*pending {
	defer func() { c.batchSize.Observe(float64(len(batch))) }()
	// These may have waited for a batch that has failed.
	if err := c.away(); err != nil {
		refuse(batch, err)
		return batch
	}
	// To lock the database may have taken as long as a commit of another replica.
	take := func() ([]change, time.Time) {
		batch = c.collect(batch)
		changes := make([]change, len(batch))
		for i, p := range batch {
			changes[i] = p.change
		}
		return changes, c.now()
	}
	// The requests wait for the results even while the service stops.
	results, left, err := c.store.commit(context.WithoutCancel(ctx), take, c.limit)
	if err != nil {
		c.setHealth(err)
		refuse(batch, fmt.Errorf("%w: %w", errUnavailable, err))
		return batch
	}
	// A success does not make the store healthy. On a disk that is almost full every other batch
	// still fits, so only a sweep decides that.
	for i, p := range batch {
		p.result = results[i]
		if errors.Is(p.result.err, errNearlyFull) {
			c.setHealth(p.result.err)
		}
		if errors.Is(p.result.err, errUnavailable) {
			c.log.Error("a request failed because of a fault of the service",
				"order_id", p.change.orderID, "err", p.result.err)
		}
	}
	if full := left.full(); full != c.full {
		c.full = full
		c.log.Warn("the backlog to Kafka", "full", full, "rows", c.limit.events-left.events, "limit", c.limit.events,
			"bytes", c.limit.bytes-left.bytes, "limit_bytes", c.limit.bytes)
	}
	return batch
}

// refuse sets the result of each change in a batch.
func refuse(batch []*pending, err error) {
	for _, p := range batch {
		p.result = result{err: err}
	}
}

// away returns an error while the database does not respond. That takes seconds to find out, and the next
// sweep does: requests need not wait for it. Whatever else is wrong shows at once, and may be wrong with
// some requests only.
func (c *committer) away() error {
	failure := c.health.Err()
	if !errors.Is(failure, context.DeadlineExceeded) {
		return nil
	}
	// Only its text: whether another commit took effect says nothing about a request that was not tried.
	return fmt.Errorf("%w: %s", errUnavailable, failure.Error())
}

// sweep deletes expired idempotency keys and returns when to sweep again. As it always writes, it
// also finds out whether the store can be written.
func (c *committer) sweep(ctx context.Context) (next time.Duration) {
	more, err := c.store.deleteExpired(context.WithoutCancel(ctx))
	c.setHealth(err)
	switch {
	case more:
		return sweepSoon
	case err != nil:
		return probeEvery
	default:
		return sweepEvery
	}
}

// setHealth keeps whether the store can be written; err is nil if so. It logs only when that
// changes: under load a full disk fails many batches.
func (c *committer) setHealth(err error) {
	switch changed := c.health.Set(err); {
	case changed && err == nil:
		c.log.Info("the store can be written again")
	case changed:
		c.log.Error("the store cannot be written; requests are refused, and no acknowledged order is lost",
			"err", err)
	}
}

// err returns why the store cannot be written, or nil. It is safe for concurrent use.
func (c *committer) err() error {
	if failure := c.health.Err(); failure != nil {
		return fmt.Errorf("the store cannot be written: %w", failure)
	}
	return nil
}
