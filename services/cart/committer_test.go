package cart

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// running opens a store and runs its committer until the test ends or stop is called.
func running(t *testing.T, dir string, maxBacklog int) (c *committer, stop func()) {
	t.Helper()
	return runningAt(t, "", dir, maxBacklog)
}

// runningAt does so with the database at a URL, unless that is empty.
func runningAt(t *testing.T, url, dir string, maxBacklog int) (c *committer, stop func()) {
	t.Helper()
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	s, err := openStore(t.Context(), url, dir, contract.OrderTopics(), log, reg)
	if err != nil {
		t.Fatal(err)
	}
	c = newCommitter(s, room{events: int64(maxBacklog), bytes: 1 << 30}, log, reg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, s.close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

// opener opens the same store each time, and runs its committer until the test ends or stop is called.
type opener func(maxBacklog int) (c *committer, stop func())

// databases runs a test on each kind of database.
func databases(t *testing.T, test func(t *testing.T, open opener)) {
	for name, url := range map[string]func(testing.TB) string{
		"SQLite": func(testing.TB) string { return "" }, "PostgreSQL": testenv.Postgres,
	} {
		t.Run(name, func(t *testing.T) {
			at, dir := url(t), t.TempDir()
			test(t, func(maxBacklog int) (*committer, func()) { return runningAt(t, at, dir, maxBacklog) })
		})
	}
}

// lead gives a store the lease, where there is one, until the test ends.
func lead(t *testing.T, s *store) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	away := broker.Config{Client: kafkaconfig.Client{Brokers: []string{"127.0.0.1:1"}}}
	go func() {
		ended <- s.box.Relay(ctx, outbox.Target{Kafka: away, TransactionalIDs: contract.TransactionalIDsRelay}, nil)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	awaitLease(t, s)
}

func awaitLease(t *testing.T, s *store) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !s.box.Leads(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no lease within 30 s")
		}
	}
}

// whileLeading runs a transaction of the lease's holder, and again whenever the lease was lost: it expires if the
// machine stalls, and no other replica wants it.
func whileLeading(t *testing.T, s *store, do func() error) error {
	t.Helper()
	for {
		if err := do(); !errors.Is(err, outbox.ErrLeaseLost) {
			return err
		}
		awaitLease(t, s)
	}
}

func TestConcurrentRequestsShareCommits(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open opener) {
		c, _ := open(100_000)
		const clients, each = 64, 20
		release := make(chan struct{})
		blocked := make(chan struct{})
		// A transaction is under way, so that requests queue up as they do during a slow fsync.
		// PostgreSQL may end it, and then it runs again.
		begins := sync.OnceFunc(func() { close(blocked) })
		go func() {
			_ = c.store.db.Tx(t.Context(), func(*sqldb.Tx) error { begins(); <-release; return nil })
		}()
		<-blocked
		var wg, begun sync.WaitGroup
		begun.Add(clients)
		for i := range clients {
			wg.Go(func() {
				begun.Done()
				for j := range each {
					order, err := c.submit(t.Context(), creation(t, fmt.Sprintf("%d-%d", i, j)))
					if err != nil || order.version != 1 {
						t.Errorf("order %d-%d: version %d, %v", i, j, order.version, err)
					}
				}
			})
		}
		begun.Wait()
		close(release)
		wg.Wait()
		m := metric(t, c.batchSize)
		if got, most := m.GetHistogram().GetSampleCount(), uint64(clients*each/2); got > most {
			t.Errorf("%d commits for %d orders of %d clients, want at most %d", got, clients*each, clients, most)
		}
		if got := len(rows(t, c.store, "SELECT order_id FROM orders")); got != clients*each {
			t.Errorf("%d orders stored, want %d", got, clients*each)
		}
	})
}

// A batch has whoever waits when the store is locked, and not only when its turn began: while another replica
// commits, that is a multiple.
func TestABatchIsTakenWhenTheStoreIsLocked(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open opener) {
		c, _ := open(100)
		holder := c
		if c.store.db.Shared() {
			holder, _ = open(100)
		}
		locked, release := make(chan struct{}), make(chan struct{})
		var released atomic.Bool
		begins := sync.OnceFunc(func() { close(locked) })
		held := make(chan error, 1)
		go func() {
			held <- holder.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
				_, err := holder.store.box.Lock(tx)
				begins()
				<-release
				released.Store(true)
				return err
			})
		}()
		<-locked
		time.AfterFunc(50*time.Millisecond, func() { close(release) })
		taken := false
		results, _, err := c.store.commit(t.Context(), func() ([]change, time.Time) {
			if taken = true; !released.Load() {
				t.Error("the batch was taken while another transaction had the store locked")
			}
			return []change{creation(t, "a")}, noon
		}, c.limit)
		if err := errors.Join(err, <-held); err != nil || !taken || len(results) != 1 || results[0].err != nil {
			t.Errorf("commit: %v, %v", results, err)
		}
	})
}

func TestResultsAreKeptForTheirKeys(t *testing.T) { databases(t, resultsAreKeptForTheirKeys) }

func resultsAreKeptForTheirKeys(t *testing.T, open opener) {
	t.Parallel()
	c, stop := open(100)
	first, err := c.submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
	if err != nil {
		t.Fatal(err)
	}
	stop()

	c, stop = open(100)
	again, err := c.submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
	if diff := cmp.Diff(string(first.body), string(again.body)); err != nil || diff != "" {
		t.Errorf("after a restart: %v (-want +got):\n%s", err, diff)
	}
	if _, err := c.submit(t.Context(), keyed(creation(t, "b"), "k", "2")); !errors.Is(err, errKeyReused) {
		t.Errorf("another request with the key: %v, want %v", err, errKeyReused)
	}
	stop()

	c, _ = open(100)
	// age lets the lifetime of all keys pass.
	age := func() {
		t.Helper()
		if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec("UPDATE idempotency_keys SET expires_at = expires_at - ?", keyLifetime.Milliseconds())
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	age()
	if _, err := c.submit(t.Context(), keyed(creation(t, "b"), "k", "2")); err != nil {
		t.Errorf("after its lifetime the key is refused: %v", err)
	}
	age()
	next := c.sweep(t.Context())
	if keys := rows(t, c.store, "SELECT idempotency_key FROM idempotency_keys"); next != sweepEvery || len(keys) != 0 {
		t.Errorf("after a sweep: expired keys %q, the next sweep comes in %s; want none, %s", keys, next, sweepEvery)
	}
}

func TestASecondRequestWithAKeyUnderWayIsRefused(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open opener) {
		c, _ := open(100)
		release := make(chan struct{})
		blocked := make(chan struct{})
		// PostgreSQL may end it, and then it runs again.
		begins := sync.OnceFunc(func() { close(blocked) })
		go func() {
			_ = c.store.db.Tx(t.Context(), func(*sqldb.Tx) error { begins(); <-release; return nil })
		}()
		<-blocked
		first := make(chan error)
		go func() {
			_, err := c.submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
			first <- err
		}()
		// Wait until the first request holds the key.
		for held := false; !held; {
			c.mu.Lock()
			_, held = c.inFlight["k"]
			c.mu.Unlock()
			runtime.Gosched()
		}
		if _, err := c.submit(t.Context(), keyed(creation(t, "a"), "k", "1")); !errors.Is(err, errKeyInFlight) {
			t.Errorf("the second gets %v, want %v", err, errKeyInFlight)
		}
		close(release)
		if err := <-first; err != nil {
			t.Errorf("the first gets %v", err)
		}
	})
}

func TestAStoreThatCannotBeWrittenRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	c, _ := running(t, t.TempDir(), 10_000)
	if err := c.store.markRebuilt(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	pages := func(n int) {
		if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			return tx.Query(fmt.Sprintf("PRAGMA max_page_count = %d", n), func(*sql.Rows) error { return nil })
		}); err != nil {
			t.Fatal(err)
		}
	}
	// SQLite takes the present size as the limit: the disk is full.
	pages(1)
	var refused error
	taken := 0
	for ; refused == nil && taken < 1000; taken++ {
		_, refused = c.submit(t.Context(), creation(t, fmt.Sprintf("a%d", taken)))
	}
	if !errors.Is(refused, errUnavailable) {
		t.Fatalf("on a full disk: %v, want %v", refused, errUnavailable)
	}
	if c.err() == nil {
		t.Error("the store does not say that it cannot be written: the service would stay ready")
	}
	last := fmt.Sprintf("a%d", taken-1)
	pages(1 << 20)
	// The store recovers by itself, without a request.
	for deadline := time.Now().Add(30 * time.Second); c.err() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("30 s after there is room again: %v", c.err())
		}
	}
	if a, err := c.submit(t.Context(), creation(t, last)); err != nil || a.version != 1 {
		t.Errorf("the refused order, sent again: version %d, %v, want it created", a.version, err)
	}
	stored := len(rows(t, c.store, "SELECT id FROM outbox"))
	if counted := backlog(t, c.store); counted != int64(taken) || stored != taken {
		t.Errorf("the outbox has %d rows and counts %d, want %d: one for each acknowledged order",
			stored, counted, taken)
	}
}

// Requests that keep coming must not put off the probe that finds out that the store can be written
// again.
func TestAStoreRecoversWhileRequestsCome(t *testing.T) {
	t.Parallel()
	c, _ := running(t, t.TempDir(), 10_000)
	if err := c.store.markRebuilt(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	// A batch has failed.
	c.setHealth(errors.New("disk is full"))
	for i, deadline := 0, time.Now().Add(30*time.Second); c.err() != nil; i++ {
		if time.Now().After(deadline) {
			t.Fatalf("after %d orders were stored: %v", i, c.err())
		}
		if _, err := c.submit(t.Context(), creation(t, fmt.Sprintf("a%d", i))); err != nil {
			t.Fatal(err)
		}
		// Requests come more often than the probe.
		time.Sleep(probeEvery / 20)
	}
}

// The response to a commit that may have taken effect is for its own requests only.
func TestARequestThatWasNotTriedIsNotInDoubt(t *testing.T) {
	t.Parallel()
	c, _ := running(t, t.TempDir(), 100)
	c.setHealth(fmt.Errorf("%w: %w", sqldb.ErrUnknownCommit, context.DeadlineExceeded))
	_, err := c.submit(t.Context(), creation(t, "a"))
	if !errors.Is(err, errUnavailable) || errors.Is(err, sqldb.ErrUnknownCommit) {
		t.Errorf("after the commit of others is unknown: %v, want %v and nothing in doubt", err, errUnavailable)
	}
}

func TestARequestDuringTheStopIsRefused(t *testing.T) {
	t.Parallel()
	c, stop := running(t, t.TempDir(), 100)
	stop()
	// The queue does not have room for so many.
	for range 300 {
		if _, err := c.submit(t.Context(), creation(t, "a")); !errors.Is(err, errUnavailable) {
			t.Fatalf("after the stop: %v, want %v", err, errUnavailable)
		}
	}
}
