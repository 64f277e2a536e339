package main

import (
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
)

const itemsPerOrder = 3

// orderBody is the request that creates an order.
func orderBody(id string) string {
	return `{"orderId": "` + id + `", "itemsNum": ` + strconv.Itoa(itemsPerOrder) + `}`
}

// event is an order's message as the Cart service publishes it.
func event(id string, version int64) contract.Message {
	o := contract.Order{
		OrderID: id, CustomerID: uuid.NewString(), OrderDate: time.Now().UTC().Truncate(time.Millisecond), Items: make([]contract.Item, itemsPerOrder),
		Currency: "USD", Status: contract.StatusNew, Version: version,
	}
	kind := contract.TypeCreated
	if version > 1 {
		kind, o.Status = contract.TypeUpdated, "status-"+strconv.FormatInt(version, 10)
	}
	for i := range o.Items {
		item := contract.Item{ProductID: "Product" + strconv.Itoa(i+1), Quantity: 2, Price: contract.Amount(1000 + 100*i)}
		o.Items[i] = item
		o.TotalAmount += contract.Amount(item.Quantity) * item.Price
	}
	m, err := contract.Event{
		ID: uuid.NewString(), Type: kind, Time: o.OrderDate, Order: o,
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
	}.Message()
	if err != nil {
		panic(err) // an order of three items that cannot be encoded
	}
	return m
}

// orderID spreads: an ID whose neighbour in time is its neighbour in the index would flatter the database.
func orderID(prefix string, n int) string {
	return fmt.Sprintf("%s%08x-%d", prefix, uint32(n)*2654435761, n)
}

// orders yields n creations.
func orders(prefix string, n int) iter.Seq[contract.Message] {
	return func(yield func(contract.Message) bool) {
		for i := range n {
			if !yield(event(orderID(prefix, i), 1)) {
				return
			}
		}
	}
}

// histories yields n events, creations to updates as 1 : 3. The updates of an order come some time after its creation, with other
// orders' events in between, as they would.
func histories(prefix string, n int) iter.Seq[contract.Message] {
	const versions, apart = 4, 700
	all := n / versions
	return func(yield func(contract.Message) bool) {
		for i := range all + (versions-1)*apart {
			for version := range versions {
				of := i - version*apart
				if of >= 0 && of < all && !yield(event(orderID(prefix, of), int64(version+1))) {
					return
				}
			}
		}
	}
}
