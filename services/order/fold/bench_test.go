package fold

import (
	"testing"

	"ordersystem.dev/services/order/ordertest"
)

// BenchmarkDecode decodes creations and updates in batches of 1,000. ns/op is per event.
func BenchmarkDecode(b *testing.B) {
	records := ordertest.Events(b, min(b.N, 1000))
	b.ReportAllocs()
	for n := 0; n < b.N; n += len(records) {
		Decode(records)
	}
}
