package limit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/bench/load"
)

// RoundTrip is a producer, a consumer and a database with as little as possible in between.
type RoundTrip struct {
	topic    string
	producer *kafka.Producer
	consumer *kafka.Consumer
	// commit writes rows in one transaction.
	commit func([]OrderRow) error
	// stop is closed to end consume, which closes done.
	stop, done chan struct{}

	mu sync.Mutex
	// waiting has a channel for each key under way, which is closed when the record is committed.
	waiting map[string]chan struct{}
	// failed has the errors of commits. Every later Once returns them.
	failed error
}

// NewRoundTrip connects a producer and a consumer of a topic with a database, which outlives it.
func NewRoundTrip(addr, topic string, commit func([]OrderRow) error) (*RoundTrip, error) {
	r := &RoundTrip{
		topic: topic, commit: commit, waiting: map[string]chan struct{}{},
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	var err error
	if r.producer, err = newProducer(addr); err != nil {
		return nil, err
	}
	if r.consumer, err = newConsumer(addr); err == nil {
		_, err = assignAll(r.consumer, topic, kafka.OffsetEnd)
	}
	if err != nil {
		r.producer.Close()
		return nil, err
	}
	go func() {
		// The producer stands still unless its reports are read.
		for range r.producer.Events() {
		}
	}()
	go r.consume()
	return r, nil
}

// consume commits all records that have arrived in one transaction, until stop is closed.
func (r *RoundTrip) consume() {
	defer close(r.done)
	var batch []OrderRow
	for {
		select {
		case <-r.stop:
			return
		default:
		}
		// Only the first record is waited for, in milliseconds.
		wait := 100
		for len(batch) < BatchRecords {
			m, ok := r.consumer.Poll(wait).(*kafka.Message)
			if !ok {
				break
			}
			wait = 0
			batch = append(batch, OrderRow{id: string(m.Key), version: 1, eventID: string(m.Key), body: m.Value})
		}
		if len(batch) == 0 {
			continue
		}
		err := r.commit(batch)
		r.mu.Lock()
		r.failed = errors.Join(r.failed, err)
		for _, row := range batch {
			if done := r.waiting[row.id]; done != nil {
				close(done)
				delete(r.waiting, row.id)
			}
		}
		r.mu.Unlock()
		batch = batch[:0]
	}
}

// Once produces the creation of order n and waits until it is committed. It adds the time to l.
func (r *RoundTrip) Once(ctx context.Context, prefix string, n int, l *load.Latencies) error {
	m := load.Event(prefix+strconv.Itoa(n), 1)
	done := make(chan struct{})
	r.mu.Lock()
	// The key is registered before the record is sent: it may be committed before Produce returns.
	r.waiting[string(m.Key)] = done
	r.mu.Unlock()
	begin := time.Now()
	if err := r.producer.Produce(toKafka(r.topic, m), nil); err != nil {
		return err
	}
	select {
	case <-done:
	case <-time.After(patience):
		return fmt.Errorf("%s never came", m.Key)
	case <-ctx.Done():
		return ctx.Err()
	}
	l.Add(time.Since(begin))
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// Close ends both clients.
func (r *RoundTrip) Close() {
	close(r.stop)
	<-r.done
	r.consumer.Close()
	r.producer.Close()
}
