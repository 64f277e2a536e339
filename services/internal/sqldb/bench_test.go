package sqldb_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/internal/testenv"
)

// BenchmarkRows compares the ways in which a batch of rows can get into PostgreSQL: a placeholder for each
// value, an array for each column, and COPY. COPY cannot replace a row, so a batch that does goes through
// a temporary table. A row is an order of 500 bytes.
func BenchmarkRows(b *testing.B) {
	conn, err := pgx.Connect(b.Context(), testenv.Postgres(b))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(b.Context())
	exec := func(text string, args ...any) {
		if _, err := conn.Exec(b.Context(), text, args...); err != nil {
			b.Fatal(err)
		}
	}
	exec(`CREATE TABLE o(id TEXT COLLATE "C" PRIMARY KEY, version BIGINT NOT NULL, body BYTEA NOT NULL)`)
	exec("CREATE TEMPORARY TABLE batch(id TEXT, version BIGINT, body BYTEA) ON COMMIT DELETE ROWS")
	const replace = ` ON CONFLICT (id) DO UPDATE SET version = excluded.version, body = excluded.body
		WHERE excluded.version > o.version`
	body := make([]byte, 500)
	ways := map[string]func(ids []string, version int64){
		"values": func(ids []string, version int64) {
			var text strings.Builder
			args := make([]any, 0, 3*len(ids))
			for i, id := range ids {
				fmt.Fprintf(&text, ",($%d,$%d,$%d)", 3*i+1, 3*i+2, 3*i+3)
				args = append(args, id, version, body)
			}
			exec("INSERT INTO o(id, version, body) VALUES "+text.String()[1:]+replace, args...)
		},
		"unnest": func(ids []string, version int64) {
			versions, bodies := make([]int64, len(ids)), make([][]byte, len(ids))
			for i := range ids {
				versions[i], bodies[i] = version, body
			}
			exec("INSERT INTO o(id, version, body) SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[])"+replace,
				ids, versions, bodies)
		},
		"copy": func(ids []string, version int64) {
			if _, err := conn.CopyFrom(b.Context(), pgx.Identifier{"batch"}, []string{"id", "version", "body"},
				pgx.CopyFromSlice(len(ids), func(i int) ([]any, error) { return []any{ids[i], version, body}, nil }),
			); err != nil {
				b.Fatal(err)
			}
			exec("INSERT INTO o(id, version, body) SELECT * FROM batch" + replace)
		},
	}
	for _, rows := range []int{1, 16, 256, 1000} {
		for _, name := range []string{"values", "unnest", "copy"} {
			b.Run(fmt.Sprintf("%s/%d", name, rows), func(b *testing.B) {
				exec("TRUNCATE o")
				n := 0
				for b.Loop() {
					ids := make([]string, rows)
					for i := range ids {
						// Half of the rows are there.
						ids[i] = fmt.Sprintf("order-%d", n*rows/2+i)
					}
					n++
					exec("BEGIN")
					ways[name](ids, int64(n))
					exec("COMMIT")
				}
				b.ReportMetric(float64(n*rows)/b.Elapsed().Seconds(), "rows/s")
			})
		}
	}
}
