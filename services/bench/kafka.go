package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/contract"
)

const kafkaPatience = 60 * time.Second

// newRawProducer has the settings of the services' producer that its speed depends on.
func newRawProducer(addr string) (*kafka.Producer, error) {
	return kafka.NewProducer(&kafka.ConfigMap{
		"bootstrap.servers": addr, "allow.auto.create.topics": false, "acks": "all", "enable.idempotence": true, "enable.gapless.guarantee": true,
		"message.timeout.ms": 0, "partitioner": "murmur2_random", "compression.type": "lz4", "linger.ms": 1, "message.max.bytes": 2 << 20,
		"queue.buffering.max.messages": 20_000, "queue.buffering.max.kbytes": 32 << 10, "go.events.channel.size": 1000,
		"go.produce.channel.size": 0, "go.delivery.report.fields": "none", "log_level": 3,
	})
}

// newRawConsumer reads a topic from its beginning, in no group, with the settings of the services' consumer.
func newRawConsumer(addr string) (*kafka.Consumer, error) {
	return kafka.NewConsumer(&kafka.ConfigMap{
		"bootstrap.servers": addr, "group.id": "raw", "enable.auto.commit": false, "auto.offset.reset": "earliest", "isolation.level": "read_committed",
		"enable.partition.eof": true, "queued.max.messages.kbytes": 32 << 10, "fetch.queue.backoff.ms": 5, "fetch.wait.max.ms": 100,
	})
}

// toKafka puts a message into the client's form.
func toKafka(topic string, m contract.Message) *kafka.Message {
	headers := make([]kafka.Header, len(m.Headers))
	for i, h := range m.Headers {
		headers[i] = kafka.Header(h)
	}
	return &kafka.Message{TopicPartition: kafka.TopicPartition{Topic: &topic, Partition: kafka.PartitionAny}, Key: m.Key, Value: m.Value, Headers: headers}
}

// produceAll sends messages, to their own topics when topic is empty, and waits until Kafka has acknowledged each. The first one is sent
// ahead, and the time begins with its acknowledgement: to connect and to be given a producer ID is no part of the work.
func produceAll(ctx context.Context, addr, topic string, messages iter.Seq[contract.Message]) (took time.Duration, err error) {
	p, err := newRawProducer(addr)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(ctx, kafkaPatience)
	defer cancel()
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
			if e, ok := errors.AsType[kafka.Error](err); !ok || e.Code() != kafka.ErrQueueFull || ctx.Err() != nil {
				return 0, fmt.Errorf("produce: %w", err)
			}
			time.Sleep(time.Millisecond)
		}
		if n++; n == 1 {
			select {
			case <-connected:
			case err := <-acked:
				return 0, err
			}
			begin = time.Now()
		}
	}
	sent <- n
	err = <-acked
	return time.Since(begin), err
}

// awaitReports counts acknowledgements until it has as many as were sent. It closes connected at the first one.
func awaitReports(ctx context.Context, p *kafka.Producer, connected chan<- struct{}, sent <-chan int) error {
	got, want := 0, -1
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

// consumeAll reads a topic to its end and returns the number of records.
func consumeAll(ctx context.Context, addr, topic string) (int, error) {
	c, err := newRawConsumer(addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	partitions, err := assignAll(c, topic, kafka.OffsetBeginning)
	if err != nil {
		return 0, err
	}
	records := 0
	for deadline := time.Now().Add(kafkaPatience); partitions > 0; {
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
	metadata, err := c.GetMetadata(&topic, false, 10_000)
	if err != nil {
		return 0, fmt.Errorf("look %s up: %w", topic, err)
	}
	var all []kafka.TopicPartition
	for _, p := range metadata.Topics[topic].Partitions {
		all = append(all, kafka.TopicPartition{Topic: &topic, Partition: p.ID, Offset: from})
	}
	return len(all), c.Assign(all)
}

// counter asks how many records a topic was ever given.
type counter struct {
	client     *kafka.Consumer
	topic      string
	partitions int32
}

func newCounter(addr, topic string) (*counter, error) {
	client, err := newRawConsumer(addr)
	if err != nil {
		return nil, err
	}
	metadata, err := client.GetMetadata(&topic, false, 10_000)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return &counter{client, topic, int32(len(metadata.Topics[topic].Partitions))}, nil
}

func (c *counter) records() (int, error) {
	var n int64
	for p := range c.partitions {
		_, end, err := c.client.QueryWatermarkOffsets(c.topic, p, 10_000)
		if err != nil {
			return 0, fmt.Errorf("ask for the end of %s/%d: %w", c.topic, p, err)
		}
		n += end
	}
	return int(n), nil
}

func (c *counter) close() { c.client.Close() }
