package order

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// at is when every event of the tests happened.
var at = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// anOrder is an order of the tests. What made it is in its status, so that no two events have the same bytes.
func anOrder(id string, version int64, eventID string) contract.Order {
	return contract.Order{
		OrderID: id, CustomerID: "7b9f1a52-5f0e-4a8e-9a25-0d7d3b6d1c11", OrderDate: at,
		Items:       []contract.Item{{ProductID: "Product1", Quantity: 2, Price: 1050}, {ProductID: "Product2", Quantity: 1, Price: 2525}},
		TotalAmount: 4625, Currency: "USD", Status: "by " + eventID, Version: version,
	}
}

// event is a record as Cart publishes it; version 1 is a creation.
func event(t testing.TB, id string, version int64, eventID string) broker.Record {
	t.Helper()
	e := contract.Event{ID: eventID, Type: contract.TypeUpdated, Time: at, Order: anOrder(id, version, eventID)}
	if version == 1 {
		e.Type = contract.TypeCreated
	}
	m, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	return broker.Record{Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: m.Headers, Time: at}
}

// plain is a record of a producer that knows neither headers nor versions.
func plain(t testing.TB, topic, id string, offset int64) broker.Record {
	t.Helper()
	return broker.Record{Topic: topic, Offset: offset, Time: at, Key: []byte(id),
		Value: []byte(`{"OrderId":"` + id + `","items":[{"productId":"p","quantity":2,"price":1.5}],"totalAmount":3,"status":"plain ` + string(rune('0'+offset)) + `"}`)}
}

func raw(topic, key, value string) broker.Record {
	return broker.Record{Topic: topic, Key: []byte(key), Value: []byte(value), Time: at}
}

// one is a partition of a topic; the tests' topics have the ID of their first making.
func one(topic string, number int32) broker.Partition {
	return broker.Partition{Topic: topic, TopicID: topic + "-id", Number: number}
}

// batch takes the partitions of its records from where they are to behind their last record.
func batch(records ...broker.Record) broker.Batch {
	b := broker.Batch{Records: records, Next: map[broker.Partition]int64{}}
	for _, r := range records {
		b.Next[one(r.Topic, r.Partition)] = r.Offset + 1
	}
	return b
}

// member is a consumer on a store of its own, as Run makes it.
func member(t testing.TB, dir string) *consumer {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := openStore(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	if s.box, err = outbox.Open(t.Context(), s.db, log, prometheus.NewRegistry(), "order"); err != nil {
		t.Fatal(err)
	}
	return &consumer{store: s, waiters: newWaiters(), view: newView(), metrics: newMetrics(prometheus.NewRegistry()), log: log,
		now: time.Now, next: map[broker.Partition]int64{}}
}

func (c *consumer) mustAssign(t testing.TB, ps ...broker.Partition) map[broker.Partition]int64 {
	t.Helper()
	next, err := c.Assigned(t.Context(), ps)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func (c *consumer) mustApply(t testing.TB, b broker.Batch) {
	t.Helper()
	if err := c.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func count(t testing.TB, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// eventually waits for something that another goroutine does.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain waited for: " + what)
		}
	}
}

// hash tells whether two stores hold the same orders: a rebuilt one must have the hash of the one that it replaces.
func (s *store) hash(ctx context.Context) (string, error) {
	rows, err := s.db.Read.QueryContext(ctx, "SELECT order_id, version, body FROM orders ORDER BY order_id")
	if err != nil {
		return "", fmt.Errorf("hash the orders: %w", err)
	}
	defer rows.Close()
	sum := sha256.New()
	for rows.Next() {
		var id string
		var version int64
		var body []byte
		if err := rows.Scan(&id, &version, &body); err != nil {
			return "", fmt.Errorf("hash the orders: %w", err)
		}
		fmt.Fprintf(sum, "%d %s %d %d %s\n", len(id), id, version, len(body), body)
	}
	return hex.EncodeToString(sum.Sum(nil)), rows.Err()
}
