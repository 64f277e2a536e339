package limit

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

	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
)

// The sizes of statements and transactions.
const (
	// RowsPerStatement is how many rows one INSERT writes. In the limit of Cart it is also how many
	// orders are in one transaction: as many as the load has connections by default.
	RowsPerStatement = 64
	// mostCreations is enough for a rate. A fast disk takes them before the time is over.
	mostCreations = 100_000
	// BatchRecords is how many records the Order service writes in one transaction.
	BatchRecords = 1000
)

// Schema has the migrations of a service, which a bare database gets too.
type Schema struct {
	// Migrations is a folder of SQL files.
	Migrations string
	// Synchronous is SQLite's pragma, as the service sets it.
	Synchronous string
}

// Creations writes the rows of creations into Cart's tables in a new database below dir, for a
// time.
func Creations(
	ctx context.Context, dir string, schema Schema, prefix string, duration time.Duration,
) (rate stats.Sample, err error) {
	db, err := create(ctx, dir, schema)
	if err != nil {
		return rate, err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	// The rows are made before the time begins.
	var batches [][]insert
	for batch := range slices.Chunk(slices.Collect(load.Orders(prefix, mostCreations)), RowsPerStatement) {
		batches = append(batches, cartRows(batch))
	}
	before, begin, written := stats.OwnCPU(), time.Now(), 0
	for _, batch := range batches {
		if time.Since(begin) > duration {
			break
		}
		if err := db.write(batch...); err != nil {
			return rate, err
		}
		written += len(batch[0].args) / batch[0].columns
	}
	return stats.Rate(written, time.Since(begin), stats.OwnCPU()-before), nil
}

// Upserts writes rows of events into Order's table in a new database below dir, as many to a
// transaction as the Order service.
func Upserts(ctx context.Context, dir string, schema Schema, rows []OrderRow) (rate stats.Sample, err error) {
	err = WithView(ctx, dir, schema, func(commit func([]OrderRow) error) (err error) {
		rate, err = upsertAll(rows, commit)
		return err
	})
	return rate, err
}

// WithView calls use with what writes rows into Order's table in a new database below dir, in one
// transaction.
func WithView(
	ctx context.Context, dir string, schema Schema, use func(commit func([]OrderRow) error) error,
) (err error) {
	db, err := create(ctx, dir, schema)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	return use(func(rows []OrderRow) error { return db.write(upsert(rows)) })
}

// upsertAll commits rows, as many to a transaction as the Order service.
func upsertAll(rows []OrderRow, commit func([]OrderRow) error) (rate stats.Sample, err error) {
	before, begin := stats.OwnCPU(), time.Now()
	for batch := range slices.Chunk(rows, BatchRecords) {
		if err := commit(batch); err != nil {
			return rate, err
		}
	}
	return stats.Rate(len(rows), time.Since(begin), stats.OwnCPU()-before), nil
}

// OrderRow is a row of the Order service's table.
type OrderRow struct {
	id, eventID string
	version     int64
	// total is in the smallest unit of the currency.
	total int64
	// body is the order as JSON.
	body []byte
}

// NewOrderRow decodes an event into the row that the Order service writes for it.
func NewOrderRow(m contract.Message) (OrderRow, error) {
	e, err := contract.DecodeEvent(m.Topic, 0, m.Key, m.Value, m.Headers)
	return OrderRow{e.Order.OrderID, e.ID, e.Order.Version, int64(e.Order.TotalAmount), m.Value}, err
}

// insert is rows for one table.
type insert struct {
	// head comes before the values in the statement, and tail after them.
	head, tail string
	// columns is the number of values in a row.
	columns int
	// args has the values of all rows, one row after the other.
	args []any
}

// cartRows returns what the Cart service writes for some creations: the orders and the outbox.
func cartRows(ms []contract.Message) []insert {
	orders := insert{head: "INSERT INTO orders(order_id, version, body) VALUES ", columns: 3}
	outbox := insert{
		head: "INSERT INTO outbox(topic, record_key, value, headers, created_at) VALUES ", columns: 5,
	}
	now := time.Now().UnixMilli()
	for _, m := range ms {
		orders.args = append(orders.args, string(m.Key), 1, m.Value)
		outbox.args = append(outbox.args, m.Topic, m.Key, m.Value, headerBytes(m), now)
	}
	return []insert{orders, outbox}
}

// headerBytes has the size of what the outbox writes for the headers of a message.
func headerBytes(m contract.Message) []byte {
	var b []byte
	for _, h := range m.Headers {
		b = append(append(append(b, byte(len(h.Key))), h.Key...), byte(len(h.Value)+1))
		b = append(b, h.Value...)
	}
	return b
}

// upsert returns what the Order service writes for some events.
func upsert(rows []OrderRow) insert {
	in := insert{
		head:    "INSERT INTO orders(order_id, version, event_id, total, body) VALUES ",
		columns: 5,
		tail: ` ON CONFLICT (order_id) DO UPDATE
		SET version = excluded.version, event_id = excluded.event_id, total = excluded.total, body = excluded.body
		WHERE excluded.version > orders.version`,
	}
	for _, r := range rows {
		in.args = append(in.args, r.id, r.version, r.eventID, r.total, r.body)
	}
	return in
}

// database is a bare SQLite with the schema, driver and settings of a service. It writes statements
// of many rows, prepared once, on one connection. It is not safe for concurrent use.
type database struct {
	db   *sql.DB
	conn *sql.Conn
	// stmts has the prepared statements by their text.
	stmts map[string]*sql.Stmt
	// folder has the files; close removes it.
	folder string
}

// create makes a new database in a folder of its own below dir.
func create(ctx context.Context, dir string, schema Schema) (*database, error) {
	folder, err := os.MkdirTemp(dir, "raw-")
	if err != nil {
		return nil, err
	}
	// The settings are those of services/internal/sqldb.
	settings := "_busy_timeout=10000&_foreign_keys=on&_journal_mode=WAL&_synchronous=" + schema.Synchronous
	const pragmas = "PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY"
	dsn := url.URL{Scheme: "file", Opaque: filepath.Join(folder, "raw.db"), RawQuery: settings}
	db, err := sql.Open("sqlite3", dsn.String())
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	d := &database{db, conn, map[string]*sql.Stmt{}, folder}
	if _, err := conn.ExecContext(ctx, pragmas); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if err := execFiles(schema.Migrations, func(text string) error {
		_, err := conn.ExecContext(ctx, text)
		return err
	}); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// execFiles calls exec with the SQL files of a folder in their order.
func execFiles(folder string, exec func(text string) error) error {
	files, err := filepath.Glob(filepath.Join(folder, "*.sql"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s has no migrations", folder)
	}
	slices.Sort(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := exec(string(text)); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// write writes rows in one transaction.
func (d *database) write(inserts ...insert) error {
	// sqldb takes the write lock at the beginning of a transaction too.
	if err := d.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, in := range inserts {
		row := "(" + strings.TrimSuffix(strings.Repeat("?,", in.columns), ",") + "),"
		for args := range slices.Chunk(in.args, in.columns*RowsPerStatement) {
			rows := strings.TrimSuffix(strings.Repeat(row, len(args)/in.columns), ",")
			if err := d.exec(in.head+rows+in.tail, args...); err != nil {
				return err
			}
		}
	}
	return d.exec("COMMIT")
}

// exec executes a statement, which it prepares at its first use.
func (d *database) exec(query string, args ...any) error {
	// A context that can end would cost a goroutine for each statement.
	ctx := context.Background()
	s, ok := d.stmts[query]
	if !ok {
		var err error
		if s, err = d.conn.PrepareContext(ctx, query); err != nil {
			return err
		}
		d.stmts[query] = s
	}
	_, err := s.ExecContext(ctx, args...)
	return err
}

// close throws the database away.
func (d *database) close() error {
	for _, s := range d.stmts {
		_ = s.Close()
	}
	return errors.Join(d.conn.Close(), d.db.Close(), os.RemoveAll(d.folder))
}
