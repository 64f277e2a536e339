package order

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/order/fold"
)

// topicConsumer brings the records of the order topics into the store. It is the broker.Handler of
// the service: one goroutine calls its methods.
type topicConsumer struct {
	store   *store
	waiters *waiters
	catchUp *catchUp
	metrics *metrics
	log     *slog.Logger
	// now is time.Now, or the clock of a test.
	now func() time.Time

	// next is the offset behind the last applied batch, by assigned partition. A batch is written
	// only where the store has the same offset.
	//
	// It is loaded at assignment and never again from the store. Else a member that slept through a
	// rebalance would read there what the new owner wrote, and go on as if it were its own.
	next map[broker.Partition]int64
}

// newTopicConsumer returns one without partitions.
func newTopicConsumer(s *store, w *waiters, c *catchUp, m *metrics, log *slog.Logger) *topicConsumer {
	return &topicConsumer{
		store: s, waiters: w, catchUp: c, metrics: m, log: log, now: time.Now,
		next: map[broker.Partition]int64{},
	}
}

// Assigned returns the offset at which to go on in each partition. It takes them from the store:
// what is committed to Kafka is only a hint for tools.
func (c *topicConsumer) Assigned(ctx context.Context, ps []broker.Partition) (map[broker.Partition]int64, error) {
	next, fresh, err := c.store.assign(ctx, ps)
	if err != nil {
		return nil, err
	}
	numbers := map[string][]int32{}
	for _, p := range fresh {
		numbers[p.Topic] = append(numbers[p.Topic], p.Number)
	}
	for topic, partitions := range numbers {
		c.metrics.recreated.Inc()
		c.log.Warn("the topic was recreated: it is read from its beginning, and orders that only the old one had stay",
			"topic", topic, "partitions", partitions)
	}
	maps.Copy(c.next, next)
	c.catchUp.offsetsMoved()
	return next, nil
}

// Revoked forgets the partitions. A batch of theirs that is under way is refused from now on.
func (c *topicConsumer) Revoked(ps []broker.Partition) {
	for _, p := range ps {
		delete(c.next, p)
	}
}

// Apply brings one batch into the store, whole or not at all. It may be called again with the same
// one.
func (c *topicConsumer) Apply(ctx context.Context, b broker.Batch) error {
	start := c.now()
	moves := make([]move, 0, len(b.Next))
	for p, to := range b.Next {
		from, assigned := c.next[p]
		if !assigned {
			return fmt.Errorf("%s/%d is not assigned: %w", p.Topic, p.Number, broker.ErrFenced)
		}
		if from != to {
			moves = append(moves, move{p, from, to})
		}
	}
	if len(b.Records) == 0 && len(moves) == 0 {
		return nil
	}
	result, err := c.store.apply(ctx, fold.Decode(b.Records), moves, start)
	if err != nil {
		c.metrics.applyFailures.Inc()
		return fmt.Errorf("apply %d records: %w", len(b.Records), err)
	}
	for _, m := range moves {
		c.next[m.partition] = m.to
	}
	c.waiters.wake(result.Winners)
	c.catchUp.offsetsMoved()
	c.metrics.applied(result, b.Records, start, c.now())
	if len(result.Rejected) > 0 {
		// One line for the batch, with its first record: a flood of bad records must not flood the
		// log.
		first := result.Rejected[0]
		c.log.Warn("records go to the dead-letter topic", "count", len(result.Rejected),
			"reason", first.Reason, "err", first.Message,
			"topic", first.Record.Topic, "partition", first.Record.Partition, "offset", first.Record.Offset)
	}
	return nil
}
