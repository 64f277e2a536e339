package order

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/order/audit"
	"ordersystem.dev/services/order/fold"
)

// topicConsumer brings the records of the order topics into the store. It is the broker.Handler of
// the service: its methods are called one after the other.
type topicConsumer struct {
	store   *store
	waiters *waiters
	catchUp *catchUp
	metrics *metrics
	log     *slog.Logger
	// now is time.Now, or the clock of a test.
	now func() time.Time

	// kafka knows the logs of the topics.
	kafka logs
	// makeRoom is called when the volume is nearly full.
	makeRoom func()

	// read is where the last applied batch ended, by assigned partition. A batch is written only
	// where the store has the same offset.
	//
	// It is loaded at assignment and never again from the store. Else a member that slept through a
	// rebalance would read there what the new owner wrote, and go on as if it were its own.
	read map[broker.Partition]broker.Progress
}

// logs are the functions of a broker.Admin that know the logs of the topics.
type logs struct {
	bounds   audit.BoundsFunc
	replaced func(context.Context, map[broker.Partition]broker.Progress) ([]broker.Partition, error)
}

// newTopicConsumer returns one without partitions.
func newTopicConsumer(
	s *store, w *waiters, c *catchUp, m *metrics, log *slog.Logger, kafka logs, makeRoom func(),
) *topicConsumer {
	return &topicConsumer{
		store: s, waiters: w, catchUp: c, metrics: m, log: log, now: time.Now, kafka: kafka,
		makeRoom: makeRoom,
		read:     map[broker.Partition]broker.Progress{},
	}
}

// Assigned returns the offset at which to go on in each partition. It takes them from the store:
// what is committed to Kafka is only a hint for tools. A partition whose log is not the one that was
// read begins again at its start. Records that were deleted before they were read are passed, loudly.
func (c *topicConsumer) Assigned(ctx context.Context, ps []broker.Partition) (map[broker.Partition]int64, error) {
	read, fresh, err := c.store.assign(ctx, ps)
	// It is counted at once: if a next step fails, the next assignment does not see it any more.
	numbers := map[string][]int32{}
	for _, p := range fresh {
		numbers[p.Topic] = append(numbers[p.Topic], p.Number)
	}
	for topic, partitions := range numbers {
		c.metrics.recreated.Inc()
		c.log.Warn("the topic was recreated: it is read from its beginning, and orders that only the old one had stay",
			"topic", topic, "partitions", partitions)
	}
	if err != nil {
		return nil, err
	}
	replaced, err := c.kafka.replaced(ctx, read)
	if err != nil {
		return nil, fmt.Errorf("compare the offsets with the logs: %w", err)
	}
	first, _, err := c.kafka.bounds(ctx, c.store.topics...)
	if err != nil {
		return nil, fmt.Errorf("look up where the logs begin: %w", err)
	}
	if err := c.correct(ctx, read, replaced, first); err != nil {
		return nil, err
	}
	maps.Copy(c.read, read)
	c.catchUp.offsetsMoved()
	next := make(map[broker.Partition]int64, len(read))
	for p, r := range read {
		next[p] = r.Next
	}
	return next, nil
}

// correct takes partitions to offsets that their logs have, in the store and in read: the replaced
// ones to the start, and those whose next record was deleted to the first one that is left.
func (c *topicConsumer) correct(
	ctx context.Context, read map[broker.Partition]broker.Progress, replaced []broker.Partition,
	first map[broker.Partition]int64,
) error {
	var moves []move
	for p, from := range read {
		to := from
		if slices.Contains(replaced, p) {
			to = broker.Progress{Last: -1}
		}
		if to.Next = max(to.Next, first[p]); to.Next != from.Next {
			moves = append(moves, move{partition: p, from: from.Next, to: to})
		}
	}
	err := c.store.restart(ctx, moves)
	if err != nil && !errors.Is(err, sqldb.ErrUnknownCommit) {
		return fmt.Errorf("correct the offsets of %d partitions: %w", len(moves), err)
	}
	// A commit that is not known counts: if it has taken effect, the next assignment finds nothing to
	// correct. A loss that is counted twice is better than one that nobody hears of.
	for _, m := range moves {
		if slices.Contains(replaced, m.partition) {
			c.lost(m.partition, m.from)
			m.from = 0
		}
		c.deleted(m.partition, m.from, first[m.partition])
		read[m.partition] = m.to
	}
	if err != nil {
		return fmt.Errorf("correct the offsets of %d partitions: %w", len(moves), err)
	}
	return nil
}

// deleted logs and counts the records of a partition that were deleted before they were read.
func (c *topicConsumer) deleted(p broker.Partition, next, first int64) {
	if first <= next {
		return
	}
	c.metrics.deleted.Add(float64(first - next))
	c.log.Error("records were deleted from Kafka before they were read: their orders are missing here",
		"topic", p.Topic, "partition", p.Number, "offset", next, "first", first,
		"next", "docs/runbooks/OrderRecordsDeleted.md")
}

// lost logs and counts that Kafka lost the records of a partition before next.
func (c *topicConsumer) lost(p broker.Partition, next int64) {
	c.metrics.replaced.Inc()
	c.log.Error("Kafka has lost records: the log of a partition is not the one that was read, and is read again "+
		"from its start",
		"topic", p.Topic, "partition", p.Number, "offset", next, "next", "docs/runbooks/OrderLogReplaced.md")
}

// Revoked forgets the partitions. A batch of theirs that is under way is refused from now on.
func (c *topicConsumer) Revoked(ps []broker.Partition) {
	for _, p := range ps {
		delete(c.read, p)
	}
}

// Apply brings one batch into the store, whole or not at all. It may be called again with the same
// one.
func (c *topicConsumer) Apply(ctx context.Context, b broker.Batch) error {
	start := c.now()
	moves := make([]move, 0, len(b.Next))
	for p, to := range b.Next {
		from, assigned := c.read[p]
		if !assigned {
			return fmt.Errorf("%s/%d is not assigned: %w", p.Topic, p.Number, broker.ErrFenced)
		}
		if from.Next != to {
			moves = append(moves, move{p, from.Next, broker.Progress{Next: to, Last: from.Last, Newest: from.Newest}})
		}
	}
	follow(moves, b.Records)
	if len(b.Records) == 0 && len(moves) == 0 {
		return nil
	}
	result, err := c.store.apply(ctx, fold.Decode(b.Records), moves, start)
	if err != nil {
		c.metrics.applyFailures.Inc()
		if errors.Is(err, errNearlyFull) {
			c.makeRoom()
		}
		return fmt.Errorf("apply %d records: %w", len(b.Records), err)
	}
	for _, m := range moves {
		c.read[m.partition] = m.to
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

// follow brings the ends of the moves forward over the records of their batch.
func follow(moves []move, records []broker.Record) {
	type place struct {
		topic  string
		number int32
	}
	ends := make(map[place]*broker.Progress, len(moves))
	for i := range moves {
		m := &moves[i]
		ends[place{m.partition.Topic, m.partition.Number}] = &m.to
	}
	for i := range records {
		r := &records[i]
		if to := ends[place{r.Topic, r.Partition}]; to != nil {
			to.Pass(r)
		}
	}
}
