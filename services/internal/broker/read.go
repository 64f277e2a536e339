package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"unsafe"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/contract"
)

// readBatch is how many records ReadTo hands over at most at once.
const readBatch = 1000

// ReadTo reads each partition in to from its offset in from (0 when it has none) up to, not including, its offset in to, and gives the
// records to apply in batches that are valid only during the call. It belongs to no group and commits nothing; librdkafka wants the
// name of one, and without Describe on it only grumbles. It ends where the partition ends when that comes first: compaction and
// transactions leave offsets that no record has, so it never waits for one. While Kafka is away it waits, until ctx ends, and goes on
// with new TLS files when there are any; a topic that is gone is an error.
func ReadTo(ctx context.Context, cfg Config, log *slog.Logger, group string, from, to map[Partition]int64, apply func(context.Context, []Record) error) error {
	r := &reader{open: make(map[place]*span)}
	for p, end := range to {
		if from[p] < end {
			r.open[place{p.Topic, p.Number}] = &span{topic: p.Topic, number: p.Number, next: from[p], end: end}
		}
	}
	if len(r.open) == 0 {
		return nil
	}
	r.settings = kafka.ConfigMap{
		"group.id":             group,
		"enable.auto.commit":   false,
		"enable.partition.eof": true,
		"isolation.level":      "read_committed",
		"auto.offset.reset":    "earliest", // the log's start has moved past from
		// The end of a partition shows when a fetch comes back empty, so an empty one must not wait long.
		"fetch.wait.max.ms":                 20,
		"fetch.queue.backoff.ms":            5,
		"queued.max.messages.kbytes":        32 << 10,
		"topic.metadata.propagation.max.ms": 5000,
		"log_level":                         0, // what matters comes as an event as well, and a log's goroutine makes Close slow
	}
	r.trouble = &trouble{log: log, brokers: cfg.BrokerList()}

	// One goroutine owns the client, so that the next batch is read while this one is applied.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.full, r.empty = make(chan []Record), make(chan []Record, 2)
	r.empty <- make([]Record, 0, readBatch)
	r.empty <- make([]Record, 0, readBatch)
	var failed error
	go func() {
		defer close(r.full)
		failed = errRenewed
		for errors.Is(failed, errRenewed) {
			failed = r.session(ctx, cfg)
		}
	}()
	var err error
	for batch := range r.full {
		if err == nil {
			if err = apply(ctx, batch); err != nil {
				cancel()
			}
		}
		r.empty <- batch[:0]
	}
	if err == nil && failed != nil {
		err = fmt.Errorf("read: %w", failed)
	}
	return err
}

type place struct {
	topic  string
	number int32
}

// span is what is left to read of one partition.
type span struct {
	topic     string
	number    int32
	next, end int64
}

type reader struct {
	settings    kafka.ConfigMap
	client      *kafka.Consumer
	renewed     <-chan struct{} // closed when the TLS files have changed
	trouble     *trouble
	open        map[place]*span // partitions that have not ended
	full, empty chan []Record
}

// session reads with one client what is left to read.
func (r *reader) session(ctx context.Context, cfg Config) error {
	settings, renewed, err := cfg.client(r.settings)
	if err == nil {
		r.renewed = renewed
		r.client, err = kafka.NewConsumer(settings)
	}
	if err != nil {
		return fmt.Errorf("make reader: %w", err)
	}
	defer r.client.Close()
	var assign []kafka.TopicPartition
	for at, s := range r.open {
		assign = append(assign, kafka.TopicPartition{Topic: &s.topic, Partition: at.number, Offset: kafka.Offset(s.next)})
	}
	if err := r.client.Assign(assign); err != nil {
		return err
	}
	return r.read(ctx)
}

func (r *reader) read(ctx context.Context) error {
	batch := <-r.empty
	var at *span // of the last record: the next one is mostly of the same partition
	for wait := 0; len(r.open) > 0; {
		switch event := r.client.Poll(wait).(type) {
		case nil:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			wait = 100
			if len(batch) > 0 {
				select { // apply may as well begin, if it has nothing to do
				case r.full <- batch:
					batch = <-r.empty
				default:
					wait = 1
				}
				continue
			}
			select {
			case <-r.renewed: // whatever still comes from the old client is as good; when nothing comes, it may have lost its way in
				r.empty <- batch
				return errRenewed
			default:
			}
			continue
		case *kafka.Message:
			m := event.TopicPartition
			if at == nil || at.number != m.Partition || at.topic != *m.Topic {
				at = r.open[place{*m.Topic, m.Partition}]
			}
			if at == nil {
				break
			}
			if at.next = int64(m.Offset) + 1; at.next <= at.end {
				batch = append(batch, record(event))
			}
			if at.next >= at.end {
				r.end(at)
				at = nil
			}
			if len(batch) == readBatch {
				select {
				case r.full <- batch:
					batch = <-r.empty
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		case kafka.PartitionEOF:
			// Whatever was below `to` when it was looked up has been seen.
			if s := r.open[place{*event.Topic, event.Partition}]; s != nil {
				r.end(s)
				at = nil
			}
		case kafka.Error:
			if err := fatalToReader(event); err != nil {
				return err
			}
			r.trouble.report(event)
		}
		wait = 0
	}
	if len(batch) == 0 {
		return nil
	}
	select {
	case r.full <- batch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// end stops fetching a partition while others go on.
func (r *reader) end(s *span) {
	delete(r.open, place{s.topic, s.number})
	if len(r.open) > 0 {
		_ = r.client.Pause([]kafka.TopicPartition{{Topic: &s.topic, Partition: s.number}}) // at worst what follows is read and ignored
	}
}

// fatalToReader is nil for what may pass.
func fatalToReader(err kafka.Error) error {
	if err.IsFatal() || is(err, kafka.ErrUnknownTopic, kafka.ErrUnknownPartition, kafka.ErrUnknownTopicOrPart, kafka.ErrUnknownTopicID,
		kafka.ErrTopicAuthorizationFailed) {
		return explain(err)
	}
	return nil
}

// The two header types are one but for their tags, so a slice of the one is one of the other; this does not compile once they differ.
var _ = contract.Header(kafka.Header{})

func record(m *kafka.Message) Record {
	r := Record{
		Topic: *m.TopicPartition.Topic, Partition: m.TopicPartition.Partition, Offset: int64(m.TopicPartition.Offset),
		Time: m.Timestamp, Key: m.Key, Value: m.Value,
	}
	if len(m.Headers) > 0 {
		r.Headers = unsafe.Slice((*contract.Header)(unsafe.Pointer(&m.Headers[0])), len(m.Headers))
	}
	return r
}
