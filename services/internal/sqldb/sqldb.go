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
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mattn/go-sqlite3"
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

// lockWait is a little longer than a service takes to stop.
const lockWait = 25 * time.Second

// ErrInUse says that another process holds the database.
var ErrInUse = errors.New("the database is in use by another process")

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

// takeLock waits for a predecessor: Kubernetes starts the successor of a deleted pod while that one still finishes its requests.
func (db *DB) takeLock(ctx context.Context, path string, log *slog.Logger) error {
	over := time.After(lockWait)
	for said := false; ; said = true {
		err := syscall.Flock(int(db.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s.lock: %w", path, err)
		}
		if !said {
			log.Warn("another process has the database: waiting for its end", "path", path, "at_most", lockWait)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s.lock: %w", path, context.Cause(ctx))
		case <-over:
			return fmt.Errorf("%w (it holds %s.lock)", ErrInUse, path)
		case <-time.After(50 * time.Millisecond):
		}
	}
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

func (db *DB) migrate(ctx context.Context, migrations fs.FS) error {
	files, err := fs.Glob(migrations, "*.sql")
	if err != nil {
		return err
	}
	return db.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.Exec("CREATE TABLE IF NOT EXISTS schema_migrations(name TEXT PRIMARY KEY)"); err != nil {
			return fmt.Errorf("create schema_migrations: %w", err)
		}
		applied := map[string]bool{}
		if err := tx.Query("SELECT name FROM schema_migrations", func(rows *sql.Rows) error {
			var name string
			err := rows.Scan(&name)
			applied[name] = true
			return err
		}); err != nil {
			return fmt.Errorf("read schema_migrations: %w", err)
		}
		for _, name := range files {
			if applied[name] {
				delete(applied, name)
				continue
			}
			text, err := fs.ReadFile(migrations, name)
			if err != nil {
				return err
			}
			if _, err := db.write.ExecContext(tx.ctx, string(text)); err != nil {
				return fmt.Errorf("apply migration %s: %w", name, err)
			}
			if _, err := tx.Exec("INSERT INTO schema_migrations(name) VALUES (?)", name); err != nil {
				return fmt.Errorf("record migration %s: %w", name, err)
			}
		}
		for name := range applied {
			return fmt.Errorf("it has migration %s, which this program does not know: it was written by a newer version", name)
		}
		return nil
	})
}

// Tx runs fn in a transaction: committed when fn returns nil, else rolled back. Once begun it runs to its end, whatever becomes of
// ctx, so that what an answer or an offset depends on is never half known. Transactions come one after the other.
func (db *DB) Tx(ctx context.Context, fn func(*Tx) error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	tx := &Tx{db: db, ctx: context.WithoutCancel(ctx)} // go-sqlite3 starts a goroutine per statement for a context that can end
	if _, err := tx.Exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := fn(tx)
	if err == nil {
		if _, err = tx.Exec("COMMIT"); err != nil {
			err = fmt.Errorf("commit: %w", err)
		}
	}
	if err != nil {
		return errors.Join(err, tx.rollback())
	}
	return nil
}

// Tx is a transaction under way. Its statements are prepared once per text and kept.
type Tx struct {
	db  *DB
	ctx context.Context
}

// rollback ends the transaction, unless SQLite has done so by itself, as it does on some errors (a full disk).
func (tx *Tx) rollback() error {
	var ended bool
	if err := tx.db.write.Raw(func(c any) error {
		ended = c.(*sqlite3.SQLiteConn).AutoCommit()
		return nil
	}); err != nil || ended {
		return err
	}
	if _, err := tx.Exec("ROLLBACK"); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

func (tx *Tx) stmt(query string) (*sql.Stmt, error) {
	if s, ok := tx.db.stmts[query]; ok {
		return s, nil
	}
	s, err := tx.db.write.PrepareContext(tx.ctx, query)
	if err != nil {
		return nil, err
	}
	tx.db.stmts[query] = s
	return s, nil
}

// Exec runs a statement and returns the number of rows that it changed.
func (tx *Tx) Exec(query string, args ...any) (int64, error) {
	s, err := tx.stmt(query)
	if err != nil {
		return 0, err
	}
	r, err := s.ExecContext(tx.ctx, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Query runs scan for each row of the result.
func (tx *Tx) Query(query string, scan func(*sql.Rows) error, args ...any) error {
	s, err := tx.stmt(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(tx.ctx, args...)
	if err != nil {
		return err
	}
	return each(rows, scan)
}

// ExecRows runs head + "(?,?),(?,?)…" + tail with as many rows of placeholders as args have: one statement for many rows.
// It returns the number of rows changed.
func (tx *Tx) ExecRows(head string, columns int, tail string, args []any) (int64, error) {
	row := "(" + marks(columns) + ")"
	var changed int64
	for n := range chunks(len(args) / columns) {
		c, err := tx.Exec(head+strings.Repeat(row+",", n-1)+row+tail, args[:n*columns]...)
		if err != nil {
			return changed, err
		}
		changed, args = changed+c, args[n*columns:]
	}
	return changed, nil
}

// QueryIn runs head + "(?,?…)" + tail, a condition `x IN`, with as many placeholders as there are keys.
func (tx *Tx) QueryIn(head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	for n := range chunks(len(keys)) {
		if err := tx.Query(head+"("+marks(n)+")"+tail, scan, keys[:n]...); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// QueryIn is Tx.QueryIn on the readers, outside of a transaction.
func (db *DB) QueryIn(ctx context.Context, head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	for n := range chunks(len(keys)) {
		rows, err := db.Read.QueryContext(ctx, head+"("+marks(n)+")"+tail, keys[:n]...)
		if err != nil {
			return err
		}
		if err := each(rows, scan); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// each runs scan for each row and closes rows.
func each(rows *sql.Rows, scan func(*sql.Rows) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func marks(n int) string { return strings.Repeat("?,", n-1) + "?" }

// chunks cuts n rows into powers of two, at most 256, so that there are few different statements to prepare.
func chunks(n int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for size := 256; size > 0; size /= 2 {
			for ; n >= size; n -= size {
				if !yield(size) {
					return
				}
			}
		}
	}
}
