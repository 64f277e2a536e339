package cart

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// replicas returns the committers of n replicas with one database, and one more that does nothing else.
func replicas(t *testing.T, n, maxBacklog int) (all []*committer, other *store) {
	t.Helper()
	database := testenv.Patient(testenv.Postgres(t))
	for range n + 1 {
		c, _ := runningAt(t, database, t.TempDir(), maxBacklog)
		all = append(all, c)
	}
	return all[:n], all[n].store
}

// atOnce hands each replica a change while the ledger is locked, so that none has seen the others' when it
// begins. It returns their results.
func atOnce(t *testing.T, all []*committer, blocker *store, changes ...change) []result {
	t.Helper()
	results := make([]result, len(changes))
	var asked sync.WaitGroup
	waiting := func() (n int) {
		const query = `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`
		if err := blocker.db.Query(t.Context(), query, func(r *sql.Rows) error { return r.Scan(&n) }); err != nil {
			t.Error(err)
		}
		return n
	}
	err := blocker.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		if _, err := blocker.box.Lock(tx); err != nil {
			return err
		}
		for i, c := range changes {
			asked.Go(func() { results[i].order, results[i].err = all[i].submit(t.Context(), c) })
		}
		for deadline := time.Now().Add(8 * time.Second); waiting() < len(changes); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				return errors.New("not all replicas wait for the ledger")
			}
		}
		return nil
	})
	asked.Wait()
	if err != nil {
		t.Error(err)
	}
	return results
}

func TestAKeyHasOneWinnerAcrossReplicas(t *testing.T) {
	t.Parallel()
	all, other := replicas(t, 2, 100)
	same := keyed(creation(t, "a"), "k", "1")
	results := atOnce(t, all, other, same, keyed(creation(t, "a"), "k", "1"))
	for i, r := range results {
		if r.err != nil || string(r.order.body) != string(results[0].order.body) {
			t.Errorf("replica %d: %v %s, want the result of the other one", i, r.err, r.order.body)
		}
	}
	texts := []string{}
	for _, r := range atOnce(t, all, other, keyed(creation(t, "b"), "l", "1"), keyed(creation(t, "c"), "l", "2")) {
		texts = append(texts, r.text())
	}
	slices.Sort(texts)
	if diff := cmp.Diff([]string{`"1"`, errKeyReused.Error()}, texts); diff != "" {
		t.Errorf("two requests with one key (-want +got):\n%s", diff)
	}
	if got := len(rows(t, all[0].store, "SELECT order_id FROM orders")); got != 2 {
		t.Errorf("%d orders are stored, want 2", got)
	}
}

// The clock of one replica is ahead by more than a key lives.
func TestAReplicaWithAWrongClockDeletesNoKeys(t *testing.T) {
	t.Parallel()
	all, _ := replicas(t, 2, 100)
	first, err := all[0].submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
	if err != nil {
		t.Fatal(err)
	}
	all[1].now = func() time.Time { return time.Now().Add(keyLifetime + time.Hour) }
	all[1].sweep(t.Context())
	for i, c := range all {
		again, err := c.submit(t.Context(), keyed(creation(t, "a"), "k", "1"))
		if diff := cmp.Diff(string(first.body), string(again.body)); err != nil || diff != "" {
			t.Errorf("the request again, at replica %d: %v (-want +got):\n%s", i, err, diff)
		}
	}
}

// submitPatiently repeats a change while the store cannot be used, as clients do: on a busy machine a
// replica may wait for the ledger for longer than it may.
func (c *committer) submitPatiently(ctx context.Context, requested change) (order orderState, err error) {
	for {
		order, err = c.submit(ctx, requested)
		if !errors.Is(err, errUnavailable) || !backoff.Sleep(ctx, time.Millisecond) {
			return order, err
		}
	}
}

func TestUpdatesOfReplicasLoseNone(t *testing.T) {
	t.Parallel()
	all, other := replicas(t, 3, 10_000)
	if _, err := all[0].submit(t.Context(), creation(t, "a")); err != nil {
		t.Fatal(err)
	}
	texts := []string{}
	for _, r := range atOnce(t, all, other,
		update("a", "s0", etag(1)), update("a", "s1", etag(1)), update("a", "s2", etag(1))) {
		texts = append(texts, r.text())
	}
	slices.Sort(texts)
	refused := preconditionError{"If-Match", 2}.Error()
	if diff := cmp.Diff([]string{`"2"`, refused, refused}, texts); diff != "" {
		t.Errorf("updates of the same version (-want +got):\n%s", diff)
	}

	const each = 50
	var mu sync.Mutex
	var versions []int64
	var clients sync.WaitGroup
	for i, c := range all {
		for j := range each {
			clients.Go(func() {
				order, err := c.submitPatiently(t.Context(), update("a", fmt.Sprintf("%d-%d", i, j)))
				if err != nil {
					t.Errorf("update %d-%d: %v", i, j, err)
				}
				mu.Lock()
				defer mu.Unlock()
				versions = append(versions, order.version)
			})
		}
	}
	clients.Wait()
	slices.Sort(versions)
	for i, v := range versions {
		if v != int64(3+i) {
			t.Fatalf("the versions are %v, want each from 3 to %d once", versions, 2+len(all)*each)
		}
	}
}

// The relay reads behind the last ID that it has seen. A row that is committed later with a lower ID would
// never be published.
func TestIDsAreInTheOrderOfTheCommits(t *testing.T) {
	t.Parallel()
	writers, reader := replicas(t, 3, 100_000)
	const each = 300
	var clients sync.WaitGroup
	for i, c := range writers {
		for k := range 4 {
			clients.Go(func() {
				for j := range each / 4 {
					created := creation(t, fmt.Sprintf("%d-%d-%d", i, k, j))
					if _, err := c.submitPatiently(t.Context(), created); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	last := int64(0)
	for deadline := time.Now().Add(time.Minute); last < each*int64(len(writers)); {
		if time.Now().After(deadline) {
			t.Fatalf("%d rows after a minute", last)
		}
		err := reader.db.Query(t.Context(), "SELECT id FROM outbox WHERE id > ? ORDER BY id", func(r *sql.Rows) error {
			var id int64
			err := r.Scan(&id)
			if err == nil && id != last+1 {
				err = fmt.Errorf("row %d comes after row %d", id, last)
			}
			last = id
			return err
		}, last)
		if err != nil {
			t.Fatal(err)
		}
		// The writers need the processors too.
		time.Sleep(time.Millisecond)
	}
	clients.Wait()
}

func TestEveryReplicaSeesTheBacklog(t *testing.T) {
	t.Parallel()
	all, _ := replicas(t, 2, 2)
	for _, id := range []string{"a", "b"} {
		if _, err := all[0].submit(t.Context(), creation(t, id)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := all[1].submit(t.Context(), creation(t, "c")); !errors.Is(err, errBacklog) {
		t.Errorf("another replica, when the backlog is full: %v, want %v", err, errBacklog)
	}
}

// Of several replicas with a new database one rebuilds it. If it ends before it is done, another one does.
func TestOneReplicaRebuildsTheStore(t *testing.T) {
	dir := t.TempDir()
	kafka, err := fakekafka.New(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	addr := kafka.ListenAddrs()[0]
	testenv.Produce(t, addr, event(t, "a", 1), event(t, "a", 2))
	fetched := testenv.MuteFetches(kafka)
	vars := map[string]string{"KAFKA_BROKERS": addr, "DATABASE_URL": testenv.Postgres(t)}
	running := make(map[string]instance)
	for range 3 {
		s := startAs(t, filepath.Join(t.TempDir(), "cart"), vars)
		running[s.ops] = s
	}
	<-fetched
	// rebuilding waits until one replica rebuilds the store and the others wait for it, and returns it.
	rebuilding := func() (one instance) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			rebuilds, waits, all := 0, 0, ""
			for _, s := range running {
				code, body := s.ask(t, "GET", s.ops+"/readyz", "")
				all += fmt.Sprintf("%d %s\n", code, body)
				switch {
				case code == 503 && strings.Contains(body, errRebuiltElsewhere.Error()):
					waits++
				case code == 503 && strings.Contains(body, errRebuilding.Error()):
					rebuilds++
					one = s
				}
			}
			if rebuilds == 1 && waits == len(running)-1 {
				return one
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d replicas rebuild the store and %d wait, want 1, and all others:\n%s", rebuilds, waits, all)
			}
		}
	}
	first := rebuilding()
	delete(running, first.ops)
	first.stop()
	rebuilding()

	kafka.Close()
	port := netip.MustParseAddrPort(addr).Port()
	if kafka, err = fakekafka.New(dir, int(port)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	for _, s := range running {
		s.until(t, s.ops+"/readyz", 200, "ready")
		request := fmt.Sprintf(`{"orderId":"a","status":%q}`, s.ops)
		if code, body := s.ask(t, "PUT", s.api+put, request); code != 200 {
			t.Errorf("an update of an order from the topics: %d %q", code, body)
		}
	}
	// A busy replica may lose the lease to another one between two looks.
	for deadline := time.Now().Add(time.Minute); ; {
		held := 0
		for _, s := range running {
			_, body := s.ask(t, "GET", s.ops+"/metrics", "")
			if strings.Contains(body, "\ncart_outbox_lease_held 1\n") {
				held++
			}
		}
		if held == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d replicas hold the lease, want 1", held)
		}
	}
	for _, s := range running {
		s.until(t, s.ops+"/metrics", 200, "\ncart_outbox_rows 0\n")
	}
	if got := len(testenv.ReadAll(t, addr, contract.TopicUpdated)); got != 3 {
		t.Errorf("%d updates are in the topics, want 3", got)
	}
}

// A store of the release before has no ledger, and that release may use the store again after a rollback.
func TestAStoreThatTheReleaseBeforeHasUsed(t *testing.T) {
	t.Parallel()
	before := fstest.MapFS{}
	for _, name := range []string{"0001_cart.sql", "0002_outbox.sql", "0003_published.sql"} {
		text, err := fs.ReadFile(migrations, "migrations/sqlite/"+name)
		if err != nil {
			t.Fatal(err)
		}
		before["sqlite/"+name] = &fstest.MapFile{Data: text}
	}
	dir := t.TempDir()
	// used runs statements of the release before.
	used := func(statements ...string) {
		t.Helper()
		db, err := sqldb.Open(t.Context(), sqldb.Config{
			Path: filepath.Join(dir, "cart.db"), Sync: sqldb.Full, Migrations: before,
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		err = db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			var errs []error
			for _, s := range statements {
				_, err := tx.Exec(s)
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	const insert = `INSERT INTO outbox(topic, record_key, value, headers, created_at)
		VALUES ('t', x'61', x'62', x'', 0)`
	// opened checks what this release finds, and adds an order.
	opened := func(when string, wantRows, wantBytes int64, ids ...string) {
		t.Helper()
		c, stop := running(t, dir, 100)
		defer stop()
		n, bytes, err := c.store.box.Backlog(t.Context())
		if err != nil || n != wantRows || bytes != wantBytes {
			t.Errorf("%s: %d rows of %d bytes wait, %v, want %d of %d", when, n, bytes, err, wantRows, wantBytes)
		}
		if _, err := c.submit(t.Context(), creation(t, when)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ids, rows(t, c.store, "SELECT CAST(id AS TEXT) FROM outbox ORDER BY id")); diff != "" {
			t.Errorf("%s: the IDs in the outbox (-want +got):\n%s", when, diff)
		}
	}
	used(insert, insert, insert, "DELETE FROM outbox WHERE id <= 1")
	opened("upgrade", 2, 4, "2", "3", "4")
	used(insert, "DELETE FROM outbox WHERE id <= 4")
	opened("upgrade after a rollback", 1, 2, "5", "6")
	used("DELETE FROM outbox")
	opened("all was published", 0, 0, "7")
}

// PostgreSQL responds, and another session withholds what each order writes.
func TestADatabaseThatTakesNoWriteIsShownAsDown(t *testing.T) {
	database := testenv.Postgres(t)
	s := startAs(t, filepath.Join(t.TempDir(), "cart"),
		map[string]string{"KAFKA_BROKERS": testenv.Fake(t), "DATABASE_URL": database})
	s.until(t, s.ops+"/readyz", 200, "ready")
	s.until(t, s.ops+"/metrics", 200, "\ncart_database_up 1\n")
	pool, err := sql.Open("pgx", database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	other, err := pool.BeginTx(t.Context(), nil)
	if err == nil {
		_, err = other.ExecContext(t.Context(), "SELECT head FROM cart.ledger FOR UPDATE")
	}
	if err != nil {
		t.Fatal(err)
	}
	if code, body := s.ask(t, "POST", s.api+create, `{"orderId":"a","itemsNum":2}`); code != 503 {
		t.Errorf("an order while another session holds the ledger: %d %q, want 503", code, body)
	}
	s.until(t, s.ops+"/metrics", 200, "\ncart_database_up 0\n")
	s.until(t, s.ops+"/readyz", 200, "ready")
	if err := other.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.until(t, s.ops+"/metrics", 200, "\ncart_database_up 1\n")
}
