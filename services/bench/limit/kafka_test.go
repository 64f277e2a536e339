package limit

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The clients in C and those of the Go binding do the same work: they write the same records to the same
// partitions, and each reads what both have written.
func TestClientsInC(t *testing.T) {
	t.Parallel()
	addr := testenv.SharedKafka(t).Addr
	byGo, byC := testenv.NewTopic(t, addr, 3), testenv.NewTopic(t, addr, 3)
	const n = 2500
	orders := slices.Collect(load.Orders("c-", n))
	if rate, err := Produce(t.Context(), addr, byGo, slices.Values(orders)); err != nil || rate.Value <= 0 {
		t.Fatalf("by Go: %+v, %v", rate, err)
	}
	if rate, err := ProduceFromC(addr, byC, slices.Values(orders)); err != nil || rate.Value <= 0 || rate.CPU <= 0 {
		t.Fatalf("from C: %+v, %v", rate, err)
	}
	type record struct {
		Partition  int32
		Key, Value string
		Headers    []string
	}
	written := func(topic string) (all []record) {
		for _, r := range testenv.ReadAll(t, addr, topic) {
			one := record{Partition: r.Partition, Key: string(r.Key), Value: string(r.Value)}
			for _, h := range r.Headers {
				one.Headers = append(one.Headers, h.Key+"="+string(h.Value))
			}
			all = append(all, one)
		}
		slices.SortFunc(all, func(a, b record) int { return strings.Compare(a.Key, b.Key) })
		return all
	}
	if diff := cmp.Diff(written(byGo), written(byC)); diff != "" {
		t.Errorf("written by Go and from C (-Go +C):\n%s", diff)
	}
	for _, topic := range []string{byGo, byC} {
		if rate, records, err := Consume(t.Context(), addr, topic); records != n || rate.Value <= 0 || err != nil {
			t.Errorf("Go reads %d records of %s at %+v: %v", records, topic, rate, err)
		}
		if rate, records, err := ConsumeFromC(addr, topic); records != n || rate.Value <= 0 || err != nil {
			t.Errorf("C reads %d records of %s at %+v: %v", records, topic, rate, err)
		}
	}
	if _, _, err := Consume(t.Context(), addr, "no-such-topic"); err == nil {
		t.Error("Go reads a topic that is not there")
	}
	if _, _, err := ConsumeFromC(addr, "no-such-topic"); err == nil {
		t.Error("C reads a topic that is not there")
	}
}
