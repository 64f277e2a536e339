package fold

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/order/ordertest"
)

func TestBatch(t *testing.T) {
	t.Parallel()
	event := func(id string, version int64, eventID string) broker.Record {
		return ordertest.Event(t, id, version, eventID)
	}
	plain := func(topic string, offset int64) broker.Record {
		return ordertest.Plain(t, topic, "A", offset)
	}
	wrongType := event("A", 1, "a1")
	wrongType.Headers = []contract.Header{{Key: contract.HeaderType, Value: []byte(contract.TypeUpdated)}}
	knownAt1, knownAt2 := map[string]Mark{"A": {1, "a1"}}, map[string]Mark{"A": {2, "a2"}}

	for _, tt := range []struct {
		name    string
		known   map[string]Mark
		records []broker.Record
		// want has the winners as id@version, the counts, and each rejected record as reason@index.
		want string
	}{
		{"nothing", nil, nil, ""},
		{"a creation", nil, []broker.Record{event("A", 1, "a1")}, "A@1"},
		{
			"orders do not touch each other", nil,
			[]broker.Record{event("A", 1, "a1"), event("B", 1, "b1"), event("A", 2, "a2")},
			"A@2 B@1",
		},
		{
			"a creation after the update is stale", nil,
			[]broker.Record{event("A", 2, "a2"), event("A", 1, "a1")},
			"A@2 stale=1",
		},
		{
			"a creation after the update of an earlier batch is stale", knownAt2,
			[]broker.Record{event("A", 1, "a1")},
			"stale=1",
		},
		{
			"all reversed", nil,
			[]broker.Record{event("A", 4, "a4"), event("A", 3, "a3"), event("A", 2, "a2"), event("A", 1, "a1")},
			"A@4 stale=3",
		},
		{
			"versions with a gap, as compaction leaves them", knownAt1,
			[]broker.Record{event("A", 7, "a7")},
			"A@7",
		},
		{
			"repeated within the batch", nil,
			[]broker.Record{event("A", 1, "a1"), event("A", 1, "a1"), event("A", 1, "a1")},
			"A@1 duplicates=2",
		},
		{"repeated after an earlier batch", knownAt1, []broker.Record{event("A", 1, "a1")}, "duplicates=1"},
		{
			"a relay that started again repeats a run", knownAt2,
			[]broker.Record{
				event("A", 2, "a2"), event("A", 3, "a3"),
				event("A", 2, "a2"), event("A", 3, "a3"), event("A", 4, "a4"),
			},
			"A@4 duplicates=2 stale=1",
		},
		{
			"the first of two events of one version stays", nil,
			[]broker.Record{event("A", 2, "a2"), event("A", 2, "other")},
			"A@2 conflict@1",
		},
		{"conflict with an earlier batch", knownAt2, []broker.Record{event("A", 2, "other")}, "conflict@0"},
		{
			"after a conflict the order goes on", knownAt2,
			[]broker.Record{event("A", 2, "other"), event("A", 3, "a3")},
			"A@3 conflict@0",
		},
		{
			"plain producer", nil,
			[]broker.Record{
				plain(contract.TopicCreated, 5), plain(contract.TopicUpdated, 0), plain(contract.TopicUpdated, 7),
			},
			"A@9",
		},
		{
			"plain producer repeats itself", nil,
			[]broker.Record{plain(contract.TopicCreated, 5), plain(contract.TopicCreated, 5)},
			"A@1 duplicates=1",
		},
		{
			"plain producer creates an order twice", nil,
			[]broker.Record{plain(contract.TopicCreated, 5), plain(contract.TopicCreated, 6)},
			"A@1 conflict@1",
		},
		{
			"a bad record delays only itself", nil,
			[]broker.Record{
				ordertest.Raw(contract.TopicCreated, "A", "not JSON"), event("A", 1, "a1"),
				ordertest.Raw(contract.TopicCreated, "B", `{"orderId":"B"}`),
			},
			"A@1 undecodable@0 undecodable@2",
		},
		{
			"an empty value is no JSON", nil,
			[]broker.Record{ordertest.Raw(contract.TopicCreated, "A", "")},
			"undecodable@0",
		},
		{
			"tombstone", knownAt1,
			[]broker.Record{{Topic: contract.TopicCreated, Key: []byte("A")}},
			"tombstone@0",
		},
		{
			"key unlike the order's ID", nil,
			[]broker.Record{ordertest.Raw(contract.TopicCreated, "B", string(event("A", 1, "a1").Value))},
			"key_mismatch@0",
		},
		{"an update in the created topic", nil, []broker.Record{wrongType}, "undecodable@0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			result := Batch(tt.known, Decode(tt.records))
			if diff := cmp.Diff(tt.want, summary(tt.records, result)); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			for _, rejected := range result.Rejected {
				if rejected.Message == "" {
					t.Errorf("the reason %s has no message", rejected.Reason)
				}
			}
		})
	}
}

func summary(records []broker.Record, result Result) string {
	var parts []string
	for _, w := range result.Winners {
		parts = append(parts, fmt.Sprintf("%s@%d", w.Event.Order.OrderID, w.Event.Order.Version))
	}
	for _, count := range []struct {
		name string
		n    int
	}{{"duplicates", result.Duplicates}, {"stale", result.Stale}} {
		if count.n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", count.name, count.n))
		}
	}
	for _, rejected := range result.Rejected {
		for i := range records {
			if rejected.Record == &records[i] {
				parts = append(parts, fmt.Sprintf("%s@%d", rejected.Reason, i))
			}
		}
	}
	return strings.Join(parts, " ")
}

// A batch is decoded on all processors. The result has the order of the records all the same.
func TestDecodeKeepsTheOrder(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 63, 64, 65, 1000, 1001} {
		records := make([]broker.Record, n)
		for i := range records {
			records[i] = ordertest.Event(t, fmt.Sprint("order-", i), 1, "e")
		}
		for i, d := range Decode(records) {
			if d.Err != nil || d.Record != &records[i] || d.Event.Order.OrderID != fmt.Sprint("order-", i) {
				t.Fatalf("of %d records, number %d is %q, %v", n, i, d.Event.Order.OrderID, d.Err)
			}
		}
	}
}

func TestABatchThatCannotBeReadIsRejectedOnce(t *testing.T) {
	t.Parallel()
	fault := broker.Record{Topic: contract.TopicCreated, Partition: 3, Offset: 17, Fault: errors.New("it is too large")}
	result := Batch(nil, Decode([]broker.Record{fault}))
	if len(result.Rejected) != 1 || result.Rejected[0].Reason != contract.ReasonUnreadable ||
		result.Rejected[0].Message != "it is too large" || result.Rejected[0].Record.Offset != 17 {
		t.Errorf("rejected %+v", result.Rejected)
	}
}
