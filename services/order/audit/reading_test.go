package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/order/ordertest"
)

func TestAuditReadsOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	a := newAuditor(t, sourceOf(tp))
	a.orders(t, false)
	// Nothing is new: there is no read at all.
	a.orders(t, false)
	tp.Add(ordertest.Event(t, "order-7", 3, "again"), ordertest.Event(t, "new", 2, "e"))
	got := a.orders(t, false)
	if len(got) != 51 || got["order-7"] != 3 {
		t.Errorf("%d orders, order-7 at version %d; want 51 and 3", len(got), got["order-7"])
	}
	if diff := cmp.Diff([]int{50, 2}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

// Transaction markers and compaction leave offsets that no record has. They must not start a read
// again and again.
func TestAuditDoesNotReadGapsAgain(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	tp.Gap = 1
	a := newAuditor(t, sourceOf(tp))
	for range 3 {
		if got := len(a.orders(t, false)); got != 50 {
			t.Errorf("%d orders, want 50", got)
		}
	}
	if diff := cmp.Diff([]int{50}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

func TestFreshAuditReadsEverythingAgain(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	a := newAuditor(t, sourceOf(tp))
	a.orders(t, false)
	old := a.open(t, false)
	a.orders(t, true)
	if diff := cmp.Diff([]int{50, 50}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
	if got := len(old.parse(t)); got != 50 {
		t.Errorf("the open result lost its index: %d orders", got)
	}
	if got := len(a.indexFiles(t)); got != 2 {
		t.Errorf("%d indexes while the old one is read, want 2", got)
	}
	old.Close()
	if got := len(a.indexFiles(t)); got != 1 {
		t.Errorf("%d indexes once the old one is released, want 1", got)
	}
	a.orders(t, false)
	if got := len(tp.Counts()); got != 2 {
		t.Errorf("the next audit does not go on with the new index: %d reads", got)
	}
}

// A fresh read that fails leaves the index that was there.
func TestAuditKeepsItsIndexWhenAFreshReadFails(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	tp.Fails[1] = errors.New("kafka has gone")
	a := newAuditor(t, sourceOf(tp))
	a.orders(t, false)
	if _, err := a.Audit(t.Context(), contract.TopicUpdated, true); err == nil {
		t.Fatal("an audit succeeds although its read failed")
	}
	if got := len(a.orders(t, false)); got != 50 || len(a.indexFiles(t)) != 1 {
		t.Errorf("%d orders in %d indexes, want 50 in 1", got, len(a.indexFiles(t)))
	}
	if got := len(tp.Counts()); got != 2 {
		t.Errorf("%d reads, want 2", got)
	}
}

func TestAuditOfARecreatedTopicStartsOver(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	a := newAuditor(t, sourceOf(tp))
	a.orders(t, false)
	tp.Recreate()
	// It is shorter than the index, so there is nothing to read. Yet it is another topic.
	if got := a.orders(t, false); len(got) != 0 {
		t.Errorf("the recreated topic is empty, the audit has %d orders", len(got))
	}
	tp.Add(ordertest.Updates(t, 90, 92)...)
	if diff := cmp.Diff(map[string]int64{"order-90": 2, "order-91": 2}, a.orders(t, false)); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	if got := len(a.indexFiles(t)); got != 1 {
		t.Errorf("%d indexes, want 1", got)
	}
}

// DeleteRecords moves the beginning of a log. What it deletes is no longer in the topic.
func TestAuditNoticesDeletedRecords(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	a := newAuditor(t, sourceOf(tp))
	a.orders(t, false)
	tp.DeleteRecords()
	if got := a.orders(t, false); len(got) != 0 {
		t.Errorf("all records were deleted, the audit has %d orders", len(got))
	}
	tp.Add(ordertest.Updates(t, 90, 92)...)
	if diff := cmp.Diff(map[string]int64{"order-90": 2, "order-91": 2}, a.orders(t, false)); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	if got := len(a.indexFiles(t)); got != 1 {
		t.Errorf("%d indexes, want 1", got)
	}
}

// A failed read fails its callers. What it had read is kept and not read again.
func TestAuditGoesOnWhereAFailedReadEnded(t *testing.T) {
	t.Parallel()
	// All in one partition, because their keys have the same length.
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	tp.Fails[0], tp.BatchSize = errors.New("kafka has gone"), 4
	a := newAuditor(t, sourceOf(tp))
	if _, err := a.Audit(t.Context(), contract.TopicUpdated, false); err == nil {
		t.Fatal("an audit succeeds although its read failed")
	}
	if got := len(a.orders(t, false)); got != 10 {
		t.Errorf("%d orders, want 10", got)
	}
	if diff := cmp.Diff([]int{4, 6}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

// callers are audits at the same time.
type callers struct {
	wg     sync.WaitGroup
	mu     sync.Mutex
	orders []int
	errs   []error
}

func (cs *callers) ask(ctx context.Context, a *Auditor, fresh bool) {
	cs.wg.Go(func() {
		result, err := a.Audit(ctx, contract.TopicUpdated, fresh)
		cs.mu.Lock()
		defer cs.mu.Unlock()
		if err != nil {
			cs.errs = append(cs.errs, err)
			return
		}
		defer result.Close()
		cs.orders = append(cs.orders, int(result.Orders))
	})
}

// awaitCallers waits until so many callers wait for the running reading and for the next one.
func (a *Auditor) awaitCallers(t testing.TB, running, waiting int) {
	t.Helper()
	what := fmt.Sprintf("%d callers of the running reading and %d of the next one", running, waiting)
	ordertest.Eventually(t, what, func() bool {
		r := a.readerOf(contract.TopicUpdated)
		r.mu.Lock()
		defer r.mu.Unlock()
		of := func(rd *reading) int {
			if rd == nil {
				return 0
			}
			return rd.callers
		}
		return of(r.running) == running && of(r.waiting) == waiting
	})
}

func TestAuditsThatComeTogetherShareOneRead(t *testing.T) {
	t.Parallel()
	for _, fresh := range []bool{false, true} {
		tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
		gate := tp.HoldReads()
		a := newAuditor(t, sourceOf(tp))
		var cs callers
		for range 20 {
			cs.ask(t.Context(), a, fresh)
		}
		a.awaitCallers(t, 20, 0)
		close(gate)
		cs.wg.Wait()
		if diff := cmp.Diff([]int{50}, tp.Counts()); diff != "" {
			t.Errorf("fresh %v: records read (-want +got):\n%s", fresh, diff)
		}
		if len(cs.errs) > 0 || slices.ContainsFunc(cs.orders, func(n int) bool { return n != 50 }) {
			t.Errorf("fresh %v: orders %v, errors %v", fresh, cs.orders, cs.errs)
		}
	}
}

// However audits fall together, a quiet topic is read once.
func TestAuditsOfAQuietTopicReadItOnce(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	a := newAuditor(t, sourceOf(tp))
	var cs callers
	for range 50 {
		cs.ask(t.Context(), a, false)
	}
	cs.wg.Wait()
	if got := len(tp.Counts()); got != 1 || len(cs.orders) != 50 {
		t.Errorf("%d reads for %d results, want 1 for 50", got, len(cs.orders))
	}
}

// Audits begin and end in any order while the topic grows. Each has what was there when it began.
func TestAuditsOfAGrowingTopic(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic()
	a := newAuditor(t, sourceOf(tp))
	const callers, audits = 4, 200
	var wg sync.WaitGroup
	var added atomic.Int64
	for c := range callers {
		wg.Go(func() {
			for i := range audits {
				id := fmt.Sprintf("%d-%d", c, i)
				tp.Add(ordertest.Event(t, id, 1, id))
				before := added.Add(1)
				result, err := a.Audit(t.Context(), contract.TopicUpdated, false)
				if err != nil {
					t.Error(err)
					return
				}
				if result.Orders < before {
					t.Errorf("the audit found %d orders, want the %d that came before it", result.Orders, before)
				}
				result.Close()
			}
		})
	}
	wg.Wait()
}

// An audit that wants more than the running read will reach waits for the next one. All of those
// share it.
func TestLaterAuditsShareTheNextRead(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	gate := tp.HoldReads()
	a := newAuditor(t, sourceOf(tp))
	var early, late callers
	early.ask(t.Context(), a, false)
	a.awaitCallers(t, 1, 0)
	for i := range 5 {
		// Each wants more than the one before.
		tp.Add(ordertest.Updates(t, 10+i, 11+i)...)
		late.ask(t.Context(), a, false)
		a.awaitCallers(t, 1, i+1)
	}
	close(gate)
	early.wg.Wait()
	late.wg.Wait()
	if diff := cmp.Diff([]int{10, 5}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{15, 15, 15, 15, 15}, late.orders); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
}

// A fresh audit does not share a read of only what is new. The other way round is fine.
func TestFreshAuditWaitsForAFreshRead(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	a := newAuditor(t, sourceOf(tp))
	a.orders(t, false)
	tp.Add(ordertest.Updates(t, 10, 12)...)
	gate := tp.HoldReads()
	var cs callers
	cs.ask(t.Context(), a, false)
	a.awaitCallers(t, 1, 0)
	cs.ask(t.Context(), a, true)
	a.awaitCallers(t, 1, 1)
	close(gate)
	cs.wg.Wait()
	if diff := cmp.Diff([]int{10, 2, 12}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

// A running read goes on with an index that may have lost records.
func TestAuditThatFindsALogReplacedSharesNoReadFromBefore(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	source, lost := sourceOf(tp), false
	source.Replaced = func(_ context.Context, read map[broker.Partition]broker.Progress) ([]broker.Partition, error) {
		if !lost {
			return nil, nil
		}
		return slices.Collect(maps.Keys(read)), nil
	}
	a := newAuditor(t, source)
	a.orders(t, false)
	tp.Add(ordertest.Updates(t, 10, 12)...)
	gate := tp.HoldReads()
	var cs callers
	cs.ask(t.Context(), a, false)
	a.awaitCallers(t, 1, 0)
	lost = true
	cs.ask(t.Context(), a, false)
	a.awaitCallers(t, 1, 1)
	close(gate)
	cs.wg.Wait()
	if diff := cmp.Diff([]int{10, 2, 12}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

func TestReadEndsWithItsLastCaller(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
	gate := tp.HoldReads()
	a := newAuditor(t, sourceOf(tp))
	first, leaveFirst := context.WithCancel(t.Context())
	second, leaveSecond := context.WithCancel(t.Context())
	var cs callers
	cs.ask(first, a, false)
	cs.ask(second, a, false)
	a.awaitCallers(t, 2, 0)
	gate <- struct{}{}
	ordertest.Eventually(t, "the first batch is in the index", func() bool { return tp.Counts()[0] == 10 })

	leaveFirst()
	a.awaitCallers(t, 1, 0)
	read := tp.LastRead()
	if read.Err() != nil {
		t.Error("the read ends while a caller is left")
	}
	leaveSecond()
	<-read.Done()
	cs.wg.Wait()
	if len(cs.errs) != 2 {
		t.Errorf("errors = %v, want 2", cs.errs)
	}
	a.awaitCallers(t, 0, 0)

	close(gate)
	if got := len(a.orders(t, false)); got != 50 {
		t.Errorf("%d orders, want 50", got)
	}
	if diff := cmp.Diff([]int{10, 40}, tp.Counts()); diff != "" {
		t.Errorf("records read, the second time from where the first was cut off (-want +got):\n%s", diff)
	}
}

// A caller that comes when the last one has just left must not share the read that is about to
// fail.
func TestReadThatWasLeftServesNobody(t *testing.T) {
	t.Parallel()
	r := &reading{
		first: map[broker.Partition]int64{{Number: 0}: 2}, end: map[broker.Partition]int64{{Number: 0}: 9},
		callers: 1, fresh: true,
	}
	if !r.serves(r.first, map[broker.Partition]int64{{Number: 0}: 9}, true) {
		t.Error("a read with a caller serves another one with the same end")
	}
	if r.serves(r.first, map[broker.Partition]int64{{Number: 0}: 10}, false) ||
		r.serves(r.first, map[broker.Partition]int64{{Number: 1}: 1}, false) {
		t.Error("a read serves a caller beyond its end")
	}
	if r.serves(map[broker.Partition]int64{{Number: 0}: 3}, map[broker.Partition]int64{{Number: 0}: 9}, false) {
		t.Error("a read that began before records were deleted serves a caller that came afterwards")
	}
	r.callers = 0
	if r.serves(r.first, map[broker.Partition]int64{{Number: 0}: 9}, false) {
		t.Error("a read that its last caller has left serves another")
	}
}

func TestCallerWhoLeavesBeforeItsReadBegan(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	gate := tp.HoldReads()
	a := newAuditor(t, sourceOf(tp))
	ctx, leave := context.WithCancel(t.Context())
	var cs callers
	cs.ask(t.Context(), a, false)
	a.awaitCallers(t, 1, 0)
	tp.Add(ordertest.Updates(t, 10, 11)...)
	cs.ask(ctx, a, false)
	a.awaitCallers(t, 1, 1)
	leave()
	a.awaitCallers(t, 1, 0)
	close(gate)
	cs.wg.Wait()
	a.awaitCallers(t, 0, 0)
	if diff := cmp.Diff([]int{10}, tp.Counts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

func TestFailedReadFailsItsCallersOnly(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	tp.Fails[0] = errors.New("kafka has gone")
	gate := tp.HoldReads()
	a := newAuditor(t, sourceOf(tp))
	var early, late callers
	early.ask(t.Context(), a, false)
	early.ask(t.Context(), a, false)
	a.awaitCallers(t, 2, 0)
	tp.Add(ordertest.Updates(t, 10, 11)...)
	late.ask(t.Context(), a, false)
	a.awaitCallers(t, 2, 1)
	close(gate)
	early.wg.Wait()
	late.wg.Wait()
	if len(early.errs) != 2 || len(late.errs) != 0 || !slices.Equal(late.orders, []int{11}) {
		t.Errorf("early: %v; late: %v %v", early.errs, late.errs, late.orders)
	}
}

func TestStalledReadIsGivenUp(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	tp.HoldReads()
	a := newAuditor(t, sourceOf(tp))
	a.stallTimeout = 50 * time.Millisecond
	_, err := a.Audit(t.Context(), contract.TopicUpdated, false)
	if !errors.Is(err, ErrStalled) || !errors.Is(err, ErrUnreadable) {
		t.Errorf("Audit: %v, want %v", err, ErrStalled)
	}
}

// A slow disk is no reason to give a read up: Kafka has given the records.
func TestReadIsNotStalledWhileTheIndexTakesItsRecords(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	source := sourceOf(tp)
	var a *Auditor
	source.Read = func(
		ctx context.Context, from, to map[broker.Partition]int64, apply func(context.Context, []broker.Record) error,
	) error {
		return tp.Read(ctx, from, to, func(ctx context.Context, records []broker.Record) error {
			// The records are taken only when the lock is free.
			r := a.readerOf(contract.TopicUpdated)
			r.mu.Lock()
			time.AfterFunc(2*a.stallTimeout, r.mu.Unlock)
			return errors.Join(apply(ctx, records), context.Cause(ctx))
		})
	}
	a = newAuditor(t, source)
	a.stallTimeout = 500 * time.Millisecond
	if got := len(a.orders(t, false)); got != 10 {
		t.Errorf("%d orders, want 10", got)
	}
}

// The disk may be another one's, such as a node's: whoever takes more than a share of it is ended. So the
// audit is refused before, and another one that fits goes on.
func TestIndexesKeepToTheirLimit(t *testing.T) {
	t.Parallel()
	const limit = 8 << 20
	var records []broker.Record
	for range 4000 {
		records = append(records, ordertest.Realistic(t, 90))
	}
	tp := ordertest.NewTopic(records...)
	tp.BatchSize = 50
	source := sourceOf(tp)
	var a *Auditor
	var most int64
	source.Read = func(
		ctx context.Context, from, to map[broker.Partition]int64, apply func(context.Context, []broker.Record) error,
	) error {
		return tp.Read(ctx, from, to, func(ctx context.Context, records []broker.Record) error {
			err := apply(ctx, records)
			used, usedErr := usedBytes(a.dir)
			most = max(most, used)
			return errors.Join(err, usedErr)
		})
	}
	a = newLimitedAuditor(t, limit, source)
	if _, err := a.Audit(t.Context(), contract.TopicUpdated, false); !errors.Is(err, ErrNoRoom) {
		t.Errorf("an audit of too much: %v, want %v", err, ErrNoRoom)
	}
	// The chart gives the volume a quarter more.
	t.Logf("at most %d bytes of %d", most, limit)
	if most < limit/2 || most > limit*5/4 {
		t.Errorf("the indexes took %d bytes of %d", most, limit)
	}
	tp.DeleteRecords()
	tp.Add(records[:50]...)
	if got := len(a.orders(t, false)); got != 50 {
		t.Errorf("an audit that fits has %d orders, want 50", got)
	}
}

// The size of Order's volume in docs/operations.md and in the chart follows from these, too: there
// is an index of each topic.
func TestBytesOfAnOrderInTheIndex(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		items, orders int
		// most is a bound in bytes for an order.
		most int64
	}{
		{5, 5000, 700}, {90, 500, 9 << 10}, {contract.MaxItems, 50, 56 << 10},
	} {
		dir := t.TempDir()
		ix, err := newIndex(filepath.Join(dir, "index"), 0, "id", nil)
		if err != nil {
			t.Fatal(err)
		}
		used := func() int64 {
			bytes, err := usedBytes(dir)
			if err != nil {
				t.Fatal(err)
			}
			return bytes
		}
		empty := used()
		for from := 0; from < tt.orders; from += 500 {
			var records []broker.Record
			for range min(tt.orders, from+500) - from {
				records = append(records, ordertest.Realistic(t, tt.items))
			}
			if _, err := ix.add(records); err != nil {
				t.Fatal(err)
			}
		}
		got := (used() - empty) / int64(tt.orders)
		t.Logf("%d items: %d bytes", tt.items, got)
		if got > tt.most {
			t.Errorf("%d items: %d bytes for an order, want at most %d", tt.items, got, tt.most)
		}
		if err := ix.close(); err != nil {
			t.Error(err)
		}
	}
}
