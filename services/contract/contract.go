// Package contract defines what crosses a boundary: orders, their events, the topics that carry
// them, the requests of the two HTTP APIs, and the documents (OpenAPI, AsyncAPI) that describe all
// of it. It depends on the standard library only, so another program can import it without the
// implementation of the services.
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

// Limits of the HTTP APIs and of the events. A request beyond one gets status 400, or 413 for the
// body, with a text that names the limit.
const (
	// MaxIDBytes is the size of an order ID, without the blanks at its ends, and of an event's ID.
	MaxIDBytes = 256
	// MaxStatusBytes is the size of a status, without the blanks at its ends.
	MaxStatusBytes = 256
	// MaxItems is the number of items of one order.
	MaxItems = 1000
	// MaxVersion is the highest version of an order: 2⁵³ − 1, which every JSON parser keeps exact. A
	// record with a higher one is undecodable, so that no version can overflow.
	MaxVersion = 1<<53 - 1
	// MaxBodyBytes is the size of a request body.
	MaxBodyBytes = 64 << 10
	// MaxEventBytes is the size of an encoded event. It is below the topics' limit of 1 MiB,
	// because the broker applies that one to the whole batch.
	MaxEventBytes = 1_000_000
)

// StatusNew is the status of an order that was never updated.
const StatusNew = "new"

// Order is an order in the responses of the APIs and in the records of the topics.
type Order struct {
	OrderID    string `json:"orderId"`
	CustomerID string `json:"customerId"` // UUID
	// OrderDate is when the order was created. It is written as RFC 3339 in UTC.
	OrderDate time.Time `json:"orderDate"`
	Items     []Item    `json:"items"`
	// TotalAmount is the sum of quantity × price over all items.
	TotalAmount Amount `json:"totalAmount"`
	Currency    string `json:"currency"` // ISO 4217
	Status      string `json:"status"`
	// Version is 1 for a creation and grows by 1 with each update.
	Version int64 `json:"version"`
}

// Item is one line of an order.
type Item struct {
	ProductID string `json:"productId"`
	Quantity  int64  `json:"quantity"`
	Price     Amount `json:"price"`
}

// ShippingCost returns 2 % of total, rounded half up to cents.
func ShippingCost(total Amount) Amount { return (total*2 + 50) / 100 }

// Amount is money in minor units (cents). In JSON it is a number with at most two decimals. It is
// never a float, so sums are exact.
type Amount int64

// String returns the amount as it is in JSON: 12, 12.3 or 12.34.
func (a Amount) String() string { return string(a.append(nil)) }

// MarshalJSON writes the amount as a JSON number.
func (a Amount) MarshalJSON() ([]byte, error) { return a.append(make([]byte, 0, 12)), nil }

// append writes the amount without allocating: an order can have 1,000 prices.
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

// UnmarshalJSON reads a JSON number without going through a float. It refuses what it could not
// write back exactly: more than two significant decimals, an exponent, more than 15 digits before
// the point.
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

// ParseOrderID trims the blanks at the ends of an order ID and checks it. Every route uses it, so
// that an order can be found under the ID that created it.
func ParseOrderID(s string) (string, error) { return parseText("orderId", s, MaxIDBytes) }

// ParseStatus trims the blanks at the ends of a status and checks it.
func ParseStatus(s string) (string, error) { return parseText("status", s, MaxStatusBytes) }

// parseText returns an error that names the field and the rule, for the text of a response.
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
	case !strings.ContainsFunc(t, isVisible):
		wrong = "has no visible character"
	default:
		return t, nil
	}
	return "", fmt.Errorf("%s %s, must be 1 to %d bytes of UTF-8 without control characters", name, wrong, limit)
}

// isVisible reports whether a person can see a character. A format character, such as a zero width
// space, and a filler cannot be seen.
func isVisible(r rune) bool {
	const brailleBlank = '\u2800'
	return unicode.IsGraphic(r) && !unicode.IsSpace(r) && r != brailleBlank &&
		!unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// check checks an order of a record. It demands what the services rely on, and no more: a producer
// chooses prices, quantities and the customer, as long as the sum is right.
func (o Order) check() error {
	id, err := ParseOrderID(o.OrderID)
	if err != nil {
		return err
	}
	if id != o.OrderID {
		// A second key for the same order would put it in a second partition, where its versions
		// could overtake each other.
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
		// The sum of 1,000 items of this price stays within int64.
		const most = 1_000_000_000
		if it.Quantity < 0 || it.Price < 0 || it.Quantity > most ||
			(it.Quantity > 0 && it.Price > most*100/Amount(it.Quantity)) {
			return fmt.Errorf("items[%d] has quantity %d and price %s, out of range", i, it.Quantity, it.Price)
		}
		total += Amount(it.Quantity) * it.Price
	}
	if total != o.TotalAmount {
		return fmt.Errorf("totalAmount is %s, its items sum to %s", o.TotalAmount, total)
	}
	if o.Version < 0 || o.Version > MaxVersion {
		return fmt.Errorf("version is %d, must be 1 to %d", o.Version, MaxVersion)
	}
	if !writable(o.OrderDate) {
		return fmt.Errorf("orderDate is in the year %d of UTC, must be 0 to 9999", o.OrderDate.UTC().Year())
	}
	return nil
}

// writable reports whether a time can be written as RFC 3339 in UTC. 9999-12-31T23:00:00-02:00 can
// be read, but in UTC it is in the year 10000.
func writable(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 0 && year <= 9999
}

// Encode returns the one JSON form of an order. The topics carry it, the stores keep it, and the
// APIs respond with it.
func (o Order) Encode() ([]byte, error) {
	// 512 bytes are enough for five items.
	if b, ok := o.appendCanonical(make([]byte, 0, 512)); ok {
		return b, nil
	}
	return o.encodeStrict()
}

// DecodeOrder reads an order as Encode has written it. It checks nothing.
func DecodeOrder(value []byte) (o Order, err error) {
	if !o.decodeCanonical(value) {
		o = Order{}
		err = json.Unmarshal(value, &o)
	}
	return o, err
}

// encodeStrict is Encode for any order.
func (o *Order) encodeStrict() ([]byte, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode order %q: %w", o.OrderID, err)
	}
	return b, nil
}
