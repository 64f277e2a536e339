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

// closeTimeout bounds every client's Close.
const closeTimeout = 5 * time.Second

// Producer sends messages in order per key. What it accepted is reported to delivered exactly once, as acknowledged or as failed.
// After the first failure the caller closes it and starts over, on a new one, from its lowest message without an acknowledgement.
type Producer struct {
	client    *kafka.Producer
	renewed   <-chan struct{}
	log       *slog.Logger
	logs      *logs
	trouble   *trouble
	stats     *Stats
	delivered func(tag int64, err error)

	mu      sync.Mutex // one Produce at a time, and none once Close began: librdkafka forbids it
	closed  bool
	message kafka.Message // both reused, since librdkafka copies
	headers []kafka.Header

	inFlight atomic.Int64
	idle     chan struct{} // told when inFlight falls to 0
	done     chan struct{} // closed when the last report is out
}

// NewProducer makes a producer, whether or not Kafka can be reached. It calls delivered from one goroutine of its own, in order per
// partition; delivered may call Produce, but neither Flush nor Close, and must not wait for somebody who does.
func NewProducer(cfg Config, log *slog.Logger, delivered func(tag int64, err error)) (*Producer, error) {
	logs := newLogs(log)
	settings, renewed, err := cfg.client(logs.settings(kafka.ConfigMap{
		"acks":               "all",
		"enable.idempotence": true,
		// A message that fails for good stops all that follow (they fail with it), rather than let an order's later version overtake.
		"enable.gapless.guarantee": true,
		"message.timeout.ms":       0,                // an outage is waited out, however long
		"partitioner":              "murmur2_random", // as in Java, so that any producer puts an order in the same partition
		"compression.type":         "lz4",
		// Under load batches fill while earlier ones are on their way; alone, a message should not wait long for company.
		"linger.ms":                    1,
		"message.max.bytes":            2 << 20, // dead letters; batch.size (1,000,000 bytes) keeps batches below the order topics' 1 MiB
		"queue.buffering.max.messages": 20_000,
		"queue.buffering.max.kbytes":   32 << 10,
		// A topic that a reachable broker does not have fails its messages after 5 s: the caller keeps them, and starts over.
		"topic.metadata.propagation.max.ms": 5000,
		// The wrapper's channels hold a million entries each by default.
		"go.events.channel.size":    1000,
		"go.produce.channel.size":   0,
		"go.delivery.report.fields": "none", // reports carry the tag, not the message again
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
	go p.reports()
	return p, nil
}

// Renewed is closed when the TLS files have changed. This producer keeps its connections and can make no new ones with the new files:
// the caller flushes and closes it, and goes on with a new one.
func (p *Producer) Renewed() <-chan struct{} { return p.renewed }

// Produce hands a message over and returns at once, with ErrQueueFull when too many are unacknowledged. The message may be reused.
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
	p.inFlight.Add(1) // before the hand-over: the report may come before Produce returns
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

// Flush waits until everything handed over before is reported.
func (p *Producer) Flush(ctx context.Context) error {
	for p.inFlight.Load() > 0 {
		select {
		case <-p.idle:
		case <-time.After(100 * time.Millisecond): // another Flush may have taken the token
		case <-ctx.Done():
			return fmt.Errorf("flush: %d messages without acknowledgement: %w", p.inFlight.Load(), ctx.Err())
		}
	}
	return nil
}

// Close gives up what is not acknowledged: it is reported as failed, though the broker may have it. When Close returns, every report
// is out.
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
	if err := p.Flush(ctx); err != nil { // the wrapper's Close drops reports, so all have to be out before it
		p.log.Error("close producer", "err", err)
	}
	p.client.Close()
	p.logs.close()
	<-p.done
}

// giveUp fails what is not acknowledged. It holds Produce off, which else could add a message right behind the purge.
func (p *Producer) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.client.Purge(kafka.PurgeQueue | kafka.PurgeInFlight); err != nil {
		p.log.Error("purge producer", "err", err)
	}
}

// reports runs until the client closes its channel of events.
func (p *Producer) reports() {
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
				p.giveUp() // librdkafka sends nothing more, yet may keep what it has queued for ever
			}
		case *kafka.Stats:
			if _, err := p.stats.take(kindProducer, e.String()); err != nil {
				p.log.Error("statistics of the producer", "err", err)
			}
		}
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

// cause is the fatal error behind the errors that it gives all other messages.
func (p *Producer) cause(err error) error {
	if is(err, kafka.ErrFatal, kafka.ErrGaplessGuarantee, kafka.ErrPurgeQueue, kafka.ErrPurgeInflight) && !p.client.IsClosed() {
		if fatal := p.client.GetFatalError(); fatal != nil {
			return fatal
		}
	}
	return err
}
