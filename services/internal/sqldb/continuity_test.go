package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"ordersystem.dev/services/internal/sqldb"
)

// put writes a value that needs a page of its own.
func put(t *testing.T, db *sqldb.DB, k int, v string) {
	t.Helper()
	err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO t(k, v) VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
			k, fmt.Sprintf("%-3000s", v))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A file that was restored from a copy is refused beside a WAL that does not continue it. SQLite takes
// the two for one whole database, which lacks what was written between them.
func TestAWALOfAnotherCopyIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "t.db")
	// written opens the database, writes, and copies the file and the WAL as a kill would leave them.
	written := func(name string, write func(db *sqldb.DB)) {
		db, err := sqldb.Open(t.Context(), file(path, schema, sqldb.Full), quiet)
		if err != nil {
			t.Fatal(err)
		}
		write(db)
		copyFile(t, path, filepath.Join(dir, name))
		copyFile(t, path+"-wal", filepath.Join(dir, name+"-wal"))
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(db *sqldb.DB) {
		for k := range 20 {
			put(t, db, k, "old")
		}
	}
	first := func(db *sqldb.DB) { put(t, db, 3, "new") }
	second := func(db *sqldb.DB) { put(t, db, 15, "new") }
	written("0", fill)
	written("1", first)
	written("2", second)
	copyFile(t, path, filepath.Join(dir, "2 at its end"))
	// This one goes through checkpoints while it is open.
	written("3", func(db *sqldb.DB) {
		for i := range 5000 {
			put(t, db, i%7, fmt.Sprint(i))
		}
	})
	copyFile(t, path, filepath.Join(dir, "4"))

	for _, c := range []struct {
		file, wal string
		refused   bool
	}{
		{"0", "0", false}, {"1", "1", false}, {"2", "2", false}, {"3", "3", false},
		// The file of 1 is what 0 was at its end, and so on.
		{"1", "2", true}, {"1", "3", true}, {"2", "3", true}, {"2 at its end", "3", true},
		{"2", "1", false}, {"3", "2", true}, {"4", "1", true}, {"4", "2", true}, {"4", "3", false},
	} {
		t.Run(fmt.Sprintf("file %s, WAL %s", c.file, c.wal), func(t *testing.T) {
			at := filepath.Join(t.TempDir(), "t.db")
			copyFile(t, filepath.Join(dir, c.file), at)
			copyFile(t, filepath.Join(dir, c.wal+"-wal"), at+"-wal")
			db, err := sqldb.Open(context.WithoutCancel(t.Context()), file(at, schema, sqldb.Full), quiet)
			_, damaged := errors.AsType[*sqldb.DamagedError](err)
			if damaged != c.refused || (err != nil && !damaged) {
				t.Errorf("%v, want it to be refused: %t", err, c.refused)
			}
			if err == nil {
				_ = db.Close()
			}
		})
	}
}
