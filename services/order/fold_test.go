package order

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

func TestFold(t *testing.T) {
	t.Parallel()
	withHeader := func(r broker.Record, key, value string) broker.Record {
		r.Headers = []contract.Header{{Key: key, Value: []byte(value)}}
		return r
	}
	tombstone := broker.Record{Topic: contract.TopicCreated, Key: []byte("A")}

	for _, tt := range []struct {
		name    string
		known   map[string]mark
		records []broker.Record
		want    string // applied orders as id@version, then what was counted
	}{
		{"nothing", nil, nil, ""},
		{"a creation", nil, []broker.Record{event(t, "A", 1, "a1")}, "A@1 applied=1"},
		{"orders do not touch each other", nil,
			[]broker.Record{event(t, "A", 1, "a1"), event(t, "B", 1, "b1"), event(t, "A", 2, "a2")}, "A@2 B@1 applied=3"},
		{"creation after the update stays behind", nil,
			[]broker.Record{event(t, "A", 2, "a2"), event(t, "A", 1, "a1")}, "A@2 applied=1 stale=1"},
		{"creation after the update, in an earlier batch", map[string]mark{"A": {2, "a2"}},
			[]broker.Record{event(t, "A", 1, "a1")}, "stale=1"},
		{"all reversed", nil,
			[]broker.Record{event(t, "A", 4, "a4"), event(t, "A", 3, "a3"), event(t, "A", 2, "a2"), event(t, "A", 1, "a1")}, "A@4 applied=1 stale=3"},
		{"versions with a gap, as compaction leaves them", map[string]mark{"A": {1, "a1"}},
			[]broker.Record{event(t, "A", 7, "a7")}, "A@7 applied=1"},
		{"repeated within the batch", nil,
			[]broker.Record{event(t, "A", 1, "a1"), event(t, "A", 1, "a1"), event(t, "A", 1, "a1")}, "A@1 applied=1 duplicates=2"},
		{"repeated after an earlier batch", map[string]mark{"A": {1, "a1"}},
			[]broker.Record{event(t, "A", 1, "a1")}, "duplicates=1"},
		{"a relay that started again repeats a run", map[string]mark{"A": {2, "a2"}},
			[]broker.Record{event(t, "A", 2, "a2"), event(t, "A", 3, "a3"), event(t, "A", 2, "a2"), event(t, "A", 3, "a3"), event(t, "A", 4, "a4")},
			"A@4 applied=2 duplicates=2 stale=1"},
		{"the first of two events of one version stays", nil,
			[]broker.Record{event(t, "A", 2, "a2"), event(t, "A", 2, "other")}, "A@2 applied=1 conflict@1"},
		{"conflict with an earlier batch", map[string]mark{"A": {2, "a2"}},
			[]broker.Record{event(t, "A", 2, "other")}, "conflict@0"},
		{"after a conflict the order goes on", map[string]mark{"A": {2, "a2"}},
			[]broker.Record{event(t, "A", 2, "other"), event(t, "A", 3, "a3")}, "A@3 applied=1 conflict@0"},
		{"plain producer", nil, []broker.Record{
			plain(t, contract.TopicCreated, "A", 5), plain(t, contract.TopicUpdated, "A", 0), plain(t, contract.TopicUpdated, "A", 7),
		}, "A@9 applied=3"},
		{"plain producer repeats itself", nil, []broker.Record{
			plain(t, contract.TopicCreated, "A", 5), plain(t, contract.TopicCreated, "A", 5),
		}, "A@1 applied=1 duplicates=1"},
		{"plain producer makes an order twice", nil, []broker.Record{
			plain(t, contract.TopicCreated, "A", 5), plain(t, contract.TopicCreated, "A", 6),
		}, "A@1 applied=1 conflict@1"},
		{"a bad record delays only itself", nil, []broker.Record{
			raw(contract.TopicCreated, "A", "not JSON"), event(t, "A", 1, "a1"), raw(contract.TopicCreated, "B", `{"orderId":"B"}`),
		}, "A@1 applied=1 undecodable@0 undecodable@2"},
		{"an empty value is no JSON", nil, []broker.Record{raw(contract.TopicCreated, "A", "")}, "undecodable@0"},
		{"tombstone", map[string]mark{"A": {1, "a1"}}, []broker.Record{tombstone}, "tombstone@0"},
		{"key unlike the order's ID", nil, []broker.Record{raw(contract.TopicCreated, "B", string(event(t, "A", 1, "a1").Value))}, "key_mismatch@0"},
		{"an update in the created topic", nil, []broker.Record{
			withHeader(event(t, "A", 1, "a1"), contract.HeaderType, contract.TypeUpdated),
		}, "undecodable@0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out := fold(tt.known, decode(tt.records))
			var got []string
			for _, w := range out.winners {
				got = append(got, fmt.Sprintf("%s@%d", w.event.Order.OrderID, w.event.Order.Version))
			}
			for _, c := range []struct {
				name string
				n    int
			}{{"applied", out.applied}, {"duplicates", out.duplicates}, {"stale", out.stale}} {
				if c.n > 0 {
					got = append(got, fmt.Sprintf("%s=%d", c.name, c.n))
				}
			}
			for _, l := range out.letters {
				for i := range tt.records {
					if l.record == &tt.records[i] {
						got = append(got, fmt.Sprintf("%s@%d", l.reason, i))
					}
				}
				if l.message == "" {
					t.Errorf("a dead letter for %s says nothing about it", l.reason)
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("fold (-want +got):\n%s", diff)
			}
			if got := len(out.winners); got > out.applied {
				t.Errorf("%d orders move by %d events", got, out.applied)
			}
		})
	}
}

// A batch is decoded on all processors; what comes out is in the order of the records all the same.
func TestDecodeKeepsTheOrder(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 63, 64, 65, 1000, 1001} {
		records := make([]broker.Record, n)
		for i := range records {
			records[i] = event(t, fmt.Sprint("order-", i), 1, "e")
		}
		for i, d := range decode(records) {
			if d.err != nil || d.record != &records[i] || d.event.Order.OrderID != fmt.Sprint("order-", i) {
				t.Fatalf("of %d records, number %d came out as %q, %v", n, i, d.event.Order.OrderID, d.err)
			}
		}
	}
}
