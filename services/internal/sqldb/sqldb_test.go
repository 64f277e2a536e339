package sqldb_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/sqldb"
)

var quiet = slog.New(slog.DiscardHandler)

// migrations makes files of texts, named 0001.sql, 0002.sql and so on.
func migrations(texts ...string) fstest.MapFS {
	files := fstest.MapFS{}
	for i, text := range texts {
		files[fmt.Sprintf("sqlite/%04d.sql", i+1)] = &fstest.MapFile{Data: []byte(text)}
	}
	return files
}

const tables = "CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT); CREATE TABLE u(k INTEGER);"

var schema = migrations(tables)

// file is a database of SQLite.
func file(path string, migrations fs.FS, sync sqldb.Sync) sqldb.Config {
	return sqldb.Config{Path: path, Sync: sync, Migrations: migrations}
}

// query reads all rows of a result.
func query(t *testing.T, db *sqldb.DB, text string) error {
	t.Helper()
	return db.Query(t.Context(), text, func(*sql.Rows) error { return nil })
}

func open(t *testing.T, path string, migrations fs.FS) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), file(path, migrations, sqldb.Full), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func count(t *testing.T, db *sqldb.DB) (n int) {
	t.Helper()
	err := db.Query(t.Context(), "SELECT count(*) FROM t", func(r *sql.Rows) error { return r.Scan(&n) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTxCommitsOrLeavesNothing(t *testing.T) {
	t.Parallel()
	// A URL has to escape this path.
	db := open(t, filepath.Join(t.TempDir(), "a b?#%.db"), schema)
	insert := func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t(v) VALUES (?)", "x")
		return err
	}
	if err := db.Tx(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	err := db.Tx(t.Context(), func(tx *sqldb.Tx) error { return errors.Join(insert(tx), refused) })
	if !errors.Is(err, refused) {
		t.Errorf("a failing transaction returns %v, want its own error", err)
	}
	if got := count(t, db); got != 1 {
		t.Errorf("%d rows after one commit and one roll-back, want 1", got)
	}
	if err := db.Tx(t.Context(), insert); err != nil {
		t.Errorf("a transaction after a roll-back: %v", err)
	}
}

func TestTxOnceBegunIgnoresCancellation(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "t.db"), schema)
	ctx, cancel := context.WithCancel(t.Context())
	err := db.Tx(ctx, func(tx *sqldb.Tx) error {
		cancel()
		_, err := tx.Exec("INSERT INTO t(v) VALUES ('x')")
		return err
	})
	if err != nil || count(t, db) != 1 {
		t.Errorf("err = %v with %d rows, want the transaction committed", err, count(t, db))
	}
	if err := db.Tx(ctx, func(*sqldb.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a transaction begun after the cancellation returns %v, want %v", err, context.Canceled)
	}
}

func TestManyRowsGoInFewStatements(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "t.db"), schema)
	for _, n := range []int{0, 1, 2, 3, 255, 256, 257, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var args, keys []any
			for k := range n {
				args = append(args, k, strings.Repeat("v", k%3))
				keys = append(keys, k)
			}
			read := map[int]string{}
			scan := func(rows *sql.Rows) error {
				var k int
				var v string
				err := rows.Scan(&k, &v)
				read[k] = v
				return err
			}
			err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
				if _, err := tx.Exec("DELETE FROM t"); err != nil {
					return err
				}
				changed, err := tx.ExecRows("INSERT INTO t(k, v) VALUES ", 2, " ON CONFLICT DO NOTHING", args)
				if changed != int64(n) {
					t.Errorf("ExecRows says that it changed %d rows, want %d", changed, n)
				}
				return errors.Join(err, tx.QueryIn("SELECT k, v FROM t WHERE k IN ", keys, "", scan))
			})
			if err != nil || len(read) != n {
				t.Errorf("within the transaction: %d rows read back (%v), want %d", len(read), err, n)
			}
			clear(read)
			err = db.QueryIn(t.Context(), "SELECT k, v FROM t WHERE k IN ", keys, " AND k < 500", scan)
			if err != nil {
				t.Error(err)
			}
			if want := min(n, 500); len(read) != want {
				t.Errorf("outside of a transaction: %d rows read back, want %d", len(read), want)
			}
		})
	}
}

func TestReadersDoNotWrite(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "t.db"), schema)
	if err := query(t, db, "INSERT INTO t(v) VALUES ('x') RETURNING k"); err == nil {
		t.Error("a reader could write")
	}
}

// scan may end a query, which is no error. What is wrong with a row is one.
func TestScanEndsAQuery(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "t.db"), schema)
	for range 3 {
		if err := insert(t.Context(), db, 1); err != nil {
			t.Fatal(err)
		}
	}
	wrong := errors.New("a row is wrong")
	for end, want := range map[error]error{sqldb.ErrStop: nil, wrong: wrong} {
		read := 0
		err := db.Query(t.Context(), "SELECT k FROM t", func(*sql.Rows) error {
			if read++; read == 2 {
				return fmt.Errorf("row %d: %w", read, end)
			}
			return nil
		})
		if !errors.Is(err, want) || read != 2 {
			t.Errorf("%v after %d rows, want %v after 2", err, read, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.Query(ctx, "SELECT 1", func(*sql.Rows) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a query of a caller that has gone: %v, want %v", err, context.Canceled)
	}
}

func TestEveryConnectionHasItsSettings(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "t.db"), schema)
	want := map[string]string{
		"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "wal_autocheckpoint": "0", "temp_store": "2",
		"page_size": "4096",
	}
	got := map[string]string{}
	err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		for name := range want {
			if err := tx.Query("PRAGMA "+name, func(rows *sql.Rows) error {
				var v string
				err := rows.Scan(&v)
				got[name] = v
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings of the writer (-want +got):\n%s", diff)
	}
}

func TestMigrations(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "t.db")
	const more = "ALTER TABLE t ADD COLUMN w TEXT"
	for _, step := range []struct {
		name       string
		migrations fs.FS
		wantErr    string
	}{
		{"a new database gets all", schema, ""},
		{"what is applied is not applied again", schema, ""},
		{"a newer program adds what is new", migrations(tables, more), ""},
		{"an older program, which a rollback starts, ignores what is newer", schema, ""},
		{"the newer program goes on where it was", migrations(tables, more), ""},
		{
			"a broken migration says which one it is",
			migrations(tables, more, "CREATE TABLE half(k); NONSENSE"),
			"0003.sql",
		},
		{
			"and leaves nothing behind",
			migrations(tables, more, "CREATE TABLE half(k)"),
			"",
		},
		{
			"another program has other migrations",
			fstest.MapFS{
				"sqlite/0001.sql": {Data: []byte(tables)}, "sqlite/0003.sql": {Data: []byte("CREATE TABLE half(k)")},
			},
			"0002.sql, which this program does not have",
		},
	} {
		db, err := sqldb.Open(t.Context(), file(path, step.migrations, sqldb.Normal), quiet)
		if err == nil {
			err = db.Close()
		}
		if got := fmt.Sprint(err); (step.wantErr == "") != (err == nil) || !strings.Contains(got, step.wantErr) {
			t.Errorf("%s: err = %v, want %q", step.name, err, step.wantErr)
		}
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "t.db")
	open(t, path, schema)
	// A bubble is possible, as the second one does not get as far as SQLite.
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if _, err := sqldb.Open(t.Context(), file(path, schema, sqldb.Full), quiet); !errors.Is(err, sqldb.ErrInUse) {
			t.Errorf("opened twice: %v, want %v", err, sqldb.ErrInUse)
		}
		if waited := time.Since(begin); waited < 20*time.Second || waited > 30*time.Second {
			t.Errorf("refused after %s, want as long as a predecessor may take to stop", waited)
		}
	})
}

// A service that stops while it waits returns the cause of the stop.
func TestAWaitThatIsCutShortIsNoRefusal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "t.db")
	open(t, path, schema)
	synctest.Test(t, func(t *testing.T) {
		stopped := errors.New("stopped")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, stopped)
		defer cancel()
		_, err := sqldb.Open(ctx, file(path, schema, sqldb.Full), quiet)
		if !errors.Is(err, stopped) || errors.Is(err, sqldb.ErrInUse) {
			t.Errorf("Open: %v, want %v", err, stopped)
		}
	})
}

func TestASuccessorWaitsForItsPredecessor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "t.db")
	predecessor, err := sqldb.Open(t.Context(), file(path, schema, sqldb.Full), quiet)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(writer(func(line []byte) {
		if !bytes.Contains(line, []byte("waiting for its end")) {
			t.Errorf("unexpected log line: %s", line)
		}
		ended <- predecessor.Close()
	}), nil))
	successor, err := sqldb.Open(t.Context(), file(path, schema, sqldb.Full), log)
	if err != nil {
		t.Fatal(err)
	}
	defer successor.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	default:
		t.Error("the database was opened while the predecessor had it")
	}
}

type writer func(line []byte)

func (w writer) Write(line []byte) (int, error) {
	w(line)
	return len(line), nil
}

// The test limits the number of pages of the file, which has the effect of a full disk.
func TestAFullDiskRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "t.db"), schema)
	fill := func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t(v) VALUES (?)", strings.Repeat("x", 1<<20))
		return err
	}
	limit := func(pages int) {
		if err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			return tx.Query(fmt.Sprintf("PRAGMA max_page_count = %d", pages), func(*sql.Rows) error { return nil })
		}); err != nil {
			t.Fatal(err)
		}
	}
	limit(20)
	if err := db.Tx(t.Context(), fill); err == nil {
		t.Fatal("1 MiB went into 20 pages")
	}
	limit(1_000_000)
	if err := db.Tx(t.Context(), fill); err != nil {
		t.Errorf("after there is room again: %v", err)
	}
	if got := count(t, db); got != 1 {
		t.Errorf("%d rows, want the one that was committed", got)
	}
}

// AfterCommit runs its functions after the commit, in their order, and not after a roll-back.
func TestAfterCommit(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "t.db"), schema)
	var log []string
	if err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		tx.AfterCommit(func() { log = append(log, fmt.Sprint("committed with rows: ", count(t, db))) })
		tx.AfterCommit(func() { log = append(log, "committed, second") })
		_, err := tx.Exec("INSERT INTO t(v) VALUES ('x')")
		log = append(log, "in the transaction")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	if err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		tx.AfterCommit(func() { log = append(log, "rolled back") })
		return refused
	}); !errors.Is(err, refused) {
		t.Error(err)
	}
	want := []string{"in the transaction", "committed with rows: 1", "committed, second"}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestExpectRows(t *testing.T) {
	t.Parallel()
	if err := sqldb.ExpectRows(2, 2, nil); err != nil {
		t.Errorf("2 of 2 rows: %v", err)
	}
	err := sqldb.ExpectRows(3, 2, nil)
	if got, is := errors.AsType[*sqldb.CountError](err); !is || *got != (sqldb.CountError{Changed: 2, Want: 3}) {
		t.Errorf("2 rows for 3: %v", err)
	}
	failed := errors.New("failed")
	if err := sqldb.ExpectRows(3, 0, failed); !errors.Is(err, failed) {
		t.Errorf("a statement that failed: %v, want its own error", err)
	}
}
