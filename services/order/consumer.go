package order

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// consumer brings what the order topics tell into the store. It is the broker.Handler of the service; one goroutine calls it.
type consumer struct {
	store   *store
	waiters *waiters
	view    *view
	metrics *metrics
	log     *slog.Logger
	now     func() time.Time

	// next is the end of the last batch applied, by partition, and what the store must say for the next one to be written. It is
	// loaded at assignment and never read from the store in between: a member that slept through a rebalance would read what the
	// new owner wrote there, and go on as if it were its own.
	next map[broker.Partition]int64
}

// Assigned says where to go on reading. The store's word counts, not what is committed to Kafka.
func (c *consumer) Assigned(ctx context.Context, ps []broker.Partition) (map[broker.Partition]int64, error) {
	next, anew, err := c.store.assign(ctx, ps)
	if err != nil {
		return nil, err
	}
	numbers := map[string][]int32{}
	for _, p := range anew {
		numbers[p.Topic] = append(numbers[p.Topic], p.Number)
	}
	for topic, ns := range numbers {
		c.metrics.recreated.Inc()
		c.log.Warn("the topic was deleted and made anew: it is read from its beginning, and orders that only the old one told stay",
			"topic", topic, "partitions", ns)
	}
	maps.Copy(c.next, next)
	c.view.moved()
	return next, nil
}

// Revoked forgets the partitions: a batch of theirs that is still under way is refused from now on.
func (c *consumer) Revoked(ps []broker.Partition) {
	for _, p := range ps {
		delete(c.next, p)
	}
}

// Apply brings one batch into the store, whole or not at all, and may be called again with the same one.
func (c *consumer) Apply(ctx context.Context, b broker.Batch) error {
	start := c.now()
	moves := make([]move, 0, len(b.Next))
	for p, to := range b.Next {
		from, mine := c.next[p]
		if !mine {
			return fmt.Errorf("%s/%d is not assigned: %w", p.Topic, p.Number, broker.ErrFenced)
		}
		if from != to {
			moves = append(moves, move{p, from, to})
		}
	}
	if len(b.Records) == 0 && len(moves) == 0 {
		return nil
	}
	out, err := c.store.apply(ctx, decode(b.Records), moves, start)
	if err != nil {
		c.metrics.applyFailures.Inc()
		return fmt.Errorf("apply %d records: %w", len(b.Records), err)
	}
	for _, m := range moves {
		c.next[m.partition] = m.to
	}
	c.waiters.wake(out.winners)
	c.view.moved()
	c.metrics.applied(out, b.Records, start, c.now())
	if len(out.letters) > 0 {
		first := out.letters[0]
		c.log.Warn("records go to the dead-letter topic", "count", len(out.letters), "reason", first.reason, "err", first.message,
			"topic", first.record.Topic, "partition", first.record.Partition, "offset", first.record.Offset)
	}
	return nil
}

// maxLetterBytes keeps a dead letter within its topic's 2 MiB: a compressed batch can hold a record far larger than a topic admits,
// and a letter that Kafka refuses would stop all those behind it.
const (
	maxLetterBytes = 2_000_000
	headerFraming  = 10 // bytes at most that a header takes beside its key and value
)

// deadLetters addresses records to the dead-letter topic: key, value and headers as they are, and where from and why besides.
func deadLetters(letters []letter, now time.Time) []contract.Message {
	ms := make([]contract.Message, len(letters))
	for i, l := range letters {
		m := contract.Message{Topic: contract.TopicDeadLetter, Key: l.record.Key, Value: l.record.Value, Headers: slices.Clone(l.record.Headers)}
		size := len(m.Key) + len(m.Value)
		for _, h := range m.Headers {
			size += len(h.Key) + len(h.Value) + headerFraming
		}
		if size > maxLetterBytes {
			m.Key, m.Value = m.Key[:min(len(m.Key), contract.MaxIDBytes)], m.Value[:min(len(m.Value), maxLetterBytes)]
			m.Headers = []contract.Header{{Key: "dlt-cut", Value: strconv.AppendInt(nil, int64(size), 10)}}
		}
		m.Headers = append(m.Headers,
			contract.Header{Key: "dlt-topic", Value: []byte(l.record.Topic)},
			contract.Header{Key: "dlt-partition", Value: strconv.AppendInt(nil, int64(l.record.Partition), 10)},
			contract.Header{Key: "dlt-offset", Value: strconv.AppendInt(nil, l.record.Offset, 10)},
			contract.Header{Key: "dlt-reason", Value: []byte(l.reason)},
			contract.Header{Key: "dlt-message", Value: []byte(l.message)},
			contract.Header{Key: "dlt-time", Value: []byte(now.UTC().Format(time.RFC3339Nano))},
		)
		ms[i] = m
	}
	return ms
}
