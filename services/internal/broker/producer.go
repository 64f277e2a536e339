package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/contract"
)

// Producer sends messages, in order for each key. Every message that it accepted is reported to
// delivered exactly once, as acknowledged or as failed. After the first failure the caller closes
// it and starts again, with a new Producer, from its lowest message without an acknowledgement.
type Producer struct {
	client *kafka.Producer
	// renewed is closed when the TLS files have changed.
	renewed   <-chan struct{}
	log       *slog.Logger
	logs      *logs
	trouble   *trouble
	stats     *Stats
	delivered func(tag int64, err error)

	// mu is held by one Produce at a time, and keeps Produce from running after Close began:
	// librdkafka forbids both.
	mu     sync.Mutex
	closed bool
	// message and headers are reused, since librdkafka copies them.
	message kafka.Message
	headers []kafka.Header

	inFlight atomic.Int64
	// idle gets a token when inFlight falls to 0.
	idle chan struct{}
	// done is closed when the last report is out.
	done chan struct{}
}

// NewProducer returns a producer, whether or not Kafka can be reached. It calls delivered from one
// goroutine of its own, in order for each partition. delivered may call Produce. It must not call
// Flush or Close, nor wait for another goroutine that does.
func NewProducer(cfg Config, log *slog.Logger, delivered func(tag int64, err error)) (*Producer, error) {
	logs := newLogs(log)
	settings, renewed, err := clientSettings(cfg, logs.settings(kafka.ConfigMap{
		"acks":               "all",
		"enable.idempotence": true,
		// A message that fails for good fails all that follow. Otherwise a later version of an
		// order would overtake an earlier one.
		"enable.gapless.guarantee": true,
		// An outage is waited out, however long it takes.
		"message.timeout.ms": 0,
		// This is Java's default, so any producer puts an order into the same partition.
		"partitioner":      "murmur2_random",
		"compression.type": "lz4",
		// Under load, batches fill while earlier ones are on their way. A message alone should not
		// wait long for others.
		"linger.ms": 1,
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
		// Reports carry the tag, without the message.
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
		client:    client,
		renewed:   renewed,
		log:       log,
		logs:      logs,
		trouble:   &trouble{log: log, brokers: cfg.BrokerList()},
		stats:     cfg.Stats,
		delivered: delivered,
		idle:      make(chan struct{}, 1),
		done:      make(chan struct{}),
	}
	p.message.TopicPartition.Partition = kafka.PartitionAny
	p.stats.next(kindProducer)
	go p.report()
	return p, nil
}

// Renewed returns a channel that is closed when the TLS files have changed. The producer keeps its
// connections, but it makes no new ones with the new files. The caller flushes and closes it, and
// goes on with a new one.
func (p *Producer) Renewed() <-chan struct{} { return p.renewed }

// Produce hands over a message and returns at once. It returns ErrQueueFull when too many messages
// are not acknowledged yet. tag identifies the message in its report. The caller may reuse the
// message.
func (p *Producer) Produce(m contract.Message, tag int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	p.headers = p.headers[:0]
	for _, h := range m.Headers {
		p.headers = append(p.headers, kafka.Header(h))
	}
	p.message.TopicPartition.Topic = &m.Topic
	p.message.Key, p.message.Value, p.message.Headers, p.message.Opaque = m.Key, m.Value, p.headers, tag
	// It counts before it is handed over: its report may come before client.Produce returns.
	p.inFlight.Add(1)
	err := p.client.Produce(&p.message, nil)
	if err == nil {
		return nil
	}
	p.landed()
	switch {
	case is(err, kafka.ErrQueueFull):
		return ErrQueueFull
	case is(err, kafka.ErrFatal):
		err = p.cause(err)
	}
	return fmt.Errorf("produce to %s: %w", m.Topic, explain(err))
}

// Flush waits until every message that was handed over before is reported.
func (p *Producer) Flush(ctx context.Context) error {
	for p.inFlight.Load() > 0 {
		select {
		case <-p.idle:
		case <-time.After(100 * time.Millisecond):
			// Another Flush may have taken the token.
		case <-ctx.Done():
			return fmt.Errorf("flush: %d messages without acknowledgement: %w", p.inFlight.Load(), ctx.Err())
		}
	}
	return nil
}

// Close gives up the messages that are not acknowledged. They are reported as failed, though the
// broker may have them. Every report is out when Close returns.
func (p *Producer) Close() {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		<-p.done
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	p.giveUp()
	// All reports have to be out before the wrapper closes, because it drops them.
	if err := p.Flush(ctx); err != nil {
		p.log.Error("close producer", "err", err)
	}
	p.client.Close()
	p.logs.close()
	<-p.done
}

// report handles events until the client closes their channel.
func (p *Producer) report() {
	defer close(p.done)
	defer p.stats.next(kindProducer)
	for event := range p.client.Events() {
		switch e := event.(type) {
		case *kafka.Message:
			err := e.TopicPartition.Error
			if err == nil {
				p.trouble.over()
			} else {
				err = explain(p.cause(err))
			}
			p.delivered(e.Opaque.(int64), err)
			p.landed()
		case kafka.Error:
			p.trouble.report(e)
			if e.IsFatal() {
				// librdkafka sends nothing more, but may keep its queue for ever.
				p.giveUp()
			}
		case *kafka.Stats:
			if _, err := p.stats.take(kindProducer, e.String()); err != nil {
				p.log.Error("statistics of the producer", "err", err)
			}
		}
	}
}

// giveUp fails all messages that are not acknowledged. It holds the lock, since Produce could
// otherwise add a message right behind the purge.
func (p *Producer) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.client.Purge(kafka.PurgeQueue | kafka.PurgeInFlight); err != nil {
		p.log.Error("purge producer", "err", err)
	}
}

func (p *Producer) landed() {
	if p.inFlight.Add(-1) == 0 {
		select {
		case p.idle <- struct{}{}:
		default:
		}
	}
}

// cause returns the fatal error of the client. After one, other messages fail with errors that only
// refer to it.
func (p *Producer) cause(err error) error {
	refers := is(err, kafka.ErrFatal, kafka.ErrGaplessGuarantee, kafka.ErrPurgeQueue, kafka.ErrPurgeInflight)
	if refers && !p.client.IsClosed() {
		if fatal := p.client.GetFatalError(); fatal != nil {
			return fatal
		}
	}
	return err
}
