package contract

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// agree checks that a value in the canonical form is to encoding/json the same order, which is encoded to the
// same bytes again by both. It reports whether the value has that form.
func agree(t *testing.T, value []byte) bool {
	t.Helper()
	var fast, strict Order
	if !fast.decodeCanonical(value) {
		return false
	}
	if err := decodeStrict(value, &strict); err != nil {
		t.Fatalf("%s is taken for canonical: %v", value, err)
	}
	if diff := cmp.Diff(strict, fast); diff != "" {
		t.Fatalf("%s (-encoding/json +canonical):\n%s", value, diff)
	}
	if encoded, ok := strict.appendCanonical(nil); !ok || !bytes.Equal(encoded, value) {
		t.Fatalf("%s is taken, and written as %s", value, encoded)
	}
	if encoded, err := strict.encodeStrict(); err != nil || !bytes.Equal(encoded, value) {
		t.Fatalf("%s is taken, and encoding/json writes %s, %v", value, encoded, err)
	}
	return true
}

func TestCanonicalForm(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*Order)
		plain  bool
	}{
		"as it is":          {func(*Order) {}, true},
		"a leap day":        {func(o *Order) { o.OrderDate = time.Date(2024, 2, 29, 23, 59, 59, 1, time.UTC) }, true},
		"the first year":    {func(o *Order) { o.OrderDate = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC) }, true},
		"whole amounts":     {func(o *Order) { o.Items[0].Price, o.TotalAmount = 100, 0 }, true},
		"cents":             {func(o *Order) { o.Items[0].Price, o.TotalAmount = 1, 1001 }, true},
		"large numbers":     {func(o *Order) { o.TotalAmount, o.Version = 99_999_999_999_999_999, MaxVersion }, true},
		"too large a sum":   {func(o *Order) { o.TotalAmount = 1 << 62 }, true},
		"an empty text":     {func(o *Order) { o.Currency = "" }, true},
		"no items":          {func(o *Order) { o.Items = []Item{} }, true},
		"nil items":         {func(o *Order) { o.Items = nil }, false},
		"a negative price":  {func(o *Order) { o.Items[1].Price = -105 }, true},
		"an accent":         {func(o *Order) { o.Status = "livré" }, false},
		"a quotation mark":  {func(o *Order) { o.OrderID = `a"b` }, false},
		"HTML":              {func(o *Order) { o.Items[0].ProductID = "<b>" }, false},
		"a control":         {func(o *Order) { o.CustomerID = "a\tb" }, false},
		"not UTF-8":         {func(o *Order) { o.CustomerID = "\xff" }, false},
		"another time zone": {func(o *Order) { o.OrderDate = o.OrderDate.In(time.FixedZone("", 3600)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := sample()
			tt.change(&o)
			want, err := o.encodeStrict()
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := o.appendCanonical(nil); ok != tt.plain || ok && !bytes.Equal(got, want) {
				t.Errorf("written as\n%s, %t, want\n%s, %t", got, ok, want, tt.plain)
			}
			if got, err := o.Encode(); err != nil || !bytes.Equal(got, want) {
				t.Errorf("encoded as\n%s, %v, want\n%s", got, err, want)
			}
			agree(t, want)
			// Whatever becomes of one byte of it.
			for i := range want {
				for _, c := range []byte("\x00 \"'0159.eE-+Z\\<{}[],:\x7f\x80\xff") {
					b := bytes.Clone(want)
					b[i] = c
					agree(t, b)
				}
				agree(t, append(bytes.Clone(want[:i]), want[i+1:]...))
				agree(t, want[:i])
			}
		})
	}
}

// What Encode has written is read again, whatever its form.
func TestDecodeOrder(t *testing.T) {
	t.Parallel()
	for _, status := range []string{"new", "livré", `"<>"`} {
		want := sample()
		want.Status = status
		value, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeOrder(value); err != nil || !cmp.Equal(want, got) {
			t.Errorf("%s is read as %+v, %v", value, got, err)
		}
	}
	if _, err := DecodeOrder([]byte(`{"orderId":"a"`)); err == nil {
		t.Error("half an order is read without an error")
	}
}

// Version 0 stands for none. The order is stored with the version that its record gives it.
func TestAnOrderWithoutAVersionIsEncodedAgain(t *testing.T) {
	t.Parallel()
	o := sample()
	o.Version = 0
	value, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	e, encoded, err := DecodeRecord(TopicCreated, 7, []byte(o.OrderID), value, nil)
	if err != nil || e.Order.Version != 1 || !bytes.HasSuffix(encoded, []byte(`"version":1}`)) {
		t.Errorf("%s is version %d, stored as %s, %v; want version 1", value, e.Order.Version, encoded, err)
	}
}

// What Cart publishes is canonical. Else it would be slow, and nothing would show it.
func TestCartsOrdersAreCanonical(t *testing.T) {
	t.Parallel()
	o := sample()
	value, err := o.Encode()
	if err != nil || !agree(t, value) {
		t.Errorf("%s, %v", value, err)
	}
}

func FuzzCanonicalForm(f *testing.F) {
	o := sample()
	value, err := o.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add(bytes.ReplaceAll(value, []byte("10.5"), []byte("0.07")))
	f.Fuzz(func(t *testing.T, value []byte) { agree(t, value) })
}

// A record is decoded, and encoded for the store.
func BenchmarkDecodeRecord(b *testing.B) {
	o := sample()
	m, err := Event{Type: TypeCreated, Time: o.OrderDate, Order: o}.Message()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("canonical", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := DecodeRecord(m.Topic, 1, m.Key, m.Value, m.Headers); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("other", func(b *testing.B) {
		b.ReportAllocs()
		value := append(bytes.Clone(m.Value), ' ')
		for b.Loop() {
			if _, _, err := DecodeRecord(m.Topic, 1, m.Key, value, m.Headers); err != nil {
				b.Fatal(err)
			}
		}
	})
}
