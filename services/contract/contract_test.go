package contract

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAmountJSON(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text  string
		want  Amount
		write string // empty: text
	}{
		{text: "0"},
		{text: "-0", write: "0"},
		{text: "7", want: 700},
		{text: "12.3", want: 1230},
		{text: "12.30", want: 1230, write: "12.3"},
		{text: "12.34", want: 1234},
		{text: "12.05", want: 1205},
		{text: "0.01", want: 1},
		{text: "12.000000", want: 1200, write: "12"},
		{text: "12.340", want: 1234, write: "12.34"},
		{text: "-0.01", want: -1},
		{text: "-12.3", want: -1230},
		// As floats, these times 100 are a little less than 29, 115 and 435.
		{text: "0.29", want: 29},
		{text: "1.15", want: 115},
		{text: "4.35", want: 435},
		{text: "1001.10", want: 100110, write: "1001.1"},
		{text: "999999999999999.99", want: 99_999_999_999_999_999},
		{text: "-999999999999999.99", want: -99_999_999_999_999_999},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			t.Parallel()
			var got Amount
			if err := json.Unmarshal([]byte(tt.text), &got); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("read %d minor units, want %d", got, tt.want)
			}
			want := tt.write
			if want == "" {
				want = tt.text
			}
			b, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			if string(b) != want || got.String() != want {
				t.Errorf("written as %s and %s, want %s", b, got, want)
			}
		})
	}
}

func TestAmountRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		// They cannot be written back exactly.
		"1.234", "0.001", "-0.001",
		"1e2", "1E2", "1.5e1", "1e0", "1.0e0", "1e-2", "0e0",
		"1000000000000000", "9223372036854775807", "99999999999999999999999999", "-1000000000000000",
		`"12.34"`, "null", "true", "[1]", "{}",
	} {
		var got Amount
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s was read as %s, want an error", text, got)
		}
	}
}

// Every amount of cents is written and read without loss, also where no float could hold it.
func TestAmountRoundTrip(t *testing.T) {
	t.Parallel()
	for _, start := range []Amount{-1100, 0, 1<<53 - 500, 99_999_999_999_999_000} {
		for a := start; a < start+1000; a++ {
			b, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			var got Amount
			if err := json.Unmarshal(b, &got); err != nil || got != a {
				t.Fatalf("%d is written as %s and read as %d, %v", a, b, got, err)
			}
		}
	}
}

func TestShippingCostRoundsHalfUp(t *testing.T) {
	t.Parallel()
	tests := []struct{ total, want string }{
		{"0", "0"},
		{"0.01", "0"}, // 0.0002
		{"0.24", "0"}, // 0.0048
		// 0.0050 is half a cent, which is rounded up.
		{"0.25", "0.01"},
		{"0.26", "0.01"},
		{"0.74", "0.01"}, // 0.0148
		// 0.0150 is rounded up too, to an even number of cents.
		{"0.75", "0.02"},
		{"1", "0.02"},
		{"33.33", "0.67"}, // 0.6666
		{"99", "1.98"},
		{"12345.67", "246.91"}, // 246.9134
		// The largest total that Cart makes.
		{"396000", "7920"},
	}
	for _, tt := range tests {
		var total Amount
		if err := json.Unmarshal([]byte(tt.total), &total); err != nil {
			t.Fatal(err)
		}
		if got := ShippingCost(total).String(); got != tt.want {
			t.Errorf("shipping of %s is %s, want %s", tt.total, got, tt.want)
		}
	}
}

func TestParseText(t *testing.T) {
	t.Parallel()
	const rule = ", must be 1 to 256 bytes of UTF-8 without control characters"
	tests := []struct {
		name, in, want, wrong string
	}{
		{name: "plain", in: "test-order-101", want: "test-order-101"},
		{name: "outer blanks go", in: " \t\r\n a \u00a0\u3000", want: "a"},
		{name: "inner blanks stay", in: "order 1  of 2", want: "order 1  of 2"},
		{name: "case stays", in: "Shipped", want: "Shipped"},
		{name: "any language", in: "заказ-注文-🛒", want: "заказ-注文-🛒"},
		{name: "what a path or a query would escape", in: `a/b?c=d&e#f%20"'<>\`, want: `a/b?c=d&e#f%20"'<>\`},
		{name: "the limit", in: strings.Repeat("x", 256), want: strings.Repeat("x", 256)},
		{name: "the limit, blanks aside", in: "  " + strings.Repeat("x", 256) + " ", want: strings.Repeat("x", 256)},
		{name: "over the limit", in: strings.Repeat("x", 257), wrong: "has 257 bytes"},
		{name: "bytes count, not characters", in: strings.Repeat("é", 129), wrong: "has 258 bytes"},
		{name: "empty", in: "", wrong: "is blank"},
		{name: "blank", in: " \t\n ", wrong: "is blank"},
		{name: "line break inside", in: "a\nb", wrong: "contains a control character"},
		{name: "NUL", in: "a\x00", wrong: "contains a control character"},
		{name: "C1 control", in: "a\u0085b", wrong: "contains a control character"},
		{name: "DEL", in: "a\x7f", wrong: "contains a control character"},
		{name: "not UTF-8", in: "a\xffb", wrong: "is not valid UTF-8"},
		{name: "UTF-8 cut short", in: "a\xe2\x82", wrong: "is not valid UTF-8"},
	}
	parsers := map[string]func(string) (string, error){"orderId": ParseOrderID, "status": ParseStatus}
	for _, tt := range tests {
		for field, parse := range parsers {
			t.Run(field+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				got, err := parse(tt.in)
				if got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				want := ""
				if tt.wrong != "" {
					want = field + " " + tt.wrong + rule
				}
				if message(err) != want {
					t.Errorf("error %q, want %q", message(err), want)
				}
			})
		}
	}
}

func TestOrderEncode(t *testing.T) {
	t.Parallel()
	got, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"orderId":"test-order-101","customerId":"0d1ee3c6-5ab5-4f60-a5a5-3f7ac1a6f5b1",` +
		`"orderDate":"2026-01-02T03:04:05.6Z",` +
		`"items":[{"productId":"Product1","quantity":2,"price":10.5},` +
		`{"productId":"Product2","quantity":1,"price":99}],` +
		`"totalAmount":120,"currency":"USD","status":"new","version":1}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("encoded (-want +got):\n%s", diff)
	}
}

func TestOrderEncodeNamesTheOrder(t *testing.T) {
	t.Parallel()
	o := sample()
	// RFC 3339 has no year 10000.
	o.OrderDate = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := o.Encode(); err == nil || !strings.Contains(err.Error(), `"test-order-101"`) {
		t.Errorf("error %v, want one that names the order", err)
	}
}

// The largest order that the API accepts is far below the limit of its topic.
func TestLargestOrderFits(t *testing.T) {
	t.Parallel()
	o := sample()
	o.OrderID, o.Status = strings.Repeat("<", MaxIDBytes), strings.Repeat("&", MaxStatusBytes)
	o.Items, o.TotalAmount = nil, 0
	for range MaxItems {
		o.Items = append(o.Items, Item{ProductID: "Product1000", Quantity: 4, Price: 9999})
		o.TotalAmount += 4 * 9999
	}
	o.Version = math.MaxInt64
	e := Event{ID: "x", Type: TypeUpdated, Order: o}
	m, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Value) > MaxEventBytes/4 {
		t.Errorf("it has %d bytes, more than a quarter of the %d that are allowed", len(m.Value), MaxEventBytes)
	}
}

// The two order topics must have the same number of partitions, or the events of one order would be
// in partitions of different numbers.
func TestTopics(t *testing.T) {
	t.Parallel()
	order := map[string]string{
		"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime", "max.message.bytes": "1048576",
		"min.compaction.lag.ms": "21600000",
	}
	want := []Topic{
		{Name: "order-created-topic", Partitions: 12, Config: order},
		{Name: "order-updated-topic", Partitions: 12, Config: order},
		{Name: "order-dead-letter-topic", Partitions: 3, Config: map[string]string{
			"cleanup.policy": "delete", "retention.ms": "2592000000", "max.message.bytes": "2097152",
		}},
	}
	if diff := cmp.Diff(want, Topics()); diff != "" {
		t.Errorf("topics (-want +got):\n%s", diff)
	}
	for name, want := range map[string]bool{
		"order-created-topic": true, "order-updated-topic": true,
		"order-dead-letter-topic": false, "ORDER-CREATED-TOPIC": false, "": false,
	} {
		if got := IsOrderTopic(name); got != want {
			t.Errorf("IsOrderTopic(%q) = %t, want %t", name, got, want)
		}
	}
	for name, want := range map[string]string{
		"order-created-topic": TypeCreated, "order-updated-topic": TypeUpdated,
		"staging.order-created-topic": TypeCreated, "a-order-updated-topic": TypeUpdated,
		"order-dead-letter-topic": "", "staging.order-dead-letter-topic": "", "": "",
	} {
		if got := EventType(name); got != want {
			t.Errorf("EventType(%q) = %q, want %q", name, got, want)
		}
	}
}

func sample() Order {
	return Order{
		OrderID:    "test-order-101",
		CustomerID: "0d1ee3c6-5ab5-4f60-a5a5-3f7ac1a6f5b1",
		OrderDate:  time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC),
		Items: []Item{
			{ProductID: "Product1", Quantity: 2, Price: 1050},
			{ProductID: "Product2", Quantity: 1, Price: 9900},
		},
		TotalAmount: 12000,
		Currency:    "USD",
		Status:      "new",
		Version:     1,
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
