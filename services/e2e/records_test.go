package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// body returns an order as any producer could write it.
func body(id, status string, version int64) []byte {
	text := fmt.Sprintf(`{"orderId":%q,"customerId":"c","orderDate":"2026-01-02T03:04:05Z",`+
		`"items":[{"productId":"P","quantity":2,"price":10.5}],`+
		`"totalAmount":21,"currency":"USD","status":%q`, id, status)
	if version != 0 {
		text += fmt.Sprintf(`,"version":%d`, version)
	}
	return []byte(text + "}")
}

// message returns an event with an ID, as Cart publishes it.
func message(id, eventID, status string, version int64) contract.Message {
	m := plain(id, status, version)
	m.Topic = contract.TopicUpdated
	if version == 1 {
		m.Topic = contract.TopicCreated
	}
	m.Headers = []contract.Header{{Key: contract.HeaderSpecVersion, Value: []byte("1.0")},
		{Key: contract.HeaderID, Value: []byte(eventID)}}
	return m
}

// plain returns a record of a producer that writes no headers.
func plain(id, status string, version int64) contract.Message {
	m := contract.Message{Topic: contract.TopicUpdated, Key: []byte(id), Value: body(id, status, version)}
	if status == contract.StatusNew {
		m.Topic = contract.TopicCreated
	}
	return m
}

// Order reads events in any order and number, records of other producers, and invalid records.
// Look-ups return the newest version, each dead letter is complete, and no order is delayed.
func TestRecordsOfAnyKind(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	order := newOrder(t, kafka.Addr).start().ready()

	t.Run("created after updated", func(t *testing.T) {
		readInSteps(t, kafka.Addr, order, message("late", "l2", "Shipped", 2),
			message("late", "l1", contract.StatusNew, 1))
		order.sees("late", 2, "Shipped")
	})
	t.Run("duplicates", func(t *testing.T) {
		before := order.metric("order_duplicates_total")
		created, updated := message("twice", "d1", contract.StatusNew, 1), message("twice", "d2", "Shipped", 2)
		readInSteps(t, kafka.Addr, order, created, created, updated, updated)
		order.sees("twice", 2, "Shipped")
		if got := order.metric("order_duplicates_total") - before; got != 2 {
			t.Errorf("order_duplicates_total rose by %v, want 2", got)
		}
	})
	t.Run("reversed, then repeated from the start", func(t *testing.T) {
		before := order.metric("order_stale_events_total")
		var all []contract.Message
		for v := int64(1); v <= 6; v++ {
			status := fmt.Sprint("step ", v)
			if v == 1 {
				status = contract.StatusNew
			}
			all = append(all, message("reversed", fmt.Sprint("r", v), status, v))
		}
		reversed := slices.Clone(all)
		slices.Reverse(reversed)
		readInSteps(t, kafka.Addr, order, reversed...)
		order.sees("reversed", 6, "step 6")
		readInSteps(t, kafka.Addr, order, all...)
		order.sees("reversed", 6, "step 6")
		// Each pass has 5 stale events. In the second pass the newest event is a duplicate.
		if got := order.metric("order_stale_events_total") - before; got != 10 {
			t.Errorf("order_stale_events_total rose by %v, want 10", got)
		}
	})
	t.Run("a plain JSON producer", func(t *testing.T) {
		readInSteps(t, kafka.Addr, order, plain("plain", contract.StatusNew, 0))
		order.sees("plain", 1, contract.StatusNew)
		// Both records may be in one batch.
		written := testenv.Produce(t, kafka.Addr, plain("plain", "Packed", 0), plain("plain", "Shipped", 0))
		order.sees("plain", 2+written[1].Offset, "Shipped")
		if got := order.find("plain", 1); !strings.Contains(got.body, `"totalAmount":21,`) ||
			!strings.Contains(got.body, `"shippingCost":0.42`) {
			t.Errorf("the order of a plain producer is %s", got.body)
		}
	})

	t.Run("dead letters", func(t *testing.T) {
		readInSteps(t, kafka.Addr, order, message("good", "g1", contract.StatusNew, 1),
			message("good", "g2", "Shipped", 2))
		headers := []contract.Header{{Key: "mine", Value: []byte{0, 255}}, {Key: "empty", Value: nil},
			{Key: "mine", Value: []byte("again")}}
		bad := []struct {
			reason contract.Reason
			m      contract.Message
		}{
			{contract.ReasonUndecodable,
				contract.Message{Topic: contract.TopicCreated, Key: []byte("good"), Value: []byte("{\"orderId\""),
					Headers: headers}},
			{contract.ReasonUndecodable,
				contract.Message{Topic: contract.TopicUpdated, Key: []byte("good"), Value: []byte{0, 1, 2, 0xff}}},
			// The key is empty and not nil: Kafka refuses a record without a key in a compacted
			// topic.
			{contract.ReasonUndecodable,
				contract.Message{Topic: contract.TopicUpdated, Key: []byte{}, Value: []byte{}}},
			{contract.ReasonUndecodable, message("good", "g1", "new", -1)},
			{contract.ReasonUndecodable,
				contract.Message{Topic: contract.TopicCreated, Key: []byte("good"),
					Value: bytes.Repeat([]byte("x"), 900_000)}},
			{contract.ReasonTombstone,
				contract.Message{Topic: contract.TopicCreated, Key: []byte("good"), Value: nil, Headers: headers}},
			{contract.ReasonTombstone, contract.Message{Topic: contract.TopicUpdated, Key: []byte("good"), Value: nil}},
			{contract.ReasonKeyMismatch,
				contract.Message{Topic: contract.TopicUpdated, Key: []byte("another"),
					Value: body("good", "Stolen", 9)}},
			{contract.ReasonKeyMismatch,
				contract.Message{Topic: contract.TopicUpdated, Key: []byte{}, Value: body("good", "Stolen", 9)}},
			{contract.ReasonConflict, message("good", "g2-other", "Stolen", 2)},
		}
		var want []string
		for _, b := range bad {
			written := testenv.Produce(t, kafka.Addr, b.m)[0]
			want = append(want, describe(written, string(b.reason), written))
		}
		awaitRead(t, kafka.Addr, order)
		order.sees("good", 2, "Shipped")
		var letters []testenv.Record
		eventually(t, patience, "the dead letters are there", func() (bool, string) {
			letters = testenv.ReadAll(t, kafka.Addr, contract.TopicDeadLetter)
			return len(letters) >= len(bad), fmt.Sprint(len(letters))
		})
		var got []string
		for _, l := range letters {
			from, reason := origin(t, l)
			got = append(got, describe(from, reason, l))
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
		for reason, n := range map[contract.Reason]float64{contract.ReasonUndecodable: 5, contract.ReasonTombstone: 2,
			contract.ReasonKeyMismatch: 2, contract.ReasonConflict: 1} {
			if got := order.metric(`order_dead_letters_total\{reason="` + string(reason) + `"\}`); got != n {
				t.Errorf("order_dead_letters_total of reason %s is %v, want %v", reason, got, n)
			}
		}
	})

	t.Run("the audit lists each order once, at its highest version", func(t *testing.T) {
		got := order.audit(contract.TopicUpdated)
		var audit struct {
			Message string
			Orders  []struct {
				OrderID string
				Version int64
			}
		}
		if err := json.Unmarshal([]byte(got.body), &audit); err != nil {
			t.Fatalf("%v: %.300s", err, got.body)
		}
		versions := map[string]int64{}
		for _, o := range audit.Orders {
			if _, twice := versions[o.OrderID]; twice {
				t.Errorf("order %s is there twice", o.OrderID)
			}
			versions[o.OrderID] = o.Version
		}
		for id, version := range map[string]int64{"late": 2, "twice": 2, "reversed": 6, "good": 2} {
			if versions[id] != version {
				t.Errorf("order %s is at version %d, want %d", id, versions[id], version)
			}
		}
	})
	order.stop()
}

// readInSteps publishes each message only when Order has read the one before. In one batch Order
// could sort them.
func readInSteps(t *testing.T, kafka string, order *process, ms ...contract.Message) {
	t.Helper()
	for _, m := range ms {
		read := order.metric("order_apply_batch_records_sum")
		testenv.Produce(t, kafka, m)
		eventually(t, patience, "Order has read one more record", func() (bool, string) {
			n := order.metric("order_apply_batch_records_sum")
			return n > read, fmt.Sprint(n)
		})
	}
}

// awaitRead waits until Order has read all records of the topics. Order commits offsets only when
// it has stored the records.
func awaitRead(t testing.TB, kafka string, order *process) {
	t.Helper()
	ends := map[faults.TopicPartition]int64{}
	for _, r := range readTopics(t, kafka) {
		at := faults.TopicPartition{Topic: r.Topic, Partition: r.Partition}
		ends[at] = max(ends[at], r.Offset+1)
	}
	eventually(t, patience, order.name+" has read everything", func() (bool, string) {
		committed := testenv.CommittedOffsets(t, kafka, contract.GroupOrder)
		for at, end := range ends {
			if got := committed[at.Topic][at.Partition]; got < end {
				return false, fmt.Sprintf("%s/%d: %d of %d", at.Topic, at.Partition, got, end)
			}
		}
		return true, ""
	})
}

// origin returns from where a dead letter came and why, as its headers have it.
func origin(t *testing.T, l testenv.Record) (from testenv.Record, reason string) {
	t.Helper()
	said := map[string]string{}
	for _, h := range l.Headers {
		if strings.HasPrefix(h.Key, "dlt-") {
			said[h.Key] = string(h.Value)
		}
	}
	partition, err := strconv.Atoi(said["dlt-partition"])
	if err != nil {
		t.Error(err)
	}
	if from.Offset, err = strconv.ParseInt(said["dlt-offset"], 10, 64); err != nil {
		t.Error(err)
	}
	if at, err := time.Parse(time.RFC3339Nano, said["dlt-time"]); err != nil || time.Since(at) > 5*time.Minute {
		t.Errorf("dlt-time %q: %v", said["dlt-time"], err)
	}
	if said["dlt-message"] == "" {
		t.Error("a dead letter says nothing to a person")
	}
	from.Topic, from.Partition = said["dlt-topic"], int32(partition)
	return from, said["dlt-reason"]
}

// describe returns a dead letter as text: its origin, reason, key, value and headers.
func describe(from testenv.Record, reason string, r testenv.Record) string {
	value := fmt.Sprintf("%q", r.Value)
	if r.Value == nil {
		value = "none"
	}
	if len(value) > 200 {
		value = fmt.Sprintf("%s... of %d bytes", value[:50], len(r.Value))
	}
	parts := []string{fmt.Sprintf("%s/%d at %d, %s: key %q value %s", from.Topic, from.Partition, from.Offset, reason,
		r.Key, value)}
	for _, h := range r.Headers {
		if !strings.HasPrefix(h.Key, "dlt-") {
			parts = append(parts, fmt.Sprintf("%s=%q", h.Key, h.Value))
		}
	}
	return strings.Join(parts, " ")
}

// A dead-letter topic that refuses records delays nothing but the dead letters. They are complete
// once the topic accepts them, also after a crash of Order, which stores them with the offset.
func TestDeadLetterTopicRefuses(t *testing.T) {
	t.Parallel()
	letterTopic := contract.Topics()[2]
	for _, tt := range []struct {
		name   string
		refuse []contract.Topic
		code   string
	}{
		{"it does not exist", nil, "UNKNOWN_TOPIC"},
		{"it takes only small records",
			[]contract.Topic{{Name: letterTopic.Name, Partitions: 1,
				Config: map[string]string{"max.message.bytes": "2000"}}}, "MSG_SIZE_TOO_LARGE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			kafka := testenv.StartKafka(t)
			declare(t, kafka.Addr)
			order := newOrder(t, kafka.Addr).start().ready()
			redeclare := func(topics ...contract.Topic) {
				t.Helper()
				if err := localkafka.DeleteTopic(t.Context(), kafka.Addr, letterTopic.Name); err != nil {
					t.Fatal(err)
				}
				if topics != nil {
					declare(t, kafka.Addr, topics...)
				}
			}
			redeclare(tt.refuse...)

			const bad = 20
			rng := rand.New(rand.NewPCG(1, 1))
			var want []string
			for n := range bad {
				id := fmt.Sprint("order-", n)
				value := make([]byte, 3000)
				// Random bytes: a value that can be compressed would be small enough.
				for i := range value {
					value[i] = byte(rng.Uint32())
				}
				written := testenv.Produce(t, kafka.Addr,
					contract.Message{Topic: contract.TopicCreated, Key: []byte(id), Value: value})[0]
				want = append(want, describe(written, string(contract.ReasonUndecodable), written))
				// The producer never gives up. An order that waited for the dead letter before it
				// would not be seen at all.
				testenv.Produce(t, kafka.Addr, message(id, "e", contract.StatusNew, 1))
				order.sees(id, 1, contract.StatusNew)
			}
			if rows := order.metric("order_outbox_rows"); rows != bad {
				t.Errorf("order_outbox_rows is %v, want the %d dead letters", rows, bad)
			}
			eventually(t, patience, "the failure is counted", func() (bool, string) {
				return order.metric("order_delivery_failures_total") > 0, ""
			})
			if got := do(t, http.MethodGet, order.ops+"/metrics", "").body; !strings.Contains(got, tt.code) {
				t.Errorf("order_delivery_failures_total has no code %s", tt.code)
			}
			order.kill()
			// Order waits for a missing topic.
			order.start()
			if tt.refuse == nil {
				order.notReady("missing topics: " + letterTopic.Name)
				declare(t, kafka.Addr)
			} else {
				redeclare(contract.Topics()...)
			}
			order.ready()
			eventually(t, patience, "the dead letters are out", func() (bool, string) {
				rows := order.metric("order_outbox_rows")
				return rows == 0, fmt.Sprint(rows)
			})
			var got []string
			for _, l := range testenv.ReadAll(t, kafka.Addr, contract.TopicDeadLetter) {
				from, reason := origin(t, l)
				got = append(got, describe(from, reason, l))
			}
			slices.Sort(want)
			slices.Sort(got)
			// A dead letter that was sent again after a crash may be there twice.
			if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
				t.Errorf("dead letters (-want +got):\n%s", diff)
			}
			order.stop()
		})
	}
}
