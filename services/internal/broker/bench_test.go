package broker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"testing"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// benchSize is how many records a run has: enough to outweigh the start of a client.
func benchSize() int {
	if n, err := strconv.Atoi(os.Getenv("BENCH_RECORDS")); err == nil {
		return n
	}
	return 200_000
}

var quiet = slog.New(slog.DiscardHandler)

// orderLike returns a message of the size and with the headers of an event.
func orderLike(topic string, i int) contract.Message {
	m := message(topic, fmt.Sprint("order-", i), fmt.Sprintf(
		`{"orderId":"order-%d","customerId":"0d5b1f0e-5b1c-4a86-93f5-1d2f3c4b5a69","orderDate":"2026-01-01T00:00:00Z",`+
			`"items":[{"productId":"Product1","quantity":2,"price":10.5},`+
			`{"productId":"Product2","quantity":1,"price":99}],`+
			`"totalAmount":120,"currency":"USD","status":"new","version":1}`, i))
	for _, k := range []string{
		"ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type", "traceparent",
	} {
		m.Headers = append(m.Headers, contract.Header{Key: k, Value: []byte("0d5b1f0e-5b1c-4a86-93f5")})
	}
	return m
}

// fill produces n messages and waits until all are acknowledged.
func fill(b *testing.B, addr, topic string, n int) {
	b.Helper()
	p := producer(b, addr)
	defer p.Close()
	page := make([]contract.Message, 0, 5000)
	for i := range n {
		if page = append(page, orderLike(topic, i)); len(page) == cap(page) || i == n-1 {
			publish(b, p, page...)
			page = page[:0]
		}
	}
}

func BenchmarkProducer(b *testing.B) {
	addr, n := testenv.SharedKafka(b).Addr, benchSize()
	for b.Loop() {
		fill(b, addr, testenv.NewTopic(b, addr, 12), n)
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkRecord measures the conversion of a message with seven headers, as every event has them.
func BenchmarkRecord(b *testing.B) {
	topic := "topic"
	m := &kafka.Message{TopicPartition: kafka.TopicPartition{Topic: &topic, Offset: 1}, Key: []byte("key")}
	for _, h := range orderLike(topic, 1).Headers {
		m.Headers = append(m.Headers, kafka.Header(h))
	}
	b.ReportAllocs()
	for b.Loop() {
		if r := record(m); len(r.Headers) != len(m.Headers) {
			b.Fatal(len(r.Headers))
		}
	}
}

// BenchmarkReadTo compares ReadTo with the smallest loop around Poll of the same client.
func BenchmarkReadTo(b *testing.B) {
	addr, n := testenv.SharedKafka(b).Addr, benchSize()
	topic := testenv.NewTopic(b, addr, 12)
	fill(b, addr, topic, n)
	_, first, end := bounds(b, addr, topic)
	b.Run("ReadTo", func(b *testing.B) {
		for b.Loop() {
			count := 0
			apply := func(_ context.Context, records []Record) error {
				count += len(records)
				return nil
			}
			err := ReadTo(b.Context(), config(addr), quiet, "bench", first, end, apply)
			if err != nil || count != n {
				b.Fatal(count, err)
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("Poll", func(b *testing.B) {
		for b.Loop() {
			c, err := kafka.NewConsumer(&kafka.ConfigMap{
				"bootstrap.servers": addr, "group.id": "bench", "enable.auto.commit": false,
			})
			if err != nil {
				b.Fatal(err)
			}
			var assign []kafka.TopicPartition
			for p, offset := range first {
				assign = append(assign, kafka.TopicPartition{
					Topic: &p.Topic, Partition: p.Number, Offset: kafka.Offset(offset),
				})
			}
			if err := c.Assign(assign); err != nil {
				b.Fatal(err)
			}
			for count := 0; count < n; {
				if _, ok := c.Poll(100).(*kafka.Message); ok {
					count++
				}
			}
			c.Close()
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("ReadTo, one record", func(b *testing.B) {
		for p := range end {
			for b.Loop() {
				from, to := map[Partition]int64{p: end[p] - 1}, map[Partition]int64{p: end[p]}
				err := ReadTo(b.Context(), config(addr), quiet, "bench", from, to,
					func(context.Context, []Record) error { return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
			break
		}
	})
}
