package order

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

// topic is a Kafka topic in memory with 2 partitions, whose reader the test can hold up and break.
type topic struct {
	mu      sync.Mutex
	id      string
	records map[int32][]broker.Record
	reads   []int           // records handed out, by read
	gate    chan struct{}   // if not nil, a read waits for it before each batch
	begun   chan struct{}   // gets a value at the beginning of each read
	fails   map[int]error   // of reads, by number
	size    int             // records in a batch
	cut     context.Context // of the last read
	gap     int64           // offsets without a record at each partition's end
}

func newTopic(records ...broker.Record) *topic {
	tp := &topic{id: "id-1", records: map[int32][]broker.Record{}, begun: make(chan struct{}, 1000), fails: map[int]error{}, size: 10}
	tp.add(records...)
	return tp
}

func (tp *topic) add(records ...broker.Record) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for _, r := range records {
		r.Partition = int32(len(r.Key) % 2)
		r.Offset = int64(len(tp.records[r.Partition]))
		tp.records[r.Partition] = append(tp.records[r.Partition], r)
	}
}

func (tp *topic) bounds(_ context.Context, names ...string) (first, end map[broker.Partition]int64, err error) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	first, end = map[broker.Partition]int64{}, map[broker.Partition]int64{}
	for n := range int32(2) {
		p := broker.Partition{Topic: names[0], TopicID: tp.id, Number: n}
		first[p], end[p] = 0, int64(len(tp.records[n]))+tp.gap
	}
	return first, end, nil
}

func (tp *topic) read(ctx context.Context, from, to map[broker.Partition]int64, apply func(context.Context, []broker.Record) error) error {
	tp.mu.Lock()
	number, gate, size := len(tp.reads), tp.gate, tp.size
	tp.reads = append(tp.reads, 0)
	tp.cut = ctx
	records := maps.Clone(tp.records)
	fails := tp.fails[number]
	tp.mu.Unlock()
	tp.begun <- struct{}{}
	for p, last := range to {
		for batch := range slices.Chunk(records[p.Number][from[p]:min(last, int64(len(records[p.Number])))], size) {
			if gate != nil {
				select {
				case <-gate:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := apply(ctx, batch); err != nil {
				return err
			}
			tp.mu.Lock()
			tp.reads[number] += len(batch)
			tp.mu.Unlock()
			if fails != nil {
				return fails
			}
		}
	}
	return nil
}

func (tp *topic) readCounts() []int {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return slices.Clone(tp.reads)
}

func newTestAuditor(t testing.TB, tp *topic) *auditor {
	t.Helper()
	a, err := newAuditor(filepath.Join(t.TempDir(), "audit"), broker.Config{}, nil, newMetrics(prometheus.NewRegistry()),
		slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	a.bounds, a.read, a.stallAfter = tp.bounds, tp.read, time.Hour
	t.Cleanup(func() {
		if err := a.close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(a.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the auditor leaves %v behind, %v", left, err)
		}
	})
	return a
}

// orders are the audit's answer as orders at their versions.
func (a *auditor) orders(t testing.TB, fresh bool) map[string]int64 {
	t.Helper()
	snap, err := a.snapshot(t.Context(), contract.TopicUpdated, fresh)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.close()
	return snap.parse(t)
}

func (s *snapshot) parse(t testing.TB) map[string]int64 {
	t.Helper()
	var body strings.Builder
	if err := s.writeJSON(t.Context(), &body); err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Message string
		Orders  []contract.Order
	}
	if err := json.Unmarshal([]byte(body.String()), &answer); err != nil {
		t.Fatalf("%v: %.200s", err, body.String())
	}
	if want := fmt.Sprintf("Total orders in topic '%s': %d", contract.TopicUpdated, len(answer.Orders)); answer.Message != want {
		t.Errorf("message = %q, want %q", answer.Message, want)
	}
	all := map[string]int64{}
	for _, o := range answer.Orders {
		if _, twice := all[o.OrderID]; twice {
			t.Errorf("order %s is there twice", o.OrderID)
		}
		all[o.OrderID] = o.Version
	}
	return all
}

func updates(t testing.TB, from, to int) []broker.Record {
	var all []broker.Record
	for i := from; i < to; i++ {
		all = append(all, event(t, fmt.Sprintf("order-%d", i), 2, "e"))
	}
	return all
}

func TestAuditTellsWhatTheTopicHolds(t *testing.T) {
	t.Parallel()
	tp := newTopic(
		event(t, "A", 2, "a2"), event(t, "B", 3, "b3"), event(t, "A", 5, "a5"), event(t, "A", 4, "a4"), event(t, "A", 5, "a5"),
		raw(contract.TopicUpdated, "C", "broken"), raw(contract.TopicUpdated, "D", string(event(t, "A", 9, "x").Value)),
		broker.Record{Topic: contract.TopicUpdated, Key: []byte("B")}, // a tombstone
		plain(t, contract.TopicUpdated, "P", 7),
	)
	a := newTestAuditor(t, tp)
	if diff := cmp.Diff(map[string]int64{"A": 5, "B": 3, "P": 10}, a.orders(t, false)); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	if got := count(t, a.metrics.auditUnusable); got != 3 {
		t.Errorf("%v records without an order were counted, want 3", got)
	}
}

func TestAuditOfTheSameVersionKeepsTheFirst(t *testing.T) {
	t.Parallel()
	tp := newTopic(event(t, "A", 2, "first"), event(t, "A", 2, "second"))
	tp.size = 1 // so that they meet in the index
	a := newTestAuditor(t, tp)
	snap, err := a.snapshot(t.Context(), contract.TopicUpdated, false)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.close()
	var body strings.Builder
	if err := snap.writeJSON(t.Context(), &body); err != nil || !strings.Contains(body.String(), "by first") {
		t.Errorf("answer = %s, %v", body.String(), err)
	}
}

func TestAuditReadsOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	a := newTestAuditor(t, tp)
	a.orders(t, false)
	a.orders(t, false) // nothing is new: no read at all
	tp.add(event(t, "order-7", 3, "again"), event(t, "new", 2, "e"))
	got := a.orders(t, false)
	if len(got) != 51 || got["order-7"] != 3 {
		t.Errorf("%d orders, order-7 at version %d; want 51 and 3", len(got), got["order-7"])
	}
	if diff := cmp.Diff([]int{50, 2}, tp.readCounts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

// Transaction markers and compaction leave offsets that no record has; they are not read for again and again.
func TestAuditDoesNotReadGapsAgain(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	tp.gap = 1
	a := newTestAuditor(t, tp)
	for range 3 {
		if got := len(a.orders(t, false)); got != 50 {
			t.Errorf("%d orders, want 50", got)
		}
	}
	if diff := cmp.Diff([]int{50}, tp.readCounts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

func TestAuditWithNoCacheReadsEverythingAgain(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	a := newTestAuditor(t, tp)
	a.orders(t, false)
	old, err := a.snapshot(t.Context(), contract.TopicUpdated, false)
	if err != nil {
		t.Fatal(err)
	}
	a.orders(t, true)
	if diff := cmp.Diff([]int{50, 50}, tp.readCounts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
	if got := len(old.parse(t)); got != 50 {
		t.Errorf("the answer under way lost its index: %d orders", got)
	}
	if got := indexFiles(t, a); got != 2 {
		t.Errorf("%d indexes while the old one is read, want 2", got)
	}
	old.close()
	if got := indexFiles(t, a); got != 1 {
		t.Errorf("%d indexes once the old one is released, want 1", got)
	}
	a.orders(t, false)
	if got := len(tp.readCounts()); got != 2 {
		t.Errorf("the next audit does not go on with the new index: %d reads", got)
	}
}

// A fresh read that fails leaves the index that was there.
func TestAuditKeepsItsIndexWhenAFreshReadFails(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	tp.fails[1] = errors.New("kafka has gone")
	a := newTestAuditor(t, tp)
	a.orders(t, false)
	if _, err := a.snapshot(t.Context(), contract.TopicUpdated, true); err == nil {
		t.Fatal("a read that failed was answered")
	}
	if got := len(a.orders(t, false)); got != 50 || indexFiles(t, a) != 1 {
		t.Errorf("%d orders in %d indexes, want 50 in 1", got, indexFiles(t, a))
	}
	if got := len(tp.readCounts()); got != 2 {
		t.Errorf("%d reads, want 2", got)
	}
}

func indexFiles(t testing.TB, a *auditor) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(a.dir, "*.db"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// Each answer being written holds a connection and, after a fresh read, a whole index on disk: slow clients must not have them all.
func TestOnlySoManyAnswersAtOnce(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 5)...)
	a := newTestAuditor(t, tp)
	var slow []*snapshot
	for range answersAtOnce {
		s, err := a.snapshot(t.Context(), contract.TopicUpdated, true)
		if err != nil {
			t.Fatal(err)
		}
		slow = append(slow, s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.snapshot(ctx, contract.TopicUpdated, true); err == nil {
		t.Error("one more is answered at once")
	}
	slow[0].close()
	if got := len(a.orders(t, false)); got != 5 {
		t.Errorf("%d orders after a place is free, want 5", got)
	}
	for _, s := range slow[1:] {
		s.close()
	}
	if got := indexFiles(t, a); got != 1 {
		t.Errorf("%d indexes on disk at the end, want 1", got)
	}
}

func TestAStopEndsAuditsThatWait(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	tp.gate = make(chan struct{}) // a long read
	a := newTestAuditor(t, tp)
	stopping, stop := context.WithCancel(t.Context())
	s := &server{auditor: a, log: a.log, pace: pace{30 * time.Second, 1 << 20}, stopping: stopping}
	srv := httptest.NewServer(s.handler(prometheus.NewRegistry()))
	defer srv.Close()
	answered := make(chan int, 1)
	go func() {
		resp, err := http.Get(srv.URL + "/order/getAllOrderIdsFromTopic?topicName=order-updated-topic")
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-tp.begun
	stop()
	select {
	case got := <-answered:
		if got != http.StatusServiceUnavailable {
			t.Errorf("answered %d, want 503", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("an audit holds the stop up")
	}
}

func TestAuditOfATopicMadeAnewStartsOver(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	a := newTestAuditor(t, tp)
	a.orders(t, false)
	tp.mu.Lock()
	tp.id, tp.records = "id-2", map[int32][]broker.Record{}
	tp.mu.Unlock()
	if got := a.orders(t, false); len(got) != 0 { // shorter than the index: nothing is to be read, and yet it is another topic
		t.Errorf("the topic made anew is empty, the audit tells %d orders", len(got))
	}
	tp.add(updates(t, 90, 92)...)
	if diff := cmp.Diff(map[string]int64{"order-90": 2, "order-91": 2}, a.orders(t, false)); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	if got := indexFiles(t, a); got != 1 {
		t.Errorf("%d indexes, want 1", got)
	}
}

// A failed read fails who asked for it; what it had read is kept, and nobody reads it again.
func TestAuditGoesOnWhereAFailedReadEnded(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 10)...) // all in one partition: their keys have the same length
	tp.fails[0], tp.size = errors.New("kafka has gone"), 4
	a := newTestAuditor(t, tp)
	if _, err := a.snapshot(t.Context(), contract.TopicUpdated, false); err == nil {
		t.Fatal("a read that failed was answered")
	}
	if got := len(a.orders(t, false)); got != 10 {
		t.Errorf("%d orders, want 10", got)
	}
	if diff := cmp.Diff([]int{4, 6}, tp.readCounts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

// callers ask at the same time, and each waits for its answer.
type callers struct {
	wg     sync.WaitGroup
	mu     sync.Mutex
	orders []int
	errs   []error
}

func (cs *callers) ask(ctx context.Context, a *auditor, fresh bool) {
	cs.wg.Go(func() {
		snap, err := a.snapshot(ctx, contract.TopicUpdated, fresh)
		cs.mu.Lock()
		defer cs.mu.Unlock()
		if err != nil {
			cs.errs = append(cs.errs, err)
			return
		}
		defer snap.close()
		cs.orders = append(cs.orders, int(snap.orders))
	})
}

// came waits until so many callers wait for the read that runs and for the next one.
func came(t testing.TB, a *auditor, running, waiting int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d callers of the read under way and %d of the next one", running, waiting), func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		tp := a.topics[contract.TopicUpdated]
		of := func(r *reading) int {
			if r == nil {
				return 0
			}
			return r.callers
		}
		return tp != nil && of(tp.running) == running && of(tp.waiting) == waiting
	})
}

func TestAuditsThatComeTogetherShareOneRead(t *testing.T) {
	t.Parallel()
	for _, fresh := range []bool{false, true} {
		tp := newTopic(updates(t, 0, 50)...)
		tp.gate = make(chan struct{})
		a := newTestAuditor(t, tp)
		var cs callers
		for range 20 {
			cs.ask(t.Context(), a, fresh)
		}
		came(t, a, 20, 0)
		close(tp.gate)
		cs.wg.Wait()
		if diff := cmp.Diff([]int{50}, tp.readCounts()); diff != "" {
			t.Errorf("fresh %v: records read (-want +got):\n%s", fresh, diff)
		}
		if len(cs.errs) > 0 || slices.ContainsFunc(cs.orders, func(n int) bool { return n != 50 }) {
			t.Errorf("fresh %v: orders %v, errors %v", fresh, cs.orders, cs.errs)
		}
	}
}

// Without anything that holds them up: however they fall, a quiet topic is read once.
func TestAuditsOfAQuietTopicReadItOnce(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	a := newTestAuditor(t, tp)
	var cs callers
	for range 50 {
		cs.ask(t.Context(), a, false)
	}
	cs.wg.Wait()
	if got := len(tp.readCounts()); got != 1 || len(cs.orders) != 50 {
		t.Errorf("%d reads for %d answers, want 1 for 50", got, len(cs.orders))
	}
}

// Who comes later than a read's end waits for the next one, and all of those share it.
func TestLaterAuditsShareTheNextRead(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 10)...)
	tp.gate = make(chan struct{})
	a := newTestAuditor(t, tp)
	var early, late callers
	early.ask(t.Context(), a, false)
	came(t, a, 1, 0)
	for i := range 5 { // each wants more than the one before
		tp.add(updates(t, 10+i, 11+i)...)
		late.ask(t.Context(), a, false)
		came(t, a, 1, i+1)
	}
	close(tp.gate)
	early.wg.Wait()
	late.wg.Wait()
	if diff := cmp.Diff([]int{10, 5}, tp.readCounts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{15, 15, 15, 15, 15}, late.orders); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
}

// A fresh audit does not take part in a read of what is new only; the other way round is fine.
func TestFreshAuditWaitsForAFreshRead(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 10)...)
	a := newTestAuditor(t, tp)
	a.orders(t, false)
	tp.add(updates(t, 10, 12)...)
	tp.mu.Lock()
	tp.gate = make(chan struct{})
	tp.mu.Unlock()
	var cs callers
	cs.ask(t.Context(), a, false)
	came(t, a, 1, 0)
	cs.ask(t.Context(), a, true)
	came(t, a, 1, 1)
	close(tp.gate)
	cs.wg.Wait()
	if diff := cmp.Diff([]int{10, 2, 12}, tp.readCounts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

func TestReadEndsWithItsLastCaller(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 50)...)
	tp.gate = make(chan struct{})
	a := newTestAuditor(t, tp)
	first, leaveFirst := context.WithCancel(t.Context())
	second, leaveSecond := context.WithCancel(t.Context())
	var cs callers
	cs.ask(first, a, false)
	cs.ask(second, a, false)
	came(t, a, 2, 0)
	tp.gate <- struct{}{}
	eventually(t, "the first batch is in the index", func() bool { return tp.readCounts()[0] == 10 })

	leaveFirst()
	came(t, a, 1, 0)
	tp.mu.Lock()
	cut := tp.cut
	tp.mu.Unlock()
	if cut.Err() != nil {
		t.Error("the read ends while a caller is left")
	}
	leaveSecond()
	<-cut.Done()
	cs.wg.Wait()
	if len(cs.errs) != 2 {
		t.Errorf("errors = %v, want 2", cs.errs)
	}
	came(t, a, 0, 0)

	tp.mu.Lock()
	tp.gate = nil
	tp.mu.Unlock()
	if got := len(a.orders(t, false)); got != 50 {
		t.Errorf("%d orders, want 50", got)
	}
	if diff := cmp.Diff([]int{10, 40}, tp.readCounts()); diff != "" {
		t.Errorf("records read, the second time from where the first was cut off (-want +got):\n%s", diff)
	}
}

// A caller who comes when the last one has just left must not be given that read's end.
func TestReadThatWasLeftServesNobody(t *testing.T) {
	t.Parallel()
	r := &reading{end: map[broker.Partition]int64{{Number: 0}: 9}, callers: 1, fresh: true}
	if !r.serves(map[broker.Partition]int64{{Number: 0}: 9}, true) {
		t.Error("a read with a caller serves another one with the same end")
	}
	if r.serves(map[broker.Partition]int64{{Number: 0}: 10}, false) || r.serves(map[broker.Partition]int64{{Number: 1}: 1}, false) {
		t.Error("a read serves a caller beyond its end")
	}
	r.callers = 0
	if r.serves(map[broker.Partition]int64{{Number: 0}: 9}, false) {
		t.Error("a read that its last caller has left serves another")
	}
}

func TestCallerWhoLeavesBeforeItsReadBegan(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 10)...)
	tp.gate = make(chan struct{})
	a := newTestAuditor(t, tp)
	ctx, leave := context.WithCancel(t.Context())
	var cs callers
	cs.ask(t.Context(), a, false)
	came(t, a, 1, 0)
	tp.add(updates(t, 10, 11)...)
	cs.ask(ctx, a, false)
	came(t, a, 1, 1)
	leave()
	came(t, a, 1, 0)
	close(tp.gate)
	cs.wg.Wait()
	came(t, a, 0, 0)
	if diff := cmp.Diff([]int{10}, tp.readCounts()); diff != "" {
		t.Errorf("records read (-want +got):\n%s", diff)
	}
}

func TestFailedReadFailsItsCallersOnly(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 10)...)
	tp.gate, tp.fails[0] = make(chan struct{}), errors.New("kafka has gone")
	a := newTestAuditor(t, tp)
	var early, late callers
	early.ask(t.Context(), a, false)
	early.ask(t.Context(), a, false)
	came(t, a, 2, 0)
	tp.add(updates(t, 10, 11)...)
	late.ask(t.Context(), a, false)
	came(t, a, 2, 1)
	close(tp.gate)
	early.wg.Wait()
	late.wg.Wait()
	if len(early.errs) != 2 || len(late.errs) != 0 || !slices.Equal(late.orders, []int{11}) {
		t.Errorf("early: %v; late: %v %v", early.errs, late.errs, late.orders)
	}
}

func TestStalledReadIsGivenUp(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 10)...)
	tp.gate = make(chan struct{})
	a := newTestAuditor(t, tp)
	a.stallAfter = 50 * time.Millisecond
	_, err := a.snapshot(t.Context(), contract.TopicUpdated, false)
	if p, ok := errors.AsType[problem](err); !ok || p.Status != 503 || p.RetryAfter == 0 || p.Text != "The topic cannot be read: Kafka is unreachable." {
		t.Errorf("snapshot: %#v", err)
	}
}

func TestClosedAuditorReadsNoMore(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 10)...)
	tp.gate = make(chan struct{})
	a := newTestAuditor(t, tp)
	var cs callers
	cs.ask(t.Context(), a, false)
	came(t, a, 1, 0)
	if err := a.close(); err != nil {
		t.Error(err)
	}
	cs.wg.Wait()
	if _, err := a.snapshot(t.Context(), contract.TopicUpdated, false); err == nil || len(cs.errs) != 1 {
		t.Errorf("after the end: %v; the caller at the end: %v", err, cs.errs)
	}
}

// auditAPI serves audits of a topic.
func auditAPI(t testing.TB, tp *topic, pace pace) (*auditor, string) {
	a := newTestAuditor(t, tp)
	s := &server{auditor: a, log: a.log, pace: pace, stopping: t.Context()}
	srv := httptest.NewServer(s.handler(prometheus.NewRegistry()))
	t.Cleanup(srv.Close)
	return a, srv.URL + "/order/getAllOrderIdsFromTopic?topicName=" + contract.TopicUpdated
}

var patient = pace{grace: time.Minute, rate: 1 << 10}

func TestAuditAnswers(t *testing.T) {
	t.Parallel()
	tp := newTopic()
	a, url := auditAPI(t, tp, patient)
	if got := get(t, url); got.Status != 404 || got.Body != "No orders found in the specified topic." {
		t.Errorf("an empty topic: %+v", got)
	}
	tp.add(plain(t, contract.TopicUpdated, "A", 0))
	got := get(t, strings.ToUpper(url[:strings.Index(url, "?")])+"?TOPICNAME=order-updated-topic")
	want := `{"message":"Total orders in topic 'order-updated-topic': 1","orders":[{"orderId":"A","customerId":"","orderDate":"0001-01-01T00:00:00Z",` +
		`"items":[{"productId":"p","quantity":2,"price":1.5}],"totalAmount":3,"currency":"","status":"plain 0","version":2}]}`
	if diff := cmp.Diff(answered{Status: 200, Body: want}, answered{Status: got.Status, Body: got.Body}); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if kind := got.Header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("Content-Type = %s", kind)
	}
	for _, header := range []string{"no-cache", "max-age=0, No-Cache", "no-store"} {
		get(t, url, "Cache-Control", header)
	}
	if diff := cmp.Diff([]int{1, 1, 1}, tp.readCounts()); diff != "" {
		t.Errorf("records read, twice with no-cache (-want +got):\n%s", diff)
	}
	for _, tt := range []struct {
		err  error
		text string
	}{
		{&broker.UnreachableError{Brokers: "kafka:9092", Err: errors.New("refused")}, "The topic cannot be read: Kafka is unreachable."},
		{context.DeadlineExceeded, "The topic cannot be read: Kafka is unreachable."},
		{&broker.MissingTopicsError{Names: []string{"order-updated-topic"}}, "The topic cannot be read: missing topics: order-updated-topic."},
		{errors.New("secret detail"), "The topic cannot be read now; the Order service's log says why."},
	} {
		a.bounds = func(context.Context, ...string) (first, end map[broker.Partition]int64, err error) {
			return nil, nil, tt.err
		}
		if got := get(t, url); got.Status != 503 || got.Header.Get("Retry-After") != "5" || got.Body != tt.text {
			t.Errorf("%v: %+v", tt.err, got)
		}
	}
}

// An answer that breaks off midway must not look complete: the client gets an error, not the end of a body.
func TestAuditThatFailsMidwayBreaksTheConnection(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 3000)...)
	a, url := auditAPI(t, tp, patient)
	a.orders(t, false)
	ix := a.topics[contract.TopicUpdated].index
	if err := ix.db.Tx(t.Context(), func(tx *sqldb.Tx) error { // fewer rows than the highest id tells
		_, err := tx.Exec("DELETE FROM orders WHERE id = 2900")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil || resp.StatusCode != 200 || len(body) < 100_000 {
		t.Errorf("status %d, %d bytes, %v; want 200, most of the answer, and an error", resp.StatusCode, len(body), err)
	}
	if json.Valid(body) {
		t.Error("the answer looks complete")
	}
}

// A client that reads nothing gives its snapshot back in the end.
func TestSlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 30_000)...)
	tp.size = 1000
	a, url := auditAPI(t, tp, pace{grace: 300 * time.Millisecond, rate: 1 << 30})
	a.orders(t, false)
	host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	if line, err := bufio.NewReaderSize(conn, 16).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("answer %q, %v", line, err)
	}
	refs := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.topics[contract.TopicUpdated].index.refs
	}
	eventually(t, "the index to be released", func() bool { return refs() == 1 })
}

// While a client takes its answer, however slowly, the answer is of one moment.
func TestAuditAnswersFromOneMoment(t *testing.T) {
	t.Parallel()
	tp := newTopic(updates(t, 0, 100)...)
	a := newTestAuditor(t, tp)
	a.orders(t, false)
	snap, err := a.snapshot(t.Context(), contract.TopicUpdated, false)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.close()
	tp.add(event(t, "order-5", 3, "later"))
	tp.add(updates(t, 100, 200)...)
	if got := a.orders(t, false); len(got) != 200 || got["order-5"] != 3 {
		t.Errorf("the next audit tells %d orders", len(got))
	}
	if got := snap.parse(t); len(got) != 100 || got["order-5"] != 2 {
		t.Errorf("the answer under way has %d orders, order-5 at version %d; want what was there at its beginning", len(got), got["order-5"])
	}
}

// Memory does not grow with the number of orders, neither for the index nor for the answer.
func TestMemoryOfAnAuditIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 100,000 records")
	}
	const orders = 100_000
	template := event(t, "order-000000", 2, "e")
	value := string(template.Value)
	var heap, peak uint64
	look := func() {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		heap = m.HeapAlloc
		peak = max(peak, heap)
	}
	tp := newTopic()
	a := newTestAuditor(t, tp)
	a.bounds = func(context.Context, ...string) (first, end map[broker.Partition]int64, err error) {
		return nil, map[broker.Partition]int64{one(contract.TopicUpdated, 0): orders}, nil
	}
	a.read = func(ctx context.Context, _, _ map[broker.Partition]int64, apply func(context.Context, []broker.Record) error) error {
		for n := 0; n < orders; n += 1000 { // records are made as they are read, so that only the audit's own memory counts
			records := make([]broker.Record, 1000)
			for i := range records {
				id := fmt.Sprintf("order-%06d", n+i)
				records[i] = template
				records[i].Key, records[i].Value, records[i].Offset = []byte(id), []byte(strings.Replace(value, "order-000000", id, 1)), int64(n+i)
			}
			if err := apply(ctx, records); err != nil {
				return err
			}
			if n%20_000 == 0 {
				look()
			}
		}
		return nil
	}
	look()
	before := heap
	snap, err := a.snapshot(t.Context(), contract.TopicUpdated, false)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.close()
	var bytes int
	if err := snap.writeJSON(t.Context(), writerFunc(func(b []byte) (int, error) {
		if bytes%(8<<20) < len(b) {
			look()
		}
		bytes += len(b)
		return len(b), nil
	})); err != nil {
		t.Fatal(err)
	}
	if snap.orders != orders || bytes < orders*250 {
		t.Errorf("%d orders in %d bytes", snap.orders, bytes)
	}
	if grown := peak - before; grown > 8<<20 {
		t.Errorf("the heap grew by %d KiB over an answer of %d KiB", grown>>10, bytes>>10)
	} else {
		t.Logf("the heap grew by %d KiB over an answer of %d KiB", grown>>10, bytes>>10)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
