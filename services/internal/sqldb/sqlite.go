package sqldb

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"sync"
	"time"

	_ "github.com/mattn/go-sqlite3"
)

// sqlite is one SQLite database in WAL mode. It has a single connection for writing, and read
// connections that never wait for it.
type sqlite struct {
	// read has the read-only connections, and readStmts their prepared statements by text.
	read      *sql.DB
	readStmts sync.Map

	path string
	log  *slog.Logger
	lock *Lock
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

// openSQLite opens the database file, or makes it. It takes an exclusive lock that ends with the
// process. It waits for another process that holds the lock, and returns ErrInUse if that one does not
// end within lockWait. It returns a *DamagedError if the file is not a whole database.
func openSQLite(ctx context.Context, cfg Config, log *slog.Logger) (*sqlite, error) {
	db := &sqlite{path: cfg.Path, log: log, stmts: map[string]*sql.Stmt{}, failed: newFailure()}
	if err := db.open(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", cfg.Path, err), db.Close())
	}
	return db, nil
}

func (db *sqlite) open(ctx context.Context, cfg Config) (err error) {
	path := cfg.Path
	files, err := readMigrations(cfg.Migrations, "sqlite")
	if err != nil {
		return err
	}
	if db.lock, err = TakeLock(ctx, path, db.log); err != nil {
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
	if db.pool, err = sql.Open("sqlite3", dsn("_journal_mode=WAL&_synchronous="+string(cfg.Sync))); err != nil {
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
	if err := db.Tx(ctx, func(tx *Tx) error {
		if err := tx.script(migrationsTable); err != nil {
			return fmt.Errorf("create schema_migrations: %w", err)
		}
		return migrate(tx, files, db.log)
	}); err != nil {
		return err
	}
	if db.read, err = sql.Open("sqlite3", dsn("mode=ro&_query_only=on")); err != nil {
		return err
	}
	// Each connection has a cache of 2 MB, which Go's memory limit does not count.
	connections := min(max(4, 2*runtime.GOMAXPROCS(0)), 16)
	db.read.SetMaxOpenConns(connections)
	db.read.SetMaxIdleConns(connections)
	return nil
}

// Tx is part of engine.
//
// After a failure that Watch reports, no transaction begins any more.
func (db *sqlite) Tx(ctx context.Context, fn func(*Tx) error) error {
	// go-sqlite3 starts a goroutine for each statement if its context can end.
	return db.transact(ctx, context.WithoutCancel(ctx), fn)
}

// LongTx is part of engine. No transaction has a limit here.
func (db *sqlite) LongTx(ctx context.Context, _ time.Duration, fn func(*Tx) error) error {
	return db.transact(ctx, ctx, fn)
}

// transact runs fn in a transaction, whose statements end with work.
func (db *sqlite) transact(ctx, work context.Context, fn func(*Tx) error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.Err(); err != nil {
		return err
	}
	whole := context.WithoutCancel(ctx)
	s := db.session(whole)
	if _, err := s.Exec("BEGIN IMMEDIATE"); err != nil {
		return db.noted(fmt.Errorf("begin: %w", err))
	}
	s.wrote, s.ctx = false, work
	tx := &Tx{session: s}
	err := cmp.Or(fn(tx), work.Err())
	s.ctx = whole
	wrote := s.wrote
	if err == nil && wrote {
		err = db.number(s)
	}
	if err == nil {
		if _, err = s.Exec("COMMIT"); err != nil {
			err = fmt.Errorf("commit: %w", err)
		}
	}
	if err != nil {
		return db.noted(errors.Join(err, s.rollback()))
	}
	if wrote {
		db.numbered()
	}
	tx.afterCommit()
	// What was committed stays committed, also if the checkpoint fails.
	db.checkpoint(s)
	return nil
}

// session returns what runs statements on the connection for writing. The caller holds db.mu.
func (db *sqlite) session(ctx context.Context) *sqliteSession {
	return &sqliteSession{db: db, conn: db.write, stmts: db.stmts, ctx: ctx}
}

// ServerChanges is part of engine.
func (db *sqlite) ServerChanges() int64 { return 0 }

// Shared is part of engine.
func (db *sqlite) Shared() bool { return false }

// Query is part of engine. Each text is prepared once and kept.
//
// A query that has begun runs to its end: go-sqlite3 would start a goroutine for a statement, and for
// each of its rows, if the context could end. scan can end it before.
func (db *sqlite) Query(ctx context.Context, query string, scan func(*sql.Rows) error, args ...any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	s, err := db.readStmt(ctx, query)
	if err != nil {
		return db.noted(err)
	}
	rows, err := s.QueryContext(ctx, args...)
	if err != nil {
		return db.noted(err)
	}
	return db.noted(each(rows, scan))
}

// readStmt returns the prepared statement of a text on the read connections.
func (db *sqlite) readStmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if s, ok := db.readStmts.Load(query); ok {
		return s.(*sql.Stmt), nil
	}
	s, err := db.read.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if first, loaded := db.readStmts.LoadOrStore(query, s); loaded {
		return first.(*sql.Stmt), s.Close()
	}
	return s, nil
}

// QueryIn is part of engine.
func (db *sqlite) QueryIn(ctx context.Context, head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	return inChunks(head, keys, tail, func(query string, keys []any) error {
		return db.Query(ctx, query, scan, keys...)
	})
}

// Close is part of engine.
func (db *sqlite) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	var errs []error
	if db.read != nil {
		errs = append(errs, db.lastCheckpoint())
		for _, s := range db.readStmts.Range {
			errs = append(errs, s.(*sql.Stmt).Close())
		}
		// SQLite makes a checkpoint when its last connection closes, hides the error, and deletes
		// the WAL. The read connections cannot do that. They close last, so the WAL of a database
		// that has failed stays.
		if db.Err() == nil {
			errs = append(errs, db.read.Close())
		} else {
			// A connection that has read nothing yet does not count.
			_ = db.read.QueryRowContext(context.Background(), "PRAGMA schema_version").Scan(new(int))
			defer db.read.Close()
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
		errs = append(errs, db.lock.Release())
	}
	return errors.Join(errs...)
}
