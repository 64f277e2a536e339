// Package sqldb opens a service's database and runs its transactions. Everything that depends on the kind of database is in this
// package; the services' SQL is written with ? placeholders and runs on SQLite now, and is kept to what PostgreSQL has too.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	_ "github.com/mattn/go-sqlite3"
)

// Sync is what a commit waits for.
type Sync string

// Full survives a power loss. Normal may roll back the last transactions then, which is right where everything in the database
// rolls back together and can be read again (state and its offset). Off is for caches that are thrown away at start.
const (
	Full   Sync = "FULL"
	Normal Sync = "NORMAL"
	Off    Sync = "OFF"
)

// DB is one SQLite database in WAL mode: a single writing connection, and readers that never wait for it.
type DB struct {
	Read *sql.DB // read-only connections

	lock  *os.File
	pool  *sql.DB // holds only write
	write *sql.Conn

	mu    sync.Mutex // one transaction at a time
	stmts map[string]*sql.Stmt
}

// Open opens or makes the database file at path and brings its schema up to date with the files in migrations (*.sql, in order of
// their names, each applied once). It takes an exclusive lock, which ends with the process, and waits for another that is about to
// end; ErrInUse when it does not.
func Open(ctx context.Context, path string, sync Sync, migrations fs.FS, log *slog.Logger) (*DB, error) {
	db := &DB{stmts: map[string]*sql.Stmt{}}
	if err := db.open(ctx, path, sync, migrations, log); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return db, nil
}

func (db *DB) open(ctx context.Context, path string, sync Sync, migrations fs.FS, log *slog.Logger) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if db.lock, err = os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return err
	}
	if err := db.takeLock(ctx, path, log); err != nil {
		return err
	}
	// In the DSN, so that every connection of a pool has them.
	dsn := func(more string) string {
		return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "_busy_timeout=10000&_foreign_keys=on&" + more}).String()
	}
	if db.pool, err = sql.Open("sqlite3", dsn("_journal_mode=WAL&_synchronous="+string(sync))); err != nil {
		return err
	}
	db.pool.SetMaxOpenConns(1)
	if db.write, err = db.pool.Conn(ctx); err != nil {
		return err
	}
	// The WAL is checkpointed every 4,000 pages instead of 1,000 and its file cut back after a burst; statement journals, which a statement
	// of many rows needs, stay in memory instead of a new file each time.
	if _, err := db.write.ExecContext(ctx, "PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY"); err != nil {
		return err
	}
	if err := db.migrate(ctx, migrations); err != nil {
		return err
	}
	if db.Read, err = sql.Open("sqlite3", dsn("mode=ro&_query_only=on")); err != nil {
		return err
	}
	readers := min(max(4, 2*runtime.GOMAXPROCS(0)), 16) // each has a cache of 2 MB, which Go's memory limit does not count
	db.Read.SetMaxOpenConns(readers)
	db.Read.SetMaxIdleConns(readers)
	return nil
}

// Close closes the database; a transaction under way ends first.
func (db *DB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	var errs []error
	if db.Read != nil { // first: the last connection to close is the one that can checkpoint
		errs = append(errs, db.Read.Close())
	}
	for _, s := range db.stmts {
		errs = append(errs, s.Close())
	}
	if db.write != nil {
		errs = append(errs, db.write.Close())
	}
	if db.pool != nil {
		errs = append(errs, db.pool.Close())
	}
	if db.lock != nil {
		// Unlocked by hand: a child process between its fork and its exec still has the file open, and with it the lock.
		errs = append(errs, syscall.Flock(int(db.lock.Fd()), syscall.LOCK_UN), db.lock.Close())
	}
	return errors.Join(errs...)
}
