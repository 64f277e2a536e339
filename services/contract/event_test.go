package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEventMessage(t *testing.T) {
	t.Parallel()
	e := Event{
		ID:          "8f3a",
		Type:        TypeUpdated,
		Time:        time.Date(2026, 1, 2, 4, 4, 5, 7, time.FixedZone("", 3600)),
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Order:       sample(),
	}
	e.Order.Version, e.Order.Status = 2, "Shipped"
	got, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	value, err := e.Order.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := Message{
		Topic: "order-updated-topic",
		Key:   []byte("test-order-101"),
		Value: value,
		Headers: []Header{
			{"ce_specversion", []byte("1.0")},
			{"ce_id", []byte("8f3a")},
			{"ce_source", []byte("/cart")},
			{"ce_type", []byte("order.updated")},
			{"ce_time", []byte("2026-01-02T03:04:05.000000007Z")},
			{"content-type", []byte("application/json")},
			{"traceparent", []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

// A reader takes an event that is published again for a repetition, and another content of the same
// version for a conflict.
func TestRepublishedEventHasTheIDOfTheFirst(t *testing.T) {
	t.Parallel()
	decode := func(m Message) Event {
		t.Helper()
		e, err := DecodeEvent(m.Topic, 7, m.Key, m.Value, m.Headers)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	updated, other := sample(), sample()
	updated.Version, updated.Status = 2, "Shipped"
	other.Version, other.Status = 2, "Cancelled"
	ids := make(map[string]bool)
	for kind, orders := range map[string][]Order{TypeCreated: {sample()}, TypeUpdated: {updated, other}} {
		for _, o := range orders {
			m, err := Event{Type: kind, Order: o}.Message()
			if err != nil {
				t.Fatal(err)
			}
			again := Republish(o.OrderID, o.Version, m.Value, time.Now(), "")
			if first, second := decode(m), decode(again); first.ID != second.ID || first.Type != second.Type ||
				m.Topic != again.Topic || first.ID == "" {
				t.Errorf("%+v is published again as %+v", first, second)
			}
			if m.IsRepublished() || !again.IsRepublished() {
				t.Errorf("republished: %t, then %t, want only the second", m.IsRepublished(), again.IsRepublished())
			}
			ids[decode(m).ID] = true
		}
	}
	if len(ids) != 3 {
		t.Errorf("three events have the IDs %v", ids)
	}
}

func TestEventRoundTrip(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 7, time.UTC)
	updated := sample()
	updated.Version, updated.Status = 7, "на складе"
	for topic, e := range map[string]Event{
		TopicCreated: {ID: "1", Type: TypeCreated, Time: at, Order: sample()},
		TopicUpdated: {
			ID: "2", Type: TypeUpdated, Time: at, Order: updated,
			Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		},
	} {
		m, err := e.Message()
		if err != nil {
			t.Fatal(err)
		}
		if m.Topic != topic {
			t.Errorf("%s goes to %s, want %s", e.Type, m.Topic, topic)
		}
		got, err := DecodeEvent(m.Topic, 99, m.Key, m.Value, m.Headers)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, got); diff != "" {
			t.Errorf("%s came back changed (-want +got):\n%s", e.Type, diff)
		}
	}
}

func TestEventTooLarge(t *testing.T) {
	t.Parallel()
	e := Event{ID: "1", Type: TypeCreated, Order: sample()}
	e.Order.CustomerID = strings.Repeat("x", MaxEventBytes)
	_, err := e.Message()
	if !errors.Is(err, ErrTooLarge) {
		t.Fatalf("error %v, want %v", err, ErrTooLarge)
	}
	if !strings.Contains(err.Error(), `"test-order-101"`) || !strings.Contains(err.Error(), "limit is 1000000") {
		t.Errorf("error %q does not name the order and the limit", err)
	}
}

// A plain JSON producer sends no headers and no version, and may write its keys as .NET does.
func TestDecodePlainEvent(t *testing.T) {
	t.Parallel()
	const (
		pascal = `{"OrderId":"a","CustomerId":"c","OrderDate":"2026-01-02T05:04:05+02:00",` +
			`"Items":[{"ProductId":"Product1","Quantity":3,"Price":10.10}],` +
			`"TotalAmount":30.30,"Currency":"USD","Status":"new"}`
		versioned = `{"orderId":"a","items":[{"quantity":3,"price":10.10}],"totalAmount":30.3,"status":"s","version":5}`
	)
	order := Order{
		OrderID: "a", CustomerID: "c", OrderDate: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Items: []Item{{"Product1", 3, 1010}}, TotalAmount: 3030, Currency: "USD", Status: "new",
	}
	with := func(change func(o *Order)) Order {
		o := order
		change(&o)
		return o
	}
	tests := []struct {
		name, topic string
		offset      int64
		value       string
		want        Event
	}{
		{
			name: "a creation has version 1, wherever it is", topic: TopicCreated, offset: 41, value: pascal,
			want: Event{Type: TypeCreated, Order: with(func(o *Order) { o.Version = 1 })},
		},
		{
			name: "an update has version 2 + offset", topic: TopicUpdated, offset: 41, value: pascal,
			want: Event{Type: TypeUpdated, Order: with(func(o *Order) { o.Version = 43 })},
		},
		{
			name: "the first update", topic: TopicUpdated, offset: 0, value: pascal,
			want: Event{Type: TypeUpdated, Order: with(func(o *Order) { o.Version = 2 })},
		},
		{
			name: "its own version wins", topic: TopicUpdated, offset: 41, value: versioned,
			want: Event{Type: TypeUpdated, Order: Order{
				OrderID: "a", Items: []Item{{"", 3, 1010}}, TotalAmount: 3030, Status: "s", Version: 5,
			}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeEvent(tt.topic, tt.offset, []byte("a"), []byte(tt.value), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(got.ID, "sha256:") || len(got.ID) != len("sha256:")+64 {
				t.Errorf("ID %q is no hash of the value", got.ID)
			}
			tt.want.ID = got.ID
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("event (-want +got):\n%s", diff)
			}
		})
	}
}

// Without ce_id the ID comes from the value: the same value is the same event, another one is not.
func TestPlainEventID(t *testing.T) {
	t.Parallel()
	id := func(offset int64, value string, headers ...Header) string {
		e, err := DecodeEvent(TopicCreated, offset, []byte("a"), []byte(value), headers)
		if err != nil {
			t.Fatal(err)
		}
		return e.ID
	}
	const (
		one   = `{"orderId":"a","items":[{}],"totalAmount":0,"status":"new"}`
		other = `{"orderId":"a","items":[{}],"totalAmount":0,"status":"old"}`
	)
	if id(1, one) != id(2, one) {
		t.Error("the same value at two offsets has two IDs")
	}
	if id(1, one) == id(1, other) {
		t.Error("two values share an ID")
	}
	if got := id(1, one, Header{HeaderID, []byte("given")}); got != "given" {
		t.Errorf("the ID is %q although ce_id says given", got)
	}
	if id(1, one, Header{HeaderID, nil}) != id(1, one) {
		t.Error("an empty ce_id counts as an ID")
	}
}

// An event's ID is stored, so it has a limit.
func TestLongEventIDIsUndecodable(t *testing.T) {
	t.Parallel()
	const value = `{"orderId":"a","items":[{}],"totalAmount":0,"status":"new"}`
	for n, want := range map[int]bool{MaxIDBytes: true, MaxIDBytes + 1: false} {
		headers := []Header{{HeaderID, bytes.Repeat([]byte("x"), n)}}
		_, err := DecodeEvent(TopicCreated, 0, []byte("a"), []byte(value), headers)
		if (err == nil) != want {
			t.Errorf("a ce_id of %d bytes: %v", n, err)
		}
	}
}

func TestDecodeEventHeaders(t *testing.T) {
	t.Parallel()
	order := sample()
	value, err := order.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeEvent(TopicCreated, 0, []byte(order.OrderID), value, []Header{
		{"something-else", []byte{0xff}},
		{HeaderSource, []byte("/another/shop")},
		{HeaderContentType, []byte("application/json; charset=utf-8")},
		{HeaderType, []byte("order.created")},
		{HeaderSpecVersion, []byte("1.0")},
		{HeaderID, []byte("first")},
		{HeaderID, []byte("last")},
		{HeaderTime, []byte("2026-01-02T05:04:05.5+02:00")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Event{
		ID: "last", Type: TypeCreated, Time: time.Date(2026, 1, 2, 3, 4, 5, 500_000_000, time.UTC), Order: order,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	// changed returns a valid order with another value for one field.
	changed := func(field, value string) string {
		fields := map[string]string{
			"orderId": `"a"`, "status": `"s"`, "totalAmount": "10", "version": "1",
			"orderDate": `"2026-01-02T03:04:05Z"`,
			"items":     `[{"productId":"Product1","quantity":1,"price":10}]`,
		}
		fields[field] = value
		var all []string
		for k, v := range fields {
			all = append(all, fmt.Sprintf("%q:%s", k, v))
		}
		return "{" + strings.Join(all, ",") + "}"
	}
	header := func(k, v string) []Header { return []Header{{k, []byte(v)}} }
	manyItems := "[" + strings.TrimSuffix(strings.Repeat("{},", MaxItems+1), ",") + "]"
	tests := []struct {
		name  string
		topic string // "": TopicCreated
		// "" is the key "a", and "none" is no key.
		key     string
		value   string
		headers []Header
		reason  Reason
		// A part of it.
		message string
	}{
		{
			name: "topic", topic: TopicDeadLetter, value: changed("", ""), reason: ReasonUndecodable,
			message: `topic "order-dead-letter-topic" holds no orders`,
		},
		{name: "tombstone", value: "none", reason: ReasonTombstone, message: "the record has no value"},
		{
			name: "tombstone of another key", key: "b", value: "none", reason: ReasonTombstone,
			message: "the record has no value",
		},

		{name: "empty value", value: "", reason: ReasonUndecodable, message: "broken JSON: it ends too early"},
		{name: "not JSON", value: "hello", reason: ReasonUndecodable, message: "broken JSON at byte 1"},
		{
			name: "not UTF-8", value: changed("customerId", "\"\xff\""), reason: ReasonUndecodable,
			message: "not valid UTF-8",
		},
		{
			name: "two values", value: changed("", `""`) + "{}", reason: ReasonUndecodable,
			message: "something follows the JSON value",
		},
		{
			name: "an array", value: "[]", reason: ReasonUndecodable,
			message: "the JSON value must be an object, not array",
		},
		{name: "null", value: "null", reason: ReasonUndecodable, message: "orderId is blank"},
		{name: "no orderId", value: changed("orderId", "null"), reason: ReasonUndecodable, message: "orderId is blank"},
		{
			name: "orderId a number", value: changed("orderId", "1"), reason: ReasonUndecodable,
			message: "orderId must be a string, not number",
		},
		{
			name: "orderId with outer blanks", key: " a", value: changed("orderId", `" a"`), reason: ReasonUndecodable,
			message: "orderId has blanks at its ends",
		},
		{
			name: "orderId too long", value: changed("orderId", `"`+strings.Repeat("x", 257)+`"`),
			reason: ReasonUndecodable, message: "orderId has 257 bytes",
		},
		{name: "no status", value: changed("status", `" "`), reason: ReasonUndecodable, message: "status is blank"},
		{
			name: "no items", value: changed("items", "[]"), reason: ReasonUndecodable,
			message: "items has 0 entries, must be 1 to 1000",
		},
		{
			name: "too many items", value: changed("items", manyItems), reason: ReasonUndecodable,
			message: "items has 1001 entries",
		},
		{
			name: "items an object", value: changed("items", "{}"), reason: ReasonUndecodable,
			message: "items must be an array, not object",
		},
		{
			name: "an item a string", value: changed("items", `["x"]`), reason: ReasonUndecodable,
			message: "items must be an object, not string",
		},
		{
			name: "a fraction of a thing", value: changed("items", `[{"quantity":1.5}]`), reason: ReasonUndecodable,
			message: "items.quantity must be a whole number, not number 1.5",
		},
		{
			name: "negative quantity", value: changed("items", `[{"quantity":-1,"price":-10}]`),
			reason: ReasonUndecodable, message: "items[0] has quantity -1 and price -10, out of range",
		},
		{
			name: "negative price", value: changed("items", `[{"quantity":1,"price":-10}]`), reason: ReasonUndecodable,
			message: "out of range",
		},
		{
			name: "a sum beyond int64", value: changed("items", `[{"quantity":1000000000,"price":999999999999999}]`),
			reason: ReasonUndecodable, message: "out of range",
		},
		{
			name: "a price of three decimals", value: changed("items", `[{"quantity":1,"price":9.999}]`),
			reason: ReasonUndecodable, message: "amount 9.999: at most 15 digits and two decimals",
		},
		{
			name: "a price with an exponent", value: changed("items", `[{"quantity":1,"price":1e1}]`),
			reason: ReasonUndecodable, message: "amount 1e1: not a plain decimal number",
		},
		{
			name: "wrong total", value: changed("totalAmount", "10.01"), reason: ReasonUndecodable,
			message: "totalAmount is 10.01, its items sum to 10",
		},
		{
			name: "wrong date", value: changed("orderDate", `"yesterday"`), reason: ReasonUndecodable,
			message: "yesterday",
		},
		{
			name: "a date that UTC cannot write", value: changed("orderDate", `"9999-12-31T23:00:00-02:00"`),
			reason: ReasonUndecodable, message: "orderDate is in the year 10000",
		},
		{
			name: "negative version", value: changed("version", "-1"), reason: ReasonUndecodable,
			message: "version is -1",
		},
		{
			name: "version beyond what JSON keeps exact", topic: TopicUpdated,
			value: changed("version", "9007199254740992"), reason: ReasonUndecodable,
			message: "version is 9007199254740992, must be 1 to 9007199254740991",
		},
		{
			name: "half of a surrogate pair", value: changed("status", `"\ud83d"`), reason: ReasonUndecodable,
			message: `not valid Unicode: \ud83d is half of a surrogate pair`,
		},
		{
			name: "version beyond int64", value: changed("version", "9223372036854775808"), reason: ReasonUndecodable,
			message: "version must be a whole number",
		},
		{
			name: "a creation of version 2", value: changed("version", "2"), reason: ReasonUndecodable,
			message: "version 2 cannot be that of order.created",
		},
		{
			name: "an update of version 1", topic: TopicUpdated, value: changed("version", "1"),
			reason: ReasonUndecodable, message: "version 1 cannot be that of order.updated",
		},

		{
			name: "event of another type", value: changed("", `""`), headers: header(HeaderType, "order.updated"),
			reason:  ReasonUndecodable,
			message: `header ce_type is "order.updated", in this topic it must be "order.created"`,
		},
		{
			name: "CloudEvents of the future", value: changed("", `""`), headers: header(HeaderSpecVersion, "2.0"),
			reason: ReasonUndecodable, message: `header ce_specversion is "2.0", must be 1.0`,
		},
		{
			name: "an event ID that is not UTF-8", value: changed("", `""`), headers: header(HeaderID, "a\xff"),
			reason: ReasonUndecodable, message: "header ce_id is not valid UTF-8",
		},
		{
			name: "an event ID that PostgreSQL cannot store", value: changed("", `""`),
			headers: header(HeaderID, "a\x00b"),
			reason:  ReasonUndecodable, message: "header ce_id is not valid UTF-8, or has a zero byte",
		},
		{
			name: "wrong time", value: changed("", `""`), headers: header(HeaderTime, "noon"),
			reason: ReasonUndecodable, message: `header ce_time is "noon"`,
		},
		{
			name: "a time that UTC cannot write", value: changed("", `""`),
			headers: header(HeaderTime, "0000-01-01T00:00:00+01:00"), reason: ReasonUndecodable,
			message: "header ce_time is",
		},

		{
			name: "another key", key: "b", value: changed("", `""`), reason: ReasonKeyMismatch,
			message: `key "b" is not the orderId "a"`,
		},
		{
			name: "no key", key: "none", value: changed("", `""`), reason: ReasonKeyMismatch,
			message: `key "" is not the orderId "a"`,
		},
		{
			name: "key of another case", key: "A", value: changed("", `""`), reason: ReasonKeyMismatch,
			message: `key "A" is not`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			topic, key, value := TopicCreated, []byte("a"), []byte(tt.value)
			if tt.topic != "" {
				topic = tt.topic
			}
			if tt.key != "" {
				key = []byte(tt.key)
			}
			if tt.key == "none" {
				key = nil
			}
			if tt.value == "none" {
				value = nil
			}
			_, err := DecodeEvent(topic, 0, key, value, tt.headers)
			decode, ok := errors.AsType[*DecodeError](err)
			if !ok {
				t.Fatalf("error %v, want a DecodeError", err)
			}
			if decode.Reason != tt.reason || !strings.Contains(decode.Message, tt.message) {
				t.Errorf("got %v, want %s: ...%s...", decode, tt.reason, tt.message)
			}
		})
	}
}

// The message becomes a header of the dead letter. Together with the record it must fit into the
// topic.
func TestDecodeErrorIsShort(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", MaxEventBytes/2)
	digits := strings.Repeat("1", MaxEventBytes)
	for name, value := range map[string]string{
		"date":    `{"orderDate":"` + long + `"}`,
		"amount":  `{"totalAmount":` + digits + `}`,
		"version": `{"version":` + digits + `}`,
		"number":  digits,
		"orderId": `{"orderId":"` + long + `"}`,
	} {
		_, err := DecodeEvent(TopicCreated, 0, nil, []byte(value), nil)
		if err == nil {
			t.Fatalf("%s was accepted", name)
		}
		checkMessage(t, err, []byte(name))
	}
	_, err := DecodeEvent(TopicCreated, 0, []byte(long), []byte(`{"orderId":"a","items":[{}],"status":"s"}`), nil)
	decode, ok := errors.AsType[*DecodeError](err)
	if !ok || decode.Reason != ReasonKeyMismatch || len(decode.Message) > 600 {
		t.Errorf("error %.700v, want a short %s", err, ReasonKeyMismatch)
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	want := []Reason{"undecodable", "tombstone", "key_mismatch", "conflict", "unreadable"}
	if diff := cmp.Diff(want, Reasons()); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

// Any record is either refused with a reason, or it is an event that can be encoded and decoded
// again without a difference.
func FuzzDecodeEvent(f *testing.F) {
	value, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(true, int64(0), []byte("test-order-101"), value, "id", "2026-01-02T03:04:05Z", "")
	f.Add(false,
		int64(41), []byte("a"),
		[]byte(`{"OrderId":"a","Items":[{"Quantity":3,"Price":10.10}],"TotalAmount":30.30,"Status":"s"}`), "", "",
		"00-0a-b7-01")
	f.Add(false,
		int64(1), []byte("a"),
		[]byte(`{"orderId":"a","orderDate":"9999-12-31T23:00:00-02:00","items":[null],"status":"s","version":9}`), "",
		"", "")
	f.Add(true, int64(0), []byte(nil), []byte(nil), "", "", "")
	f.Fuzz(func(t *testing.T, created bool, offset int64, key, value []byte, id, at, traceparent string) {
		topic := TopicUpdated
		if created {
			topic = TopicCreated
		}
		var headers []Header
		for k, v := range map[string]string{HeaderID: id, HeaderTime: at, HeaderTraceparent: traceparent} {
			if v != "" {
				headers = append(headers, Header{k, []byte(v)})
			}
		}
		if offset < 0 || offset > 1<<62 {
			t.Skip("Kafka has no such offset")
		}
		e, err := DecodeEvent(topic, offset, key, value, headers)
		if err != nil {
			if _, ok := errors.AsType[*DecodeError](err); !ok {
				t.Errorf("error %v is no DecodeError", err)
			}
			if len(err.Error()) > 2000 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
			return
		}
		checkText(t, e.Order.OrderID, MaxIDBytes)
		if e.ID == "" || e.Order.Version < 1 || e.Order.TotalAmount < 0 ||
			len(e.Order.Items) > MaxItems || e.Order.OrderID != string(key) {
			t.Errorf("accepted %+v", e)
		}
		m, err := e.Message()
		if errors.Is(err, ErrTooLarge) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeEvent(m.Topic, offset+1, m.Key, m.Value, m.Headers)
		if err != nil {
			t.Fatalf("its own message is refused: %v", err)
		}
		if diff := cmp.Diff(e, again); diff != "" {
			t.Errorf("its own message is another event (-first +second):\n%s", diff)
		}
	})
}

// quote returns s as a JSON string.
func quote(t *testing.T, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
