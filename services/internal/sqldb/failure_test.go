package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// insert commits one row of n bytes.
func insert(ctx context.Context, db *sqldb.DB, n int) error {
	return db.Tx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t(v) VALUES (?)", strings.Repeat("x", n))
		return err
	})
}

// writeUntilFailure is the process of TestAFailedFsyncEndsTheUse. It prints the number of committed
// rows and exits with 3 when Watch returns.
func writeUntilFailure(path string, sync sqldb.Sync) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	db, err := sqldb.Open(ctx, file(path, schema, sync), quiet)
	if err != nil {
		panic(err)
	}
	fmt.Println("open")
	// The test lets the fsync fail, and says so.
	_, _ = fmt.Scanln()
	// A commit that fails is not counted. One whose checkpoint fails is.
	rows := 0
	for ; rows < 1000 && insert(ctx, db, 100_000) == nil; rows++ {
	}
	again := insert(ctx, db, 1)
	reason := db.Watch(ctx)
	if closed := db.Close(); reason != nil && again != nil && closed != nil {
		fmt.Println(rows, reason)
		os.Exit(3)
	}
}

// After a failed fsync the kernel may have dropped what was written, and the next fsync succeeds. So
// nothing is written any more, the WAL stays, and the next start recovers everything from it, even
// if power is lost.
func TestAFailedFsyncEndsTheUse(t *testing.T) {
	if path := os.Getenv("FAILURE_TEST_PATH"); path != "" {
		writeUntilFailure(path, sqldb.Sync(os.Getenv("FAILURE_TEST_SYNC")))
		return
	}
	t.Parallel()
	for name, c := range map[string]struct {
		sync sqldb.Sync
		// file is whose fsync fails.
		file string
		// inDoubt is 1 if a commit that failed may have taken effect.
		inDoubt int
	}{
		"of a checkpoint":                           {sqldb.Full, "", 0},
		"of a checkpoint, commits do not wait":      {sqldb.Normal, "", 0},
		"of a commit":                               {sqldb.Full, "-wal", 1},
		"before a checkpoint, commits did not wait": {sqldb.Normal, "-wal", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "t.db")
			disk := testenv.NewFaultyDisk(t, path+c.file)
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAFailedFsyncEndsTheUse$")
			child.Env = append(append(os.Environ(), disk.Env...),
				"FAILURE_TEST_PATH="+path, "FAILURE_TEST_SYNC="+string(c.sync))
			in, err := child.StdinPipe()
			out, err2 := child.StdoutPipe()
			if err := errors.Join(err, err2, child.Start()); err != nil {
				t.Fatal(err)
			}
			var rows int
			if _, err := fmt.Fscanln(out, new(string)); err != nil {
				t.Fatal(err)
			}
			// What is on the disk for sure.
			synced, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			disk.Fail()
			fmt.Fprintln(in)
			_, err = fmt.Fscan(out, &rows)
			if code := child.Wait(); err != nil || child.ProcessState.ExitCode() != 3 {
				t.Fatalf("the process has not seen the failure: %v (%v)", code, err)
			}
			if rows == 0 && c.file == "" {
				t.Fatal("no row was committed before the checkpoint")
			}
			// Power is lost: what was written to the database after its last fsync is gone.
			if err := os.WriteFile(path, synced, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := count(t, open(t, path, schema)); got < rows || got > rows+c.inDoubt {
				t.Errorf("%d rows after the next start, want the %d that were committed", got, rows)
			}
		})
	}
}

// damage changes bytes of a file.
func damage(t *testing.T, path string, at int64, bytes []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes, at); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedFileIsRefused(t *testing.T) {
	t.Parallel()
	const page = 4096
	for name, c := range map[string]struct {
		at    int64
		bytes []byte
	}{
		"the header":           {0, []byte("not SQLite")},
		"a page of zeros":      {20 * page, make([]byte, page)},
		"the schema":           {100, []byte{0xff, 0xff, 0xff, 0xff}},
		"an entry of an index": {0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "t.db")
			db, err := sqldb.Open(t.Context(), file(path,
				migrations("CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT UNIQUE)"), sqldb.Full), quiet)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
				for i := range 2000 {
					if _, err := tx.Exec("INSERT INTO t(v) VALUES (?)", fmt.Sprintf("value-%060d", i)); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			at := c.at
			if c.bytes == nil {
				// The value stands in the table and in the index. The last one in the file is
				// changed, so the two differ.
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				at, c.bytes = int64(strings.LastIndex(string(content), fmt.Sprintf("value-%060d", 77))), []byte("Value")
			}
			damage(t, path, at, c.bytes)
			_, err = sqldb.Open(t.Context(), file(path, schema, sqldb.Full), quiet)
			if _, damaged := errors.AsType[*sqldb.DamagedError](err); !damaged {
				t.Errorf("Open: %v, want a DamagedError", err)
			}
		})
	}
}

// Damage that shows only later ends the use too.
func TestDamageThatShowsLaterEndsTheUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "t.db")
	db, err := sqldb.Open(t.Context(), file(path, schema, sqldb.Full), quiet)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if err := insert(t.Context(), db, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = sqldb.Open(t.Context(), file(path, schema, sqldb.Full), quiet); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	damage(t, path, 20*4096, make([]byte, 20*4096))
	if err := query(t, db, "SELECT no_such_column FROM t"); err == nil || db.Err() != nil {
		t.Errorf("before the damage is seen: %v", db.Err())
	}
	var keys []any
	for k := range 200 {
		keys = append(keys, k+1)
	}
	err = db.QueryIn(t.Context(), "SELECT k, v FROM t WHERE k IN ", keys, "",
		func(rows *sql.Rows) error { return rows.Scan(new(int), new(string)) })
	if err == nil {
		t.Fatal("zeros were read as rows")
	}
	if watched := db.Watch(t.Context()); !errors.Is(watched, err) {
		t.Errorf("Watch: %v, want %v", watched, err)
	}
	if err := insert(t.Context(), db, 1); !errors.Is(err, db.Err()) {
		t.Errorf("a transaction after it: %v, want %v", err, db.Err())
	}
}
