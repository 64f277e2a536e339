package contract

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The canonical form of an order is what Encode writes for one whose texts need no escapes. Nearly all
// orders have it, and encoding/json takes eight times as long for it. What is not canonical goes through
// encoding/json, so this file decides about speed and never about right and wrong: a test compares both.

// appendCanonical appends the canonical form. ok is false if the order has none.
func (o *Order) appendCanonical(b []byte) (_ []byte, ok bool) {
	if o.OrderDate.Location() != time.UTC || !writable(o.OrderDate) || o.Items == nil {
		return nil, false
	}
	ok = true
	text := func(s string) {
		ok = ok && isPlain(s)
		b = append(append(append(b, '"'), s...), '"')
	}
	b = append(b, `{"orderId":`...)
	text(o.OrderID)
	b = append(b, `,"customerId":`...)
	text(o.CustomerID)
	b = append(b, `,"orderDate":"`...)
	b = o.OrderDate.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","items":[`...)
	for i := range o.Items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"productId":`...)
		text(o.Items[i].ProductID)
		b = append(b, `,"quantity":`...)
		b = strconv.AppendInt(b, o.Items[i].Quantity, 10)
		b = append(b, `,"price":`...)
		b = append(o.Items[i].Price.append(b), '}')
	}
	b = append(b, `],"totalAmount":`...)
	b = o.TotalAmount.append(b)
	b = append(b, `,"currency":`...)
	text(o.Currency)
	b = append(b, `,"status":`...)
	text(o.Status)
	b = append(b, `,"version":`...)
	b = strconv.AppendInt(b, o.Version, 10)
	return append(b, '}'), ok
}

// isPlain reports whether encoding/json writes a text as it is.
func isPlain(s string) bool {
	for i := range len(s) {
		if !plain[s[i]] {
			return false
		}
	}
	return true
}

// plain has the characters of ASCII that encoding/json writes as they are.
var plain = func() (t [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		t[c] = !strings.ContainsRune(`"\<>&`, c)
	}
	return t
}()

// decodeCanonical reads an order from its canonical form. If it returns false, the value has another form
// or is wrong, and o is of no use.
func (o *Order) decodeCanonical(value []byte) bool {
	// The texts of the order are parts of one copy.
	s := scanner{left: string(value), ok: true}
	s.skip(`{"orderId":"`)
	o.OrderID = s.text()
	s.skip(`,"customerId":"`)
	o.CustomerID = s.text()
	s.skip(`,"orderDate":"`)
	o.OrderDate = s.time()
	s.skip(`","items":[`)
	// An order without items is wrong, and encoding/json is to say so.
	o.Items = make([]Item, 0, min(1+strings.Count(s.left, "},{"), MaxItems))
	for more := true; more && s.ok; more = s.skipIf(",") {
		var it Item
		s.skip(`{"productId":"`)
		it.ProductID = s.text()
		s.skip(`,"quantity":`)
		it.Quantity = s.whole()
		s.skip(`,"price":`)
		it.Price = s.amount()
		s.skip(`}`)
		o.Items = append(o.Items, it)
	}
	s.skip(`],"totalAmount":`)
	o.TotalAmount = s.amount()
	s.skip(`,"currency":"`)
	o.Currency = s.text()
	s.skip(`,"status":"`)
	o.Status = s.text()
	s.skip(`,"version":`)
	o.Version = s.whole()
	s.skip(`}`)
	// Version 0 stands for none.
	return s.ok && s.left == "" && o.Version > 0
}

// scanner takes tokens off the front of a text. After the first one that is not there, ok is false and
// what it returns is of no use.
type scanner struct {
	left string
	ok   bool
}

func (s *scanner) skipIf(token string) (skipped bool) {
	s.left, skipped = strings.CutPrefix(s.left, token)
	return skipped
}

func (s *scanner) skip(token string) { s.ok = s.skipIf(token) && s.ok }

// text takes a text up to its closing quotation mark.
func (s *scanner) text() string {
	for i := range len(s.left) {
		if plain[s.left[i]] {
			continue
		}
		text, end := s.left[:i], s.left[i] == '"'
		s.left, s.ok = s.left[i:], s.ok && end
		s.skip(`"`)
		return text
	}
	s.ok = false
	return ""
}

// mostDigits is how many digits a number may have. Every number of an order is smaller.
const mostDigits = 16

// whole takes a number without a sign, a point or zeros in front.
func (s *scanner) whole() (n int64) {
	digits := 0
	for digits < len(s.left) && isDigit(s.left[digits]) {
		n = 10*n + int64(s.left[digits]-'0')
		if digits++; digits > mostDigits {
			break
		}
	}
	if digits == 0 || digits > mostDigits || s.left[0] == '0' && digits > 1 {
		s.ok = false
		return 0
	}
	s.left = s.left[digits:]
	return n
}

// mostWhole is the largest number before the point of an amount.
const mostWhole = 999_999_999_999_999

// amount takes what Amount.append writes for an amount that is not negative.
func (s *scanner) amount() Amount {
	whole := s.whole()
	s.ok = s.ok && whole <= mostWhole
	a := 100 * Amount(whole)
	if !s.skipIf(".") {
		return a
	}
	decimals := 0
	for decimals < len(s.left) && isDigit(s.left[decimals]) {
		decimals++
	}
	// A zero at the end is not written.
	if decimals < 1 || decimals > 2 || s.left[decimals-1] == '0' {
		s.ok = false
		return 0
	}
	a += 10 * Amount(s.left[0]-'0')
	if decimals == 2 {
		a += Amount(s.left[1] - '0')
	}
	s.left = s.left[decimals:]
	return a
}

// time takes a time in UTC, as time.RFC3339Nano writes it.
func (s *scanner) time() time.Time {
	end := strings.IndexByte(s.left, '"')
	if end < 1 || s.left[end-1] != 'Z' {
		s.ok = false
		return time.Time{}
	}
	// This layout has a fast path in package time.
	t, err := time.Parse(time.RFC3339Nano, s.left[:end])
	// It takes forms that it does not write, such as zeros at the end of the fraction.
	var again [len(time.RFC3339Nano)]byte
	s.ok = s.ok && err == nil && string(t.AppendFormat(again[:0], time.RFC3339Nano)) == s.left[:end]
	s.left = s.left[end:]
	return t
}

func isDigit(c byte) bool { return c-'0' <= 9 }
