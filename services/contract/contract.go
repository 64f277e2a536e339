// Package contract is what crosses a boundary: orders, their events, the topics that carry them, the requests of the two HTTP
// APIs, and the documents (OpenAPI, AsyncAPI) that describe all of it. It depends on the standard library only, so a client or
// another service can import it without importing how this one works.
package contract

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of the HTTP APIs and of the events; a request beyond one is answered 400 (413 for the body) with the limit named.
const (
	MaxIDBytes     = 256       // order ID, after its outer blanks are trimmed; an event's ID
	MaxStatusBytes = 256       // status, likewise
	MaxItems       = 1000      // items of one order
	MaxBodyBytes   = 64 << 10  // request body
	MaxEventBytes  = 1_000_000 // encoded event; stays below the topics' 1 MiB, which the broker applies to the whole batch
)

// StatusNew is the status of an order that was never updated.
const StatusNew = "new"

// Order is an order as the APIs answer it and as the topics carry it.
type Order struct {
	OrderID     string    `json:"orderId"`
	CustomerID  string    `json:"customerId"` // UUID
	OrderDate   time.Time `json:"orderDate"`  // UTC, RFC 3339
	Items       []Item    `json:"items"`
	TotalAmount Amount    `json:"totalAmount"` // sum of quantity × price
	Currency    string    `json:"currency"`    // ISO 4217
	Status      string    `json:"status"`
	Version     int64     `json:"version"` // 1 for a creation, one more for each update
}

// Item is one line of an order.
type Item struct {
	ProductID string `json:"productId"`
	Quantity  int64  `json:"quantity"`
	Price     Amount `json:"price"`
}

// ShippingCost is 2 % of total, rounded half up to cents.
func ShippingCost(total Amount) Amount { return (total*2 + 50) / 100 }

// Amount is money in minor units (cents). In JSON it is a number with at most two decimals; it is never a float, so a sum is exact.
type Amount int64

// String writes the amount as JSON has it: 12, 12.3 or 12.34.
func (a Amount) String() string { return string(a.append(nil)) }

// MarshalJSON writes the amount as a JSON number.
func (a Amount) MarshalJSON() ([]byte, error) { return a.append(make([]byte, 0, 12)), nil }

func (a Amount) append(b []byte) []byte {
	if a < 0 {
		b, a = append(b, '-'), -a
	}
	b = strconv.AppendInt(b, int64(a/100), 10)
	switch cents := a % 100; {
	case cents == 0:
		return b
	case cents%10 == 0:
		return append(b, '.', byte('0'+cents/10))
	default:
		return append(b, '.', byte('0'+cents/10), byte('0'+cents%10))
	}
}

// UnmarshalJSON reads a JSON number without going through a float. More than two significant decimals, an exponent or an amount
// beyond 10^15 is an error: it could not be written back exactly.
func (a *Amount) UnmarshalJSON(text []byte) error {
	s, negative := strings.CutPrefix(string(text), "-")
	whole, fraction, _ := strings.Cut(s, ".")
	fraction = strings.TrimRight(fraction, "0")
	if len(whole) > 15 || len(fraction) > 2 {
		return fmt.Errorf("amount %s: at most 15 digits and two decimals", text)
	}
	cents, err := strconv.ParseUint((whole + fraction + "00")[:len(whole)+2], 10, 63)
	if err != nil {
		return fmt.Errorf("amount %s: not a plain decimal number", text)
	}
	*a = Amount(cents)
	if negative {
		*a = -*a
	}
	return nil
}

// ParseOrderID trims the blanks at the ends of an order ID and checks it, the same way on every route.
func ParseOrderID(s string) (string, error) { return parseText("orderId", s, MaxIDBytes) }

// ParseStatus trims the blanks at the ends of a status and checks it.
func ParseStatus(s string) (string, error) { return parseText("status", s, MaxStatusBytes) }

func parseText(name, s string, limit int) (string, error) {
	t := strings.TrimSpace(s)
	var wrong string
	switch {
	case t == "":
		wrong = "is blank"
	case len(t) > limit:
		wrong = fmt.Sprintf("has %d bytes", len(t))
	case !utf8.ValidString(t):
		wrong = "is not valid UTF-8"
	case strings.ContainsFunc(t, unicode.IsControl):
		wrong = "contains a control character"
	default:
		return t, nil
	}
	return "", fmt.Errorf("%s %s, must be 1 to %d bytes of UTF-8 without control characters", name, wrong, limit)
}

// check holds an order that came from outside against the contract. It demands what the services rely on, not what one producer
// happens to write: prices, quantities and the customer are the producer's business as long as the sum is right.
func (o Order) check() error {
	id, err := ParseOrderID(o.OrderID)
	if err != nil {
		return err
	}
	if id != o.OrderID {
		// A second key for the same order would put it in a second partition, where its versions could overtake each other.
		return errors.New("orderId has blanks at its ends, must have none")
	}
	if _, err := ParseStatus(o.Status); err != nil {
		return err
	}
	if n := len(o.Items); n < 1 || n > MaxItems {
		return fmt.Errorf("items has %d entries, must be 1 to %d", n, MaxItems)
	}
	var total Amount
	for i, it := range o.Items {
		const most = 1_000_000_000 // keeps the sum of 1,000 items within int64
		if it.Quantity < 0 || it.Price < 0 || it.Quantity > most || (it.Quantity > 0 && it.Price > most*100/Amount(it.Quantity)) {
			return fmt.Errorf("items[%d] has quantity %d and price %s, out of range", i, it.Quantity, it.Price)
		}
		total += Amount(it.Quantity) * it.Price
	}
	if total != o.TotalAmount {
		return fmt.Errorf("totalAmount is %s, its items sum to %s", o.TotalAmount, total)
	}
	if o.Version < 0 {
		return fmt.Errorf("version is %d, must be 1 or more", o.Version)
	}
	if !writable(o.OrderDate) {
		return fmt.Errorf("orderDate is in the year %d of UTC, must be 0 to 9999", o.OrderDate.UTC().Year())
	}
	return nil
}

// writable says whether a time can be written as RFC 3339 in UTC: 9999-12-31T23:00:00-02:00 can be read, but not be written so.
func writable(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 0 && year <= 9999
}

// Encode is the one JSON form of an order: what the topics carry, what the stores keep and what the APIs answer.
func (o Order) Encode() ([]byte, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode order %q: %w", o.OrderID, err)
	}
	return b, nil
}
