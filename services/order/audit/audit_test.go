package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/order/ordertest"
)

// newAuditor returns an auditor of a topic in memory. It fails the test if anything is left on
// disk.
func newAuditor(t testing.TB, source Source) *Auditor {
	t.Helper()
	return newLimitedAuditor(t, 0, source)
}

// newLimitedAuditor is newAuditor with a limit of the indexes in bytes.
func newLimitedAuditor(t testing.TB, limit int64, source Source) *Auditor {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	a, err := New(t.Context(), filepath.Join(t.TempDir(), "audit"), limit, source, prometheus.NewRegistry(), log)
	if err != nil {
		t.Fatal(err)
	}
	a.stallTimeout = time.Hour
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(a.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the auditor leaves %v behind, %v", left, err)
		}
	})
	return a
}

func sourceOf(tp *ordertest.Topic) Source {
	return Source{Bounds: tp.Bounds, Read: tp.Read, Replaced: tp.Replaced, Withheld: tp.Withheld}
}

// open returns the result of an audit that must succeed.
func (a *Auditor) open(t testing.TB, fresh bool) *Result {
	t.Helper()
	result, err := a.Audit(t.Context(), contract.TopicUpdated, fresh)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// orders audits the topic and returns the orders with their versions.
func (a *Auditor) orders(t testing.TB, fresh bool) map[string]int64 {
	t.Helper()
	result := a.open(t, fresh)
	defer result.Close()
	return result.parse(t)
}

func (r *Result) parse(t testing.TB) map[string]int64 {
	t.Helper()
	var body strings.Builder
	if err := r.WriteJSON(t.Context(), &body); err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Message string
		Orders  []contract.Order
	}
	if err := json.Unmarshal([]byte(body.String()), &parsed); err != nil {
		t.Fatalf("%v: %.200s", err, body.String())
	}
	want := fmt.Sprintf("Total orders in topic '%s': %d", contract.TopicUpdated, len(parsed.Orders))
	if parsed.Message != want {
		t.Errorf("message = %q, want %q", parsed.Message, want)
	}
	all := map[string]int64{}
	for _, o := range parsed.Orders {
		if _, twice := all[o.OrderID]; twice {
			t.Errorf("order %s is there twice", o.OrderID)
		}
		all[o.OrderID] = o.Version
	}
	return all
}

// With PostgreSQL nothing else keeps a second Order out of the folder. It must not remove the indexes of the first.
func TestAFolderBelongsToOneAuditor(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Event(t, "A", 1, "a1"))
	first := newAuditor(t, sourceOf(tp))
	result := first.open(t, false)
	defer result.Close()
	synctest.Test(t, func(t *testing.T) {
		_, err := New(t.Context(), first.dir, 0, Source{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if !errors.Is(err, sqldb.ErrInUse) || !strings.Contains(fmt.Sprint(err), filepath.Dir(first.dir)) {
			t.Errorf("a second auditor in the folder: %v, want %v", err, sqldb.ErrInUse)
		}
	})
	tp.Add(ordertest.Event(t, "B", 1, "b1"))
	if got := first.orders(t, false); len(got) != 2 {
		t.Errorf("the next audit of the first one: %v", got)
	}
	if got := result.parse(t); len(got) != 1 {
		t.Errorf("the result of the first one: %v", got)
	}
}

// The fault of an index costs one audit at most. The next one has an index of its own.
func TestABrokenIndexIsMadeAgain(t *testing.T) {
	t.Parallel()
	const orders = 500
	for name, spoil := range map[string]func(t *testing.T, dir string) error{
		"somebody removes the folder": func(_ *testing.T, dir string) error { return os.RemoveAll(dir) },
		"the disk loses a page": func(t *testing.T, dir string) error {
			logs, err := filepath.Glob(dir + "/*.log")
			if err != nil || len(logs) != 1 {
				t.Fatalf("%v, %v", logs, err)
			}
			file, err := os.OpenFile(logs[0], os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = file.WriteAt(make([]byte, 4096), 4096)
			return errors.Join(err, file.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tp := ordertest.NewTopic(ordertest.Updates(t, 0, orders)...)
			a := newAuditor(t, sourceOf(tp))
			a.orders(t, false)
			if err := spoil(t, a.dir); err != nil {
				t.Fatal(err)
			}
			tp.Add(ordertest.Event(t, "new", 1, "n"))
			result, err := a.Audit(t.Context(), contract.TopicUpdated, false)
			if err == nil {
				err = result.WriteJSON(t.Context(), io.Discard)
				result.Close()
			}
			if err == nil {
				t.Error("the first audit does not notice it")
			}
			if got := a.orders(t, false); len(got) != orders+1 {
				t.Errorf("the next audit has %d orders, want %d", len(got), orders+1)
			}
		})
	}
}

func TestAuditFindsWhatTheTopicHolds(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(
		ordertest.Event(t, "A", 2, "a2"),
		ordertest.Event(t, "B", 3, "b3"),
		ordertest.Event(t, "A", 5, "a5"),
		ordertest.Event(t, "A", 4, "a4"),
		ordertest.Event(t, "A", 5, "a5"),
		ordertest.Raw(contract.TopicUpdated, "C", "broken"),
		ordertest.Raw(contract.TopicUpdated, "D", string(ordertest.Event(t, "A", 9, "x").Value)),
		// A tombstone.
		broker.Record{Topic: contract.TopicUpdated, Key: []byte("B")},
		ordertest.Plain(t, contract.TopicUpdated, "P", 7),
	)
	a := newAuditor(t, sourceOf(tp))
	if diff := cmp.Diff(map[string]int64{"A": 5, "B": 3, "P": 10}, a.orders(t, false)); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	for name, c := range map[string]struct {
		counter prometheus.Counter
		want    float64
	}{
		"order_audit_reads_total":            {a.metrics.reads, 1},
		"order_audit_records_total":          {a.metrics.records, 9},
		"order_audit_unusable_records_total": {a.metrics.unusable, 3},
	} {
		var m dto.Metric
		if err := c.counter.Write(&m); err != nil {
			t.Fatal(err)
		}
		if got := m.GetCounter().GetValue(); got != c.want {
			t.Errorf("%s = %v, want %v", name, got, c.want)
		}
	}
}

func TestAuditOfTheSameVersionKeepsTheFirst(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Event(t, "A", 2, "first"), ordertest.Event(t, "A", 2, "second"))
	// So that the two meet in the index and not in one batch.
	tp.BatchSize = 1
	a := newAuditor(t, sourceOf(tp))
	result := a.open(t, false)
	defer result.Close()
	var body strings.Builder
	if err := result.WriteJSON(t.Context(), &body); err != nil || !strings.Contains(body.String(), "by first") {
		t.Errorf("result = %s, %v", body.String(), err)
	}
}

// A result is of one moment, however long it stays open.
func TestResultDoesNotChange(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 100)...)
	a := newAuditor(t, sourceOf(tp))
	a.orders(t, false)
	early := a.open(t, false)
	defer early.Close()
	tp.Add(ordertest.Event(t, "order-5", 3, "later"))
	tp.Add(ordertest.Updates(t, 100, 200)...)
	if got := a.orders(t, false); len(got) != 200 || got["order-5"] != 3 {
		t.Errorf("the next audit has %d orders, order-5 at version %d; want 200 and 3", len(got), got["order-5"])
	}
	if got := early.parse(t); len(got) != 100 || got["order-5"] != 2 {
		t.Errorf("the open result has %d orders, order-5 at version %d; want 100 and 2, as at its beginning",
			len(got), got["order-5"])
	}
}

// An open result has buffers and, after a fresh read, a whole index on disk. Slow clients must not have them all.
func TestOnlySoManyResultsAreOpen(t *testing.T) {
	t.Parallel()
	a := newAuditor(t, sourceOf(ordertest.NewTopic(ordertest.Updates(t, 0, 5)...)))
	var open []*Result
	// The number is written out, so that MaxResults cannot change unnoticed.
	for range 4 {
		open = append(open, a.open(t, true))
	}
	a.slotTimeout = time.Millisecond
	if result, err := a.Audit(t.Context(), contract.TopicUpdated, true); !errors.Is(err, ErrBusy) {
		t.Errorf("with four open results: %v, want %v", err, ErrBusy)
		if err == nil {
			result.Close()
		}
	}
	open[0].Close()
	if got := len(a.orders(t, false)); got != 5 {
		t.Errorf("%d orders after a result was closed, want 5", got)
	}
	for _, result := range open[1:] {
		result.Close()
	}
	a.checkReleased(t)
}

// An audit waits for a slot as long as its context allows.
func TestAuditGetsTheSlotThatBecomesFree(t *testing.T) {
	t.Parallel()
	a := newAuditor(t, sourceOf(ordertest.NewTopic(ordertest.Updates(t, 0, 5)...)))
	a.slotTimeout = time.Hour
	var open []*Result
	for range MaxResults {
		open = append(open, a.open(t, false))
	}
	ctx, leave := context.WithCancelCause(t.Context())
	left := errors.New("the client has left")
	leave(left)
	if _, err := a.Audit(ctx, contract.TopicUpdated, false); !errors.Is(err, left) {
		t.Errorf("an audit whose client has left: %v, want %v", err, left)
	}
	var last *Result
	var waiting errgroup.Group
	waiting.Go(func() (err error) {
		last, err = a.Audit(t.Context(), contract.TopicUpdated, false)
		return err
	})
	open[0].Close()
	if err := waiting.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, result := range append(open[1:], last) {
		result.Close()
	}
	a.checkReleased(t)
}

// checkReleased checks that no result holds a slot, a view, a reference to an index or an index on disk.
func (a *Auditor) checkReleased(t testing.TB) {
	t.Helper()
	if got := len(a.slots); got != 0 {
		t.Errorf("%d slots are taken at the end", got)
	}
	// An index that a cancelled audit made goes when its reading has ended.
	ordertest.Eventually(t, "one index on disk, used by its reader alone", func() bool {
		r := a.readerOf(contract.TopicUpdated)
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.running == nil && len(a.indexFiles(t)) <= 1 &&
			(r.current == nil || r.current.refs == 1 && r.current.catalog.viewsOpen() == 0)
	})
}

func (c *catalog) viewsOpen() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.views
}

// indexFiles returns the indexes on disk.
func (a *Auditor) indexFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(a.dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Wherever an audit is when its context ends, it returns the cause and keeps nothing.
func TestEndOfContextLeavesNothing(t *testing.T) {
	t.Parallel()
	stopping := errors.New("stopping")
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 5)...)
	a := newAuditor(t, sourceOf(tp))
	for i := range 1000 {
		if i%10 == 0 {
			// So that some of the audits have something to read.
			tp.Add(ordertest.Updates(t, i, i+1)...)
		}
		ctx, stop := context.WithCancelCause(t.Context())
		go func() {
			// Audits take some microseconds; the stop comes in the middle of them.
			time.Sleep(time.Duration(i%100) * time.Microsecond)
			stop(stopping)
		}()
		result, err := a.Audit(ctx, contract.TopicUpdated, false)
		if err == nil {
			// The audit was faster, and its result is stopped instead.
			stop(stopping)
			err = result.WriteJSON(ctx, io.Discard)
			result.Close()
		}
		if !errors.Is(err, stopping) {
			t.Fatalf("an audit that is stopped: %v, want %v", err, stopping)
		}
		stop(nil)
	}
	a.checkReleased(t)
}

func TestClosedAuditorReadsNoMore(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	tp.HoldReads()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	a, err := New(t.Context(), t.TempDir()+"/audit", 0, sourceOf(tp), prometheus.NewRegistry(), log)
	if err != nil {
		t.Fatal(err)
	}
	var cs callers
	cs.ask(t.Context(), a, false)
	a.awaitCallers(t, 1, 0)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	cs.wg.Wait()
	if _, err := a.Audit(t.Context(), contract.TopicUpdated, false); err == nil || len(cs.errs) != 1 {
		t.Errorf("after the end: %v; the caller at the end: %v; want errors", err, cs.errs)
	}
	if _, err := a.Audit(t.Context(), contract.TopicCreated, false); err == nil {
		t.Error("a topic that was never audited is read after the end")
	}
}

// Memory does not grow with the number of orders, neither for the index nor for the result.
func TestMemoryOfAnAuditIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 100,000 records")
	}
	const orders = 100_000
	template := ordertest.Event(t, "order-000000", 2, "e")
	value := string(template.Value)
	var heap, peak uint64
	measure := func() {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		heap = m.HeapAlloc
		peak = max(peak, heap)
	}
	a := newAuditor(t, Source{
		Bounds: func(context.Context, ...string) (first, end map[broker.Partition]int64, err error) {
			return nil, map[broker.Partition]int64{ordertest.Partition(contract.TopicUpdated, 0): orders}, nil
		},
		// Records are made as they are read, so that only the audit's own memory counts.
		Read: func(
			ctx context.Context, _, _ map[broker.Partition]int64, apply func(context.Context, []broker.Record) error,
		) error {
			for n := 0; n < orders; n += 1000 {
				records := make([]broker.Record, 1000)
				for i := range records {
					id := fmt.Sprintf("order-%06d", n+i)
					records[i] = template
					records[i].Key, records[i].Offset = []byte(id), int64(n+i)
					records[i].Value = []byte(strings.Replace(value, "order-000000", id, 1))
				}
				if err := apply(ctx, records); err != nil {
					return err
				}
				if n%20_000 == 0 {
					measure()
				}
			}
			return nil
		},
	})
	measure()
	before := heap
	result := a.open(t, false)
	defer result.Close()
	var bytes int
	if err := result.WriteJSON(t.Context(), writerFunc(func(b []byte) (int, error) {
		if bytes%(8<<20) < len(b) {
			measure()
		}
		bytes += len(b)
		return len(b), nil
	})); err != nil {
		t.Fatal(err)
	}
	if result.Orders != orders || bytes < orders*250 {
		t.Errorf("%d orders in %d bytes", result.Orders, bytes)
	}
	grown := peak - before
	t.Logf("the heap grew by %d KiB for a result of %d KiB", grown>>10, bytes>>10)
	if grown > 8<<20 {
		t.Errorf("the heap grew by %d KiB, at most 8192 are allowed", grown>>10)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
