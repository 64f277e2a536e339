package audit

import (
	"testing"

	"ordersystem.dev/services/order/ordertest"
)

// BenchmarkAuditIndex brings creations and updates, 1 : 3, into an index. ns/op is per event.
func BenchmarkAuditIndex(b *testing.B) {
	ix, err := newIndex(b.TempDir()+"/index", 0, "id", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer ix.close()
	records := ordertest.Events(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < len(records); n += 1000 {
		if _, err := ix.add(records[n:min(n+1000, len(records))]); err != nil {
			b.Fatal(err)
		}
	}
}
