// Package sqldb opens a service's database and runs its transactions. The database is SQLite, a file
// of this process alone, or PostgreSQL, which any number of processes share.
//
// Everything that depends on the kind of database is in this package. The SQL of the services uses
// ? as placeholder and only features that both have. It keeps to what other engines that speak
// PostgreSQL's protocol have too: no sequences, no advisory locks, no LISTEN.
package sqldb

import (
	"context"
	"database/sql"
	"io/fs"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/backoff"
)

// Sync is what a commit waits for.
type Sync string

// What a commit can wait for.
const (
	// Full waits for the disk: a committed transaction survives a power loss. PostgreSQL is expected to
	// do so, and a warning is logged if its synchronous_commit is off.
	Full Sync = "FULL"
	// Normal does not wait. A power loss may roll back the last transactions, all of them whole. It
	// is right for state that is stored together with the offset from which it can be read again.
	Normal Sync = "NORMAL"
)

// Config is what a database is opened with.
type Config struct {
	// URL is DATABASE_URL. It is empty for SQLite.
	URL string
	// Path is the file of SQLite.
	Path string
	// Sync is what a commit waits for.
	Sync Sync
	// Schema is the schema of the service's tables in PostgreSQL. It is made if it is missing.
	Schema string
	// Migrations has a folder for each kind of database: sqlite and postgres. A migration has the
	// same name in both.
	Migrations fs.FS
}

// DB is the database of a service. It is safe for concurrent use.
type DB struct{ engine }

// engine is a kind of database.
type engine interface {
	// Shared reports whether other processes may use the database at the same time.
	Shared() bool

	// Tx runs fn in a transaction. It commits when fn returns nil, and rolls back otherwise. The
	// transactions of this process run one after the other.
	//
	// Once begun, a transaction runs to its end, even if ctx ends meanwhile. fn only reads and writes
	// the database, so that it can be run again: what else is to happen goes to AfterCommit or is done
	// by the caller. After ErrUnknownCommit the transaction may have taken effect, and after any other
	// error it has not.
	Tx(ctx context.Context, fn func(*Tx) error) error

	// LongTx is Tx for work that takes longer than that of a request, and that ends with ctx, until its commit
	// begins. limit bounds the transaction and each of its statements, where the kind of database has limits.
	// The other transactions of this process wait meanwhile, and may give up.
	LongTx(ctx context.Context, limit time.Duration, fn func(*Tx) error) error

	// Query calls scan for each row of the result, outside of a transaction and without waiting for
	// one. It ends early when scan returns an error, and returns that, or nil for ErrStop.
	Query(ctx context.Context, query string, scan func(*sql.Rows) error, args ...any) error

	// QueryIn is Tx.QueryIn outside of a transaction, like Query.
	QueryIn(ctx context.Context, head string, keys []any, tail string, scan func(*sql.Rows) error) error

	// Space looks up what the database uses and can still use. It does not wait for a transaction.
	Space(ctx context.Context) (Space, error)

	// Watch returns an error once the database must not be used any more, or nil when ctx ends. It
	// keeps Err up to date.
	Watch(ctx context.Context) error

	// Err returns why the database cannot be used now, or nil. It does not block.
	Err() error

	// ServerChanges returns how often a connection has found another server than the one before it, or
	// that one after a restart. A transaction that was committed before may be missing on the other one,
	// if replication is asynchronous.
	ServerChanges() int64

	// Close closes the database. It waits for a transaction under way.
	Close() error

	// collector returns the metrics of the database. Their names or labels have the prefix.
	collector(prefix string) prometheus.Collector
}

// Open opens the database, or makes it, and applies the migrations that it does not have yet: the
// *.sql files in the order of their names. It ignores those of a newer release, which come after them.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*DB, error) {
	var db engine
	var err error
	if cfg.URL == "" {
		db, err = openSQLite(ctx, cfg, log)
	} else {
		db, err = openPostgres(ctx, cfg, log)
	}
	if err != nil {
		return nil, err
	}
	return &DB{db}, nil
}

// Await calls open until it succeeds, or until it fails because of something else than that the
// database is unavailable. It passes that reason to report: a service that starts before its database
// waits for it, and shows that it does.
func Await(ctx context.Context, log *slog.Logger, report func(reason error), open func() error) error {
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 2 * time.Second}
	for logged := ""; ; {
		err := open()
		if err == nil || !IsUnavailable(err) || ctx.Err() != nil {
			return err
		}
		report(err)
		if text := err.Error(); text != logged {
			logged = text
			log.Warn("the database cannot be opened; trying again", "err", err,
				"next", "docs/operations.md, When PostgreSQL fails")
		}
		if !retry.Wait(ctx) {
			return context.Cause(ctx)
		}
	}
}

// IsUnavailable reports whether err says that the database cannot be used now: it cannot be reached,
// it refuses, it only reads, it is full, or it did not respond in time. Trying again later may succeed.
func IsUnavailable(err error) bool { return IsFull(err) || postgresUnavailable(err) }
