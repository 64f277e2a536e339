package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/env"
)

const (
	// connectTimeout is what a connection gets, unless the URL says otherwise.
	connectTimeout = 3 * time.Second
	// txTimeout is what a transaction gets, with all its attempts.
	txTimeout = 10 * time.Second
	// queryTimeout is what a query gets whose context has no deadline.
	queryTimeout = 5 * time.Second
	// migrationTimeout is what all migrations together get.
	migrationTimeout = 10 * time.Minute
	// mostAttempts bounds how often a transaction is tried.
	mostAttempts = 8
	// watchEvery is the pause between two looks at the server.
	watchEvery = time.Second
)

// sessionSettings are the settings of each connection. A process that stalls in a transaction must not
// stop the others for long: the server ends its transaction, and those that wait give up before. The
// server ends it no later than a lease of the outbox expires, so that the next holder need not wait.
var sessionSettings = map[string]string{
	"lock_timeout":                        "2s",
	"idle_in_transaction_session_timeout": "3s",
	// It ends what a process has begun that is gone. The contexts end all else before.
	"statement_timeout": "60s",
}

// postgres is one schema of a PostgreSQL database, which any number of processes share.
type postgres struct {
	pool   *sql.DB
	schema string
	log    *slog.Logger
	// turn has a token while a transaction of this process is under way.
	turn   chan struct{}
	server server
	// generation is that of the connections that may be used. It rises when the server behind them
	// turns out to be a standby.
	generation atomic.Int64
	// health has why the database could not be used at the last look.
	health Health
}

// URLFromEnv reads DATABASE_URL. It is empty for SQLite, and after a mistake.
func URLFromEnv(e *env.Env) string {
	const name = "DATABASE_URL"
	text := e.String(name, "")
	if text == "" {
		return ""
	}
	if _, err := parseURL(text); err != nil {
		e.Invalid(name, Redacted(text), err.Error())
		return ""
	}
	return text
}

// Redacted returns a DATABASE_URL without its passwords.
func Redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "not a URL"
	}
	q := u.Query()
	for name := range q {
		if strings.Contains(name, "password") {
			q.Set(name, "xxxxx")
		}
	}
	u.RawQuery = q.Encode()
	return u.Redacted()
}

// urlForm is what DATABASE_URL must be.
const urlForm = "postgres://user:password@host:port/database, or empty for SQLite"

// parseURL returns how to connect to the server at a URL. The error says what the URL must be, and
// does not show its password.
func parseURL(text string) (*pgx.ConnConfig, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New(urlForm)
	}
	cfg, err := pgx.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", urlForm, err)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	if !u.Query().Has("target_session_attrs") {
		cfg.ValidateConnect = refuseStandby
	}
	for name, value := range sessionSettings {
		if _, set := cfg.RuntimeParams[name]; !set {
			cfg.RuntimeParams[name] = value
		}
	}
	return cfg, nil
}

// openPostgres connects to the server, makes the schema if it is missing, and migrates it.
func openPostgres(ctx context.Context, cfg Config, log *slog.Logger) (*postgres, error) {
	conn, err := parseURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL must be %w", err)
	}
	db := &postgres{schema: cfg.Schema, log: log, turn: make(chan struct{}, 1)}
	conn.RuntimeParams["search_path"] = pgx.Identifier{cfg.Schema}.Sanitize()
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = cfg.Schema
	}
	conn.OnNotice = noteWarning
	db.pool = stdlib.OpenDB(*conn,
		// The files of TLS are read again, since those of a renewed CA or certificate replace them.
		stdlib.OptionBeforeConnect(func(_ context.Context, c *pgx.ConnConfig) error {
			now, err := parseURL(cfg.URL)
			if err != nil {
				return fmt.Errorf("read DATABASE_URL again: %w", err)
			}
			c.TLSConfig, c.Fallbacks = now.TLSConfig, now.Fallbacks
			return nil
		}),
		stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
			c.PgConn().CustomData()[generationOf] = db.generation.Load()
			return db.server.note(ctx, c)
		}),
		stdlib.OptionResetSession(func(_ context.Context, c *pgx.Conn) error {
			if c.PgConn().CustomData()[generationOf] != db.generation.Load() {
				return driver.ErrBadConn
			}
			return nil
		}))
	// The server has 100 connections by default, for all replicas.
	connections := min(max(4, 2*runtime.GOMAXPROCS(0)), 16)
	db.pool.SetMaxOpenConns(connections)
	db.pool.SetMaxIdleConns(connections)
	db.pool.SetConnMaxIdleTime(5 * time.Minute)
	// New connections go where the name of the host leads to by then.
	db.pool.SetConnMaxLifetime(30 * time.Minute)
	if err := db.prepare(ctx, cfg); err != nil {
		return nil, errors.Join(
			fmt.Errorf("open the schema %s at %s: %w", cfg.Schema, Redacted(cfg.URL), err), db.pool.Close())
	}
	return db, nil
}

// prepare brings the schema to where this program needs it.
func (db *postgres) prepare(ctx context.Context, cfg Config) error {
	files, err := readMigrations(cfg.Migrations, "postgres")
	if err != nil {
		return err
	}
	if err := db.makeSchema(ctx); err != nil {
		return err
	}
	// An index of a large table takes long.
	if err := db.LongTx(ctx, migrationTimeout, func(tx *Tx) error { return migrate(tx, files, db.log) }); err != nil {
		return err
	}
	var waits string
	err = db.Query(ctx, "SHOW synchronous_commit", func(r *sql.Rows) error { return r.Scan(&waits) })
	if cfg.Sync == Full && (waits == "off" || waits == "local") {
		db.log.Warn("PostgreSQL acknowledges a commit before it is safe: a crash of the server loses orders that "+
			"were acknowledged", "synchronous_commit", waits, "next", "set synchronous_commit to on")
	}
	return err
}

// makeSchema makes the schema and the table of its migrations. Another process may do so at the same
// time, which makes one of the two fail.
func (db *postgres) makeSchema(ctx context.Context) error {
	retry := backoff.Backoff{Min: 10 * time.Millisecond, Max: time.Second}
	for {
		err := db.Tx(ctx, func(tx *Tx) error {
			var exists bool
			var tables []string
			// Who may not make schemas may not even try to make one that exists.
			err := tx.Query("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = ?)",
				func(r *sql.Rows) error { return r.Scan(&exists) }, db.schema)
			if err == nil && !exists {
				err = tx.script("CREATE SCHEMA IF NOT EXISTS " + pgx.Identifier{db.schema}.Sanitize())
			}
			if err == nil {
				err = tx.Query(`SELECT table_name FROM information_schema.tables
					WHERE table_schema = ? ORDER BY table_name`,
					func(r *sql.Rows) error {
						var name string
						err := r.Scan(&name)
						tables = append(tables, name)
						return err
					}, db.schema)
			}
			if err != nil {
				return fmt.Errorf("make the schema: %w", err)
			}
			if len(tables) > 0 {
				return refuseTables(tables)
			}
			if err := tx.script(migrationsTable); err != nil {
				return fmt.Errorf("create schema_migrations: %w", err)
			}
			return nil
		})
		if !isCode(err, "23505", "42P06", "42P07") || !retry.Wait(ctx) {
			return err
		}
	}
}

// refuseTables returns an error if the tables of a schema are not those of a service.
func refuseTables(tables []string) error {
	if slices.Contains(tables, "schema_migrations") {
		return nil
	}
	return fmt.Errorf("it has tables of another program, such as %s, and no schema_migrations: "+
		"give the service a database without a schema of this name", tables[0])
}

// Shared is part of engine.
func (db *postgres) Shared() bool { return true }

// Tx is part of engine. A transaction that was rolled back because of another one, or whose connection
// was cut before its commit, is run again.
func (db *postgres) Tx(ctx context.Context, fn func(*Tx) error) error {
	return db.transact(ctx, context.WithoutCancel(ctx), txTimeout, fn)
}

// LongTx is part of engine. The locks that its statements need are not waited for as long: what comes
// behind would wait too.
func (db *postgres) LongTx(ctx context.Context, limit time.Duration, fn func(*Tx) error) error {
	return db.transact(ctx, ctx, limit, func(tx *Tx) error {
		if err := tx.script(fmt.Sprintf("SET LOCAL statement_timeout = %d", limit.Milliseconds())); err != nil {
			return err
		}
		return fn(tx)
	})
}

// transact runs fn within timeout, and until work ends. The wait for its turn counts: while the server does
// not respond, each transaction before it takes all of its time too.
func (db *postgres) transact(ctx, work context.Context, timeout time.Duration, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(work, timeout)
	defer cancel()
	select {
	case db.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-bounded.Done():
		return fmt.Errorf("wait for the transaction before: %w", bounded.Err())
	}
	defer func() { <-db.turn }()
	retry := backoff.Backoff{Min: 2 * time.Millisecond, Max: 500 * time.Millisecond}
	for attempt := 1; ; attempt++ {
		tx, err := db.attempt(bounded, fn)
		if err == nil {
			tx.afterCommit()
			return nil
		}
		db.note(err)
		if attempt == mostAttempts || !repeatable(err) || !retry.Wait(bounded) {
			return err
		}
	}
}

// attempt runs fn once in a transaction. Its commit has taken effect if err is nil, may have done so if
// err is ErrUnknownCommit, and has not otherwise. Once begun, the commit does not end with ctx, only at its
// deadline: the result would not be known.
func (db *postgres) attempt(ctx context.Context, fn func(*Tx) error) (_ *Tx, err error) {
	conn, err := db.pool.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	deadline, _ := ctx.Deadline()
	whole, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	begun, err := conn.BeginTx(whole, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	session := &postgresSession{conn: conn, tx: begun, ctx: ctx}
	tx := &Tx{session: session}
	err = fn(tx)
	if err == nil {
		err = session.flush()
	}
	if err != nil {
		// The server rolls back what has lost its connection.
		_ = begun.Rollback()
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		_ = begun.Rollback()
		return nil, fmt.Errorf("commit: %w", err)
	}
	if err := commit(conn, begun); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	return tx, nil
}

// commit commits. The server responds with a success even if somebody has cancelled the wait for its
// synchronous standby, and adds a warning.
func commit(conn *sql.Conn, tx *sql.Tx) error {
	var warning string
	custom := func(use func(data map[string]any)) error {
		return conn.Raw(func(c any) error {
			use(c.(*stdlib.Conn).Conn().PgConn().CustomData())
			return nil
		})
	}
	if err := custom(func(data map[string]any) { delete(data, warningOf) }); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		if e, refused := errors.AsType[*pgconn.PgError](err); errors.Is(err, pgx.ErrTxCommitRollback) ||
			refused && !strings.HasPrefix(e.Code, "57P") {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnknownCommit, err)
	}
	// The commit has succeeded, so a connection that is closed by now has had no warning.
	_ = custom(func(data map[string]any) { warning, _ = data[warningOf].(string) })
	if warning != "" {
		return fmt.Errorf("%w: PostgreSQL warns: %s", ErrUnknownCommit, warning)
	}
	return nil
}

// The keys of what a connection carries.
const (
	generationOf = "generation"
	warningOf    = "warning"
)

// noteWarning keeps a warning of the server with its connection.
func noteWarning(c *pgconn.PgConn, n *pgconn.Notice) {
	if n.SeverityUnlocalized == "WARNING" {
		c.CustomData()[warningOf] = n.Message
	}
}

// Query is part of engine. It gets queryTimeout unless ctx has a deadline. What fails before the first
// row because a connection was cut is tried again.
func (db *postgres) Query(ctx context.Context, query string, scan func(*sql.Rows) error, args ...any) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, queryTimeout)
		defer cancel()
	}
	for attempt := 1; ; attempt++ {
		begun, err := db.queryOnce(ctx, query, scan, args)
		if err == nil {
			return nil
		}
		db.note(err)
		if begun || attempt == mostAttempts || !lost(err) || ctx.Err() != nil {
			return err
		}
	}
}

// queryOnce returns whether scan was called.
func (db *postgres) queryOnce(
	ctx context.Context, query string, scan func(*sql.Rows) error, args []any,
) (begun bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := db.pool.QueryContext(ctx, rebind(query), args...)
	if err != nil {
		return false, err
	}
	err = each(rows, func(rows *sql.Rows) error {
		begun = true
		err := scan(rows)
		if errors.Is(err, ErrStop) {
			// Closing reads all that is left, which may be much. This costs the connection instead.
			cancel()
		}
		return err
	})
	return begun, err
}

// QueryIn is part of engine.
func (db *postgres) QueryIn(
	ctx context.Context, head string, keys []any, tail string, scan func(*sql.Rows) error,
) error {
	query, array, err := anyOf(head, keys, tail)
	if err != nil || query == "" {
		return err
	}
	return db.Query(ctx, query, scan, array)
}

// Space is part of engine. Only the server knows what its disk has left, and refuses when it is full.
func (db *postgres) Space(context.Context) (Space, error) {
	return Space{Left: unlimited, once: unlimited}, nil
}

// Watch is part of engine. It looks at the server every second. It returns no error: whatever is wrong
// with the server, a new process would not mend it.
func (db *postgres) Watch(ctx context.Context) error {
	for backoff.Sleep(ctx, watchEvery) {
		looked, cancel := context.WithTimeout(ctx, connectTimeout)
		var readOnly string
		err := db.Query(looked, "SHOW transaction_read_only", func(r *sql.Rows) error { return r.Scan(&readOnly) })
		cancel()
		if err == nil && readOnly == "on" {
			// Other connections may lead to the same server. New ones find the primary.
			db.generation.Add(1)
			err = errStandby
		}
		if ctx.Err() == nil {
			db.setHealth(err)
		}
	}
	return nil
}

// setHealth keeps why the database cannot be used; err is nil if it can. It logs only when that changes.
func (db *postgres) setHealth(err error) {
	switch changed := db.health.Set(err); {
	case changed && err == nil:
		db.log.Info("the database can be used again")
	case changed:
		db.log.Error("the database cannot be used; requests are refused until it can", "err", err,
			"next", "docs/operations.md, When PostgreSQL fails")
	}
}

// Err is part of engine.
func (db *postgres) Err() error {
	if failure := db.health.Err(); failure != nil {
		return fmt.Errorf("the database cannot be used: %w", failure)
	}
	return nil
}

// ServerChanges is part of engine.
func (db *postgres) ServerChanges() int64 { return db.server.changes.Load() }

// note takes the error of a statement. A server that only reads is a standby by now: no connection to
// it is used again.
func (db *postgres) note(err error) {
	if isCode(err, readOnlyTransaction) {
		db.generation.Add(1)
	}
}

// Close is part of engine.
func (db *postgres) Close() error {
	db.turn <- struct{}{}
	defer func() { <-db.turn }()
	return db.pool.Close()
}

// collector is part of engine. The metrics are those of client_golang for a pool.
func (db *postgres) collector(prefix string) prometheus.Collector {
	return collectors.NewDBStatsCollector(db.pool, prefix)
}
