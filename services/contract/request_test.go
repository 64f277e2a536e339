package contract

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const (
	idMissing   = "orderId is missing, must be a string that is not blank"
	numMissing  = "itemsNum is missing, must be a whole number from 1 to 1000"
	statMissing = "status is missing, must be a string that is not blank"
	textRule    = "must be 1 to 256 bytes of UTF-8 without control characters"
)

// brokenBodies are refused by both requests before their fields are checked.
var brokenBodies = []struct{ name, body, want string }{
	{"nothing", ``, "broken JSON: it ends too early"},
	{"only blanks", " \n", "broken JSON: it ends too early"},
	{"cut short", `{"orderId":"a","items`, "broken JSON: it ends too early"},
	{"broken", `{"orderId":}`, "broken JSON at byte 12: invalid character '}' looking for beginning of value"},
	{"not JSON", `orderId=a&itemsNum=1`, "broken JSON at byte 1: invalid character 'o' looking for beginning of value"},
	{
		"single quotes", `{'orderId':'a'}`,
		`broken JSON at byte 2: invalid character '\'' looking for beginning of object key string`,
	},
	{
		"a comma too many", `{"orderId":"a",}`,
		"broken JSON at byte 16: invalid character '}' looking for beginning of object key string",
	},
	{
		"line break in a string", "{\"orderId\":\"a\nb\"}",
		`broken JSON at byte 14: invalid character '\n' in string literal`,
	},
	{"too deep", strings.Repeat("[", 10_001), "broken JSON at byte 10001: invalid character '[' exceeded max depth"},
	{"a second object", `{"orderId":"a","itemsNum":1,"status":"s"} {}`, "something follows the JSON value"},
	{"a stray bracket", `{"orderId":"a","itemsNum":1,"status":"s"}}`, "something follows the JSON value"},
	{"text behind", `{"orderId":"a","itemsNum":1,"status":"s"} x`, "something follows the JSON value"},
	{"an array", `[{"orderId":"a"}]`, "the JSON value must be an object, not array"},
	{"a string", `"a"`, "the JSON value must be an object, not string"},
	{"a number", `1`, "the JSON value must be an object, not number"},
	{"not UTF-8", "{\"orderId\":\"a\xff\",\"itemsNum\":1,\"status\":\"s\"}", "not valid UTF-8"},
}

func TestDecodeCreateOrder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, body string
		want       CreateOrder
		err        string
	}{
		{
			name: "the reference's request", body: "{\n  \"OrderId\": \"test-order-101\",\n  \"ItemsNum\": 3\n}",
			want: CreateOrder{"test-order-101", 3},
		},
		{name: "camelCase", body: `{"orderId":"a","itemsNum":1}`, want: CreateOrder{"a", 1}},
		{name: "any case", body: `{"ORDERID":"a","iTEMSnUM":1}`, want: CreateOrder{"a", 1}},
		{
			name: "unknown keys", body: `{"orderId":"a","itemsNum":1,"note":{"deep":[1]},"x":null}`,
			want: CreateOrder{"a", 1},
		},
		{
			name: "blanks at the ends", body: " {\"orderId\":\"  a b\\t\",\"itemsNum\":1}\r\n",
			want: CreateOrder{"a b", 1},
		},
		{name: "escapes", body: `{"order\u0049d":"\u00e9\ud83d\uded2","itemsNum":1}`, want: CreateOrder{"é🛒", 1}},
		{
			name: "a key given twice", body: `{"orderId":"a","OrderId":"b","itemsNum":1}`,
			err: "OrderId is given more than once",
		},
		{
			name: "a key given twice, once with an escape", body: `{"orderId":"a","order\u0049d":"b","itemsNum":1}`,
			err: "orderId is given more than once",
		},
		{
			name: "an unknown key given twice", body: `{"orderId":"a","itemsNum":1,"x":{"x":1},"x":2}`,
			err: "x is given more than once",
		},
		{
			name: "half of a surrogate pair", body: `{"orderId":"cut-\ud83d","itemsNum":1}`,
			err: `not valid Unicode: \ud83d is half of a surrogate pair`,
		},
		{
			name: "the other half", body: `{"orderId":"cut-\udd92","itemsNum":1}`,
			err: `not valid Unicode: \udd92 is half of a surrogate pair`,
		},
		{
			name: "halves in the wrong order", body: `{"orderId":"\udd92\ud83e","itemsNum":1}`,
			err: `not valid Unicode: \udd92 is half of a surrogate pair`,
		},
		{
			name: "an escaped backslash is no escape of a half", body: `{"orderId":"\\ud83d","itemsNum":1}`,
			want: CreateOrder{`\ud83d`, 1},
		},
		{
			name: "an ID that nobody can see", body: `{"orderId":"\u200b\u3164\ufe0f\u2800","itemsNum":1}`,
			err: "orderId has no visible character, must be 1 to 256 bytes of UTF-8 without control characters",
		},
		{name: "least items", body: `{"orderId":"a","itemsNum":1}`, want: CreateOrder{"a", 1}},
		{name: "most items", body: `{"orderId":"a","itemsNum":1000}`, want: CreateOrder{"a", 1000}},
		{
			name: "longest ID", body: `{"orderId":"` + strings.Repeat("x", 256) + `","itemsNum":1}`,
			want: CreateOrder{strings.Repeat("x", 256), 1},
		},

		{name: "empty object", body: `{}`, err: idMissing + "; " + numMissing},
		{name: "null", body: `null`, err: idMissing + "; " + numMissing},
		{name: "nulls", body: `{"orderId":null,"itemsNum":null}`, err: idMissing + "; " + numMissing},
		{name: "no ID", body: `{"itemsNum":1}`, err: idMissing},
		{name: "no number", body: `{"orderId":"a"}`, err: numMissing},
		{name: "empty ID", body: `{"orderId":"","itemsNum":1}`, err: "orderId is blank, " + textRule},
		{name: "blank ID", body: `{"orderId":" \t ","itemsNum":1}`, err: "orderId is blank, " + textRule},
		{
			name: "ID too long", body: `{"orderId":"` + strings.Repeat("x", 257) + `","itemsNum":1}`,
			err: "orderId has 257 bytes, " + textRule,
		},
		{
			name: "control character in the ID", body: `{"orderId":"a\u0000b","itemsNum":1}`,
			err: "orderId contains a control character, " + textRule,
		},
		{name: "ID a number", body: `{"orderId":5,"itemsNum":1}`, err: "orderId must be a string, not 5"},
		{
			name: "ID an object", body: `{"orderId":{"a":"` + strings.Repeat("x", 99) + `"},"itemsNum":1}`,
			err: `orderId must be a string, not {"a":"xxxxxxxxxxxxxx`,
		},
		{name: "ID a list", body: `{"orderId":["a"],"itemsNum":1}`, err: `orderId must be a string, not ["a"]`},
		{name: "no items", body: `{"orderId":"a","itemsNum":0}`, err: "itemsNum is 0, must be from 1 to 1000"},
		{name: "minus zero", body: `{"orderId":"a","itemsNum":-0}`, err: "itemsNum is -0, must be from 1 to 1000"},
		{name: "negative", body: `{"orderId":"a","itemsNum":-3}`, err: "itemsNum is -3, must be from 1 to 1000"},
		{
			name: "over the cap", body: `{"orderId":"a","itemsNum":1001}`,
			err: "itemsNum is 1001, must be from 1 to 1000",
		},
		{
			name: "beyond any integer", body: `{"orderId":"a","itemsNum":` + strings.Repeat("9", 40) + `}`,
			err: "itemsNum is 99999999999999999999, must be from 1 to 1000",
		},
		{
			name: "a fraction", body: `{"orderId":"a","itemsNum":2.5}`,
			err: "itemsNum must be a whole number from 1 to 1000, not 2.5",
		},
		{name: "written as a fraction", body: `{"orderId":"a","itemsNum":3.0}`, want: CreateOrder{"a", 3}},
		{name: "an exponent", body: `{"orderId":"a","itemsNum":0.1E2}`, want: CreateOrder{"a", 10}},
		{
			name: "nearly whole", body: `{"orderId":"a","itemsNum":3.00000000000000000000001}`,
			err: "itemsNum must be a whole number from 1 to 1000, not 3.000000000000000000",
		},
		{
			name: "more digits than anybody needs",
			body: `{"orderId":"a","itemsNum":3.` + strings.Repeat("7", 60_000) + `}`,
			err:  "itemsNum must be a whole number from 1 to 1000, not 3.777777777777777777",
		},
		{
			name: "an exponent beyond any float", body: `{"orderId":"a","itemsNum":1e999999999}`,
			err: "itemsNum is 1e999999999, must be from 1 to 1000",
		},
		{
			name: "a small exponent beyond any float", body: `{"orderId":"a","itemsNum":1e-999999999}`,
			err: "itemsNum is 1e-999999999, must be from 1 to 1000",
		},
		{
			name: "number a string", body: `{"orderId":"a","itemsNum":"3"}`,
			err: `itemsNum must be a whole number from 1 to 1000, not "3"`,
		},
		{
			name: "number a bool", body: `{"orderId":"a","itemsNum":true}`,
			err: "itemsNum must be a whole number from 1 to 1000, not true",
		},
		{
			name: "all wrong at once", body: `{"orderId":7,"itemsNum":"x"}`,
			err: `orderId must be a string, not 7; itemsNum must be a whole number from 1 to 1000, not "x"`,
		},
	}
	for _, b := range brokenBodies {
		tests = append(tests, struct {
			name, body string
			want       CreateOrder
			err        string
		}{name: b.name, body: b.body, err: b.want})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeCreateOrder([]byte(tt.body))
			if diff := cmp.Diff(tt.err, message(err)); diff != "" {
				t.Fatalf("error (-want +got):\n%s", diff)
			}
			if err == nil && got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// A body of the largest size must not take many times as long because it has many keys: some such
// requests would keep all others out.
func TestManyKeysAreDecodedFast(t *testing.T) {
	const request = `{"orderId":"a","itemsNum":1`
	many := []byte(request)
	for n := 0; len(many) < MaxBodyBytes-20; n++ {
		// Characters beyond ASCII are the slowest to compare.
		many = fmt.Appendf(many, `,"θϑ%d":1`, n)
	}
	many = append(many, '}')
	few := []byte(request + `,"x":"` + strings.Repeat("θ", (len(many)-len(request))/2) + `"}`)
	// The fastest of some runs is the one that nothing else has delayed.
	fastest := func(body []byte) time.Duration {
		least := time.Hour
		for range 5 {
			start := time.Now()
			if _, err := DecodeCreateOrder(body); err != nil {
				t.Fatal(err)
			}
			least = min(least, time.Since(start))
		}
		return least
	}
	if one, all := fastest(few), fastest(many); all > 50*one {
		t.Errorf("a body of many keys takes %s, one of few keys %s: want at most 50 times as long", all, one)
	}
}

func TestDecodeUpdateOrder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, body string
		want       UpdateOrder
		err        string
	}{
		{
			name: "the reference's request",
			body: "{\n  \"orderId\": \"test-order-101\",\n  \"status\": \"Shipped\"\n}",
			want: UpdateOrder{"test-order-101", "Shipped"},
		},
		{name: "PascalCase", body: `{"OrderId":"a","Status":"b"}`, want: UpdateOrder{"a", "b"}},
		{
			name: "any status", body: `{"orderId":"a","status":"на складе 📦, shelf 3/4"}`,
			want: UpdateOrder{"a", "на складе 📦, shelf 3/4"},
		},
		{
			name: "blanks at the ends", body: `{"orderId":" a ","status":"\n on its way "}`,
			want: UpdateOrder{"a", "on its way"},
		},
		{name: "unknown keys", body: `{"orderId":"a","status":"b","itemsNum":-1}`, want: UpdateOrder{"a", "b"}},
		{
			name: "a key given twice", body: `{"status":"a","orderId":"a","STATUS":"b"}`,
			err: "STATUS is given more than once",
		},
		{
			name: "a key that encoding/json takes for another one", body: `{"orderId":"a","status":"b","ſtatus":"c"}`,
			err: "ſtatus is given more than once",
		},
		{
			name: "half of a surrogate pair", body: `{"orderId":"a","status":"\ud83d"}`,
			err: `not valid Unicode: \ud83d is half of a surrogate pair`,
		},
		{
			name: "longest status", body: `{"orderId":"a","status":"` + strings.Repeat("x", 256) + `"}`,
			want: UpdateOrder{"a", strings.Repeat("x", 256)},
		},

		{name: "empty object", body: `{}`, err: idMissing + "; " + statMissing},
		{name: "null", body: `null`, err: idMissing + "; " + statMissing},
		{name: "nulls", body: `{"orderId":null,"status":null}`, err: idMissing + "; " + statMissing},
		{name: "no ID", body: `{"status":"b"}`, err: idMissing},
		{name: "no status", body: `{"orderId":"a"}`, err: statMissing},
		{name: "blank status", body: `{"orderId":"a","status":"  "}`, err: "status is blank, " + textRule},
		{
			name: "status too long", body: `{"orderId":"a","status":"` + strings.Repeat("x", 257) + `"}`,
			err: "status has 257 bytes, " + textRule,
		},
		{
			name: "control character in the status", body: `{"orderId":"a","status":"a\u001bb"}`,
			err: "status contains a control character, " + textRule,
		},
		{name: "status a number", body: `{"orderId":"a","status":3}`, err: "status must be a string, not 3"},
		{
			name: "all wrong at once", body: `{"orderId":"","status":false}`,
			err: "orderId is blank, " + textRule + "; status must be a string, not false",
		},
	}
	for _, b := range brokenBodies {
		tests = append(tests, struct {
			name, body string
			want       UpdateOrder
			err        string
		}{name: b.name, body: b.body, err: b.want})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeUpdateOrder([]byte(tt.body))
			if diff := cmp.Diff(tt.err, message(err)); diff != "" {
				t.Fatalf("error (-want +got):\n%s", diff)
			}
			if err == nil && got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzDecodeCreateOrder(f *testing.F) {
	f.Add([]byte(`{"OrderId":"test-order-101","ItemsNum":3}`))
	f.Add([]byte(`{"orderId":" é ","itemsNum":1000,"x":[{}]}`))
	f.Add([]byte(`{"orderId":5,"itemsNum":1e2} {}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := DecodeCreateOrder(body)
		if err != nil {
			checkMessage(t, err, body)
			return
		}
		checkText(t, req.OrderID, MaxIDBytes)
		if req.ItemsNum < 1 || req.ItemsNum > MaxItems {
			t.Errorf("accepted %d items", req.ItemsNum)
		}
		plain := fmt.Appendf(nil, `{"orderId":%s,"itemsNum":%d}`, quote(t, req.OrderID), req.ItemsNum)
		again, err := DecodeCreateOrder(plain)
		if err != nil || again != req {
			t.Errorf("%+v, encoded and decoded again, is %+v, %v", req, again, err)
		}
	})
}

func FuzzDecodeUpdateOrder(f *testing.F) {
	f.Add([]byte(`{"orderId":"test-order-101","status":"Shipped"}`))
	f.Add([]byte(`{"ORDERID":"\ud83d\uded2","Status":"a\tb"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := DecodeUpdateOrder(body)
		if err != nil {
			checkMessage(t, err, body)
			return
		}
		checkText(t, req.OrderID, MaxIDBytes)
		checkText(t, req.Status, MaxStatusBytes)
		plain := fmt.Appendf(nil, `{"orderId":%s,"status":%s}`, quote(t, req.OrderID), quote(t, req.Status))
		again, err := DecodeUpdateOrder(plain)
		if err != nil || again != req {
			t.Errorf("%+v, encoded and decoded again, is %+v, %v", req, again, err)
		}
	})
}

func checkText(t *testing.T, s string, limit int) {
	t.Helper()
	if s == "" || len(s) > limit || strings.TrimSpace(s) != s ||
		!utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		t.Errorf("accepted %q", s)
	}
}

// checkMessage demands that a refusal is a short text, because it becomes part of a response.
func checkMessage(t *testing.T, err error, body []byte) {
	t.Helper()
	if m := err.Error(); m == "" || len(m) > 600 || !utf8.ValidString(m) {
		t.Errorf("message %q for body %q", m, body)
	}
}

// A mistake in a command must not become a command for all orders.
func TestParseOrderIDs(t *testing.T) {
	t.Parallel()
	for query, want := range map[string][]string{
		"":                            nil,
		"orderId=b&orderId=a":         {"a", "b"},
		"orderId=a&orderId=%20a":      {"a"},
		"orderId=with+%26+sign%C3%A9": {"with & signé"},
	} {
		got, err := ParseOrderIDs(query, 2)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got):\n%s", query, err, diff)
		}
	}
	for query, want := range map[string]string{
		"orderID=first": `there is no parameter "orderID": ` +
			"the parameter orderId is given once for each order",
		"orderId=a&b=c":                 `there is no parameter "b"`,
		"orderId=":                      "orderId is blank",
		"orderId=%zz":                   "invalid URL escape",
		"orderId=a%00b":                 "control character",
		"orderId=first;":                "semicolon",
		"orderId=a&orderId=a&orderId=a": "3 orders are too many for one command: it takes 2",
	} {
		if ids, err := ParseOrderIDs(query, 2); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want the error %q", query, ids, err, want)
		}
	}
}
