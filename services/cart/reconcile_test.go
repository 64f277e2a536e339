package cart

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// A comparison that fails begins again after seconds, and may do so for hours.
func TestALossIsCountedOnceHoweverOftenTheStoreIsCompared(t *testing.T) {
	t.Parallel()
	kafka := testenv.Fake(t)
	if err := localkafka.CreateTopics(t.Context(), kafka, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{kafka}}}
	log := slog.New(slog.DiscardHandler)
	admin, err := broker.NewAdmin(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	c, _ := running(t, t.TempDir(), 100)
	r := newReconciler(cfg, admin, c.store, log, prometheus.NewRegistry())
	close(r.whole)
	counted := func(when string, want float64) {
		t.Helper()
		var m dto.Metric
		if err := r.lost.Write(&m); err != nil {
			t.Fatal(err)
		}
		if got := m.GetCounter().GetValue(); got != want {
			t.Errorf("%s: %v records are lost, want %v", when, got, want)
		}
	}
	_, end, err := admin.Bounds(t.Context(), orderTopics...)
	if err != nil {
		t.Fatal(err)
	}
	var some broker.Partition
	for some = range end {
		break
	}
	for loss := range 2 {
		before := float64(5 * loss)
		if err := r.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		counted("the store agrees with the topics", before)
		if err := c.store.setPublished(t.Context(), map[broker.Partition]int64{some: end[some] + 5}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := r.start(t.Context(), end); err != nil {
				t.Fatal(err)
			}
			counted("the comparison has begun", before+5)
		}
	}
	clear(r.counted)
	for range 2 {
		r.deleted(nil, map[broker.Partition]int64{some: 5})
		counted("the log begins later", 15)
	}
}
