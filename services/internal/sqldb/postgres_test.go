package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// A mistake in DATABASE_URL is named at the start. No text shows its password.
func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	for url, wrong := range map[string]string{
		"":                                      "",
		"postgres://cart:secret@db:5432/orders": "",
		"postgresql://db/orders?user=cart&password=secret&sslmode=require": "",
		"postgres://cart:secret@a:5432,b:5432/orders":                      "",
		"sqlite:///data/cart.db":                                           "must be postgres://",
		"file:cart.db":                                                     "must be postgres://",
		"mysql://cart:secret@db/orders":                                    "must be postgres://",
		"cart.db":                                                          "must be postgres://",
		"postgres://cart:secret@db:port/orders":                            "must be postgres://",
		"postgres://cart:secret@db/orders?sslmode=maybe":                   "sslmode",
		"postgres://cart:secret@db/orders?sslrootcert=/no/such/file&sslmode=verify-full": "/no/such/file",
	} {
		e := env.New(func(string) string { return url })
		got := sqldb.URLFromEnv(e)
		err := ""
		if e.Err() != nil {
			err = e.Err().Error()
		}
		if wrong == "" && (got != url || err != "") {
			t.Errorf("%s: %q, %s", url, got, err)
		}
		if wrong != "" && (got != "" || !strings.Contains(err, "DATABASE_URL") || !strings.Contains(err, wrong)) {
			t.Errorf("%s: %q, %q does not say %q", url, got, err, wrong)
		}
		if shown := err + sqldb.Redacted(url); strings.Contains(shown, "secret") {
			t.Errorf("%s: the password is shown: %s", url, shown)
		}
	}
}

// Work that takes longer than a statement of a request may take gets a limit of its own, for its transaction
// only.
func TestALongTransactionHasALimitOfItsOwn(t *testing.T) {
	t.Parallel()
	db := openConfig(t, server(testenv.Postgres(t)+"&statement_timeout=1000"))
	work := func(tx *sqldb.Tx) error {
		return tx.Query("SELECT 1 FROM pg_sleep(1.5)", func(*sql.Rows) error { return nil })
	}
	if err := db.LongTx(t.Context(), time.Minute, work); err != nil {
		t.Errorf("a long transaction: %v", err)
	}
	if err := db.Tx(t.Context(), work); err == nil {
		t.Error("the limit of a long transaction is in force after it")
	}
	if err := db.LongTx(t.Context(), 50*time.Millisecond, work); !sqldb.IsUnavailable(err) {
		t.Errorf("a long transaction beyond its limit: %v", err)
	}
}

// The end of the context does not end a commit that has begun: nobody would know its result.
func TestALongTransactionEndsItsCommit(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	db := openConfig(t, server(url))
	gate := session(t, url)
	// The commit waits for the gate.
	sqlExec(t, gate, `SET search_path = "a schema";
		CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
		CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION wait();
		SELECT pg_advisory_lock(1)`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- db.LongTx(ctx, time.Minute, func(tx *sqldb.Tx) error {
			_, err := tx.Exec("INSERT INTO t(v) VALUES ('x')")
			return err
		})
	}()
	eventually(t, "a commit that waits", func() error {
		var waits bool
		err := gate.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event = 'advisory')`).Scan(&waits)
		if err == nil && !waits {
			err = errors.New("none waits")
		}
		return err
	})
	cancel()
	sqlExec(t, gate, "SELECT pg_advisory_unlock(1)")
	if err := <-ended; err != nil || count(t, db) != 1 {
		t.Errorf("%v with %d rows, want the transaction committed", err, count(t, db))
	}
}

// A server that was started again, or another one in its place, is noticed at the latest by the statement
// that runs on it: with asynchronous replication it may lack what was committed before.
func TestAnotherServerIsNoticed(t *testing.T) {
	t.Parallel()
	s := testenv.StartPostgres(t, localpostgres.Options{})
	db, err := sqldb.Open(t.Context(), server(s.URL("postgres")), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if got := db.ServerChanges(); got != 0 {
		t.Errorf("%d changes before there was one", got)
	}
	for change := range int64(2) {
		s.Kill()
		if err := s.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Now()
			if got := db.ServerChanges(); err == nil && got != change+1 {
				t.Errorf("%d changes, want %d", got, change+1)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}
