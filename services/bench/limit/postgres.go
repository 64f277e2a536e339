package limit

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/bench/stats"
)

// UpsertsPostgres is Upserts in the empty PostgreSQL database at url: one statement for a transaction,
// with the rows as arrays. migrations is a folder of SQL files. Of several versions of an order in one
// transaction, only the last is written: PostgreSQL refuses to change a row twice in a statement.
func UpsertsPostgres(ctx context.Context, url, migrations string, rows []OrderRow) (rate stats.Sample, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return rate, err
	}
	// The connection ends with the measurement, whatever ctx does.
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if err := execFiles(migrations, func(text string) error {
		_, err := conn.Exec(ctx, text)
		return err
	}); err != nil {
		return rate, err
	}
	const upsert = `INSERT INTO orders(order_id, version, event_id, total, body)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bytea[])
		ON CONFLICT (order_id) DO UPDATE
		SET version = excluded.version, event_id = excluded.event_id, total = excluded.total, body = excluded.body
		WHERE excluded.version > orders.version`
	before, begin := stats.OwnCPU(), time.Now()
	for batch := range slices.Chunk(rows, BatchRecords) {
		last := make(map[string]int, len(batch))
		for i, r := range batch {
			last[r.id] = i
		}
		var ids, events []string
		var versions, totals []int64
		var bodies [][]byte
		for i, r := range batch {
			if last[r.id] != i {
				continue
			}
			ids, events, bodies = append(ids, r.id), append(events, r.eventID), append(bodies, r.body)
			versions, totals = append(versions, r.version), append(totals, r.total)
		}
		if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, upsert, ids, versions, events, totals, bodies)
			return err
		}); err != nil {
			return rate, err
		}
	}
	return stats.Rate(len(rows), time.Since(begin), stats.OwnCPU()-before), nil
}
