package e2e

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// at returns a moment of the invented history.
func at(second int) time.Time { return time.Unix(int64(second), 0) }

// published returns a record as Cart publishes it.
func published(offset int64, id, trace, order string, version int64, status string) testenv.Record {
	r := testenv.Record{
		Topic: contract.TopicUpdated, Offset: offset, Key: []byte(order),
		Value: fmt.Appendf(nil, `{"orderId":%q,"status":%q,"version":%d}`, order, status, version),
		Headers: []contract.Header{
			{Key: contract.HeaderID, Value: []byte(id)},
			{Key: contract.HeaderTraceparent, Value: []byte("00-" + trace + "-0000000000000001-01")},
		},
	}
	if version == 1 {
		r.Topic = contract.TopicCreated
	}
	return r
}

// history returns evidence in which every promise is kept. It has two orders. One is updated four
// times, by events of which two are repeated. One operation is refused and two have an unknown
// outcome; one of these took effect.
func history() evidence {
	created, updated := topicPartition{contract.TopicCreated, 0}, topicPartition{contract.TopicUpdated, 0}
	e := evidence{
		operations: []operation{
			{order: "A", create: true, traces: []string{"t1"}, outcome: accepted, version: 1, begin: at(1), end: at(2)},
			{order: "B", create: true, traces: []string{"t2"}, outcome: accepted, version: 1, begin: at(1), end: at(2)},
			{order: "A", create: true, traces: []string{"t3"}, outcome: refused, begin: at(3), end: at(3)},
			{order: "A", status: "s2", traces: []string{"t4", "t5"}, outcome: accepted, version: 2, begin: at(3),
				end: at(4)},
			{order: "A", status: "s3", traces: []string{"t6"}, outcome: accepted, version: 3, begin: at(5), end: at(6)},
			{order: "A", status: "s4", traces: []string{"t7"}, outcome: unknown, begin: at(7), end: at(8)},
			{order: "A", status: "never", traces: []string{"t8"}, outcome: unknown, begin: at(9), end: at(10)},
			{order: "A", status: "s5", traces: []string{"t9"}, outcome: accepted, version: 5, begin: at(11),
				end: at(12)},
		},
		lookups: []lookup{{"A", 1, "new"}, {"A", 4, "s4"}, {"B", 1, "new"}},
		records: []testenv.Record{
			published(0, "e1", "t1", "A", 1, "new"),
			published(1, "e2", "t2", "B", 1, "new"),
			published(0, "e3", "t5", "A", 2, "s2"),
			published(1, "e4", "t6", "A", 3, "s3"),
			published(2, "e3", "t5", "A", 2, "s2"),
			published(3, "e4", "t6", "A", 3, "s3"),
			published(4, "e5", "t7", "A", 4, "s4"),
			published(5, "e6", "t9", "A", 5, "s5"),
		},
		// A transaction marker is the last entry of one partition.
		ends:  map[topicPartition]int64{created: 2, updated: 7},
		order: state{when: "at the end", offsets: map[topicPartition]int64{created: 2, updated: 6}},
	}
	b, a2, a5 := string(e.records[1].Value), string(e.records[2].Value), string(e.records[7].Value)
	e.cart = map[string]storedOrder{"A": {5, "", a5}, "B": {1, "", b}}
	e.order.orders = map[string]storedOrder{"A": {5, "e6", a5}, "B": {1, "e2", b}}
	e.crashes = []state{
		{when: "crash 1", orders: map[string]storedOrder{}, offsets: map[topicPartition]int64{}},
		{when: "crash 2", orders: map[string]storedOrder{"A": {2, "e3", a2}},
			offsets: map[topicPartition]int64{created: 1, updated: 1}},
	}
	return e
}

func TestCheckerCatchesEachKindOfViolation(t *testing.T) {
	t.Parallel()
	// drop removes records and closes the gaps in the offsets, as if the records had never been
	// written.
	drop := func(e *evidence, gone ...int) {
		next := map[string]int64{}
		var kept []testenv.Record
		for i, r := range e.records {
			if !slices.Contains(gone, i) {
				r.Offset = next[r.Topic]
				next[r.Topic]++
				kept = append(kept, r)
			}
		}
		e.records, e.crashes = kept, nil
		for topic, end := range next {
			e.order.offsets[topicPartition{topic, 0}] = end
		}
	}
	set := func(m map[string]storedOrder, id string, change func(*storedOrder)) {
		r := m[id]
		change(&r)
		m[id] = r
	}
	publish := func(e *evidence, r testenv.Record) {
		e.records = append(e.records, r)
		at := topicPartition{r.Topic, 0}
		e.order.offsets[at], e.ends[at] = r.Offset+1, max(e.ends[at], r.Offset+1)
	}
	for _, tt := range []struct {
		name    string
		falsify func(*evidence)
		// want holds the kinds of the violations.
		want []string
	}{
		{"nothing is wrong", func(*evidence) {}, nil},
		{"an order was lost",
			func(e *evidence) { drop(e, 1); delete(e.cart, "B"); delete(e.order.orders, "B"); e.lookups = nil },
			[]string{"lost"}},
		{"an update was lost", func(e *evidence) { drop(e, 3, 5) }, []string{"gap", "lost"}},
		{"the last update was lost", func(e *evidence) {
			drop(e, 7)
			set(e.cart, "A", func(r *storedOrder) { *r = storedOrder{4, "", string(e.records[6].Value)} })
			set(e.order.orders, "A", func(r *storedOrder) { *r = storedOrder{4, "e5", string(e.records[6].Value)} })
		}, []string{"lost"}},
		{"what was refused was published", func(e *evidence) { e.operations[7].outcome = refused },
			[]string{"refused, yet published"}},
		{"what was refused was published as another version", func(e *evidence) {
			publish(e, published(2, "e7", "t3", "A", 1, "new"))
		}, []string{"refused, yet published", "version given twice"}},
		{"a response had another version", func(e *evidence) { e.operations[4].version = 7 },
			[]string{"another version", "out of time"}},
		{"an event differs from what was asked for", func(e *evidence) { e.operations[4].status = "other" },
			[]string{"another event"}},
		{"versions were given against time", func(e *evidence) {
			e.operations[7].begin, e.operations[7].end = at(3), at(4)
		}, []string{"out of time"}},
		{"not requested", func(e *evidence) {
			r := published(6, "e7", "t99", "A", 6, "s6")
			publish(e, r)
			e.cart["A"], e.order.orders["A"] = storedOrder{6, "", string(r.Value)},
				storedOrder{6, "e7", string(r.Value)}
		}, []string{"not requested"}},
		{"a repetition with the same key took effect twice", func(e *evidence) {
			r := published(6, "e7", "t4", "A", 6, "s2")
			publish(e, r)
			e.cart["A"] = storedOrder{6, "", string(r.Value)}
			e.order.orders["A"] = storedOrder{6, "e7", string(r.Value)}
		}, []string{"twice in effect"}},
		{"a version was given twice", func(e *evidence) {
			publish(e, published(6, "e7", "t8", "A", 5, "never"))
		}, []string{"version given twice"}},
		{"an older version came after a newer one", func(e *evidence) {
			e.records[2], e.records[3] = published(0, "e4", "t6", "A", 3, "s3"), published(1, "e3", "t5", "A", 2, "s2")
			e.crashes = nil
		}, []string{"version went back"}},
		{"a single record was sent again", func(e *evidence) {
			publish(e, published(6, "e4", "t6", "A", 3, "s3"))
		}, []string{"newest is not last"}},
		{"a repetition has another content", func(e *evidence) {
			e.records[5].Value = []byte(`{"orderId":"A","status":"s3","version":3,"more":1}`)
		}, []string{"changed repetition"}},
		{"an order is in two partitions", func(e *evidence) {
			e.records[7].Partition, e.records[7].Offset = 1, 0
			e.order.offsets = map[topicPartition]int64{{contract.TopicCreated, 0}: 2, {contract.TopicUpdated, 0}: 5,
				{contract.TopicUpdated, 1}: 1}
			e.ends[topicPartition{contract.TopicUpdated, 1}] = 1
		}, []string{"two partitions"}},
		{"a creation is in the topic of updates", func(e *evidence) {
			e.records[1].Topic, e.records[1].Offset = contract.TopicUpdated, 6
			e.order.offsets = map[topicPartition]int64{{contract.TopicCreated, 0}: 1, {contract.TopicUpdated, 0}: 7}
		}, []string{"another event", "wrong topic"}},
		{"a record cannot be read", func(e *evidence) { e.records[4].Value = []byte("{") }, []string{"unreadable"}},
		{"a record has another key than its order", func(e *evidence) { e.records[4].Key = []byte("B") },
			[]string{"unreadable"}},
		{"there is a dead letter", func(e *evidence) { e.letters = []testenv.Record{{Key: []byte("A")}} },
			[]string{"dead letter"}},
		{"a look-up returned what was never published", func(e *evidence) {
			e.lookups = append(e.lookups, lookup{"A", 6, "s6"})
		}, []string{"seen, yet not published"}},
		{"a look-up returned another content", func(e *evidence) {
			e.lookups = append(e.lookups, lookup{"A", 4, "s3"})
		}, []string{"seen, yet not published"}},
		{"Cart's store is stale", func(e *evidence) {
			set(e.cart, "A", func(r *storedOrder) { *r = storedOrder{4, "", string(e.records[6].Value)} })
		}, []string{"cart's store differs"}},
		{"Cart's store lacks an order", func(e *evidence) { delete(e.cart, "B") }, []string{"cart's store differs"}},
		{"Cart's outbox was not emptied", func(e *evidence) { e.outbox = 1 }, []string{"outbox not empty"}},
		{"Order's store is stale", func(e *evidence) {
			set(e.order.orders, "A", func(r *storedOrder) { *r = storedOrder{4, "e5", string(e.records[6].Value)} })
		}, []string{"order's store differs"}},
		{"Order's store lacks an order", func(e *evidence) { delete(e.order.orders, "B") },
			[]string{"order's store differs"}},
		{"Order's store has one that was never published", func(e *evidence) {
			e.order.orders["C"] = storedOrder{1, "e9", "{}"}
		}, []string{"order's store differs"}},
		{"Order's store has another content", func(e *evidence) {
			set(e.order.orders, "B", func(r *storedOrder) { r.body += " " })
		}, []string{"order's store differs"}},
		{"Order's store took another event for the version", func(e *evidence) {
			set(e.order.orders, "B", func(r *storedOrder) { r.eventID = "e9" })
		}, []string{"order's store differs"}},
		{"Order has not read to the end",
			func(e *evidence) { e.order.offsets[topicPartition{contract.TopicCreated, 0}] = 1 },
			[]string{"order is not at the end"}},
		{"Order's offset is beyond the high watermark",
			func(e *evidence) { e.order.offsets[topicPartition{contract.TopicCreated, 0}] = 3 },
			[]string{"order is not at the end"}},
		{"a crash left the offset ahead of the state", func(e *evidence) {
			e.crashes[1].offsets[topicPartition{contract.TopicCreated, 0}] = 2
		}, []string{"order's store differs after a crash"}},
		{"a crash left the state ahead of the offset", func(e *evidence) {
			e.crashes[1].offsets[topicPartition{contract.TopicUpdated, 0}] = 0
		}, []string{"order's store differs after a crash"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := history()
			tt.falsify(&e)
			kinds := map[string]bool{}
			for _, v := range check(e) {
				kinds[v.kind] = true
			}
			if diff := cmp.Diff(tt.want, slices.Sorted(maps.Keys(kinds))); diff != "" {
				t.Errorf("violations (-want +got):\n%s\n%v", diff, check(e))
			}
		})
	}
}
