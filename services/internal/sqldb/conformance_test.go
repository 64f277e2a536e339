package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// Every behaviour that callers rely on is the same on both kinds of database.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, empty := range map[string]func(t *testing.T) sqldb.Config{
		// A URL has to escape this path.
		"sqlite": func(t *testing.T) sqldb.Config {
			return file(filepath.Join(t.TempDir(), "a b?#%.db"), schema, sqldb.Full)
		},
		"postgres": func(t *testing.T) sqldb.Config { return server(testenv.Postgres(t)) },
	} {
		for behaviour, test := range map[string]func(*testing.T, sqldb.Config){
			"a transaction commits or leaves nothing":       testTxCommitsOrLeavesNothing,
			"a transaction once begun ignores cancellation": testTxOnceBegunIgnoresCancellation,
			"a long transaction ends with its context":      testLongTxEndsWithItsContext,
			"many rows go in few statements":                testManyRowsGoInFewStatements,
			"scan ends a query":                             testScanEndsAQuery,
			"values come back as they were":                 testValues,
			"migrations":                                    testMigrations,
			"after a commit":                                testAfterCommit,
			"transactions run one after the other":          testTransactionsTakeTurns,
			"the clock":                                     testClock,
			"a table is emptied":                            testEmpty,
			"writes change all their rows or end it":        testWrites,
		} {
			t.Run(name+"/"+behaviour, func(t *testing.T) {
				t.Parallel()
				test(t, empty(t))
			})
		}
	}
}

// server is a database of PostgreSQL.
func server(url string) sqldb.Config {
	return sqldb.Config{URL: url, Sync: sqldb.Full, Schema: "a schema", Migrations: schema}
}

// without returns the files but for those with this name.
func without(files fstest.MapFS, name string) fstest.MapFS {
	maps.DeleteFunc(files, func(path string, _ *fstest.MapFile) bool { return filepath.Base(path) == name })
	return files
}

func testTxCommitsOrLeavesNothing(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
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

func testTxOnceBegunIgnoresCancellation(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
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

func testLongTxEndsWithItsContext(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
	for name, end := range map[string]func(tx *sqldb.Tx, cancel func()) error{
		// The numbers are so many that the first of them come at once.
		"during a statement": func(tx *sqldb.Tx, cancel func()) error {
			return tx.Query(`WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)
				SELECT n FROM numbers WHERE n <= 5000 OR n < 0`, func(*sql.Rows) error { cancel(); return nil })
		},
		"before the commit": func(_ *sqldb.Tx, cancel func()) error { cancel(); return nil },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		err := db.LongTx(ctx, time.Hour, func(tx *sqldb.Tx) error {
			if _, err := tx.Exec("INSERT INTO t(v) VALUES ('x')"); err != nil {
				return err
			}
			return end(tx, cancel)
		})
		if !errors.Is(err, context.Canceled) || count(t, db) != 0 {
			t.Errorf("cancelled %s: %v with %d rows, want none and %v", name, err, count(t, db), context.Canceled)
		}
	}
	if err := db.LongTx(t.Context(), time.Hour, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t(v) VALUES ('x')")
		return err
	}); err != nil || count(t, db) != 1 {
		t.Errorf("the next one: %v with %d rows, want 1", err, count(t, db))
	}
}

func testEmpty(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
	err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t(v) VALUES ('x'), ('y')")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for _, tt := range []struct {
		err  error
		left int
	}{{refused, 2}, {nil, 0}} {
		err := db.Tx(t.Context(), func(tx *sqldb.Tx) error { return errors.Join(tx.Empty("t"), tt.err) })
		if !errors.Is(err, tt.err) || count(t, db) != tt.left {
			t.Errorf("%d rows are left after %v, want %d after %v", count(t, db), err, tt.left, tt.err)
		}
	}
}

func testManyRowsGoInFewStatements(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
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

// scan may end a query, which is no error. What is wrong with a row is one.
func testScanEndsAQuery(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
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

func testMigrations(t *testing.T, cfg sqldb.Config) {
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
			migrations(tables, more, "CREATE TABLE half(k INTEGER); NONSENSE"),
			"0003.sql",
		},
		{
			"and leaves nothing behind",
			migrations(tables, more, "CREATE TABLE half(k INTEGER)"),
			"",
		},
		{
			"another program has other migrations",
			without(migrations(tables, more, "CREATE TABLE half(k INTEGER)"), "0002.sql"),
			"0002.sql, which this program does not have",
		},
	} {
		cfg.Migrations = step.migrations
		db, err := sqldb.Open(t.Context(), cfg, quiet)
		if err == nil {
			err = db.Close()
		}
		if got := fmt.Sprint(err); (step.wantErr == "") != (err == nil) || !strings.Contains(got, step.wantErr) {
			t.Errorf("%s: err = %v, want %q", step.name, err, step.wantErr)
		}
	}
}

// AfterCommit runs its functions after the commit, in their order, and not after a roll-back.
func testAfterCommit(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
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

func testValues(t *testing.T, cfg sqldb.Config) {
	cfg.Migrations = fstest.MapFS{
		"sqlite/1.sql":   {Data: []byte("CREATE TABLE v(n INTEGER PRIMARY KEY, t TEXT NOT NULL, b BLOB)")},
		"postgres/1.sql": {Data: []byte("CREATE TABLE v(n BIGINT PRIMARY KEY, t TEXT NOT NULL, b BYTEA)")},
	}
	db := openConfig(t, cfg)
	type value struct {
		N int64
		T string
		B []byte
	}
	want := []value{
		{-1 << 63, "", nil}, {0, "what? 'quoted' \\ $1 ü 🧾", []byte{}}, {1<<63 - 1, "x", []byte{0, 255, '?'}},
	}
	var got []value
	err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		var args []any
		for _, v := range want[1:] {
			args = append(args, v.N, v.T, v.B)
		}
		if err := tx.WriteRows("write", "INSERT INTO v(n, t, b) VALUES ", 3, "", args); err != nil {
			return err
		}
		changed, err := tx.Exec("INSERT INTO v(n, t, b) VALUES (?, ?, ?)", want[0].N, want[0].T, want[0].B)
		return sqldb.ExpectRows(1, changed, err)
	})
	if err == nil {
		err = db.Query(t.Context(), "SELECT n, t, b FROM v WHERE '?' <> ? ORDER BY n", func(r *sql.Rows) error {
			var v value
			err := r.Scan(&v.N, &v.T, &v.B)
			got = append(got, v)
			return err
		}, "x")
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("(-want +got):\n%s%v", diff, err)
	}
	err = db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		deleted, err := tx.ExecRows("DELETE FROM v WHERE n IN (VALUES ", 1, ")", []any{want[0].N, int64(7)})
		return sqldb.ExpectRows(1, deleted, err)
	})
	if err != nil {
		t.Error(err)
	}
}

// A write may be put off, but never behind a statement that could see it.
func testWrites(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
	type call = func(tx *sqldb.Tx) error
	write := func(want int64, v string) call {
		return func(tx *sqldb.Tx) error {
			return tx.Write("change it", want, "UPDATE t SET v = v WHERE v = ?", v)
		}
	}
	insert := func(tx *sqldb.Tx) error {
		return tx.WriteRows("insert it", "INSERT INTO t(k, v) VALUES ", 2, "", []any{7, "seven", 8, "eight"})
	}
	repeat := func(tx *sqldb.Tx) error {
		return tx.WriteRows("insert it again", "INSERT INTO t(k, v) VALUES ", 2, " ON CONFLICT DO NOTHING",
			[]any{8, "eight", 9, "nine"})
	}
	sees := func(want int64) call {
		return func(tx *sqldb.Tx) error {
			return tx.Query("SELECT count(*) FROM t", func(r *sql.Rows) error {
				var n int64
				err := r.Scan(&n)
				if n != want {
					t.Errorf("a statement after the write sees %d rows, want %d", n, want)
				}
				return err
			})
		}
	}
	exec := func(tx *sqldb.Tx) error { _, err := tx.Exec("DELETE FROM t WHERE v = 'none'"); return err }
	for _, tt := range []struct {
		name  string
		calls []call
		// fails is how the error begins; empty: none.
		fails string
		count *sqldb.CountError
		rows  int
	}{
		{"what a read sees", []call{insert, sees(2), write(1, "seven")}, "", nil, 2},
		{"no row changed", []call{insert, write(1, "none")}, "change it: ", &sqldb.CountError{Changed: 0, Want: 1}, 0},
		{"a row too many", []call{insert, write(0, "seven"), sees(2)}, "change it: ",
			&sqldb.CountError{Changed: 1, Want: 0}, 0},
		{"some rows only", []call{insert, repeat, exec}, "insert it again: ",
			&sqldb.CountError{Changed: 1, Want: 2}, 0},
		{"the first of several", []call{insert, write(3, "seven"), insert}, "change it: ",
			&sqldb.CountError{Changed: 1, Want: 3}, 0},
		{"a statement that fails", []call{insert, insert, write(1, "seven")}, "insert it: ", nil, 0},
	} {
		err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			if _, err := tx.Exec("DELETE FROM t"); err != nil {
				return err
			}
			for _, do := range tt.calls {
				if err := do(tx); err != nil {
					return err
				}
			}
			return nil
		})
		counted, is := errors.AsType[*sqldb.CountError](err)
		if (err == nil) != (tt.fails == "") || err != nil && !strings.HasPrefix(err.Error(), tt.fails) ||
			is != (tt.count != nil) || is && *counted != *tt.count {
			t.Errorf("%s: %v, want %q, %+v", tt.name, err, tt.fails, tt.count)
		}
		if got := count(t, db); got != tt.rows {
			t.Errorf("%s: %d rows afterwards, want %d", tt.name, got, tt.rows)
		}
		if err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec("DELETE FROM t")
			return err
		}); err != nil {
			t.Errorf("%s: the next transaction: %v", tt.name, err)
		}
	}
}

func testTransactionsTakeTurns(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
	begun, end := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- db.Tx(context.WithoutCancel(t.Context()), func(*sqldb.Tx) error {
			close(begun)
			<-end
			return nil
		})
	}()
	<-begun
	second := make(chan error, 1)
	go func() {
		second <- db.Tx(t.Context(), func(*sqldb.Tx) error {
			if len(ended) == 0 {
				select {
				case <-end:
				default:
					return errors.New("it has begun before the first one has ended")
				}
			}
			return nil
		})
	}()
	// Reads wait for neither.
	if got := count(t, db); got != 0 {
		t.Errorf("%d rows", got)
	}
	close(end)
	if err := errors.Join(<-ended, <-second); err != nil {
		t.Error(err)
	}
}

func testClock(t *testing.T, cfg sqldb.Config) {
	db := openConfig(t, cfg)
	var first, second time.Time
	if err := db.Tx(t.Context(), func(tx *sqldb.Tx) (err error) {
		if first, err = tx.Now(); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
		var inStatement int64
		if err := tx.Query("SELECT "+tx.Clock(), func(r *sql.Rows) error { return r.Scan(&inStatement) }); err != nil {
			return err
		}
		second, err = tx.Now()
		if at := time.UnixMilli(inStatement); at.Before(first.Truncate(time.Millisecond)) || at.After(second) {
			t.Errorf("%s in a statement, want from %s to %s", at, first, second)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if off := time.Since(second).Abs(); !second.After(first) || off > time.Minute {
		t.Errorf("%s, then %s: the clock stands within a transaction, or is off by %s", first, second, off)
	}
}
