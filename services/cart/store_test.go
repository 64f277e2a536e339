package cart

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
)

// running opens a store and runs it until the test ends or stop is called.
func running(t *testing.T, dir string, maxBacklog int) (s *store, stop func()) {
	t.Helper()
	s, err := openStore(t.Context(), dir, maxBacklog, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, s.close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func rows(t *testing.T, s *store, query string) (all []string) {
	t.Helper()
	r, err := s.db.Read.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for r.Next() {
		var v string
		if err := r.Scan(&v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func TestAnOrderAndItsEventAreStoredTogether(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, stop := running(t, dir, 100)
	for _, c := range []change{creation(t, "a"), creation(t, "a"), update("a", "paid"), update("b", "paid")} {
		_, _ = s.submit(t.Context(), c)
	}
	stop()
	s, _ = running(t, dir, 100)
	if diff := cmp.Diff([]string{"a 2"}, rows(t, s, "SELECT order_id || ' ' || version FROM orders")); diff != "" {
		t.Errorf("orders after a restart (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"order-created-topic a", "order-updated-topic a"}, rows(t, s, "SELECT topic || ' ' || CAST(record_key AS TEXT) FROM outbox ORDER BY id")); diff != "" {
		t.Errorf("outbox after a restart (-want +got):\n%s", diff)
	}
	if got := s.box.Rows(); got != 2 {
		t.Errorf("the outbox counts %d rows after a restart, want 2", got)
	}
}

// What FULL is for, a power loss, cannot be had in a test; that it is set can be seen.
func TestAnAnswerWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	s, _ := running(t, t.TempDir(), 100)
	var synchronous int
	err := s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		return tx.Query("PRAGMA synchronous", func(r *sql.Rows) error { return r.Scan(&synchronous) })
	})
	if err != nil || synchronous != 2 {
		t.Errorf("synchronous is %d (%v), want 2, FULL", synchronous, err)
	}
}

func TestARestoredVersionNeverGoesBack(t *testing.T) {
	t.Parallel()
	s, _ := running(t, t.TempDir(), 100)
	for _, v := range []int64{2, 3, 1} {
		if err := s.restore(t.Context(), map[string]answer{"a": {v, []byte(etag(v))}}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{`3 "3"`}, rows(t, s, "SELECT version || ' ' || CAST(body AS TEXT) FROM orders")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConcurrentRequestsShareCommits(t *testing.T) {
	t.Parallel()
	s, _ := running(t, t.TempDir(), 100_000)
	const clients, each = 64, 20
	release := make(chan struct{})
	blocked := make(chan struct{})
	go func() { // holds the writer, so that requests queue up as they do while an fsync takes its time
		_ = s.db.Tx(t.Context(), func(*sqldb.Tx) error { close(blocked); <-release; return nil })
	}()
	<-blocked
	var wg, begun sync.WaitGroup
	begun.Add(clients)
	for i := range clients {
		wg.Go(func() {
			begun.Done()
			for j := range each {
				if a, err := s.submit(t.Context(), creation(t, fmt.Sprintf("%d-%d", i, j))); err != nil || a.version != 1 {
					t.Errorf("order %d-%d: version %d, %v", i, j, a.version, err)
				}
			}
		})
	}
	begun.Wait()
	close(release)
	wg.Wait()
	m := metric(t, s.group)
	if got, most := m.GetHistogram().GetSampleCount(), uint64(clients*each/2); got > most {
		t.Errorf("%d commits for %d orders of %d clients, want at most %d", got, clients*each, clients, most)
	}
	if got := len(rows(t, s, "SELECT order_id FROM orders")); got != clients*each {
		t.Errorf("%d orders stored, want %d", got, clients*each)
	}
}

func TestAnswersAreKeptForTheirKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, stop := running(t, dir, 100)
	first, err := s.submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
	if err != nil {
		t.Fatal(err)
	}
	stop()

	s, stop = running(t, dir, 100)
	again, err := s.submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
	if diff := cmp.Diff(string(first.body), string(again.body)); err != nil || diff != "" {
		t.Errorf("after a restart: %v (-want +got):\n%s", err, diff)
	}
	if _, err := s.submit(t.Context(), keyed(creation(t, "b"), "k", "2")); !errors.Is(err, errKeyReused) {
		t.Errorf("another request with the key: %v, want %v", err, errKeyReused)
	}
	stop()

	s, _ = running(t, dir, 100)
	s.now = func() time.Time { return time.Now().Add(keyLifetime + time.Minute) }
	if _, err := s.submit(t.Context(), keyed(creation(t, "b"), "k", "2")); err != nil {
		t.Errorf("after its lifetime the key is refused: %v", err)
	}
	s.now = func() time.Time { return time.Now().Add(2*keyLifetime + 2*time.Minute) }
	if next := s.sweep(t.Context()); next != sweepEvery || len(rows(t, s, "SELECT idempotency_key FROM idempotency_keys")) != 0 {
		t.Errorf("expired keys are still there after a sweep; the next comes in %s", next)
	}
}

func TestAKeyUnderWayIsRefused(t *testing.T) {
	t.Parallel()
	s, _ := running(t, t.TempDir(), 100)
	release := make(chan struct{})
	blocked := make(chan struct{})
	go func() {
		_ = s.db.Tx(t.Context(), func(*sqldb.Tx) error { close(blocked); <-release; return nil })
	}()
	<-blocked
	first := make(chan error)
	go func() {
		_, err := s.submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
		first <- err
	}()
	for held := false; !held; { // until the first has it
		s.mu.Lock()
		_, held = s.inFlight["k"]
		s.mu.Unlock()
		runtime.Gosched()
	}
	if _, err := s.submit(t.Context(), keyed(creation(t, "a"), "k", "1")); !errors.Is(err, errKeyInFlight) {
		t.Errorf("the second gets %v, want %v", err, errKeyInFlight)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the first gets %v", err)
	}
}

func TestAStoreThatCannotBeWrittenRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	s, _ := running(t, t.TempDir(), 10_000)
	if err := s.markRebuilt(t.Context()); err != nil {
		t.Fatal(err)
	}
	pages := func(n int) {
		if err := s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			return tx.Query(fmt.Sprintf("PRAGMA max_page_count = %d", n), func(*sql.Rows) error { return nil })
		}); err != nil {
			t.Fatal(err)
		}
	}
	pages(1) // SQLite takes the present size for it: the disk is full
	var refused error
	taken := 0
	for ; refused == nil && taken < 1000; taken++ {
		_, refused = s.submit(t.Context(), creation(t, fmt.Sprintf("a%d", taken)))
	}
	if !errors.Is(refused, errUnavailable) {
		t.Fatalf("on a full disk: %v, want %v", refused, errUnavailable)
	}
	if s.err() == nil {
		t.Error("the store does not say that it cannot be written: the service would stay ready")
	}
	last := fmt.Sprintf("a%d", taken-1)
	pages(1 << 20)
	for deadline := time.Now().Add(10 * time.Second); s.err() != nil; time.Sleep(10 * time.Millisecond) { // by itself, without a request
		if time.Now().After(deadline) {
			t.Fatalf("10 s after there is room again: %v", s.err())
		}
	}
	if a, err := s.submit(t.Context(), creation(t, last)); err != nil || a.version != 1 {
		t.Errorf("the refused order, sent again: %d %v, want it to be created", a.version, err)
	}
	if got, want := s.box.Rows(), int64(taken); got != want || len(rows(t, s, "SELECT id FROM outbox")) != taken {
		t.Errorf("the outbox counts %d rows, want %d: one for each order that was answered", got, want)
	}
}

// Requests that keep coming must not put off the probe that finds out that the store can be written again.
func TestAStoreRecoversWhileRequestsCome(t *testing.T) {
	t.Parallel()
	s, _ := running(t, t.TempDir(), 10_000)
	if err := s.markRebuilt(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.outcome(errors.New("disk is full")) // as a group would have found it
	for i, deadline := 0, time.Now().Add(5*probeEvery); s.err() != nil; i++ {
		if time.Now().After(deadline) {
			t.Fatalf("after %d orders were stored: %v", i, s.err())
		}
		if _, err := s.submit(t.Context(), creation(t, fmt.Sprintf("a%d", i))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(probeEvery / 20) // less than the probe waits
	}
}

func TestARequestDuringTheStopIsToldSo(t *testing.T) {
	t.Parallel()
	s, stop := running(t, t.TempDir(), 100)
	stop()
	for range 300 { // more than the queue takes
		if _, err := s.submit(t.Context(), creation(t, "a")); !errors.Is(err, errUnavailable) {
			t.Fatalf("after the stop: %v, want %v", err, errUnavailable)
		}
	}
}

func TestMigrationIsTheOutboxSchema(t *testing.T) {
	t.Parallel()
	text, err := migrations.ReadFile("migrations/0002_outbox.sql")
	if err != nil || strings.TrimSpace(string(text)) != strings.TrimSpace(outbox.Schema) {
		t.Errorf("migrations/0002_outbox.sql is not outbox/schema.sql (%v)", err)
	}
}
