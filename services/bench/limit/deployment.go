package limit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/localkafka"
)

// The waits of a deployment.
const (
	// settle is the time from the assignment, or from subscribing to topics that do not exist, to
	// the first event.
	settle = 2 * time.Second
	// eventPatience is longer than a consumer's default interval between metadata refreshes, 300 s.
	eventPatience = 400 * time.Second
)

// Deployment is one way to set up topics and consumers.
type Deployment struct {
	// Declared topics exist before the clients. Others are made by the first event.
	Declared bool
	// Protocol is the group protocol: classic, or consumer for KIP-848.
	Protocol string
}

// Delays are the delays in one fresh deployment, in milliseconds: from handing an event to the
// producer until the consumer has it.
type Delays struct{ First, Second, Later float64 }

// Deploy sets up two fresh topics with a consumer and the clients' default settings. It sends the
// first event of each topic, one after the other, and one more to the second.
func Deploy(ctx context.Context, addr string, d Deployment, name string) (got Delays, err error) {
	topics := []string{"created-" + name, "updated-" + name}
	if d.Declared {
		like := contract.Topics()[0]
		for _, topic := range topics {
			declared := []contract.Topic{{Name: topic, Partitions: like.Partitions, Config: like.Config}}
			if err := localkafka.CreateTopics(ctx, addr, declared, 1); err != nil {
				return Delays{}, err
			}
		}
	}
	consumer, err := kafka.NewConsumer(&kafka.ConfigMap{
		"bootstrap.servers": addr, "group.id": name, "group.protocol": d.Protocol, "auto.offset.reset": "earliest",
	})
	if err != nil {
		return Delays{}, err
	}
	// A consumer belongs to one goroutine, so that it is followed, and closed, in one.
	seen := make(chan string, 16)
	stop, assigned := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- follow(consumer, topics, d, assigned, seen, stop) }()
	defer func() {
		close(stop)
		err = errors.Join(err, <-done)
	}()

	producer, err := kafka.NewProducer(&kafka.ConfigMap{
		"bootstrap.servers": addr, "acks": "all", "enable.idempotence": true,
	})
	if err != nil {
		return Delays{}, err
	}
	defer producer.Close()
	// A fair start: a consumer that can be assigned before the first event is assigned, and
	// settles.
	select {
	case <-assigned:
	case err := <-done:
		// The deferred function receives from done again.
		done <- nil
		return Delays{}, err
	case <-ctx.Done():
		return Delays{}, ctx.Err()
	}
	backoff.Sleep(ctx, settle)

	for i, delay := range []*float64{&got.First, &got.Second, &got.Later} {
		took, err := send(ctx, producer, topics[min(i, 1)], seen)
		if err != nil {
			return Delays{}, err
		}
		*delay = stats.Milliseconds(took)
	}
	return got, nil
}

// follow consumes until stop is closed. It closes assigned once all topics that exist are assigned.
func follow(
	c *kafka.Consumer, topics []string, d Deployment,
	assigned chan<- struct{}, seen chan<- string, stop <-chan struct{},
) error {
	defer c.Close()
	if err := c.SubscribeTopics(topics, nil); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	waiting := true
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if waiting {
			partitions, err := c.Assignment()
			if err != nil {
				return fmt.Errorf("ask for the assignment: %w", err)
			}
			if !d.Declared || len(partitions) == len(topics)*contract.Topics()[0].Partitions {
				waiting = false
				close(assigned)
			}
		}
		if m, ok := c.Poll(50).(*kafka.Message); ok && m.TopicPartition.Error == nil {
			seen <- string(m.Value)
		}
	}
}

// send sends one event and returns how long it took until the consumer had it.
func send(ctx context.Context, p *kafka.Producer, topic string, seen <-chan string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, eventPatience)
	defer cancel()
	// The value is unique, so that a late event of another kind is not taken for this one.
	value := fmt.Sprintf("%s %d", topic, time.Now().UnixNano())
	begin := time.Now()
	message := toKafka(topic, contract.Message{Key: []byte("order"), Value: []byte(value)})
	if err := p.Produce(message, nil); err != nil {
		return 0, fmt.Errorf("produce: %w", err)
	}
	for {
		select {
		case e := <-p.Events():
			if m, ok := e.(*kafka.Message); ok && m.TopicPartition.Error != nil {
				return 0, fmt.Errorf("deliver: %w", m.TopicPartition.Error)
			}
		case got := <-seen:
			if got == value {
				return time.Since(begin), nil
			}
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the event: %w", ctx.Err())
		}
	}
}
