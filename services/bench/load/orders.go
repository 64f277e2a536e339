// Package load makes the orders, the requests and the pace with which the benchmarks load a
// service.
package load

import (
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
)

// itemsPerOrder is the size of every order.
const itemsPerOrder = 3

// body returns the request that creates an order.
func body(id string) string {
	return `{"orderId": "` + id + `", "itemsNum": ` + strconv.Itoa(itemsPerOrder) + `}`
}

// OrderID returns the ID of order n. IDs that follow each other in time are spread over the index:
// neighbours would flatter the database.
func OrderID(prefix string, n int) string {
	return fmt.Sprintf("%s%08x-%d", prefix, uint32(n)*2654435761, n)
}

// Event returns the message of an order's version as Cart publishes it. Version 1 is the creation.
func Event(id string, version int64) contract.Message {
	o := contract.Order{
		OrderID:    id,
		CustomerID: uuid.NewString(),
		OrderDate:  time.Now().UTC().Truncate(time.Millisecond),
		Items:      make([]contract.Item, itemsPerOrder),
		Currency:   "USD",
		Status:     contract.StatusNew,
		Version:    version,
	}
	kind := contract.TypeCreated
	if version > 1 {
		kind, o.Status = contract.TypeUpdated, "status-"+strconv.FormatInt(version, 10)
	}
	for i := range o.Items {
		price := contract.Amount(1000 + 100*i)
		item := contract.Item{ProductID: "Product" + strconv.Itoa(i+1), Quantity: 2, Price: price}
		o.Items[i] = item
		o.TotalAmount += contract.Amount(item.Quantity) * item.Price
	}
	m, err := contract.Event{
		ID: uuid.NewString(), Type: kind, Time: o.OrderDate, Order: o,
		// The services publish a trace's ID with each event; its bytes count.
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
	}.Message()
	if err != nil {
		// An order of three items can always be encoded.
		panic(err)
	}
	return m
}

// Orders yields the events of n creations.
func Orders(prefix string, n int) iter.Seq[contract.Message] {
	return func(yield func(contract.Message) bool) {
		for i := range n {
			if !yield(Event(OrderID(prefix, i), 1)) {
				return
			}
		}
	}
}

// Versions is how many events [Histories] yields for each order.
const Versions = 4

// Histories yields n events, creations to updates as 1 : 3. The updates of an order follow some
// time after its creation, with events of other orders in between.
func Histories(prefix string, n int) iter.Seq[contract.Message] {
	const apart = 700
	all := n / Versions
	return func(yield func(contract.Message) bool) {
		for i := range all + (Versions-1)*apart {
			for version := range Versions {
				of := i - version*apart
				if of >= 0 && of < all && !yield(Event(OrderID(prefix, of), int64(version+1))) {
					return
				}
			}
		}
	}
}
