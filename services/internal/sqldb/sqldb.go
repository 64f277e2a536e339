// Package sqldb opens a service's database and runs its transactions. The database is SQLite.
//
// Everything that depends on the kind of database is in this package. The SQL of the services uses
// ? as placeholder and only features that PostgreSQL has too.
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

// What a commit can wait for.
const (
	// Full waits for the disk: a committed transaction survives a power loss.
	Full Sync = "FULL"
	// Normal does not wait. A power loss may roll back the last transactions, all of them whole. It
	// is right for state that is stored together with the offset from which it can be read again.
	Normal Sync = "NORMAL"
	// Off may leave a damaged database after a power loss. It is right for caches that are deleted
	// at the start.
	Off Sync = "OFF"
)

// DB is one SQLite database in WAL mode. It has a single connection for writing, and read
// connections that never wait for it. It is safe for concurrent use.
type DB struct {
	// Read has the read-only connections.
	Read *sql.DB

	path string
	log  *slog.Logger
	lock *os.File
	// pool has one connection, which is write.
	pool  *sql.DB
	write *sql.Conn
	// failed holds why the database cannot be used any more.
	failed *failure

	// mu is held during a transaction.
	mu sync.Mutex
	continuity
	// checkpointRefused is true if the last checkpoint was not possible.
	checkpointRefused bool
	// stmts has the prepared statements of write, by their text.
	stmts map[string]*sql.Stmt
}

// Open opens the database file at path, or makes it, and applies the migrations that it does not
// have yet: the *.sql files in the order of their names. It ignores those of a newer release, which
// come after them.
//
// Open takes an exclusive lock that ends with the process. It waits for another process that holds
// the lock, and returns ErrInUse if that one does not end within lockWait. It returns a
// *DamagedError if the file is not a whole database.
func Open(ctx context.Context, path string, sync Sync, migrations fs.FS, log *slog.Logger) (*DB, error) {
	db := &DB{path: path, log: log, stmts: map[string]*sql.Stmt{}, failed: newFailure()}
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
	if err := takeLock(ctx, db.lock, log); err != nil {
		return err
	}
	inFile, err := numberInFile(path)
	if err != nil {
		return err
	}
	defer func() {
		if code, damaged := damage(err); damaged {
			err = &DamagedError{Path: path, Finding: code.Error()}
		}
	}()
	// Settings in the DSN apply to every connection of a pool.
	dsn := func(more string) string {
		u := url.URL{
			Scheme:   "file",
			Opaque:   (&url.URL{Path: path}).EscapedPath(),
			RawQuery: "_busy_timeout=10000&_foreign_keys=on&" + more,
		}
		return u.String()
	}
	if db.pool, err = sql.Open("sqlite3", dsn("_journal_mode=WAL&_synchronous="+string(sync))); err != nil {
		return err
	}
	db.pool.SetMaxOpenConns(1)
	if db.write, err = db.pool.Conn(ctx); err != nil {
		return err
	}
	// SQLite hides the error of a checkpoint that it begins by itself, so db.checkpoint begins all
	// of them. The limit of the WAL cuts its file back after a burst. temp_store keeps statement
	// journals in memory: a statement of many rows would make a file for one each time.
	const settings = `PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 67108864;
		PRAGMA temp_store = MEMORY`
	if _, err := db.write.ExecContext(ctx, settings); err != nil {
		return err
	}
	if err := db.checkContinuity(ctx, inFile); err != nil {
		return err
	}
	if err := db.check(ctx); err != nil {
		return err
	}
	if err := db.Tx(ctx, func(tx *Tx) error { return migrate(tx, migrations, log) }); err != nil {
		return err
	}
	if db.Read, err = sql.Open("sqlite3", dsn("mode=ro&_query_only=on")); err != nil {
		return err
	}
	// Each connection has a cache of 2 MB, which Go's memory limit does not count.
	connections := min(max(4, 2*runtime.GOMAXPROCS(0)), 16)
	db.Read.SetMaxOpenConns(connections)
	db.Read.SetMaxIdleConns(connections)
	return nil
}

// Tx runs fn in a transaction. It commits when fn returns nil, and rolls back otherwise.
// Transactions run one after the other.
//
// Once begun, a transaction runs to its end, even if ctx ends meanwhile: the caller knows whether
// it was committed. fn only reads and writes the database, so that it can be run again: what else
// is to happen goes to AfterCommit or is done by the caller.
//
// After a failure that Failed reports, no transaction begins any more.
func (db *DB) Tx(ctx context.Context, fn func(*Tx) error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.Err(); err != nil {
		return err
	}
	// go-sqlite3 starts a goroutine for each statement if its context can end.
	tx := &Tx{db: db, conn: db.write, stmts: db.stmts, ctx: context.WithoutCancel(ctx)}
	if _, err := tx.Exec("BEGIN IMMEDIATE"); err != nil {
		return db.Noted(fmt.Errorf("begin: %w", err))
	}
	tx.wrote = false
	err := fn(tx)
	wrote := tx.wrote
	if err == nil && wrote {
		err = db.number(tx)
	}
	if err == nil {
		if _, err = tx.Exec("COMMIT"); err != nil {
			err = fmt.Errorf("commit: %w", err)
		}
	}
	if err != nil {
		return db.Noted(errors.Join(err, tx.rollback()))
	}
	if wrote {
		db.numbered()
	}
	for _, then := range tx.committed {
		then()
	}
	// What was committed stays committed, also if the checkpoint fails.
	db.checkpoint(tx)
	return nil
}

// QueryIn is Tx.QueryIn on the read connections, outside of a transaction.
func (db *DB) QueryIn(ctx context.Context, head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	for n := range chunks(len(keys)) {
		rows, err := db.Read.QueryContext(ctx, head+"("+marks(n)+")"+tail, keys[:n]...)
		if err != nil {
			return db.Noted(err)
		}
		if err := each(rows, scan); err != nil {
			return db.Noted(err)
		}
		keys = keys[n:]
	}
	return nil
}

// Close closes the database. It waits for a transaction under way.
func (db *DB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	var errs []error
	if db.Read != nil {
		errs = append(errs, db.lastCheckpoint())
		// SQLite makes a checkpoint when its last connection closes, hides the error, and deletes
		// the WAL. The read connections cannot do that. They close last, so the WAL of a database
		// that has failed stays.
		if db.Err() == nil {
			errs = append(errs, db.Read.Close())
		} else {
			// A connection that has read nothing yet does not count.
			_ = db.Read.QueryRowContext(context.Background(), "PRAGMA schema_version").Scan(new(int))
			defer db.Read.Close()
		}
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
		// Closing the file is not enough: a child process between its fork and its exec has it open
		// too, and so would keep the lock.
		errs = append(errs, syscall.Flock(int(db.lock.Fd()), syscall.LOCK_UN), db.lock.Close())
	}
	return errors.Join(errs...)
}
