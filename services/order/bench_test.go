package order

import (
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/order/ordertest"
)

// BenchmarkApply brings creations and updates, 1 : 3, into a store, in batches as the consumer
// makes them. ns/op is per event.
func BenchmarkApply(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchmarkApply(b, database{dir: b.TempDir()}) })
	b.Run("postgres", func(b *testing.B) { benchmarkApply(b, database{url: testenv.Postgres(b)}) })
}

func benchmarkApply(b *testing.B, at database) {
	c := memberOn(b, at)
	p := ordertest.Partition(contract.TopicCreated, 0)
	q := ordertest.Partition(contract.TopicUpdated, 0)
	c.mustAssign(b, p, q)
	records := ordertest.Events(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < len(records); n += 1000 {
		end := min(n+1000, len(records))
		c.mustApply(b, broker.Batch{
			Records: records[n:end], Next: map[broker.Partition]int64{p: int64(end), q: int64(end)},
		})
	}
}
