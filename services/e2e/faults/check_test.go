package faults

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
func history() Evidence {
	created, updated := TopicPartition{contract.TopicCreated, 0}, TopicPartition{contract.TopicUpdated, 0}
	e := Evidence{
		Operations: []Operation{
			{Order: "A", Create: true, Traces: []string{"t1"}, Outcome: Accepted, Version: 1, Begin: at(1), End: at(2)},
			{Order: "B", Create: true, Traces: []string{"t2"}, Outcome: Accepted, Version: 1, Begin: at(1), End: at(2)},
			{Order: "A", Create: true, Traces: []string{"t3"}, Outcome: Refused, Begin: at(3), End: at(3)},
			{Order: "A", Status: "s2", Traces: []string{"t4", "t5"}, Outcome: Accepted, Version: 2, Begin: at(3),
				End: at(4)},
			{Order: "A", Status: "s3", Traces: []string{"t6"}, Outcome: Accepted, Version: 3, Begin: at(5), End: at(6)},
			{Order: "A", Status: "s4", Traces: []string{"t7"}, Outcome: Unknown, Begin: at(7), End: at(8)},
			{Order: "A", Status: "never", Traces: []string{"t8"}, Outcome: Unknown, Begin: at(9), End: at(10)},
			{Order: "A", Status: "s5", Traces: []string{"t9"}, Outcome: Accepted, Version: 5, Begin: at(11),
				End: at(12)},
		},
		Lookups: []Lookup{
			{Order: "A", Version: 1, Status: "new", Begin: at(2), End: at(3)},
			{Order: "A", Version: 4, Status: "s4", Begin: at(8), End: at(10)},
			// It was under way when another one found a newer version.
			{Order: "A", Version: 1, Status: "new", Begin: at(2), End: at(11)},
			{Order: "B", Version: 1, Status: "new", Begin: at(2), End: at(3)},
		},
		Records: []testenv.Record{
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
		Ends:  map[TopicPartition]int64{created: 2, updated: 7},
		Order: State{When: "at the end", Offsets: map[TopicPartition]int64{created: 2, updated: 6}},
	}
	b, a2, a5 := string(e.Records[1].Value), string(e.Records[2].Value), string(e.Records[7].Value)
	e.Cart = map[string]StoredOrder{"A": {5, "", a5}, "B": {1, "", b}}
	e.Order.Orders = map[string]StoredOrder{"A": {5, "e6", a5}, "B": {1, "e2", b}}
	e.Crashes = []State{
		{When: "crash 1", Orders: map[string]StoredOrder{}, Offsets: map[TopicPartition]int64{}},
		{When: "crash 2", Orders: map[string]StoredOrder{"A": {2, "e3", a2}},
			Offsets: map[TopicPartition]int64{created: 1, updated: 1}},
	}
	return e
}

func TestCheckerCatchesEachKindOfViolation(t *testing.T) {
	t.Parallel()
	// drop removes records and closes the gaps in the offsets, as if the records had never been
	// written.
	drop := func(e *Evidence, gone ...int) {
		next := map[string]int64{}
		var kept []testenv.Record
		for i, r := range e.Records {
			if !slices.Contains(gone, i) {
				r.Offset = next[r.Topic]
				next[r.Topic]++
				kept = append(kept, r)
			}
		}
		e.Records, e.Crashes = kept, nil
		for topic, end := range next {
			e.Order.Offsets[TopicPartition{topic, 0}] = end
		}
	}
	set := func(m map[string]StoredOrder, id string, change func(*StoredOrder)) {
		r := m[id]
		change(&r)
		m[id] = r
	}
	publish := func(e *Evidence, r testenv.Record) {
		e.Records = append(e.Records, r)
		at := TopicPartition{r.Topic, 0}
		e.Order.Offsets[at], e.Ends[at] = r.Offset+1, max(e.Ends[at], r.Offset+1)
	}
	// spoil publishes a record that is no order, with the key of one. It is a dead letter.
	spoil := func(e *Evidence, key string, offset int64) {
		r := published(offset, "", "", key, 6, "")
		r.Value = []byte("{")
		publish(e, r)
		e.Poison, e.Letters = []string{key}, []testenv.Record{{Key: []byte(key)}}
	}
	for _, tt := range []struct {
		name    string
		falsify func(*Evidence)
		// want holds the kinds of the violations.
		want []string
	}{
		{"nothing is wrong", func(*Evidence) {}, nil},
		{"an order was lost",
			func(e *Evidence) { drop(e, 1); delete(e.Cart, "B"); delete(e.Order.Orders, "B"); e.Lookups = nil },
			[]string{"lost"}},
		{"an update was lost", func(e *Evidence) { drop(e, 3, 5) }, []string{"gap", "lost"}},
		{"the last update was lost", func(e *Evidence) {
			drop(e, 7)
			set(e.Cart, "A", func(r *StoredOrder) { *r = StoredOrder{4, "", string(e.Records[6].Value)} })
			set(e.Order.Orders, "A", func(r *StoredOrder) { *r = StoredOrder{4, "e5", string(e.Records[6].Value)} })
		}, []string{"lost"}},
		{"what was refused was published", func(e *Evidence) { e.Operations[7].Outcome = Refused },
			[]string{"refused, yet published"}},
		{"what was refused was published as another version", func(e *Evidence) {
			publish(e, published(2, "e7", "t3", "A", 1, "new"))
		}, []string{"refused, yet published", "version given twice"}},
		{"a response had another version", func(e *Evidence) { e.Operations[4].Version = 7 },
			[]string{"another version", "not linearizable", "out of time"}},
		{"an event differs from what was asked for", func(e *Evidence) { e.Operations[4].Status = "other" },
			[]string{"another event"}},
		{"versions were given against time", func(e *Evidence) {
			e.Operations[7].Begin, e.Operations[7].End = at(3), at(4)
		}, []string{"not linearizable", "out of time"}},
		{"an order was not found after its creation", func(e *Evidence) {
			e.Operations = append(e.Operations, Operation{
				Order: "B", Status: "s2", Outcome: Refused, Code: 404, Begin: at(5), End: at(6),
			})
		}, []string{"not linearizable"}},
		{"an order was not found during its creation", func(e *Evidence) {
			e.Operations = append(e.Operations, Operation{
				Order: "B", Status: "s2", Outcome: Refused, Code: 404, Begin: at(1), End: at(6),
			})
		}, nil},
		{"an order that never was existed already", func(e *Evidence) {
			e.Operations = append(e.Operations, Operation{
				Order: "C", Create: true, Outcome: Refused, Code: 409, Begin: at(5), End: at(6),
			})
		}, []string{"not linearizable"}},
		{"a precondition that held was refused", func(e *Evidence) {
			e.Operations = append(e.Operations, Operation{
				Order: "B", Status: "s2", IfMatch: `"1"`, Outcome: Refused, Code: 412, Begin: at(5), End: at(6),
			})
		}, []string{"not linearizable"}},
		{"a precondition that did not hold was refused", func(e *Evidence) {
			e.Operations = append(e.Operations, Operation{
				Order: "B", Status: "s2", IfMatch: `"2"`, Outcome: Refused, Code: 412, Begin: at(5), End: at(6),
			})
		}, nil},
		{"a precondition that did not hold was ignored", func(e *Evidence) { e.Operations[4].IfMatch = `"1"` },
			[]string{"not linearizable"}},
		{"a precondition that held was kept", func(e *Evidence) { e.Operations[4].IfMatch = `"2"` }, nil},
		{"a status that was another one was refused as the same", func(e *Evidence) {
			e.Operations = append(e.Operations, Operation{
				Order: "B", Status: "s2", Outcome: Refused, Code: 409, Begin: at(5), End: at(6),
			})
		}, []string{"not linearizable"}},
		{"a look-up found an older version than one before it", func(e *Evidence) {
			e.Lookups = append(e.Lookups, Lookup{Order: "A", Version: 1, Status: "new", Begin: at(11), End: at(12)})
		}, []string{"went back"}},
		{"not requested", func(e *Evidence) {
			r := published(6, "e7", "t99", "A", 6, "s6")
			publish(e, r)
			e.Cart["A"], e.Order.Orders["A"] = StoredOrder{6, "", string(r.Value)},
				StoredOrder{6, "e7", string(r.Value)}
		}, []string{"not requested"}},
		{"a repetition with the same key took effect twice", func(e *Evidence) {
			r := published(6, "e7", "t4", "A", 6, "s2")
			publish(e, r)
			e.Cart["A"] = StoredOrder{6, "", string(r.Value)}
			e.Order.Orders["A"] = StoredOrder{6, "e7", string(r.Value)}
		}, []string{"twice in effect"}},
		{"a version was given twice", func(e *Evidence) {
			publish(e, published(6, "e7", "t8", "A", 5, "never"))
		}, []string{"not linearizable", "version given twice"}},
		{"an older version came after a newer one", func(e *Evidence) {
			e.Records[2], e.Records[3] = published(0, "e4", "t6", "A", 3, "s3"), published(1, "e3", "t5", "A", 2, "s2")
			e.Crashes = nil
		}, []string{"version went back"}},
		{"a single record was sent again", func(e *Evidence) {
			publish(e, published(6, "e4", "t6", "A", 3, "s3"))
		}, []string{"newest is not last"}},
		{"a repetition has another content", func(e *Evidence) {
			e.Records[5].Value = []byte(`{"orderId":"A","status":"s3","version":3,"more":1}`)
		}, []string{"changed repetition"}},
		{"an order is in two partitions", func(e *Evidence) {
			e.Records[7].Partition, e.Records[7].Offset = 1, 0
			e.Order.Offsets = map[TopicPartition]int64{{contract.TopicCreated, 0}: 2, {contract.TopicUpdated, 0}: 5,
				{contract.TopicUpdated, 1}: 1}
			e.Ends[TopicPartition{contract.TopicUpdated, 1}] = 1
		}, []string{"two partitions"}},
		{"a creation is in the topic of updates", func(e *Evidence) {
			e.Records[1].Topic, e.Records[1].Offset = contract.TopicUpdated, 6
			e.Order.Offsets = map[TopicPartition]int64{{contract.TopicCreated, 0}: 1, {contract.TopicUpdated, 0}: 7}
		}, []string{"another event", "wrong topic"}},
		{"a record cannot be read", func(e *Evidence) { e.Records[4].Value = []byte("{") }, []string{"unreadable"}},
		{"a record has another key than its order", func(e *Evidence) { e.Records[4].Key = []byte("B") },
			[]string{"unreadable"}},
		{"there is a dead letter", func(e *Evidence) { e.Letters = []testenv.Record{{Key: []byte("A")}} },
			[]string{"dead letter"}},
		{"an audit found all orders", func(e *Evidence) {
			e.Audits = map[string]int{contract.TopicCreated: 2, contract.TopicUpdated: 1}
		}, nil},
		{"an audit missed an order", func(e *Evidence) {
			e.Audits = map[string]int{contract.TopicCreated: 1, contract.TopicUpdated: 1}
		}, []string{"audit differs"}},
		{"a record that is no order is a dead letter", func(e *Evidence) {
			spoil(e, "poison", 6)
		}, nil},
		{"a record that is no order has replaced one", func(e *Evidence) {
			spoil(e, "A", 6)
		}, []string{"newest is not last"}},
		{"a record that is no order had replaced one, which came again", func(e *Evidence) {
			spoil(e, "A", 6)
			publish(e, published(7, "e6", "t9", "A", 5, "s5"))
		}, nil},
		{"a record that is no order is no dead letter", func(e *Evidence) { e.Poison = []string{"poison"} },
			[]string{"no dead letter"}},
		{"a look-up returned what was never published", func(e *Evidence) {
			e.Lookups = append(e.Lookups, Lookup{
				Order: "A", Version: 6, Status: "s6", Begin: at(12), End: at(13),
			})
		}, []string{"seen, yet not published"}},
		{"a look-up returned another content", func(e *Evidence) {
			e.Lookups = append(e.Lookups, Lookup{
				Order: "A", Version: 4, Status: "s3", Begin: at(12), End: at(13),
			})
		}, []string{"seen, yet not published"}},
		{"Cart's store is stale", func(e *Evidence) {
			set(e.Cart, "A", func(r *StoredOrder) { *r = StoredOrder{4, "", string(e.Records[6].Value)} })
		}, []string{"cart's store differs"}},
		{"Cart's store lacks an order", func(e *Evidence) { delete(e.Cart, "B") }, []string{"cart's store differs"}},
		{"Cart's outbox was not emptied", func(e *Evidence) { e.Outbox = 1 }, []string{"outbox not empty"}},
		{"Order's store is stale", func(e *Evidence) {
			set(e.Order.Orders, "A", func(r *StoredOrder) { *r = StoredOrder{4, "e5", string(e.Records[6].Value)} })
		}, []string{"order's store differs"}},
		{"Order's store lacks an order", func(e *Evidence) { delete(e.Order.Orders, "B") },
			[]string{"order's store differs"}},
		{"Order's store has one that was never published", func(e *Evidence) {
			e.Order.Orders["C"] = StoredOrder{1, "e9", "{}"}
		}, []string{"order's store differs"}},
		{"Order's store has another content", func(e *Evidence) {
			set(e.Order.Orders, "B", func(r *StoredOrder) { r.Body += " " })
		}, []string{"order's store differs"}},
		{"Order's store took another event for the version", func(e *Evidence) {
			set(e.Order.Orders, "B", func(r *StoredOrder) { r.EventID = "e9" })
		}, []string{"order's store differs"}},
		{"Order has not read to the end",
			func(e *Evidence) { e.Order.Offsets[TopicPartition{contract.TopicCreated, 0}] = 1 },
			[]string{"order is not at the end"}},
		{"Order's offset is beyond the high watermark",
			func(e *Evidence) { e.Order.Offsets[TopicPartition{contract.TopicCreated, 0}] = 3 },
			[]string{"order is not at the end"}},
		{"a crash left the offset ahead of the state", func(e *Evidence) {
			e.Crashes[1].Offsets[TopicPartition{contract.TopicCreated, 0}] = 2
		}, []string{"order's store differs after a crash"}},
		{"compaction has removed what a rebuild would have read before a crash", func(e *Evidence) {
			e.Compacted, e.Crashes[1].Orders = true, map[string]StoredOrder{}
		}, nil},
		{"a rebuild has left out what is not replaced", func(e *Evidence) {
			e.Compacted = true
			e.Crashes[1].Offsets[TopicPartition{contract.TopicCreated, 0}] = 2
		}, []string{"order's store differs after a crash"}},
		{"a crash left the state ahead of the offset", func(e *Evidence) {
			e.Crashes[1].Offsets[TopicPartition{contract.TopicUpdated, 0}] = 0
		}, []string{"order's store differs after a crash"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := history()
			tt.falsify(&e)
			kinds := map[string]bool{}
			for _, v := range Check(e) {
				kinds[v.Kind] = true
			}
			if diff := cmp.Diff(tt.want, slices.Sorted(maps.Keys(kinds))); diff != "" {
				t.Errorf("violations (-want +got):\n%s\n%v", diff, Check(e))
			}
		})
	}
}
