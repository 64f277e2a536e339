package order

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"math/rand/v2"
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
)

// state is what a store holds, as orders at their versions.
func (s *store) state(t testing.TB) map[string]int64 {
	t.Helper()
	rows, err := s.db.Read.QueryContext(t.Context(), "SELECT order_id, version FROM orders")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]int64{}
	for rows.Next() {
		var id string
		var version int64
		if err := rows.Scan(&id, &version); err != nil {
			t.Fatal(err)
		}
		all[id] = version
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// at is where the store is in a partition, -1 when it does not know it.
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

// deadLetters are the records that wait in the store for the dead-letter topic.
func (s *store) deadLetters(t testing.TB) []contract.Message {
	t.Helper()
	rows, err := s.db.Read.QueryContext(t.Context(), "SELECT topic, record_key, value FROM outbox ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []contract.Message
	for rows.Next() {
		var m contract.Message
		if err := rows.Scan(&m.Topic, &m.Key, &m.Value); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAssignment(t *testing.T) {
	t.Parallel()
	created, updated := one(contract.TopicCreated, 0), one(contract.TopicUpdated, 3)
	c := member(t, t.TempDir())

	if diff := cmp.Diff(map[broker.Partition]int64{created: 0, updated: 0}, c.mustAssign(t, created, updated)); diff != "" {
		t.Errorf("partitions that were never read (-want +got):\n%s", diff)
	}
	if got := c.store.at(t, updated); got != 0 {
		t.Errorf("an assigned partition is at %d in the store, want a row with 0", got)
	}
	c.mustApply(t, batch(event(t, "A", 1, "a1")))
	c.Revoked([]broker.Partition{created, updated})
	if diff := cmp.Diff(map[broker.Partition]int64{created: 1, updated: 0}, c.mustAssign(t, created, updated)); diff != "" {
		t.Errorf("assigned again (-want +got):\n%s", diff)
	}
	if got := count(t, c.metrics.recreated); got != 0 {
		t.Errorf("%v topics were counted as made anew", got)
	}
}

func TestTopicMadeAnewIsReadFromItsBeginning(t *testing.T) {
	t.Parallel()
	old, kept := one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0)
	anew := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
	c := member(t, t.TempDir())
	c.mustAssign(t, old, kept)
	c.mustApply(t, batch(event(t, "A", 1, "a1"), event(t, "B", 2, "b2")))

	if diff := cmp.Diff(map[broker.Partition]int64{anew: 0, kept: 1}, c.mustAssign(t, anew, kept)); diff != "" {
		t.Errorf("offsets (-want +got):\n%s", diff)
	}
	if got := count(t, c.metrics.recreated); got != 1 {
		t.Errorf("%v topics were counted as made anew, want 1", got)
	}
	if diff := cmp.Diff(map[string]int64{"A": 1, "B": 2}, c.store.state(t)); diff != "" {
		t.Errorf("orders that only the old topic told (-want +got):\n%s", diff)
	}
	// A member that still reads the old topic cannot write any more.
	if err := c.Apply(t.Context(), broker.Batch{Next: map[broker.Partition]int64{old: 2}}); !errors.Is(err, broker.ErrFenced) {
		t.Errorf("a batch of the old topic: %v, want ErrFenced", err)
	}
	c.mustAssign(t, anew)
	if got := count(t, c.metrics.recreated); got != 1 {
		t.Errorf("the next assignment counts the topic again: %v", got)
	}
}

// Two members believe that they have the partition; the one that lost it writes nothing, whichever is slower.
func TestMemberThatLostItsPartitionWritesNothing(t *testing.T) {
	t.Parallel()
	p := one(contract.TopicCreated, 0)
	c := member(t, t.TempDir())
	c.mustAssign(t, p)
	c.mustApply(t, batch(event(t, "A", 1, "a1"))) // at 1
	owner := *c                                   // on the same store
	owner.next = maps.Clone(c.next)

	second := event(t, "B", 1, "b1")
	second.Offset = 1
	owner.mustApply(t, batch(second)) // at 2

	late := []broker.Record{event(t, "C", 1, "c1"), raw(contract.TopicCreated, "D", "broken")}
	late[0].Offset, late[1].Offset = 1, 2
	b := batch(late...)
	for range 2 { // and it does not take over what the store says when it tries again
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
	// Assigned anew, it goes on from the owner's end, whatever it remembers.
	if diff := cmp.Diff(map[broker.Partition]int64{p: 2}, c.mustAssign(t, p)); diff != "" {
		t.Errorf("assigned again (-want +got):\n%s", diff)
	}
	third := event(t, "C", 1, "c1")
	third.Offset = 2
	c.mustApply(t, batch(third))
	owner.mustAssign(t, p)
	if err := owner.Apply(t.Context(), broker.Batch{Next: map[broker.Partition]int64{p: 5}}); err != nil {
		t.Errorf("an offset may move without records: %v", err)
	}
}

// One partition of a batch that is lost takes the whole batch with it: the records of all of them were folded together.
func TestBatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	mine, lost := one(contract.TopicCreated, 0), one(contract.TopicCreated, 1)
	c := member(t, t.TempDir())
	c.mustAssign(t, mine, lost)
	if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE offsets SET next_offset = 7 WHERE partition = 1")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	other := event(t, "B", 1, "b1")
	other.Partition = 1
	if err := c.Apply(t.Context(), batch(event(t, "A", 1, "a1"), other)); !errors.Is(err, broker.ErrFenced) {
		t.Errorf("Apply: %v, want ErrFenced", err)
	}
	if got := c.store.state(t); len(got) != 0 {
		t.Errorf("the store has %v", got)
	}
	if got := c.store.at(t, mine); got != 0 {
		t.Errorf("the partition that was not lost is at %d", got)
	}
}

// What was revoked is refused even where the store would let it through, as nobody has written since.
func TestRevokedPartitionIsRefused(t *testing.T) {
	t.Parallel()
	p := one(contract.TopicCreated, 0)
	c := member(t, t.TempDir())
	c.mustAssign(t, p)
	c.Revoked([]broker.Partition{p})
	if err := c.Apply(t.Context(), batch(event(t, "A", 1, "a1"))); !errors.Is(err, broker.ErrFenced) {
		t.Errorf("Apply: %v, want ErrFenced", err)
	}
	if got := c.store.state(t); len(got) != 0 {
		t.Errorf("the store has %v", got)
	}
}

func TestDeadLettersKeepTheRecordAsItWas(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	c.mustAssign(t, one(contract.TopicCreated, 4), one(contract.TopicUpdated, 0))
	headers := []contract.Header{{Key: "ce_id", Value: []byte{0xff, 0}}, {Key: "none"}, {Key: "ce_id", Value: []byte{}}}
	bad := broker.Record{Topic: contract.TopicCreated, Partition: 4, Offset: 8, Key: []byte("A"), Value: []byte("{broken\xff"), Headers: headers}
	tombstone := broker.Record{Topic: contract.TopicCreated, Partition: 4, Offset: 9}
	c.mustApply(t, batch(bad, tombstone))

	want := []contract.Message{
		{Topic: contract.TopicDeadLetter, Key: []byte("A"), Value: []byte("{broken\xff")},
		{Topic: contract.TopicDeadLetter}, // no key is not an empty key
	}
	if diff := cmp.Diff(want, c.store.deadLetters(t)); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	if got := c.store.at(t, one(contract.TopicCreated, 4)); got != 10 {
		t.Errorf("the offset is %d, want 10: behind the dead letters", got)
	}

	now := at.Add(time.Second)
	got := deadLetters([]letter{{&bad, contract.ReasonUndecodable, "broken JSON"}}, now)[0].Headers
	for i, h := range []contract.Header{
		headers[0], headers[1], headers[2],
		{Key: "dlt-topic", Value: []byte(contract.TopicCreated)}, {Key: "dlt-partition", Value: []byte("4")},
		{Key: "dlt-offset", Value: []byte("8")}, {Key: "dlt-reason", Value: []byte("undecodable")},
		{Key: "dlt-message", Value: []byte("broken JSON")}, {Key: "dlt-time", Value: []byte("2026-03-01T12:00:01Z")},
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
}

// What is too large for the dead-letter topic is cut, and says so, rather than stopping all letters behind it.
func TestDeadLetterFitsIntoItsTopic(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("x"), 3<<20)
	for _, r := range []broker.Record{
		{Key: []byte("A"), Value: big},
		{Key: big, Value: []byte("v")},
		{Headers: []contract.Header{{Key: "h", Value: big}}},
		{Headers: slices.Repeat([]contract.Header{{Key: "h", Value: []byte{}}}, 900_000)}, // what frames them is most of their size
	} {
		m := deadLetters([]letter{{&r, contract.ReasonUndecodable, "too large"}}, at)[0]
		size := len(m.Key) + len(m.Value)
		for _, h := range m.Headers {
			size += len(h.Key) + len(h.Value) + 2
		}
		if size > 2<<20-1000 || m.Headers[0].Key != "dlt-cut" {
			t.Errorf("a dead letter of %d bytes, headers %.200q", size, m.Headers)
		}
		if (m.Key == nil) != (r.Key == nil) || (m.Value == nil) != (r.Value == nil) {
			t.Error("what was not there is there, or the other way round")
		}
	}
}

// A dead-letter topic that refuses for long must not fill the disk, and what has no dead letters goes on meanwhile.
func TestTooManyDeadLettersHoldTheBatchBack(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	c.store.maxLetters = 1
	c.mustAssign(t, one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0))
	c.mustApply(t, batch(raw(contract.TopicCreated, "A", "broken")))

	next := raw(contract.TopicCreated, "B", "broken")
	next.Offset = 1
	b := batch(next, event(t, "C", 2, "c2"))
	for range 3 {
		if err := c.Apply(t.Context(), b); !errors.Is(err, errLettersFull) {
			t.Fatalf("Apply: %v, want errLettersFull", err)
		}
	}
	if got := c.store.box.Rows(); got != 1 {
		t.Errorf("%d dead letters are counted to wait, want 1", got)
	}
	if n := len(c.store.deadLetters(t)); n != 1 || len(c.store.state(t)) != 0 || c.store.at(t, one(contract.TopicCreated, 0)) != 1 {
		t.Errorf("the refused batch left something: %d letters, orders %v", n, c.store.state(t))
	}
	c.mustApply(t, batch(event(t, "D", 2, "d2")))

	c.store.maxLetters = 2
	b.Next[one(contract.TopicUpdated, 0)] = 2
	c.mustApply(t, b)
	if diff := cmp.Diff(map[string]int64{"C": 2, "D": 2}, c.store.state(t)); diff != "" {
		t.Errorf("orders once there is room (-want +got):\n%s", diff)
	}
	if got := count(t, c.metrics.deadLetters.WithLabelValues(string(contract.ReasonUndecodable))); got != 2 {
		t.Errorf("%v dead letters were counted, want 2: each once, however often it was tried", got)
	}
}

// The store refuses by itself that a version goes back, whatever was decided above it.
func TestVersionNeverGoesBack(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	for _, version := range []int64{3, 2, 3, 1} {
		if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			d := decode([]broker.Record{event(t, "A", version, "e")})
			return upsert(tx, []*decoded{&d[0]})
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]int64{"A": 3}, c.store.state(t)); diff != "" {
			t.Fatalf("after version %d (-want +got):\n%s", version, diff)
		}
	}
}

// history is a pair of topics in memory, as a Cart service that starts again now and then leaves them.
type history map[broker.Partition][]broker.Record

func randomHistory(t testing.TB, r *rand.Rand, orders int) history {
	h := history{}
	add := func(record broker.Record) {
		f := fnv.New32a()
		f.Write(record.Key)
		p := one(record.Topic, int32(f.Sum32()%3))
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
		record := event(t, id, versions[id], fmt.Sprint(id, "/", versions[id]))
		for range 1 + r.IntN(2)*r.IntN(3) { // some repeated
			add(record)
		}
		switch r.IntN(25) {
		case 0:
			add(raw(record.Topic, id, "broken"))
		case 1:
			add(event(t, id, versions[id], "a conflict"))
		}
	}
	return h
}

// want is the fold of the topics up to some offsets, done the plain way: each order at the highest version that any record has.
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

// play applies the history in random batches; between runs between two calls, and then again from where the store is.
func (h history) play(t testing.TB, c *consumer, r *rand.Rand, between func()) {
	t.Helper()
	partitions := slices.SortedFunc(maps.Keys(h), func(a, b broker.Partition) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
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
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 0))
		h := randomHistory(t, r, 30)
		c := member(t, t.TempDir())
		h.play(t, c, r, func() {
			next, err := c.store.offsets(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(h.want(next), c.store.state(t)); diff != "" {
				t.Fatalf("seed %d: the store against the topics up to its offsets (-want +got):\n%s", seed, diff)
			}
		})
		// Read a second time from the beginning, nothing changes: every event is a duplicate or stale.
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
}

func TestRebuiltStoreIsTheSame(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 7))
	h := randomHistory(t, r, 40)
	first := member(t, t.TempDir())
	h.play(t, first, r, func() {})
	want := hash(t, first.store)
	for range 3 { // each in batches and an interleaving of its own
		again := member(t, t.TempDir())
		h.play(t, again, r, func() {})
		if got := hash(t, again.store); got != want {
			t.Errorf("a rebuilt store has the hash %s, the first %s", got, want)
		}
	}
}

// A store that is opened again goes on where its last transaction ended.
func TestStoreOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	h := randomHistory(t, r, 10)
	c := member(t, dir)
	h.play(t, c, r, func() {})
	want, letters := hash(t, c.store), len(c.store.deadLetters(t))
	if err := c.store.close(); err != nil {
		t.Fatal(err)
	}
	c = member(t, dir)
	if got := hash(t, c.store); got != want {
		t.Error("the store has changed by closing it")
	}
	if got := c.store.box.Rows(); got != int64(letters) || letters == 0 {
		t.Errorf("%d dead letters wait, want %d", got, letters)
	}
	for p, next := range c.mustAssign(t, slices.Collect(maps.Keys(h))...) {
		if last := h[p][len(h[p])-1].Offset; next != last+1 {
			t.Errorf("%s/%d goes on at %d, want %d", p.Topic, p.Number, next, last+1)
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

func TestMigrationOfTheOutboxIsTheOutboxsOwn(t *testing.T) {
	t.Parallel()
	got, err := fs.ReadFile(migrations, "migrations/0002_outbox.sql")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(outbox.Schema, string(got)); diff != "" {
		t.Errorf("migrations/0002_outbox.sql is not internal/outbox/schema.sql (-want +got):\n%s", diff)
	}
}

// Look-ups read no row of another order, and none of their own twice.
func TestLookUpUsesTheIndex(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	var id, parent, unused int
	var plan string
	err := c.store.db.Read.QueryRowContext(t.Context(), "EXPLAIN QUERY PLAN SELECT version, total, body FROM orders WHERE order_id = ?", "A").
		Scan(&id, &parent, &unused, &plan)
	if err != nil || plan != "SEARCH orders USING INDEX sqlite_autoindex_orders_1 (order_id=?)" {
		t.Errorf("plan = %q, %v", plan, err)
	}
	if k, err := c.store.get(t.Context(), "unknown"); err != nil || k.version != 0 {
		t.Errorf("an unknown order: %+v, %v", k, err)
	}
}

func TestEventsThatChangeNothingAreCounted(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	c.mustAssign(t, one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0))
	c.mustApply(t, batch(event(t, "A", 3, "a3"), event(t, "A", 3, "a3"), event(t, "A", 1, "a1"), event(t, "A", 2, "a2"), event(t, "A", 3, "b3")))
	got := []float64{count(t, c.metrics.duplicates), count(t, c.metrics.stale), count(t, c.metrics.deadLetters.WithLabelValues("conflict"))}
	if diff := cmp.Diff([]float64{1, 2, 1}, got); diff != "" {
		t.Errorf("duplicates, stale events, conflicts (-want +got):\n%s", diff)
	}
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
			t.Errorf("order_dead_letters_total has %d series, want one for each of %v", len(f.GetMetric()), contract.Reasons())
		}
	}
}
