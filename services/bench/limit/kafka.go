package limit

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
)

// patience limits every wait for Kafka.
const patience = 60 * time.Second

// metadataPatience limits one request for metadata, in milliseconds.
const metadataPatience = 10_000

// producerSettings are those of the services' producer on which its speed depends.
func producerSettings(addr string) kafka.ConfigMap {
	return kafka.ConfigMap{
		"bootstrap.servers":            addr,
		"allow.auto.create.topics":     false,
		"acks":                         "all",
		"enable.idempotence":           true,
		"enable.gapless.guarantee":     true,
		"message.timeout.ms":           0,
		"partitioner":                  "murmur2_random",
		"compression.type":             "lz4",
		"linger.ms":                    1,
		"message.max.bytes":            2 << 20,
		"queue.buffering.max.messages": 20_000,
		"queue.buffering.max.kbytes":   32 << 10,
		"go.events.channel.size":       1000,
		"go.produce.channel.size":      0,
		"go.delivery.report.fields":    "none",
		"log_level":                    3,
	}
}

// consumerSettings are those of the services' consumer, for one in no consumer group.
func consumerSettings(addr string) kafka.ConfigMap {
	return kafka.ConfigMap{
		"bootstrap.servers":          addr,
		"group.id":                   "raw",
		"enable.auto.commit":         false,
		"auto.offset.reset":          "earliest",
		"isolation.level":            "read_committed",
		"enable.partition.eof":       true,
		"queued.max.messages.kbytes": 32 << 10,
		"fetch.queue.backoff.ms":     5,
		"fetch.wait.max.ms":          100,
	}
}

func newProducer(addr string) (*kafka.Producer, error) {
	settings := producerSettings(addr)
	return kafka.NewProducer(&settings)
}

func newConsumer(addr string) (*kafka.Consumer, error) {
	settings := consumerSettings(addr)
	return kafka.NewConsumer(&settings)
}

// toKafka converts a message to the client's type. The partitioner chooses the partition by the
// key, as that of the services does.
func toKafka(topic string, m contract.Message) *kafka.Message {
	headers := make([]kafka.Header, len(m.Headers))
	for i, h := range m.Headers {
		headers[i] = kafka.Header(h)
	}
	return &kafka.Message{
		TopicPartition: kafka.TopicPartition{Topic: &topic, Partition: kafka.PartitionAny},
		Key:            m.Key, Value: m.Value, Headers: headers,
	}
}

// Produce measures a bare producer. It sends messages, to their own topics if topic is empty, and
// waits until Kafka has acknowledged each. The time begins with the acknowledgement of the first
// message: to connect and to get a producer ID is no part of the work.
func Produce(
	ctx context.Context, addr, topic string, messages iter.Seq[contract.Message],
) (rate stats.Sample, err error) {
	before := stats.OwnCPU()
	p, err := newProducer(addr)
	if err != nil {
		return rate, err
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// The reports are read while the messages are sent: the producer would block otherwise.
	connected, acked := make(chan struct{}), make(chan error, 1)
	sent := make(chan int, 1)
	go func() { acked <- awaitReports(ctx, p, connected, sent) }()
	var begin time.Time
	n := 0
	for m := range messages {
		to := topic
		if to == "" {
			to = m.Topic
		}
		message := toKafka(to, m)
		for err = p.Produce(message, nil); err != nil; err = p.Produce(message, nil) {
			// A full queue is normal for a producer that sends as fast as it can.
			if e, ok := errors.AsType[kafka.Error](err); !ok || e.Code() != kafka.ErrQueueFull || ctx.Err() != nil {
				return rate, fmt.Errorf("produce: %w", err)
			}
			time.Sleep(time.Millisecond)
		}
		if n++; n == 1 {
			select {
			case <-connected:
			case err := <-acked:
				return rate, err
			}
			begin = time.Now()
		}
	}
	sent <- n
	err = <-acked
	return stats.Rate(n, time.Since(begin), stats.OwnCPU()-before), err
}

// awaitReports counts acknowledgements until there are as many as were sent. It closes connected at
// the first one.
func awaitReports(ctx context.Context, p *kafka.Producer, connected chan<- struct{}, sent <-chan int) error {
	got, want := 0, -1
	// want is unknown until all messages are sent.
	for got != want {
		select {
		case e := <-p.Events():
			if m, ok := e.(*kafka.Message); ok {
				if m.TopicPartition.Error != nil {
					return fmt.Errorf("deliver: %w", m.TopicPartition.Error)
				}
				if got++; got == 1 {
					close(connected)
				}
			}
		case want = <-sent:
		case <-ctx.Done():
			return fmt.Errorf("%d messages are acknowledged of %d: %w", got, want, ctx.Err())
		}
	}
	return nil
}

// Consume reads a topic to its end and throws the records away. It returns how many there were.
func Consume(ctx context.Context, addr, topic string) (rate stats.Sample, records int, err error) {
	before, begin := stats.OwnCPU(), time.Now()
	records, err = consumeAll(ctx, addr, topic)
	return stats.Rate(records, time.Since(begin), stats.OwnCPU()-before), records, err
}

// consumeAll is Consume without the measurement. Closing the consumer is part of the time.
func consumeAll(ctx context.Context, addr, topic string) (records int, err error) {
	c, err := newConsumer(addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	partitions, err := assignAll(c, topic, kafka.OffsetBeginning)
	if err != nil {
		return 0, err
	}
	for deadline := time.Now().Add(patience); partitions > 0; {
		switch e := c.Poll(100).(type) {
		case *kafka.Message:
			records++
		case kafka.PartitionEOF:
			partitions--
		case kafka.Error:
			return records, fmt.Errorf("consume: %w", e)
		case nil:
			if ctx.Err() != nil || time.Now().After(deadline) {
				return records, fmt.Errorf("consume: %d partitions of %s have not ended", partitions, topic)
			}
		}
	}
	return records, nil
}

// assignAll makes a consumer read all partitions of a topic.
func assignAll(c *kafka.Consumer, topic string, from kafka.Offset) (partitions int, err error) {
	partitions, err = countPartitions(c, topic)
	if err != nil {
		return 0, err
	}
	var all []kafka.TopicPartition
	for p := range partitions {
		all = append(all, kafka.TopicPartition{Topic: &topic, Partition: int32(p), Offset: from})
	}
	return partitions, c.Assign(all)
}

// countPartitions returns how many partitions a topic has. It must exist.
func countPartitions(c *kafka.Consumer, topic string) (int, error) {
	metadata, err := c.GetMetadata(&topic, false, metadataPatience)
	if err == nil && metadata.Topics[topic].Error.Code() != kafka.ErrNoError {
		err = metadata.Topics[topic].Error
	}
	if err != nil {
		return 0, fmt.Errorf("look %s up: %w", topic, err)
	}
	return len(metadata.Topics[topic].Partitions), nil
}

// Counter counts the offsets that a topic was ever given. The markers of transactions have offsets too.
type Counter struct {
	client *kafka.Consumer
	topic  string
	// partitions is the number of partitions when the counter was made.
	partitions int32
}

// NewCounter looks the topic up. It must exist.
func NewCounter(addr, topic string) (*Counter, error) {
	client, err := newConsumer(addr)
	if err != nil {
		return nil, err
	}
	partitions, err := countPartitions(client, topic)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return &Counter{client, topic, int32(partitions)}, nil
}

// Partitions returns the number of partitions when the counter was made.
func (c *Counter) Partitions() int { return int(c.partitions) }

// Close ends the connection.
func (c *Counter) Close() { c.client.Close() }

// Offsets returns the sum of the high watermarks.
func (c *Counter) Offsets() (int, error) {
	var n int64
	for p := range c.partitions {
		_, end, err := c.client.QueryWatermarkOffsets(c.topic, p, metadataPatience)
		if err != nil {
			return 0, fmt.Errorf("ask for the end of %s/%d: %w", c.topic, p, err)
		}
		n += end
	}
	return int(n), nil
}
