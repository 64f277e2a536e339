// Package inventory lists the orders of a service's store, each with its version and a checksum. orderctl
// compares the inventories of both services with each other and with the topics.
//
// An inventory is a JSON object in each line: an [Entry] for each order, and at last the number of orders,
// or why it ends early. Without that line it is not whole.
package inventory

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// Path is where the operations endpoints of a service have its inventory. It takes the parameter orderId,
// up to MostOrders times, for an inventory of these orders.
const Path = "/inventory"

// MostOrders is how many orders can be asked for by their IDs.
const MostOrders = 100

// Patience is how long a service waits for Kafka, or for its consumer, before it gives up.
const Patience = 30 * time.Second

// Entry is an order as a store has it.
type Entry struct {
	OrderID string `json:"orderId"`
	Version int64  `json:"version"`
	Sum     Sum    `json:"sum"`
}

// Sum is a checksum of an order's JSON as contract.Order.Encode writes it: the first bytes of its SHA-256.
type Sum [8]byte

// SumOf returns the checksum of an order.
func SumOf(body []byte) Sum {
	whole := sha256.Sum256(body)
	return Sum(whole[:len(Sum{})])
}

// MarshalText writes the checksum as hexadecimal digits.
func (s Sum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Sum) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(s)) {
		return fmt.Errorf("the checksum %.40q does not have %d digits", text, hex.EncodedLen(len(s)))
	}
	_, err := hex.Decode(s[:], text)
	return err
}

// line is what a line has: an Entry, or one of the others at the end.
type line struct {
	*Entry
	// Orders is how many entries there were.
	Orders *int64 `json:"orders,omitempty"`
	// Error is why the inventory ends early.
	Error string `json:"error,omitempty"`
}
