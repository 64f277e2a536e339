package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ordersystem.dev/services/contract"
)

// rawDB is a bare SQLite with a service's schema, driver and settings, written with as little as there can be in between: statements
// of many rows, prepared once, on one connection.
type rawDB struct {
	db    *sql.DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
}

const rowsPerStatement = 64

// openRaw makes a new database in dir. The schema is the named service's own.
func (b *bench) openRaw(ctx context.Context, service, dir, synchronous string) (*rawDB, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	dsn := (&url.URL{Scheme: "file", Opaque: filepath.Join(dir, "raw.db"), RawQuery: "_busy_timeout=10000&_foreign_keys=on&_journal_mode=WAL&_synchronous=" + synchronous}).String()
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	r := &rawDB{db, conn, map[string]*sql.Stmt{}}
	if _, err := conn.ExecContext(ctx, "PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY"); err != nil { // as sqldb has them
		return nil, errors.Join(err, r.close())
	}
	files, err := filepath.Glob(filepath.Join(b.root, "services", service, "migrations", "*.sql"))
	if err == nil && files == nil {
		err = fmt.Errorf("service %s has no migrations", service)
	}
	slices.Sort(files)
	for _, file := range files {
		var text []byte
		if text, err = os.ReadFile(file); err == nil {
			_, err = conn.ExecContext(ctx, string(text))
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rawDB) close() error {
	for _, s := range r.stmts {
		_ = s.Close() // the database is thrown away
	}
	return errors.Join(r.conn.Close(), r.db.Close())
}

func (r *rawDB) exec(query string, args ...any) error {
	ctx := context.Background() // one that can end would cost a goroutine for each statement
	s, ok := r.stmts[query]
	if !ok {
		var err error
		if s, err = r.conn.PrepareContext(ctx, query); err != nil {
			return err
		}
		r.stmts[query] = s
	}
	_, err := s.ExecContext(ctx, args...)
	return err
}

// write writes rows in one transaction.
func (r *rawDB) write(inserts ...insert) error {
	if err := r.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, in := range inserts {
		for args := range slices.Chunk(in.args, in.columns*rowsPerStatement) {
			marks := strings.TrimSuffix(strings.Repeat("("+strings.TrimSuffix(strings.Repeat("?,", in.columns), ",")+"),", len(args)/in.columns), ",")
			if err := r.exec(in.head+marks+in.tail, args...); err != nil {
				return err
			}
		}
	}
	return r.exec("COMMIT")
}

// insert is rows for one table.
type insert struct {
	head, tail string
	columns    int
	args       []any
}

// cartRows are what the Cart service writes for some creations: the orders and the outbox.
func cartRows(ms []contract.Message) []insert {
	orders := insert{head: "INSERT INTO orders(order_id, version, body) VALUES ", columns: 3}
	outbox := insert{head: "INSERT INTO outbox(topic, record_key, value, headers, created_at) VALUES ", columns: 5}
	now := time.Now().UnixMilli()
	for _, m := range ms {
		orders.args = append(orders.args, string(m.Key), 1, m.Value)
		outbox.args = append(outbox.args, m.Topic, m.Key, m.Value, headerBytes(m), now)
	}
	return []insert{orders, outbox}
}

// headerBytes has the size of what the outbox writes for a message's headers.
func headerBytes(m contract.Message) []byte {
	var b []byte
	for _, h := range m.Headers {
		b = append(append(append(b, byte(len(h.Key))), h.Key...), byte(len(h.Value)+1))
		b = append(b, h.Value...)
	}
	return b
}

// orderRows are what the Order service writes for some events.
func orderRows(es []orderRow) insert {
	in := insert{head: "INSERT INTO orders(order_id, version, event_id, total, body) VALUES ", columns: 5, tail: ` ON CONFLICT (order_id) DO UPDATE
		SET version = excluded.version, event_id = excluded.event_id, total = excluded.total, body = excluded.body
		WHERE excluded.version > orders.version`}
	for _, e := range es {
		in.args = append(in.args, e.id, e.version, e.eventID, e.total, e.body)
	}
	return in
}

// orderRow is a row of the Order service's table.
type orderRow struct {
	id, eventID    string
	version, total int64
	body           []byte
}

func newOrderRow(m contract.Message) (orderRow, error) {
	e, err := contract.DecodeEvent(m.Topic, 0, m.Key, m.Value, m.Headers)
	return orderRow{e.Order.OrderID, e.ID, e.Order.Version, int64(e.Order.TotalAmount), m.Value}, err
}
