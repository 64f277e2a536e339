package order

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// BenchmarkApply brings creations and updates, 1 : 3, into a store, in batches as the consumer makes them. ns/op is per event.
func BenchmarkApply(b *testing.B) {
	c := member(b, b.TempDir())
	p := one(contract.TopicCreated, 0)
	q := one(contract.TopicUpdated, 0)
	c.mustAssign(b, p, q)
	records := manyEvents(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < len(records); n += 1000 {
		end := min(n+1000, len(records))
		c.mustApply(b, broker.Batch{Records: records[n:end], Next: map[broker.Partition]int64{p: int64(end), q: int64(end)}})
	}
}

// BenchmarkAuditIndex brings the same events into an audit's index.
func BenchmarkAuditIndex(b *testing.B) {
	ix, err := newIndex(b.Context(), b.TempDir()+"/ix.db", "id", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer ix.close()
	records := manyEvents(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < len(records); n += 1000 {
		if _, err := ix.add(b.Context(), records[n:min(n+1000, len(records))]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	records := manyEvents(b, min(b.N, 1000))
	b.ReportAllocs()
	for n := 0; n < b.N; n += len(records) {
		decode(records)
	}
}

func manyEvents(b *testing.B, n int) []broker.Record {
	r := rand.New(rand.NewPCG(1, 1))
	records := make([]broker.Record, 0, n+4)
	var open []string
	for i := 0; len(records) < n; i++ {
		id := fmt.Sprintf("%08x-%08x", r.Uint32(), i)
		open = append(open, id)
		records = append(records, event(b, id, 1, id+"/1"))
		for v := range int64(3) {
			of := open[max(0, i-int(v)*700)] // updates come later than their creation
			records = append(records, event(b, of, 2+v, fmt.Sprint(of, "/", 2+v)))
		}
	}
	return records[:n]
}
