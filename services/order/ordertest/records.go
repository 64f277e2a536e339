// Package ordertest makes the records and topics that the tests of the Order service read.
package ordertest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// At is when every event of the tests happened.
var At = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Order returns an order. Its status names the event that made it, so that no two events have the
// same bytes.
func Order(id string, version int64, eventID string) contract.Order {
	return contract.Order{
		OrderID: id, CustomerID: "7b9f1a52-5f0e-4a8e-9a25-0d7d3b6d1c11", OrderDate: At,
		Items: []contract.Item{
			{ProductID: "Product1", Quantity: 2, Price: 1050},
			{ProductID: "Product2", Quantity: 1, Price: 2525},
		},
		TotalAmount: 4625, Currency: "USD", Status: "by " + eventID, Version: version,
	}
}

// Event returns a record as Cart publishes it. Version 1 is a creation.
func Event(t testing.TB, id string, version int64, eventID string) broker.Record {
	t.Helper()
	e := contract.Event{ID: eventID, Type: contract.TypeUpdated, Time: At, Order: Order(id, version, eventID)}
	if version == 1 {
		e.Type = contract.TypeCreated
	}
	m, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	return broker.Record{Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: m.Headers, Time: At}
}

// Realistic returns the creation of an order as Cart makes it, with a new ID and so many items.
func Realistic(t testing.TB, items int) broker.Record {
	t.Helper()
	o := contract.Order{
		OrderID: uuid.NewString(), CustomerID: uuid.NewString(), OrderDate: At, Currency: "USD",
		Status: contract.StatusNew, Version: 1,
	}
	for i := range items {
		o.Items = append(o.Items, contract.Item{ProductID: fmt.Sprint("Product", i+1), Quantity: 2, Price: 4200})
		o.TotalAmount += 2 * 4200
	}
	m, err := contract.Event{Type: contract.TypeCreated, Time: At, Order: o}.Message()
	if err != nil {
		t.Fatal(err)
	}
	return broker.Record{Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: m.Headers, Time: At}
}

// Updates returns an update of each of the orders order-FROM up to, not including, order-TO.
func Updates(t testing.TB, from, to int) []broker.Record {
	t.Helper()
	var all []broker.Record
	for i := from; i < to; i++ {
		all = append(all, Event(t, fmt.Sprintf("order-%d", i), 2, "e"))
	}
	return all
}

// Events returns n creations and updates, 1 : 3, of many orders. An update comes some 700 or 1,400
// orders after its creation.
func Events(t testing.TB, n int) []broker.Record {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	records := make([]broker.Record, 0, n+4)
	var ids []string
	for i := 0; len(records) < n; i++ {
		id := fmt.Sprintf("%08x-%08x", r.Uint32(), i)
		ids = append(ids, id)
		records = append(records, Event(t, id, 1, id+"/1"))
		for v := range int64(3) {
			of := ids[max(0, i-int(v)*700)]
			records = append(records, Event(t, of, 2+v, fmt.Sprint(of, "/", 2+v)))
		}
	}
	return records[:n]
}

// Plain returns a record of a producer that knows neither headers nor versions.
func Plain(t testing.TB, topic, id string, offset int64) broker.Record {
	t.Helper()
	value := fmt.Sprintf(`{"OrderId":%q,"items":[{"productId":"p","quantity":2,"price":1.5}],`+
		`"totalAmount":3,"status":"plain %d"}`, id, offset)
	return broker.Record{Topic: topic, Offset: offset, Time: At, Key: []byte(id), Value: []byte(value)}
}

// Raw returns a record with this key and value and without headers.
func Raw(topic, key, value string) broker.Record {
	return broker.Record{Topic: topic, Key: []byte(key), Value: []byte(value), Time: At}
}

// Partition returns a partition of a topic that was created once; its ID follows from its name.
func Partition(topic string, number int32) broker.Partition {
	return broker.Partition{Topic: topic, TopicID: topic + "-id", Number: number}
}

// Eventually waits until done returns true, which another goroutine brings about.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for: " + what)
		}
	}
}
