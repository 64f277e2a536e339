package order

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/order/fold"
	"ordersystem.dev/services/order/ordertest"
)

// state returns the orders of the store with their versions.
func (s *store) state(t testing.TB) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	err := s.db.Query(t.Context(), "SELECT order_id, version FROM orders", func(rows *sql.Rows) error {
		var id string
		var version int64
		err := rows.Scan(&id, &version)
		all[id] = version
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// at returns the offset of a partition in the store, or -1 if the store does not have it.
func (s *store) at(t testing.TB, p broker.Partition) int64 {
	t.Helper()
	all, err := s.offsets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if next, ok := all[p]; ok {
		return next
	}
	return -1
}

// deadLetters returns the messages that wait in the store for the dead-letter topic.
func (s *store) deadLetters(t testing.TB) []contract.Message {
	t.Helper()
	var all []contract.Message
	const query = "SELECT topic, record_key, value FROM outbox ORDER BY id"
	err := s.db.Query(t.Context(), query, func(rows *sql.Rows) error {
		var m contract.Message
		err := rows.Scan(&m.Topic, &m.Key, &m.Value)
		all = append(all, m)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// offsets are offsets by partition.
type offsets = map[broker.Partition]int64

func TestAssignment(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		created, updated := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 3)
		c := memberOn(t, fresh())

		if diff := cmp.Diff(offsets{created: 0, updated: 0}, c.mustAssign(t, created, updated)); diff != "" {
			t.Errorf("partitions that were never read (-want +got):\n%s", diff)
		}
		if got := c.store.at(t, updated); got != 0 {
			t.Errorf("an assigned partition is at %d in the store, want a row with 0", got)
		}
		c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
		c.Revoked([]broker.Partition{created, updated})
		if diff := cmp.Diff(offsets{created: 1, updated: 0}, c.mustAssign(t, created, updated)); diff != "" {
			t.Errorf("assigned again (-want +got):\n%s", diff)
		}
		if got := count(t, c.metrics.recreated); got != 0 {
			t.Errorf("%v topics were counted as recreated", got)
		}
	})
}

func TestRecreatedTopicIsReadFromItsBeginning(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		old, kept := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
		another := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
		c := memberOn(t, fresh())
		c.mustAssign(t, old, kept)
		c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "B", 2, "b2")))

		if diff := cmp.Diff(offsets{another: 0, kept: 1}, c.mustAssign(t, another, kept)); diff != "" {
			t.Errorf("offsets (-want +got):\n%s", diff)
		}
		if got := count(t, c.metrics.recreated); got != 1 {
			t.Errorf("%v topics were counted as recreated, want 1", got)
		}
		if diff := cmp.Diff(map[string]int64{"A": 1, "B": 2}, c.store.state(t)); diff != "" {
			t.Errorf("orders that only the old topic had (-want +got):\n%s", diff)
		}
		// A member that still reads the old topic cannot write any more.
		late := broker.Batch{Next: offsets{old: 2}}
		if err := c.Apply(t.Context(), late); !errors.Is(err, broker.ErrFenced) {
			t.Errorf("a batch of the old topic: %v, want ErrFenced", err)
		}
		c.mustAssign(t, another)
		if got := count(t, c.metrics.recreated); got != 1 {
			t.Errorf("the next assignment counts the topic again: %v", got)
		}
	})
}

// Kafka has lost the end of a log and given its offsets again. The new records are not skipped.
func TestReplacedLogIsReadFromItsStart(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		p, whole := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
		c := memberOn(t, fresh())
		c.mustAssign(t, p, whole)
		c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "A", 2, "a2")))

		var asked map[broker.Partition]broker.Progress
		c.kafka.replaced = func(
			_ context.Context, read map[broker.Partition]broker.Progress,
		) ([]broker.Partition, error) {
			asked = maps.Clone(read)
			return []broker.Partition{p}, nil
		}
		if diff := cmp.Diff(offsets{p: 0, whole: 1}, c.mustAssign(t, p, whole)); diff != "" {
			t.Errorf("offsets (-want +got):\n%s", diff)
		}
		read := broker.Progress{Next: 1, Last: 0, Newest: ordertest.At}
		if diff := cmp.Diff(map[broker.Partition]broker.Progress{p: read, whole: read}, asked); diff != "" {
			t.Errorf("what is compared with the log (-want +got):\n%s", diff)
		}
		c.mustApply(t, batch(ordertest.Event(t, "B", 1, "b1")))
		if diff := cmp.Diff(map[string]int64{"A": 2, "B": 1}, c.store.state(t)); diff != "" {
			t.Errorf("orders (-want +got):\n%s", diff)
		}
		if got := count(t, c.metrics.replaced); got != 1 {
			t.Errorf("%v partitions were counted, want 1", got)
		}
	})
}

// Records were deleted before this member has read them. It reads on at the first one that is left,
// and counts what is missing.
func TestDeletedRecordsAreCounted(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		p, replaced := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
		whole := ordertest.Partition(contract.TopicUpdated, 1)
		c := memberOn(t, fresh())
		c.mustAssign(t, p, replaced, whole)
		c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "A", 2, "a2")))
		c.kafka.replaced = func(context.Context, map[broker.Partition]broker.Progress) ([]broker.Partition, error) {
			return []broker.Partition{replaced}, nil
		}
		c.kafka.bounds = func(context.Context, ...string) (first, end map[broker.Partition]int64, err error) {
			return map[broker.Partition]int64{p: 5, replaced: 3, whole: 0}, nil, nil
		}
		if diff := cmp.Diff(offsets{p: 5, replaced: 3, whole: 0}, c.mustAssign(t, p, replaced, whole)); diff != "" {
			t.Errorf("offsets (-want +got):\n%s", diff)
		}
		// Offsets 1 to 4 of p, and 0 to 2 of the log that is read from its start.
		if got := count(t, c.metrics.deleted); got != 7 {
			t.Errorf("%v offsets were counted, want 7", got)
		}
		late := ordertest.Event(t, "B", 1, "b1")
		late.Offset = 5
		c.mustApply(t, batch(late))
		if diff := cmp.Diff(map[string]int64{"A": 2, "B": 1}, c.store.state(t)); diff != "" {
			t.Errorf("orders (-want +got):\n%s", diff)
		}
		c.mustAssign(t, p)
		if got := count(t, c.metrics.deleted); got != 7 {
			t.Errorf("the next assignment counts them again: %v", got)
		}
	})
}

// What happens only once is counted although the assignment fails behind it: the next assignment sees
// nothing of it any more.
func TestRareEventsAreCountedAlthoughTheAssignmentFails(t *testing.T) {
	t.Parallel()
	old := ordertest.Partition(contract.TopicCreated, 0)
	t.Run("a topic was recreated", func(t *testing.T) {
		t.Parallel()
		each(t, func(t *testing.T, fresh func() database) {
			c := memberOn(t, fresh())
			c.mustAssign(t, old)
			whole := c.kafka.replaced
			c.kafka.replaced = func(context.Context, map[broker.Partition]broker.Progress) ([]broker.Partition, error) {
				return nil, errors.New("Kafka is away")
			}
			another := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
			if _, err := c.Assigned(t.Context(), []broker.Partition{another}); err == nil {
				t.Error("the assignment does not fail")
			}
			c.kafka.replaced = whole
			c.mustAssign(t, another)
			if got := count(t, c.metrics.recreated); got != 1 {
				t.Errorf("%v topics were counted as recreated, want 1", got)
			}
		})
	})
	t.Run("a topic was recreated, and the commit is not known", func(t *testing.T) {
		t.Parallel()
		c := memberOn(t, database{url: testenv.Postgres(t)})
		c.mustAssign(t, old)
		endCommits(t, c.store, "AFTER DELETE ON offsets DEFERRABLE INITIALLY DEFERRED FOR EACH ROW")
		another := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
		if _, err := c.Assigned(t.Context(), []broker.Partition{another}); !errors.Is(err, sqldb.ErrUnknownCommit) {
			t.Errorf("Assigned: %v, want %v", err, sqldb.ErrUnknownCommit)
		}
		if got := count(t, c.metrics.recreated); got != 1 {
			t.Errorf("%v topics were counted as recreated, want 1", got)
		}
	})
	t.Run("a log was replaced, and the commit is not known", func(t *testing.T) {
		t.Parallel()
		c := memberOn(t, database{url: testenv.Postgres(t)})
		c.mustAssign(t, old)
		c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "B", 1, "b1")))
		c.kafka.replaced = func(context.Context, map[broker.Partition]broker.Progress) ([]broker.Partition, error) {
			return []broker.Partition{old}, nil
		}
		c.kafka.bounds = func(context.Context, ...string) (first, end map[broker.Partition]int64, err error) {
			return map[broker.Partition]int64{old: 3}, nil, nil
		}
		endCommits(t, c.store,
			"AFTER UPDATE ON offsets DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.next_offset = 3)")
		if _, err := c.Assigned(t.Context(), []broker.Partition{old}); !errors.Is(err, sqldb.ErrUnknownCommit) {
			t.Errorf("Assigned: %v, want %v", err, sqldb.ErrUnknownCommit)
		}
		replaced, deleted := count(t, c.metrics.replaced), count(t, c.metrics.deleted)
		if replaced != 1 || deleted != 3 {
			t.Errorf("%v logs and %v records were counted, want 1 and 3", replaced, deleted)
		}
	})
}

// endCommits has PostgreSQL end the connection during each commit that fires this trigger.
func endCommits(t *testing.T, s *store, trigger string) {
	t.Helper()
	if err := s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		for _, statement := range []string{
			`CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS
				'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'`,
			"CREATE CONSTRAINT TRIGGER cut " + trigger + " EXECUTE FUNCTION cut()",
		} {
			if _, err := tx.Exec(statement); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Two members believe that they have the partition. The one that lost it writes nothing.
func TestMemberThatLostItsPartitionWritesNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		p := ordertest.Partition(contract.TopicCreated, 0)
		c := memberOn(t, fresh())
		c.mustAssign(t, p)
		c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
		// The store is at offset 1. The owner is on the same store.
		owner := *c
		owner.read = maps.Clone(c.read)

		second := ordertest.Event(t, "B", 1, "b1")
		second.Offset = 1
		owner.mustApply(t, batch(second))

		late := []broker.Record{ordertest.Event(t, "C", 1, "c1"), ordertest.Raw(contract.TopicCreated, "D", "broken")}
		late[0].Offset, late[1].Offset = 1, 2
		b := batch(late...)
		// The second time it must not have taken over the offset of the store.
		for range 2 {
			if err := c.Apply(t.Context(), b); !errors.Is(err, broker.ErrFenced) {
				t.Fatalf("Apply: %v, want ErrFenced", err)
			}
		}
		if diff := cmp.Diff(map[string]int64{"A": 1, "B": 1}, c.store.state(t)); diff != "" {
			t.Errorf("orders (-want +got):\n%s", diff)
		}
		if got := c.store.at(t, p); got != 2 {
			t.Errorf("the offset is %d, want the owner's 2", got)
		}
		if letters := c.store.deadLetters(t); len(letters) != 0 {
			t.Errorf("%d dead letters were written", len(letters))
		}
		if got := count(t, c.metrics.deadLetters.WithLabelValues(string(contract.ReasonUndecodable))); got != 0 {
			t.Errorf("%v dead letters were counted", got)
		}
		// Assigned again, it goes on from the owner's end, whatever it remembers.
		if diff := cmp.Diff(offsets{p: 2}, c.mustAssign(t, p)); diff != "" {
			t.Errorf("assigned again (-want +got):\n%s", diff)
		}
		third := ordertest.Event(t, "C", 1, "c1")
		third.Offset = 2
		c.mustApply(t, batch(third))
		owner.mustAssign(t, p)
		if err := owner.Apply(t.Context(), broker.Batch{Next: map[broker.Partition]int64{p: 5}}); err != nil {
			t.Errorf("an offset may move without records: %v", err)
		}
	})
}

// One lost partition makes the whole batch fail, because the records of all were folded together.
func TestBatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		mine, lost := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicCreated, 1)
		c := memberOn(t, fresh())
		c.mustAssign(t, mine, lost)
		if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec("UPDATE offsets SET next_offset = 7 WHERE partition = 1")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		other := ordertest.Event(t, "B", 1, "b1")
		other.Partition = 1
		err := c.Apply(t.Context(), batch(ordertest.Event(t, "A", 1, "a1"), other))
		if !errors.Is(err, broker.ErrFenced) {
			t.Errorf("Apply: %v, want ErrFenced", err)
		}
		if got := c.store.state(t); len(got) != 0 {
			t.Errorf("the store has %v", got)
		}
		if got := c.store.at(t, mine); got != 0 {
			t.Errorf("the partition that was not lost is at %d", got)
		}
	})
}

// A revoked partition is refused even where the store would accept the batch, because no other
// member has written since.
func TestRevokedPartitionIsRefused(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		p := ordertest.Partition(contract.TopicCreated, 0)
		c := memberOn(t, fresh())
		c.mustAssign(t, p)
		c.Revoked([]broker.Partition{p})
		if err := c.Apply(t.Context(), batch(ordertest.Event(t, "A", 1, "a1"))); !errors.Is(err, broker.ErrFenced) {
			t.Errorf("Apply: %v, want ErrFenced", err)
		}
		if got := c.store.state(t); len(got) != 0 {
			t.Errorf("the store has %v", got)
		}
	})
}

func TestDeadLettersKeepTheRecordAsItWas(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		c := memberOn(t, fresh())
		c.mustAssign(t, ordertest.Partition(contract.TopicCreated, 4), ordertest.Partition(contract.TopicUpdated, 0))
		headers := []contract.Header{
			{Key: "ce_id", Value: []byte{0xff, 0}}, {Key: "none"}, {Key: "ce_id", Value: []byte{}},
		}
		bad := broker.Record{
			Topic: contract.TopicCreated, Partition: 4, Offset: 8,
			Key: []byte("A"), Value: []byte("{broken\xff"), Headers: headers,
		}
		tombstone := broker.Record{Topic: contract.TopicCreated, Partition: 4, Offset: 9}
		c.mustApply(t, batch(bad, tombstone))

		want := []contract.Message{
			{Topic: contract.TopicDeadLetter, Key: []byte("A"), Value: []byte("{broken\xff")},
			// No key is not an empty key.
			{Topic: contract.TopicDeadLetter},
		}
		if diff := cmp.Diff(want, c.store.deadLetters(t)); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
		if got := c.store.at(t, ordertest.Partition(contract.TopicCreated, 4)); got != 10 {
			t.Errorf("the offset is %d, want 10: behind the dead letters", got)
		}

		now := ordertest.At.Add(time.Second)
		rejected := fold.Rejected{Record: &bad, Reason: contract.ReasonUndecodable, Message: "broken JSON"}
		got := deadLetter(rejected, now).Headers
		for i, h := range []contract.Header{
			headers[0], headers[1], headers[2],
			{Key: "dlt-topic", Value: []byte(contract.TopicCreated)}, {Key: "dlt-partition", Value: []byte("4")},
			{Key: "dlt-offset", Value: []byte("8")}, {Key: "dlt-reason", Value: []byte("undecodable")},
			{Key: "dlt-message", Value: []byte("broken JSON")},
			{Key: "dlt-time", Value: []byte("2026-03-01T12:00:01Z")},
		} {
			if i >= len(got) || !cmp.Equal(got[i], h) {
				t.Fatalf("headers = %q, want number %d to be %q", got, i, h)
			}
		}
		if len(bad.Headers) != 3 {
			t.Error("the record itself was changed")
		}
		for _, r := range []contract.Reason{contract.ReasonUndecodable, contract.ReasonTombstone} {
			if got := count(t, c.metrics.deadLetters.WithLabelValues(string(r))); got != 1 {
				t.Errorf("order_dead_letters_total{reason=%q} = %v, want 1", r, got)
			}
		}
	})
}

// A letter that is too large for its topic is cut, and has a header that says so. Else it would
// stop all letters behind it.
func TestDeadLetterFitsIntoItsTopic(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("x"), 3<<20)
	for _, r := range []broker.Record{
		{Key: []byte("A"), Value: big},
		{Key: big, Value: []byte("v")},
		{Headers: []contract.Header{{Key: "h", Value: big}}},
		// What frames these headers is most of their size.
		{Headers: slices.Repeat([]contract.Header{{Key: "h", Value: []byte{}}}, 900_000)},
	} {
		rejected := fold.Rejected{Record: &r, Reason: contract.ReasonUndecodable, Message: "too large"}
		m := deadLetter(rejected, ordertest.At)
		size := len(m.Key) + len(m.Value)
		for _, h := range m.Headers {
			size += len(h.Key) + len(h.Value) + 2
		}
		if size > 2<<20-1000 || m.Headers[0].Key != "dlt-cut" {
			t.Errorf("a dead letter of %d bytes, headers %.200q", size, m.Headers)
		}
		if (m.Key == nil) != (r.Key == nil) || (m.Value == nil) != (r.Value == nil) {
			t.Error("a key or value that was absent is there, or the other way round")
		}
	}
}

// A dead-letter topic that refuses for long must not fill the disk. Batches without dead letters go
// on.
func TestTooManyDeadLettersHoldTheBatchBack(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		c := memberOn(t, fresh())
		c.store.maxLetters = 1
		c.mustAssign(t, ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0))
		c.mustApply(t, batch(ordertest.Raw(contract.TopicCreated, "A", "broken")))

		next := ordertest.Raw(contract.TopicCreated, "B", "broken")
		next.Offset = 1
		b := batch(next, ordertest.Event(t, "C", 2, "c2"))
		for range 3 {
			if err := c.Apply(t.Context(), b); !errors.Is(err, errLettersFull) {
				t.Fatalf("Apply: %v, want errLettersFull", err)
			}
		}
		if got := c.store.backlog(t); got != 1 {
			t.Errorf("%d dead letters are counted to wait, want 1", got)
		}
		letters, at := len(c.store.deadLetters(t)), c.store.at(t, ordertest.Partition(contract.TopicCreated, 0))
		if letters != 1 || len(c.store.state(t)) != 0 || at != 1 {
			t.Errorf("the refused batch left something: %d letters, offset %d, orders %v",
				letters, at, c.store.state(t))
		}
		c.mustApply(t, batch(ordertest.Event(t, "D", 2, "d2")))

		c.store.maxLetters, c.store.maxLettersBytes = 2, 1
		if err := c.Apply(t.Context(), b); !errors.Is(err, errLettersFull) {
			t.Fatalf("Apply with too many bytes of dead letters: %v, want errLettersFull", err)
		}
		c.store.maxLettersBytes = 1 << 20
		b.Next[ordertest.Partition(contract.TopicUpdated, 0)] = 2
		c.mustApply(t, b)
		if diff := cmp.Diff(map[string]int64{"C": 2, "D": 2}, c.store.state(t)); diff != "" {
			t.Errorf("orders once there is room (-want +got):\n%s", diff)
		}
		if got := count(t, c.metrics.deadLetters.WithLabelValues(string(contract.ReasonUndecodable))); got != 2 {
			t.Errorf("%v dead letters were counted, want 2: each once, however often it was tried", got)
		}
	})
}

// The store itself refuses that a version goes back, whatever was decided above it, and says so.
func TestVersionNeverGoesBack(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		c := memberOn(t, fresh())
		write := func(version int64) error {
			return c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
				decoded := fold.Decode([]broker.Record{
					ordertest.Event(t, "A", version, "e"),
					ordertest.Event(t, "B", 10-version, "e"),
				})
				return upsert(tx, liveTable, []*fold.Decoded{&decoded[0], &decoded[1]})
			})
		}
		if err := write(3); err != nil {
			t.Fatal(err)
		}
		// B moves forward each time, A never.
		for _, version := range []int64{2, 1} {
			err := write(version)
			want := sqldb.CountError{Changed: 1, Want: 2}
			if got, ok := errors.AsType[*sqldb.CountError](err); !ok || *got != want {
				t.Errorf("version %d after 3: %v, want 1 of 2 rows to be changed", version, err)
			}
			if diff := cmp.Diff(map[string]int64{"A": 3, "B": 7}, c.store.state(t)); diff != "" {
				t.Fatalf("after version %d (-want +got):\n%s", version, diff)
			}
		}
	})
}

// history has the records of both topics, as a Cart service that sometimes starts again leaves
// them.
type history map[broker.Partition][]broker.Record

func randomHistory(t testing.TB, r *rand.Rand, orders int) history {
	h := history{}
	add := func(record broker.Record) {
		f := fnv.New32a()
		f.Write(record.Key)
		p := ordertest.Partition(record.Topic, int32(f.Sum32()%3))
		record.Partition, record.Offset = p.Number, int64(len(h[p]))
		if n := len(h[p]); n > 0 && r.IntN(20) == 0 { // a gap
			record.Offset = h[p][n-1].Offset + 1 + int64(r.IntN(3))
		} else if n > 0 {
			record.Offset = h[p][n-1].Offset + 1
		}
		h[p] = append(h[p], record)
	}
	versions := map[string]int64{}
	for range orders * 4 {
		id := fmt.Sprint("order-", r.IntN(orders))
		versions[id]++
		record := ordertest.Event(t, id, versions[id], fmt.Sprint(id, "/", versions[id]))
		for range 1 + r.IntN(2)*r.IntN(3) { // some repeated
			add(record)
		}
		switch r.IntN(25) {
		case 0:
			add(ordertest.Raw(record.Topic, id, "broken"))
		case 1:
			add(ordertest.Event(t, id, versions[id], "a conflict"))
		}
	}
	return h
}

// want returns the fold of the topics up to some offsets, done the plain way: each order with the
// highest version that any record has.
func (h history) want(next map[broker.Partition]int64) map[string]int64 {
	all := map[string]int64{}
	for p, records := range h {
		for _, r := range records {
			e, err := contract.DecodeEvent(r.Topic, r.Offset, r.Key, r.Value, r.Headers)
			if err == nil && r.Offset < next[p] {
				all[e.Order.OrderID] = max(all[e.Order.OrderID], e.Order.Version)
			}
		}
	}
	return all
}

// play applies the history in random batches, from where the store is. It calls between after each.
func (h history) play(t testing.TB, c *topicConsumer, r *rand.Rand, between func()) {
	t.Helper()
	partitions := slices.SortedFunc(maps.Keys(h), func(a, b broker.Partition) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	next := c.mustAssign(t, partitions...)
	for {
		b := broker.Batch{Next: map[broker.Partition]int64{}}
		left := 0
		for _, p := range partitions {
			rest := slices.DeleteFunc(slices.Clone(h[p]), func(r broker.Record) bool { return r.Offset < next[p] })
			left += len(rest)
			if n := min(len(rest), r.IntN(8)); n > 0 {
				b.Records = append(b.Records, rest[:n]...)
				b.Next[p] = rest[n-1].Offset + 1
			}
		}
		if left == 0 {
			return
		}
		c.mustApply(t, b)
		maps.Copy(next, b.Next)
		between()
	}
}

func TestStateIsTheFoldOfTheTopicsAfterEachBatch(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		for seed := range uint64(5) {
			r := rand.New(rand.NewPCG(seed, 0))
			h := randomHistory(t, r, 30)
			c := memberOn(t, fresh())
			h.play(t, c, r, func() {
				next, err := c.store.offsets(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(h.want(next), c.store.state(t)); diff != "" {
					t.Fatalf("seed %d: the store against the topics up to its offsets (-want +got):\n%s", seed, diff)
				}
			})
			// Read a second time from the beginning, nothing changes: every event is a duplicate or
			// stale.
			before := hash(t, c.store)
			if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
				_, err := tx.Exec("UPDATE offsets SET next_offset = 0")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			h.play(t, c, r, func() {})
			if got := hash(t, c.store); got != before {
				t.Errorf("seed %d: reading all of it again changed the store", seed)
			}
		}
	})
}

func TestRebuiltStoreIsTheSame(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		r := rand.New(rand.NewPCG(7, 7))
		h := randomHistory(t, r, 40)
		first := memberOn(t, fresh())
		h.play(t, first, r, func() {})
		want := hash(t, first.store)
		// Each is in batches and an interleaving of its own.
		for range 3 {
			again := memberOn(t, fresh())
			h.play(t, again, r, func() {})
			if got := hash(t, again.store); got != want {
				t.Errorf("a rebuilt store has the hash %s, the first %s", got, want)
			}
		}
	})
}

// A store that is opened again goes on where its last transaction ended.
func TestStoreOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		at := fresh()
		r := rand.New(rand.NewPCG(1, 2))
		h := randomHistory(t, r, 10)
		c := memberOn(t, at)
		h.play(t, c, r, func() {})
		want, letters := hash(t, c.store), len(c.store.deadLetters(t))
		if err := c.store.close(); err != nil {
			t.Fatal(err)
		}
		c = memberOn(t, at)
		if got := hash(t, c.store); got != want {
			t.Error("the store has changed by closing it")
		}
		if got := c.store.backlog(t); got != int64(letters) || letters == 0 {
			t.Errorf("%d dead letters wait, want %d", got, letters)
		}
		for p, next := range c.mustAssign(t, slices.Collect(maps.Keys(h))...) {
			if last := h[p][len(h[p])-1].Offset; next != last+1 {
				t.Errorf("%s/%d goes on at %d, want %d", p.Topic, p.Number, next, last+1)
			}
		}
	})
}

// The store is a view, so damage costs a rebuild and nobody's help.
func TestADamagedStoreIsSetAsideAndRebuilt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "order.db")
	open := func() (*store, error) {
		log := slog.New(slog.DiscardHandler)
		return openStore(t.Context(), "", dir, contract.OrderTopics(), log, prometheus.NewRegistry())
	}
	for range 2 {
		s, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if rows := s.state(t); len(rows) != 0 {
			t.Errorf("the new store has %v", rows)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		damaged, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		clear(damaged[4096:])
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err = open()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		if kept, err := os.ReadFile(path + aside); err != nil || !bytes.Equal(kept, damaged) {
			t.Errorf("the damaged file was not kept: %v", err)
		}
	}
}

func hash(t testing.TB, s *store) string {
	t.Helper()
	sum, err := s.hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// backlog returns how many dead letters are counted to wait.
func (s *store) backlog(t testing.TB) int64 {
	t.Helper()
	n, _, err := s.box.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMigrationsOfTheOutboxAreTheOutboxsOwn(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"0002_outbox.sql": outbox.Schema, "0004_ledger.sql": outbox.LedgerSchema,
	} {
		got, err := fs.ReadFile(migrations, "migrations/sqlite/"+name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("migrations/sqlite/%s is not that of internal/outbox (-want +got):\n%s", name, diff)
		}
	}
}

// A look-up reads one row, by the index.
func TestLookUpUsesTheIndex(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	var id, parent, unused int
	var plan string
	err := c.store.db.Query(t.Context(), "EXPLAIN QUERY PLAN "+lookUp, func(rows *sql.Rows) error {
		return rows.Scan(&id, &parent, &unused, &plan)
	}, "A")
	if err != nil || plan != "SEARCH orders USING INDEX sqlite_autoindex_orders_1 (order_id=?)" {
		t.Errorf("plan = %q, %v", plan, err)
	}
	if found, err := c.store.get(t.Context(), "unknown"); err != nil || found.version != 0 {
		t.Errorf("an unknown order: %+v, %v", found, err)
	}
}

func TestEventsThatChangeNothingAreCounted(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		c := memberOn(t, fresh())
		c.mustAssign(t, ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0))
		c.mustApply(t, batch(
			ordertest.Event(t, "A", 3, "a3"), ordertest.Event(t, "A", 3, "a3"), ordertest.Event(t, "A", 1, "a1"),
			ordertest.Event(t, "A", 2, "a2"), ordertest.Event(t, "A", 3, "b3"),
		))
		conflicts := c.metrics.deadLetters.WithLabelValues("conflict")
		got := []float64{count(t, c.metrics.duplicates), count(t, c.metrics.stale), count(t, conflicts)}
		if diff := cmp.Diff([]float64{1, 2, 1}, got); diff != "" {
			t.Errorf("duplicates, stale events, conflicts (-want +got):\n%s", diff)
		}
	})
}

func TestMetricsOfReasonsExistFromTheStart(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "order_dead_letters_total" && len(f.GetMetric()) != len(contract.Reasons()) {
			t.Errorf("order_dead_letters_total has %d series, want one for each of %v",
				len(f.GetMetric()), contract.Reasons())
		}
	}
}

// The sizes of volumes in docs/operations.md and in the chart follow from these, and from those of
// the audit's index.
func TestBytesOfAnOrderInTheView(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		items, orders int
		// most is a bound in bytes for an order.
		most int64
	}{
		{5, 5000, 750}, {90, 500, 9 << 10}, {contract.MaxItems, 50, 56 << 10},
	} {
		c := member(t, t.TempDir())
		p := ordertest.Partition(contract.TopicCreated, 0)
		c.mustAssign(t, p)
		used := func() int64 {
			space, err := c.store.db.Space(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return space.Used
		}
		empty, value := used(), 0
		for from := 0; from < tt.orders; from += 500 {
			to := min(tt.orders, from+500)
			var records []broker.Record
			for range to - from {
				r := ordertest.Realistic(t, tt.items)
				records, value = append(records, r), len(r.Value)
			}
			c.mustApply(t, broker.Batch{Records: records, Next: map[broker.Partition]int64{p: int64(to)}})
		}
		got := (used() - empty) / int64(tt.orders)
		t.Logf("%d items, %d bytes of JSON: %d bytes", tt.items, value, got)
		if got > tt.most {
			t.Errorf("%d items: %d bytes for an order, want at most %d", tt.items, got, tt.most)
		}
	}
}
