package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// readBatch is the largest number of records that ReadTo hands over at once.
const readBatch = 1000

// ReadTo reads each partition in to, from its offset in from (0 if it has none) up to its offset in
// to, which is not included. It gives the records to apply in batches that are valid only during
// the call.
//
// It waits for no record: compaction and transactions leave offsets that no record has. But it ends a
// partition only at or behind the offset in to, so it waits until ctx ends while Kafka is away or the
// log is shorter. It goes on with new TLS files when there are any. A topic that does not exist is an
// error.
//
// It joins no group and commits nothing. librdkafka wants the name of a group all the same; without
// the permission to describe that group it only logs a warning.
func ReadTo(
	ctx context.Context, cfg Config, log *slog.Logger, group string, from, to map[Partition]int64,
	apply func(context.Context, []Record) error,
) error {
	r := newBoundedReader(cfg, log, group, from, to)
	if len(r.open) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// One goroutine owns the client, so that the next batch is read while this one is applied.
	var failed error
	go func() {
		defer close(r.full)
		failed = r.run(ctx)
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

// boundedReader reads what is left of some partitions, with one client after another.
type boundedReader struct {
	cfg      Config
	settings kafka.ConfigMap
	client   *kafka.Consumer
	// renewed is closed when the TLS files have changed.
	renewed <-chan struct{}
	trouble *trouble
	// open holds the partitions that have not ended.
	open map[topicPartition]*offsetRange
	// full carries batches to apply, and empty carries them back. There are two.
	full, empty chan []Record
}

// offsetRange is what is left to read of one partition, without end itself.
type offsetRange struct {
	partition topicPartition
	next, end int64
}

func newBoundedReader(cfg Config, log *slog.Logger, group string, from, to map[Partition]int64) *boundedReader {
	r := &boundedReader{
		cfg:     cfg,
		trouble: &trouble{log: log, brokers: cfg.BrokerList()},
		open:    make(map[topicPartition]*offsetRange),
		full:    make(chan []Record),
		empty:   make(chan []Record, 2),
		settings: kafka.ConfigMap{
			"group.id":             group,
			"enable.auto.commit":   false,
			"enable.partition.eof": true,
			"isolation.level":      "read_committed",
			// This applies when the start of the log has moved past from.
			"auto.offset.reset": "earliest",
			// The end of a partition shows when a fetch comes back empty, so an empty one must not
			// wait long.
			"fetch.wait.max.ms":                 20,
			"fetch.queue.backoff.ms":            5,
			"queued.max.messages.kbytes":        32 << 10,
			"topic.metadata.propagation.max.ms": 5000,
			// Errors come as events too, and the goroutine of a log makes Close slow.
			"log_level": 0,
		},
	}
	for p, end := range to {
		if from[p] < end {
			at := topicPartition{p.Topic, p.Number}
			r.open[at] = &offsetRange{partition: at, next: from[p], end: end}
		}
	}
	for range cap(r.empty) {
		r.empty <- make([]Record, 0, readBatch)
	}
	return r
}

// run reads until all partitions have ended, with a new client whenever the TLS files change.
func (r *boundedReader) run(ctx context.Context) error {
	for {
		if err := r.session(ctx); !errors.Is(err, errRenewed) {
			return err
		}
	}
}

// session reads with one client. It returns errRenewed when another client has to go on.
func (r *boundedReader) session(ctx context.Context) error {
	settings, renewed, err := clientSettings(r.cfg, r.settings)
	if err == nil {
		r.renewed = renewed
		r.client, err = kafka.NewConsumer(settings)
	}
	if err != nil {
		return fmt.Errorf("make reader: %w", err)
	}
	defer r.client.Close()
	var assign []kafka.TopicPartition
	for at, left := range r.open {
		assign = append(assign, kafka.TopicPartition{
			Topic: &left.partition.topic, Partition: at.number, Offset: kafka.Offset(left.next),
		})
	}
	if err := r.client.Assign(assign); err != nil {
		return err
	}
	return r.read(ctx)
}

func (r *boundedReader) read(ctx context.Context) error {
	batch := <-r.empty
	// current is the range of the last record: the next record is mostly of the same partition.
	var current *offsetRange
	for wait := 0; len(r.open) > 0; {
		switch event := r.client.Poll(wait).(type) {
		case nil:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			wait = 100
			if len(batch) > 0 {
				// The batch is not full, but apply may begin if it has nothing else to do.
				select {
				case r.full <- batch:
					batch = <-r.empty
				default:
					wait = 1
				}
				continue
			}
			// The files are checked only when nothing arrives. Whatever arrives from the old client
			// is still good; when nothing does, brokers may be refusing its certificate.
			select {
			case <-r.renewed:
				r.empty <- batch
				return errRenewed
			default:
			}
			continue
		case *kafka.Message:
			m := event.TopicPartition
			if current == nil || current.partition.number != m.Partition || current.partition.topic != *m.Topic {
				current = r.open[topicPartition{*m.Topic, m.Partition}]
			}
			if current == nil {
				break
			}
			if current.next = int64(m.Offset) + 1; current.next <= current.end {
				batch = append(batch, record(event))
			}
			if current.next >= current.end {
				r.finish(current)
				current = nil
			}
			if len(batch) == readBatch {
				if err := r.hand(ctx, batch); err != nil {
					return err
				}
				batch = <-r.empty
			}
		case kafka.PartitionEOF:
			// A leader whose high watermark lags after an election shows an end that is too early.
			// The client reports the end again when it has moved.
			left := r.open[topicPartition{*event.Topic, event.Partition}]
			if left != nil && int64(event.Offset) >= left.end {
				r.finish(left)
				current = nil
			}
		case kafka.Error:
			if fatalToReader(event) {
				return explain(event)
			}
			r.trouble.report(event)
		}
		wait = 0
	}
	if len(batch) == 0 {
		return nil
	}
	return r.hand(ctx, batch)
}

// hand gives a batch to ReadTo as soon as that has applied the one before.
func (r *boundedReader) hand(ctx context.Context, batch []Record) error {
	select {
	case r.full <- batch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// finish stops fetching a partition while others go on.
func (r *boundedReader) finish(done *offsetRange) {
	delete(r.open, done.partition)
	if len(r.open) > 0 {
		// After an error, what follows is read and ignored.
		_ = r.client.Pause([]kafka.TopicPartition{
			{Topic: &done.partition.topic, Partition: done.partition.number},
		})
	}
}

// fatalToReader reports whether waiting does not help.
func fatalToReader(err kafka.Error) bool {
	return err.IsFatal() || is(err, kafka.ErrUnknownTopic, kafka.ErrUnknownPartition, kafka.ErrUnknownTopicOrPart,
		kafka.ErrUnknownTopicID, kafka.ErrTopicAuthorizationFailed)
}
