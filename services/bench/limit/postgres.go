package limit

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
)

// UpsertsPostgres is [Upserts] in the empty PostgreSQL database at url. migrations is a folder of SQL files.
func UpsertsPostgres(ctx context.Context, url, migrations string, rows []OrderRow) (rate stats.Sample, err error) {
	err = WithViewPostgres(ctx, url, migrations, func(commit func([]OrderRow) error) (err error) {
		rate, err = upsertAll(rows, commit)
		return err
	})
	return rate, err
}

// WithViewPostgres is [WithView] in the empty PostgreSQL database at url: one statement for a transaction,
// with the rows as arrays. migrations is a folder of SQL files.
func WithViewPostgres(
	ctx context.Context, url, migrations string, use func(commit func([]OrderRow) error) error,
) (err error) {
	conn, err := migrated(ctx, url, migrations)
	if err != nil {
		return err
	}
	// The connection ends with the measurement, whatever ctx does.
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	return use(func(rows []OrderRow) error { return upsertPostgres(ctx, conn, rows) })
}

// upsertPostgres writes rows in one transaction. Of several versions of an order only the last is
// written: PostgreSQL refuses to change a row twice in a statement.
func upsertPostgres(ctx context.Context, conn *pgx.Conn, rows []OrderRow) error {
	const upsert = `INSERT INTO orders(order_id, version, event_id, total, body)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bytea[])
		ON CONFLICT (order_id) DO UPDATE
		SET version = excluded.version, event_id = excluded.event_id, total = excluded.total, body = excluded.body
		WHERE excluded.version > orders.version`
	last := make(map[string]int, len(rows))
	for i, r := range rows {
		last[r.id] = i
	}
	var ids, events []string
	var versions, totals []int64
	var bodies [][]byte
	for i, r := range rows {
		if last[r.id] != i {
			continue
		}
		ids, events, bodies = append(ids, r.id), append(events, r.eventID), append(bodies, r.body)
		versions, totals = append(versions, r.version), append(totals, r.total)
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, upsert, ids, versions, events, totals, bodies)
		return err
	})
}

// CreationsPostgres is [Creations] in the empty PostgreSQL database at url, with the rows as arrays.
// migrations is a folder of SQL files.
func CreationsPostgres(
	ctx context.Context, url, migrations, prefix string, duration time.Duration,
) (rate stats.Sample, err error) {
	conn, err := migrated(ctx, url, migrations)
	if err != nil {
		return rate, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	// The rows are made before the time begins.
	var batches []creationRows
	for batch := range slices.Chunk(slices.Collect(load.Orders(prefix, mostCreations)), RowsPerStatement) {
		batches = append(batches, newCreationRows(batch))
	}
	before, begin, written := stats.OwnCPU(), time.Now(), 0
	for _, batch := range batches {
		if time.Since(begin) > duration {
			break
		}
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return batch.insert(ctx, tx, written) })
		if err != nil {
			return rate, err
		}
		written += len(batch.keys)
	}
	return stats.Rate(written, time.Since(begin), stats.OwnCPU()-before), nil
}

// creationRows are what the Cart service writes for some creations, as the columns of its tables.
type creationRows struct {
	keys, topics             []string
	values, headers, rawKeys [][]byte
}

func newCreationRows(ms []contract.Message) (r creationRows) {
	for _, m := range ms {
		r.keys, r.topics, r.rawKeys = append(r.keys, string(m.Key)), append(r.topics, m.Topic), append(r.rawKeys, m.Key)
		r.values, r.headers = append(r.values, m.Value), append(r.headers, headerBytes(m))
	}
	return r
}

// insert writes the rows. The ones of the outbox get the IDs after last.
func (r *creationRows) insert(ctx context.Context, tx pgx.Tx, last int) error {
	_, err := tx.Exec(ctx, `INSERT INTO orders(order_id, version, body)
		SELECT key, 1, value FROM unnest($1::text[], $2::bytea[]) AS rows(key, value)`, r.keys, r.values)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO outbox(id, topic, record_key, value, headers, created_at)
		SELECT $1 + n, topic, key, value, headers, $2
		FROM unnest($3::text[], $4::bytea[], $5::bytea[], $6::bytea[]) WITH ORDINALITY
			AS rows(topic, key, value, headers, n)`,
		int64(last), time.Now().UnixMilli(), r.topics, r.rawKeys, r.values, r.headers)
	return err
}

// migrated connects to an empty database and makes its tables.
func migrated(ctx context.Context, url, migrations string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	if err := execFiles(migrations, func(text string) error {
		_, err := conn.Exec(ctx, text)
		return err
	}); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}
