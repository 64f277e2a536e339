package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

const (
	// readBatch is the largest number of records that ReadTo hands over at once.
	readBatch = 1000
	// readBytes is the size in bytes of keys and values at which it hands them over.
	readBytes = 4 << 20
)

// ReadTo reads each partition in to, from its offset in from (0 if it has none) up to its offset in
// to, which is not included. It gives the records to apply in batches that are valid only during
// the call.
//
// It waits for no record: compaction and transactions leave offsets that no record has. But it ends a
// partition only at or behind the offset in to, so it waits until ctx ends while Kafka is away. It
// returns ErrTruncated when a log does not reach that offset, or has lost its end meanwhile. It goes on
// with new TLS files when there are any. A topic that does not exist is an error.
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
	log     *slog.Logger
	trouble *trouble
	// compared is when the logs were last compared with what is left to read.
	compared time.Time
	// strays reports whether the client has met an error behind which it may go on at any offset.
	strays bool
	// open holds the partitions that have not ended.
	open     map[topicPartition]*offsetRange
	examiner examiner
	// batch is being filled, and bytes is the size of its keys and values.
	batch []Record
	bytes int
	// full carries batches to apply, and empty carries them back. There are two.
	full, empty chan []Record
}

// offsetRange is what is left to read of one partition, without end itself.
type offsetRange struct {
	partition topicPartition
	next, end int64
	// short is since when the client has been at an end of the log that lies before end. It is zero if it is not.
	short time.Time
	// stopped reports whether the partition is not fetched because it cannot be read.
	stopped bool
}

func newBoundedReader(cfg Config, log *slog.Logger, group string, from, to map[Partition]int64) *boundedReader {
	r := &boundedReader{
		cfg:      cfg,
		log:      log,
		trouble:  &trouble{log: log, brokers: cfg.BrokerList()},
		open:     make(map[topicPartition]*offsetRange),
		full:     make(chan []Record),
		empty:    make(chan []Record, 2),
		examiner: examiner{cfg: cfg},
		settings: fetchSettings(kafka.ConfigMap{
			"group.id":             group,
			"enable.auto.commit":   false,
			"enable.partition.eof": true,
			"isolation.level":      "read_committed",
			// The client must not go on elsewhere when a log has lost its end: it would drop what it has
			// read already and not handed out. See locate.
			"auto.offset.reset": "error",
			// The end of a partition shows when a fetch comes back empty, so an empty one must not
			// wait long.
			"fetch.wait.max.ms":                 20,
			"fetch.queue.backoff.ms":            5,
			"queued.max.messages.kbytes":        32 << 10,
			"topic.metadata.propagation.max.ms": 5000,
			// Errors come as events too, and the goroutine of a log makes Close slow.
			"log_level": 0,
		}),
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

// run reads until all partitions have ended, with a new client whenever the TLS files change, a
// partition can be read again, or the start of a log has moved.
func (r *boundedReader) run(ctx context.Context) error {
	r.batch = <-r.empty
	for {
		err := r.session(ctx)
		if !errors.Is(err, errRenewed) && !errors.Is(err, errReadable) && !errors.Is(err, errOutOfRange) {
			return err
		}
	}
}

// session reads with one client. It returns errRenewed, errReadable or errOutOfRange when another
// client has to go on.
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
	r.strays = false
	var assign []kafka.TopicPartition
	for _, left := range r.open {
		left.stopped, left.short = false, time.Time{}
		assign = append(assign, left.topicPartitions()...)
	}
	if err := r.client.Assign(assign); err != nil {
		return err
	}
	return r.read(ctx)
}

func (r *boundedReader) read(ctx context.Context) error {
	// current is the range of the last record: the next record is mostly of the same partition.
	var current *offsetRange
	for wait := 0; len(r.open) > 0; {
		switch event := r.client.Poll(wait).(type) {
		case nil:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			wait = 100
			if len(r.batch) > 0 {
				// The batch is not full, but apply may begin if it has nothing else to do.
				select {
				case r.full <- r.batch:
					r.batch, r.bytes = <-r.empty, 0
				default:
					wait = 1
				}
				continue
			}
			// The files are checked only when nothing arrives. Whatever arrives from the old client
			// is still good; when nothing does, brokers may be refusing its certificate.
			select {
			case <-r.renewed:
				return errRenewed
			default:
			}
			if r.examiner.due() && r.examineStopped(ctx) {
				return errReadable
			}
			if err := r.lookAtShort(ctx); err != nil {
				return err
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
			if err := r.add(ctx, current, record(event)); err != nil {
				return err
			}
			if current.next >= current.end {
				r.finish(current)
				current = nil
			}
		case kafka.PartitionEOF:
			// A leader whose high watermark lags after an election shows an end that is too early.
			// The client reports the end again when it has moved.
			left := r.open[topicPartition{*event.Topic, event.Partition}]
			if left != nil && int64(event.Offset) >= left.end {
				r.finish(left)
				current = nil
			} else if left != nil && left.short.IsZero() {
				left.short = time.Now()
			}
		case kafka.Error:
			if is(event, kafka.ErrAutoOffsetReset) {
				if err := r.locate(ctx); err != nil {
					return err
				}
				break
			}
			if fatalToReader(event) {
				return explain(event)
			}
			if !aboutBatch(event) {
				r.trouble.report(event)
				break
			}
			current, r.strays = nil, r.strays || readsOn(event)
			if err := r.examine(ctx, event); err != nil {
				return err
			}
		}
		wait = 0
	}
	if len(r.batch) == 0 {
		return nil
	}
	return r.hand(ctx)
}

// add puts a record into the batch, and hands the batch over when it is full.
func (r *boundedReader) add(ctx context.Context, left *offsetRange, record Record) error {
	left.short = time.Time{}
	if left.next = record.Offset + 1; left.next > left.end {
		return nil
	}
	r.batch = append(r.batch, record)
	r.bytes += record.size()
	if len(r.batch) < readBatch && r.bytes < readBytes {
		return nil
	}
	if err := r.hand(ctx); err != nil {
		return err
	}
	r.batch, r.bytes = <-r.empty, 0
	return nil
}

// hand gives the batch to ReadTo as soon as that has applied the one before.
func (r *boundedReader) hand(ctx context.Context) error {
	select {
	case r.full <- r.batch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// offsets returns where to go on in the partitions that are stopped, or in the others.
func (r *boundedReader) offsets(stopped bool) map[topicPartition]int64 {
	offsets := make(map[topicPartition]int64)
	for at, left := range r.open {
		if left.stopped == stopped {
			offsets[at] = left.next
		}
	}
	return offsets
}

// examine finds out which partitions an error of the client is about, and reads what librdkafka
// cannot.
func (r *boundedReader) examine(ctx context.Context, cause error) error {
	found, err := r.examiner.examine(ctx, r.offsets(false), true)
	r.trouble.examined(err)
	// again are the ranges that the client has to fetch from where they are.
	var again []kafka.TopicPartition
	for _, f := range found {
		left := r.open[f.at]
		if f.err != nil {
			r.trouble.unread(f.at, f.err)
			left.stopped = true
			if err := r.client.Pause(left.topicPartitions()); err != nil {
				return fmt.Errorf("pause a partition: %w", explain(err))
			}
		}
		for _, record := range f.records {
			if err := r.add(ctx, left, record); err != nil {
				return err
			}
		}
		if left.next = max(left.next, f.next); left.next >= left.end {
			r.finish(left)
		} else if f.next > 0 && !readsOn(cause) {
			again = append(again, left.topicPartitions()...)
		}
	}
	if readsOn(cause) {
		return r.seekAll()
	}
	return r.seek(again)
}

// seekAll makes the client read everything again that is not in the batch yet.
func (r *boundedReader) seekAll() error {
	var again []kafka.TopicPartition
	for _, left := range r.open {
		if !left.stopped {
			again = append(again, left.topicPartitions()...)
		}
	}
	return r.seek(again)
}

// seek makes the client go on there. It returns errOutOfRange if the client has given up one of the
// partitions, because it wanted an offset that the log does not have.
func (r *boundedReader) seek(to []kafka.TopicPartition) error {
	if len(to) == 0 {
		return nil
	}
	err := seek(r.client, to)
	if is(err, kafka.ErrState) {
		return errOutOfRange
	}
	return err
}

// locate finds out why a log does not have the offset that the client wanted to read. If all that is
// left to read is there, the client has strayed behind a damaged batch, and is brought back. Or the log
// had lost its end and has grown again, with other records: then it returns ErrTruncated. It returns
// errOutOfRange if another client has to go on, also when Kafka does not say.
func (r *boundedReader) locate(ctx context.Context) error {
	err := r.compare(ctx)
	switch {
	case errors.Is(err, ErrTruncated), err == nil && !r.strays:
		return cmp.Or(err, ErrTruncated)
	case err != nil:
		return errOutOfRange
	}
	return r.seekAll()
}

// lookAtShort compares with the logs, once a second, if one of them has seemed to end too early for that long.
// While a transaction is open, or has just ended, that is nothing unusual.
func (r *boundedReader) lookAtShort(ctx context.Context) error {
	for _, left := range r.open {
		if !left.short.IsZero() && min(time.Since(left.short), time.Since(r.compared)) >= examineAgain {
			err := r.compare(ctx)
			if errors.Is(err, ErrTruncated) || errors.Is(err, errOutOfRange) {
				return err
			}
		}
	}
	return nil
}

// compare compares what is left to read with the logs. It returns ErrTruncated if one ends before it
// should, and errOutOfRange if the start of one has moved past its next offset. What Bounds says of the
// end holds after an election, too: a leader that does not know yet refuses to say.
func (r *boundedReader) compare(ctx context.Context) error {
	r.compared = time.Now()
	topics := make(map[string]bool)
	for at := range r.open {
		topics[at.topic] = true
	}
	admin, err := NewAdmin(r.cfg, r.log)
	if err != nil {
		return err
	}
	defer admin.Close()
	first, ends, err := admin.Bounds(ctx, slices.Collect(maps.Keys(topics))...)
	if err != nil {
		return err
	}
	for p, end := range ends {
		left := r.open[topicPartition{p.Topic, p.Number}]
		switch {
		case left == nil:
		case end < left.end:
			return fmt.Errorf("%s/%d ends at %d and not at %d: %w", p.Topic, p.Number, end, left.end, ErrTruncated)
		case first[p] > left.next:
			left.next, err = first[p], errOutOfRange
			if left.next >= left.end {
				delete(r.open, left.partition)
			}
		}
	}
	return err
}

// examineStopped reports whether a partition can be read again that could not be.
func (r *boundedReader) examineStopped(ctx context.Context) bool {
	stopped := r.offsets(true)
	if len(stopped) == 0 {
		return false
	}
	found, err := r.examiner.examine(ctx, stopped, false)
	r.trouble.examined(err)
	again := false
	for _, f := range found {
		if f.err != nil {
			r.trouble.unread(f.at, f.err)
			continue
		}
		r.trouble.read(f.at)
		again = true
	}
	return again
}

// topicPartitions returns the range as the client takes it.
func (o *offsetRange) topicPartitions() []kafka.TopicPartition {
	return []kafka.TopicPartition{
		{Topic: &o.partition.topic, Partition: o.partition.number, Offset: kafka.Offset(o.next)},
	}
}

// finish stops fetching a partition while others go on.
func (r *boundedReader) finish(done *offsetRange) {
	delete(r.open, done.partition)
	if len(r.open) > 0 {
		// After an error, what follows is read and ignored.
		_ = r.client.Pause(done.topicPartitions())
	}
}

// fatalToReader reports whether waiting does not help.
func fatalToReader(err kafka.Error) bool {
	return err.IsFatal() || is(err, kafka.ErrUnknownTopic, kafka.ErrUnknownPartition, kafka.ErrUnknownTopicOrPart,
		kafka.ErrUnknownTopicID, kafka.ErrTopicAuthorizationFailed)
}
