package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
)

const (
	// transactionTimeout is when Kafka aborts a transaction that its producer has left open. Until
	// then, readers of committed records wait behind it. A transaction takes milliseconds.
	transactionTimeout = 10 * time.Second
	// callTimeout is how long one call of librdkafka may block. The calls do not know contexts, and
	// they can be repeated after a timeout.
	callTimeout = time.Second
	// queueFullWait is the pause before a message is handed over again.
	queueFullWait = time.Millisecond
	// reportWait is how long the reports of the messages are waited for at the end of a transaction.
	// One of them has the reason of a failure.
	reportWait = time.Second
)

// Producer publishes messages in transactions (KIP-98), in order for each key. Kafka refuses a
// producer as soon as another one with the same transactional ID has called Fence: also requests
// that were sent before and arrive late.
//
// After an error the caller closes the producer and starts again with a new one.
type Producer struct {
	client *kafka.Producer
	// renewed is closed when the TLS files have changed.
	renewed <-chan struct{}
	id      string
	logs    *logs
	trouble *trouble
	stats   *Stats
	log     *slog.Logger
	// message and headers are reused, since librdkafka copies them.
	message kafka.Message
	headers []kafka.Header
	// inFlight is how many messages were handed over and not reported.
	inFlight atomic.Int64
	mu       sync.Mutex
	// next has the offset after the last message that was delivered to each partition, in the
	// transaction that is open.
	next map[Partition]int64
	// failure is why the first message could not be delivered, nil if there was none.
	failure atomic.Pointer[error]
	// done is closed when the last event is handled.
	done chan struct{}
}

// NewProducer returns a producer, whether or not Kafka can be reached. It is not safe for concurrent
// use.
func NewProducer(cfg Config, transactionalID string, log *slog.Logger) (*Producer, error) {
	logs := newLogs(log)
	settings, renewed, err := clientSettings(cfg, logs.settings(kafka.ConfigMap{
		"transactional.id":       transactionalID,
		"transaction.timeout.ms": int(transactionTimeout.Milliseconds()),
		// This is Java's default, so any producer puts an order into the same partition.
		"partitioner":      "murmur2_random",
		"compression.type": "lz4",
		// A commit sends what is queued at once. Until then a batch may fill.
		"linger.ms": 5,
		// Dead letters are this large. batch.size, 1,000,000 bytes by default, keeps batches of
		// orders below the 1 MiB of their topics.
		"message.max.bytes":            2 << 20,
		"queue.buffering.max.messages": 20_000,
		"queue.buffering.max.kbytes":   32 << 10,
		// If a reachable broker does not have the topic, the message fails after 5 s. The caller
		// keeps it and starts again.
		"topic.metadata.propagation.max.ms": 5000,
		// By default, each channel of the wrapper holds a million entries.
		"go.events.channel.size":  1000,
		"go.produce.channel.size": 0,
		// Of the reports of the messages, only their offsets and errors are of use.
		"go.delivery.report.fields": "none",
		"statistics.interval.ms":    cfg.Stats.millis(),
	}))
	var client *kafka.Producer
	if err == nil {
		client, err = kafka.NewProducer(settings)
	}
	if err != nil {
		logs.close()
		return nil, fmt.Errorf("make producer: %w", err)
	}
	p := &Producer{
		client:  client,
		renewed: renewed,
		id:      transactionalID,
		logs:    logs,
		trouble: &trouble{log: log, brokers: cfg.BrokerList()},
		stats:   cfg.Stats,
		log:     log,
		next:    make(map[Partition]int64),
		done:    make(chan struct{}),
	}
	p.message.TopicPartition.Partition = kafka.PartitionAny
	p.stats.open(kindProducer, client.String())
	go p.handleEvents()
	return p, nil
}

// Renewed returns a channel that is closed when the TLS files have changed. The producer keeps its
// connections, but it makes no new ones with the new files. The caller closes it between two
// transactions, and goes on with a new one.
func (p *Producer) Renewed() <-chan struct{} { return p.renewed }

// Fence takes the transactional ID. Kafka ends the transaction that an earlier producer has left
// open, and refuses that producer from then on. Fence waits for Kafka until ctx ends. It is called
// once, before Publish.
func (p *Producer) Fence(ctx context.Context) error {
	if err := p.call(ctx, p.client.InitTransactions); err != nil {
		return fmt.Errorf("take transactional ID %s: %w", p.id, p.cause(err))
	}
	return nil
}

// Publish publishes messages in one transaction: readers of committed records see all of them or
// none. It returns the offset after the last message of each partition that got one; the partitions
// lack the IDs of their topics, which a producer does not learn.
//
// If it returns an error, the messages may have been published all the same. The error is
// ErrProducerFenced if another producer has taken the transactional ID.
func (p *Producer) Publish(ctx context.Context, messages []contract.Message) (next map[Partition]int64, err error) {
	begin := time.Now()
	err = p.publish(ctx, messages)
	if err == nil {
		p.trouble.over()
		p.awaitReports()
		p.mu.Lock()
		defer p.mu.Unlock()
		next, p.next = p.next, make(map[Partition]int64)
		return next, nil
	}
	return nil, fenced(p.id, begin, p.cause(err))
}

// fenced returns ErrProducerFenced with err if that means that another producer has taken the ID since a
// transaction began, and else err alone.
func fenced(transactionalID string, begin time.Time, err error) error {
	if !is(err, kafka.ErrFenced, kafka.ErrProducerFenced, kafka.ErrInvalidProducerEpoch) {
		return err
	}
	// The monotonic clock stands still while a machine is suspended, so the time of day counts too.
	if max(time.Since(begin), time.Since(begin.Round(0))) >= transactionTimeout {
		// Kafka has aborted the transaction because it was open for too long. That fences too.
		return err
	}
	return fmt.Errorf("%w %s: %w", ErrProducerFenced, transactionalID, err)
}

func (p *Producer) publish(ctx context.Context, messages []contract.Message) error {
	if err := p.client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	for i := range messages {
		if err := p.produce(ctx, &messages[i]); err != nil {
			return fmt.Errorf("produce to %s: %w", messages[i].Topic, err)
		}
	}
	if err := p.call(ctx, p.client.CommitTransaction); err != nil {
		return fmt.Errorf("commit %d messages: %w", len(messages), err)
	}
	return nil
}

// produce hands over one message. It waits while the client's queue is full.
func (p *Producer) produce(ctx context.Context, m *contract.Message) error {
	p.headers = p.headers[:0]
	for _, h := range m.Headers {
		p.headers = append(p.headers, kafka.Header(h))
	}
	p.message.TopicPartition.Topic = &m.Topic
	p.message.Key, p.message.Value, p.message.Headers = m.Key, m.Value, p.headers
	for {
		p.inFlight.Add(1)
		err := p.client.Produce(&p.message, nil)
		if err == nil {
			return nil
		}
		p.inFlight.Add(-1)
		if !is(err, kafka.ErrQueueFull) {
			return err
		}
		if !backoff.Sleep(ctx, queueFullWait) {
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// call repeats a call of librdkafka, which cannot be cancelled, until it succeeds, fails for good or
// ctx ends.
func (p *Producer) call(ctx context.Context, f func(context.Context) error) error {
	for {
		slice, cancel := context.WithTimeout(ctx, callTimeout)
		err := f(slice)
		cancel()
		e, ok := errors.AsType[kafka.Error](err)
		switch {
		case err == nil:
			return nil
		case !ok || !e.IsRetriable():
			return err
		case ctx.Err() != nil:
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// Close gives up a transaction that is open. Kafka ends it when the next producer takes the
// transactional ID, or after transactionTimeout. Close may be called again.
func (p *Producer) Close() {
	if p.client.IsClosed() {
		return
	}
	p.purge()
	p.client.Close()
	p.logs.close()
	<-p.done
}

// handleEvents handles events until the client closes their channel.
func (p *Producer) handleEvents() {
	defer close(p.done)
	defer p.stats.close(kindProducer, p.client.String())
	for event := range p.client.Events() {
		switch e := event.(type) {
		case *kafka.Message:
			// A purge is what follows a failure.
			err := e.TopicPartition.Error
			switch {
			case err == nil:
				p.landed(e.TopicPartition)
			case !is(err, kafka.ErrPurgeQueue, kafka.ErrPurgeInflight):
				p.failure.CompareAndSwap(nil, &err)
			}
			p.inFlight.Add(-1)
		case kafka.Error:
			p.trouble.report(e)
		case *kafka.Stats:
			if _, err := p.stats.take(kindProducer, e.String()); err != nil {
				p.log.Error("statistics of the producer", "err", err)
			}
		}
	}
}

// landed notes where a message was delivered.
func (p *Producer) landed(tp kafka.TopicPartition) {
	if tp.Offset < 0 {
		// Kafka had the message already, and does not say where.
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at := Partition{Topic: *tp.Topic, Number: tp.Partition}
	p.next[at] = max(p.next[at], int64(tp.Offset)+1)
}

// purge gives up the messages that are not acknowledged. They are reported as failed.
func (p *Producer) purge() {
	if err := p.client.Purge(kafka.PurgeQueue | kafka.PurgeInFlight); err != nil {
		p.log.Error("purge producer", "err", err)
	}
}

// awaitReports waits until all messages are reported, for reportWait at most. The client has the
// reports when it returns from a call; they only have to pass a channel.
func (p *Producer) awaitReports() {
	for until := time.Now().Add(reportWait); p.inFlight.Load() > 0 && time.Now().Before(until); {
		time.Sleep(100 * time.Microsecond)
	}
}

// cause explains err by its cause as far as the client knows it: its fatal error, or why the first
// message could not be delivered. Other errors only refer to these. The producer can publish nothing
// more.
func (p *Producer) cause(err error) error {
	p.purge()
	p.awaitReports()
	if fatal := p.client.GetFatalError(); fatal != nil {
		return explain(fatal)
	}
	if failure := p.failure.Load(); failure != nil {
		return explain(*failure)
	}
	return explain(err)
}
