package sqldb_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// quick makes a server quick that does not survive a crash of the machine. It survives a kill.
var quick = map[string]string{"fsync": "off", "full_page_writes": "off"}

// session is a connection of somebody else, as the superuser.
func session(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func sqlExec(t *testing.T, conn *pgx.Conn, text string) {
	t.Helper()
	if _, err := conn.Exec(context.WithoutCancel(t.Context()), text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// eventually waits until try succeeds.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return
		}
		if !backoff.Sleep(ctx, 20*time.Millisecond) {
			t.Fatalf("%s: not within a minute: %v", what, err)
		}
	}
}

// unavailable checks that use fails as IsUnavailable says, within a time. That is what the product may take and
// some seconds for a busy machine.
func unavailable(t *testing.T, what string, within time.Duration, use func() error) {
	t.Helper()
	begin := time.Now()
	err := use()
	if took := time.Since(begin); err == nil || !sqldb.IsUnavailable(err) || took > within {
		t.Errorf("%s: %v after %s, want that the database is unavailable, within %s", what, err, took, within)
	}
}

// watched runs Watch until the test ends.
func watched(t *testing.T, db *sqldb.DB) {
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- db.Watch(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Watch ended the process: %v", err)
		}
	})
}

func reads(t *testing.T, db *sqldb.DB) func() error {
	return func() error { return query(t, db, "SELECT k FROM t") }
}

func writes(t *testing.T, db *sqldb.DB) func() error {
	return func() error { return insert(t.Context(), db, 1) }
}

// A server that is killed or stopped is unavailable at once, and used again once it is back. The state
// says so meanwhile.
func TestPostgresEndsAndStartsAgain(t *testing.T) {
	t.Parallel()
	s := testenv.StartPostgres(t, localpostgres.Options{Settings: quick})
	db := openConfig(t, server(s.URL("postgres")))
	watched(t, db)
	for name, end := range map[string]func(){"killed": s.Kill, "stopped": s.Stop} {
		if err := writes(t, db)(); err != nil {
			t.Fatal(err)
		}
		end()
		unavailable(t, name+": a transaction", 10*time.Second, writes(t, db))
		unavailable(t, name+": a query", 10*time.Second, reads(t, db))
		eventually(t, name+": the state shows it", func() error {
			if db.Err() == nil {
				return errors.New("it shows nothing")
			}
			return nil
		})
		if err := s.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": a transaction after the start", writes(t, db))
		eventually(t, name+": a query after the start", reads(t, db))
		eventually(t, name+": the state after the start", db.Err)
	}
}

// A connection that is cut before its commit costs nobody a failure.
func TestCutConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	db := openConfig(t, server(url))
	admin := session(t, url)
	cut := func() {
		sqlExec(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "+
			"AND pid <> pg_backend_pid()")
	}
	for range 5 {
		cut()
		if err := reads(t, db)(); err != nil {
			t.Errorf("a query after the cut: %v", err)
		}
		cut()
		if err := writes(t, db)(); err != nil {
			t.Errorf("a transaction after the cut: %v", err)
		}
	}
	runs := 0
	err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		if runs++; runs == 1 {
			cut()
		}
		_, err := tx.Exec("INSERT INTO t(v) VALUES ('cut')")
		return err
	})
	if got := count(t, db); err != nil || runs != 2 || got != 6 {
		t.Errorf("cut in the transaction: %v after %d runs, with %d rows, want 2 runs and 6 rows", err, runs, got)
	}
	// The server's response to the commit is the same before it and during it.
	err = db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t(v) VALUES ('unknown')")
		cut()
		return err
	})
	if !errors.Is(err, sqldb.ErrUnknownCommit) || !sqldb.IsUnavailable(err) {
		t.Errorf("cut at the commit: %v, want %v", err, sqldb.ErrUnknownCommit)
	}
}

// A commit waits for the synchronous standby. If the wait ends otherwise, the commit may have taken
// effect: the error says so, also where PostgreSQL reports a success with a warning.
func TestACommitThatWasNotConfirmedIsUnknown(t *testing.T) {
	t.Parallel()
	s := testenv.StartPostgres(t, localpostgres.Options{Settings: quick})
	db := openConfig(t, server(s.URL("postgres")))
	admin := session(t, s.URL("postgres"))
	// A standby that does not exist.
	sqlExec(t, admin, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	sqlExec(t, admin, "SELECT pg_reload_conf()")
	eventually(t, "commits wait", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := session(t, s.URL("postgres")).Exec(ctx, `INSERT INTO "a schema".u VALUES (1)`); err == nil {
			return errors.New("one did not")
		}
		return nil
	})
	// The last one leaves a connection behind that still waits for a moment.
	for _, c := range []struct{ name, end string }{
		{"cancelled", "SELECT pg_cancel_backend(pid)"},
		{"terminated", "SELECT pg_terminate_backend(pid)"},
		{"timed out", ""},
	} {
		name, end := c.name, c.end
		ended := make(chan error, 1)
		begin := time.Now()
		go func() { ended <- insert(context.WithoutCancel(t.Context()), db, 1) }()
		if end != "" {
			eventually(t, "the commit waits", func() error {
				tag, err := admin.Exec(t.Context(), end+
					" FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'a schema'")
				if err == nil && tag.RowsAffected() == 0 {
					err = errors.New("it does not")
				}
				return err
			})
		}
		err := <-ended
		if !errors.Is(err, sqldb.ErrUnknownCommit) || !sqldb.IsUnavailable(err) {
			t.Errorf("%s: %v, want %v", name, err, sqldb.ErrUnknownCommit)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("%s: after %s", name, took)
		}
	}
	sqlExec(t, admin, "ALTER SYSTEM RESET synchronous_standby_names")
	sqlExec(t, admin, "SELECT pg_reload_conf()")
	eventually(t, "without the standby", writes(t, db))
}

func TestTooManyConnectionsPass(t *testing.T) {
	t.Parallel()
	s := testenv.StartPostgres(t, localpostgres.Options{Settings: map[string]string{
		"fsync": "off", "max_connections": "12", "superuser_reserved_connections": "0",
	}})
	cfg := server(s.URL("postgres"))
	db := openConfig(t, cfg)
	others := []*pgx.Conn{session(t, cfg.URL)}
	eventually(t, "others have all connections", func() error {
		// The place of the connection that is cut is free a moment later.
		sqlExec(t, others[0],
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'a schema'")
		for {
			conn, err := pgx.Connect(t.Context(), cfg.URL)
			if err != nil {
				break
			}
			others = append(others, conn)
		}
		if writes(t, db)() == nil {
			return errors.New("one is left")
		}
		return nil
	})
	unavailable(t, "a transaction", 10*time.Second, writes(t, db))
	unavailable(t, "a query", 10*time.Second, reads(t, db))
	unavailable(t, "a start", 10*time.Second, func() error {
		_, err := sqldb.Open(t.Context(), cfg, quiet)
		return err
	})
	for _, conn := range others {
		_ = conn.Close(t.Context())
	}
	eventually(t, "once there are connections", writes(t, db))
}

// A standby behind the address is refused, and so is a primary that has become one. The promoted server
// is used.
func TestAStandbyIsNotUsed(t *testing.T) {
	t.Parallel()
	s := testenv.StartPostgres(t, localpostgres.Options{Settings: quick})
	standby := testenv.StartStandby(t, s, localpostgres.Options{})
	unavailable(t, "a start", 10*time.Second, func() error {
		_, err := sqldb.Open(t.Context(), server(standby.URL("postgres")), quiet)
		if err != nil && !strings.Contains(err.Error(), "standby") {
			t.Errorf("%v does not say what is wrong", err)
		}
		return err
	})
	// Both addresses, the wrong one first.
	both := strings.Replace(s.URL("postgres"), s.Addr(), standby.Addr()+","+s.Addr(), 1)
	db := openConfig(t, server(both))
	if err := writes(t, db)(); err != nil {
		t.Fatalf("with the primary second: %v", err)
	}
	s.Kill()
	unavailable(t, "before the promotion", 10*time.Second, writes(t, db))
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "after the promotion", writes(t, db))
	if got := count(t, db); got != 2 {
		t.Errorf("%d rows, want 2: what was committed before is there", got)
	}
	// A server that goes on as a standby keeps its connections.
	watched(t, db)
	admin := session(t, standby.URL("postgres"))
	sqlExec(t, admin, "ALTER SYSTEM SET default_transaction_read_only = on")
	sqlExec(t, admin, "SELECT pg_reload_conf()")
	eventually(t, "it only reads", func() error {
		if err := writes(t, db)(); !sqldb.IsUnavailable(err) {
			return fmt.Errorf("a transaction: %w", err)
		}
		if db.Err() == nil {
			return errors.New("the state shows nothing")
		}
		return nil
	})
	sqlExec(t, admin, "SET default_transaction_read_only = off")
	sqlExec(t, admin, "ALTER SYSTEM RESET default_transaction_read_only")
	sqlExec(t, admin, "SELECT pg_reload_conf()")
	eventually(t, "it writes again", writes(t, db))
	eventually(t, "the state after it", db.Err)
}

// Somebody who holds a row and does nothing keeps others waiting for two seconds each. If it is one of the
// services, the server ends its transaction after three; here after eight, so that the others wait first.
func TestAStalledTransactionStopsNobodyForLong(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	db := openConfig(t, server(url))
	stalled := openConfig(t, server(url+"&idle_in_transaction_session_timeout=8000"))
	if err := writes(t, db)(); err != nil {
		t.Fatal(err)
	}
	lock := func(tx *sqldb.Tx) error {
		return tx.Query("SELECT k FROM t"+tx.ForUpdate(), func(r *sql.Rows) error { return r.Scan(new(int64)) })
	}
	locked, goOn := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	runs := 0
	go func() {
		ended <- stalled.Tx(context.WithoutCancel(t.Context()), func(tx *sqldb.Tx) error {
			if err := lock(tx); err != nil {
				return err
			}
			if runs++; runs == 1 {
				close(locked)
				<-goOn
			}
			_, err := tx.Exec("INSERT INTO t(v) VALUES ('stalled')")
			return err
		})
	}()
	<-locked
	unavailable(t, "while it stalls", 10*time.Second, func() error { return db.Tx(t.Context(), lock) })
	// Reads do not wait.
	if err := reads(t, db)(); err != nil {
		t.Error(err)
	}
	eventually(t, "after the server has ended it", func() error { return db.Tx(t.Context(), lock) })
	close(goOn)
	if err := <-ended; err != nil || runs != 2 {
		t.Errorf("the stalled one: %v after %d runs, want a second one that succeeds", err, runs)
	}

	// psql has no such timeouts, and is stopped as a whole.
	testenv.RequireProgram(t, "psql", "PostgreSQL's client")
	psql := exec.CommandContext(t.Context(), "psql", "-qAt", url)
	in, err := psql.StdinPipe()
	out, err2 := psql.StdoutPipe()
	if err := errors.Join(err, err2, psql.Start()); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, `BEGIN; SELECT 'locked' FROM "a schema".t FOR UPDATE;`)
	if _, err := fmt.Fscanln(out, new(string)); err != nil {
		t.Fatal(err)
	}
	if err := psql.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	unavailable(t, "while psql stalls", 10*time.Second, func() error { return db.Tx(t.Context(), lock) })
	_ = psql.Process.Kill()
	_ = psql.Wait()
	eventually(t, "after its end", func() error { return db.Tx(t.Context(), lock) })
}

// What does not respond in time is ended, and the next one is served.
func TestASlowStatementIsEnded(t *testing.T) {
	t.Parallel()
	db := openConfig(t, server(testenv.Postgres(t)))
	unavailable(t, "a query", 20*time.Second, func() error { return query(t, db, "SELECT pg_sleep(60)") })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	unavailable(t, "a query with a deadline", 4*time.Second, func() error {
		return db.Query(ctx, "SELECT pg_sleep(60)", func(*sql.Rows) error { return nil })
	})
	unavailable(t, "a transaction", 30*time.Second, func() error {
		return db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			return tx.Query("SELECT pg_sleep(60)", func(*sql.Rows) error { return nil })
		})
	})
	if err := errors.Join(writes(t, db)(), reads(t, db)()); err != nil {
		t.Errorf("the next ones: %v", err)
	}
}

// A transaction that waits for another one of its process has no more time than one that runs: who asked for
// it waits for the sum.
func TestTheWaitForATurnEnds(t *testing.T) {
	t.Parallel()
	db := openConfig(t, server(testenv.Postgres(t)))
	begun, end := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- db.Tx(context.WithoutCancel(t.Context()), func(*sqldb.Tx) error {
			close(begun)
			<-end
			return nil
		})
	}()
	<-begun
	begin := time.Now()
	err := db.Tx(t.Context(), func(*sqldb.Tx) error { return errors.New("it has begun") })
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || !sqldb.IsUnavailable(err) ||
		took > 30*time.Second {
		t.Errorf("after %s: %v, want the end of its time after 10 s", took, err)
	}
	close(end)
	if err := <-first; err == nil {
		t.Error("the first one has taken longer than it may, and is committed")
	}
	if err := db.Tx(t.Context(), func(*sqldb.Tx) error { return nil }); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// A full disk refuses what is written, and nothing else. There is room again once there is room.
func TestAFullDiskOfPostgresRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	db := openConfig(t, server(url))
	disk := testenv.SmallDisk(t, 20)
	admin := session(t, url)
	space := filepath.Base(filepath.Dir(disk))
	sqlExec(t, admin, fmt.Sprintf("CREATE TABLESPACE %q LOCATION '%s'", space, disk))
	t.Cleanup(func() { sqlExec(t, admin, fmt.Sprintf("DROP TABLESPACE %q", space)) })
	t.Cleanup(func() { sqlExec(t, admin, `DROP TABLE "a schema".t`) })
	// What compresses well would take no room.
	sqlExec(t, admin, `ALTER TABLE "a schema".t ALTER COLUMN v SET STORAGE EXTERNAL`)
	sqlExec(t, admin, fmt.Sprintf(`ALTER TABLE "a schema".t SET TABLESPACE %q`, space))
	var err error
	rows := 0
	for ; err == nil && rows < 100; rows++ {
		err = insert(t.Context(), db, 1<<20)
	}
	if !sqldb.IsUnavailable(err) {
		t.Fatalf("after %d MiB on a disk of 20: %v, want that the database is unavailable", rows, err)
	}
	if err := reads(t, db)(); err != nil {
		t.Errorf("a query: %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,size=100m", filepath.Dir(disk)).
		CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := insert(t.Context(), db, 1<<20); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

// A start waits for a server that refuses it, and says why. What no waiting can mend ends it.
func TestAStartSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	admin := session(t, url)
	sqlExec(t, admin, `CREATE SCHEMA "a schema" CREATE TABLE theirs(k int)`)
	for name, c := range map[string]struct {
		url, says string
		passes    bool
	}{
		"another password":       {strings.Replace(url, "@", "x@", 1), "28P01", true},
		"another database":       {strings.Replace(url, "?", "x?", 1), "3D000", true},
		"nobody at the port":     {"postgres://postgres:x@127.0.0.1:1/postgres", "connection refused", true},
		"no such host":           {"postgres://postgres:x@no-such-host.invalid/postgres", "no-such-host", true},
		"SQLite":                 {"sqlite:///cart.db", "must be postgres://", false},
		"somebody else's tables": {url, "theirs", false},
	} {
		_, err := sqldb.Open(t.Context(), server(c.url), quiet)
		if err == nil || !strings.Contains(err.Error(), c.says) || sqldb.IsUnavailable(err) != c.passes {
			t.Errorf("%s: %v, want %q, and that it may pass: %t", name, err, c.says, c.passes)
		}
		if password, _, _ := strings.Cut(strings.TrimPrefix(url, "postgres://postgres:"), "@"); err != nil &&
			strings.Contains(err.Error(), password) {
			t.Errorf("%s: the password is shown: %v", name, err)
		}
	}
	sqlExec(t, admin, `DROP SCHEMA "a schema" CASCADE`)

	var reasons []error
	var log bytes.Buffer
	attempts := 0
	err := sqldb.Await(t.Context(), slog.New(slog.NewTextHandler(&log, nil)),
		func(reason error) { reasons = append(reasons, reason) },
		func() error {
			cfg := server(url)
			if attempts++; attempts < 3 {
				cfg.URL = strings.Replace(url, "@", "x@", 1)
			}
			db, err := sqldb.Open(t.Context(), cfg, quiet)
			if err == nil {
				err = db.Close()
			}
			return err
		})
	if err != nil || len(reasons) != 2 || strings.Count(log.String(), "28P01") != 1 {
		t.Errorf("Await: %v with the reasons %v and the log %s, want two reasons and one line", err, reasons, &log)
	}
}

// Replicas that start at the same time migrate once.
func TestReplicasMigrateOnce(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	cfg := server(url)
	cfg.Migrations = migrations(tables, "INSERT INTO t(v) VALUES ('once')", "ALTER TABLE t ADD COLUMN w TEXT")
	var starting sync.WaitGroup
	for range 8 {
		starting.Go(func() {
			db, err := sqldb.Open(t.Context(), cfg, quiet)
			if err == nil {
				err = db.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	if got := count(t, openConfig(t, cfg)); got != 1 {
		t.Errorf("the migration has run %d times", got)
	}
}

// A transaction that the server ends because of another one is run again.
func TestADeadlockIsRunAgain(t *testing.T) {
	t.Parallel()
	url := testenv.Patient(testenv.Postgres(t))
	one, other := openConfig(t, server(url)), openConfig(t, server(url))
	if err := errors.Join(writes(t, one)(), writes(t, one)()); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	both.Add(2)
	update := func(db *sqldb.DB, first, second int, runs *int) error {
		return db.Tx(context.WithoutCancel(t.Context()), func(tx *sqldb.Tx) error {
			_, err := tx.Exec("UPDATE t SET v = v || 'x' WHERE k = ?", first)
			if *runs++; *runs == 1 {
				both.Done()
				both.Wait()
			}
			if err == nil {
				_, err = tx.Exec("UPDATE t SET v = v || 'x' WHERE k = ?", second)
			}
			return err
		})
	}
	var runsOne, runsOther int
	ended := make(chan error, 1)
	go func() { ended <- update(one, 1, 2, &runsOne) }()
	err := update(other, 2, 1, &runsOther)
	if err := errors.Join(err, <-ended); err != nil || runsOne+runsOther < 3 {
		t.Errorf("%v after %d and %d runs, want one run more at least", err, runsOne, runsOther)
	}
}

// A server that acknowledges commits before they are safe is warned of, where that matters.
func TestAsynchronousCommitsAreWarnedOf(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	for _, c := range []struct {
		more  string
		sync  sqldb.Sync
		warns bool
	}{
		{"", sqldb.Full, false}, {"&synchronous_commit=off", sqldb.Full, true},
		{"&synchronous_commit=local", sqldb.Full, true}, {"&synchronous_commit=off", sqldb.Normal, false},
	} {
		cfg := server(url + c.more)
		cfg.Sync = c.sync
		var log bytes.Buffer
		db, err := sqldb.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if warns := strings.Contains(log.String(), "synchronous_commit"); warns != c.warns {
			t.Errorf("%s with %s: the log is %s", c.more, c.sync, &log)
		}
	}
}
