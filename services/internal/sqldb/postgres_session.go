package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// unlimited is room that nothing here bounds. Callers add to it and subtract from it.
const unlimited = math.MaxInt64 / 4

// postgresSession runs the statements of one transaction.
type postgresSession struct {
	// conn is the connection of tx.
	conn *sql.Conn
	tx   *sql.Tx
	ctx  context.Context
	// later are the statements that were put off.
	later []write
}

// write is a statement that has to change want rows.
type write struct {
	what, query string
	want        int64
	args        []any
}

// Write is part of session.
func (s *postgresSession) Write(what string, want int64, query string, args ...any) error {
	s.later = append(s.later, write{what, query, want, args})
	return nil
}

// WriteRows is part of session.
func (s *postgresSession) WriteRows(what, head string, columns int, tail string, args []any) error {
	if len(args) == 0 {
		return nil
	}
	query, arrays, err := fromArrays(head, columns, tail, args)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return s.Write(what, int64(len(args)/columns), query, arrays...)
}

// flush runs the statements that were put off, in one round trip.
func (s *postgresSession) flush() error {
	if len(s.later) == 0 {
		return nil
	}
	var batch pgx.Batch
	for _, w := range s.later {
		batch.Queue(rebind(w.query), w.args...)
	}
	later := s.later
	s.later = nil
	return s.conn.Raw(func(c any) error {
		results := c.(*stdlib.Conn).Conn().SendBatch(s.ctx, &batch)
		for _, w := range later {
			tag, err := results.Exec()
			if err := wroteRows(w.what, w.want, tag.RowsAffected(), err); err != nil {
				// The error of the first one ends the others too.
				_ = results.Close()
				return err
			}
		}
		return results.Close()
	})
}

// Exec is part of session.
func (s *postgresSession) Exec(query string, args ...any) (int64, error) {
	if err := s.flush(); err != nil {
		return 0, err
	}
	r, err := s.tx.ExecContext(s.ctx, rebind(query), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Query is part of session.
func (s *postgresSession) Query(query string, scan func(*sql.Rows) error, args ...any) error {
	if err := s.flush(); err != nil {
		return err
	}
	rows, err := s.tx.QueryContext(s.ctx, rebind(query), args...)
	if err != nil {
		return err
	}
	return each(rows, scan)
}

// ExecRows is part of session.
func (s *postgresSession) ExecRows(head string, columns int, tail string, args []any) (int64, error) {
	if len(args) == 0 {
		return 0, nil
	}
	query, arrays, err := fromArrays(head, columns, tail, args)
	if err != nil {
		return 0, err
	}
	return s.Exec(query, arrays...)
}

// fromArrays returns the statement of ExecRows and its arguments, an array for each column: one text for any
// number of rows, and one round trip. See BenchmarkRows.
func fromArrays(head string, columns int, tail string, args []any) (query string, arrays []any, err error) {
	arrays = make([]any, columns)
	casts := make([]string, columns)
	for c := range columns {
		array, kind, err := array(args, c, columns)
		if err != nil {
			return "", nil, err
		}
		arrays[c], casts[c] = array, "?::"+kind
	}
	head = strings.TrimSuffix(head, "VALUES ")
	return head + "SELECT * FROM unnest(" + strings.Join(casts, ", ") + ")" + tail, arrays, nil
}

// QueryIn is part of session.
func (s *postgresSession) QueryIn(head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	query, array, err := anyOf(head, keys, tail)
	if err != nil || query == "" {
		return err
	}
	return s.Query(query, scan, array)
}

// Empty is part of session. DELETE would write each row once more, and leave its room to a vacuum.
func (s *postgresSession) Empty(table string) error {
	_, err := s.Exec("TRUNCATE " + table)
	return err
}

// ForUpdate is part of session.
func (s *postgresSession) ForUpdate() string { return " FOR UPDATE" }

// Now is part of session. It is not the time at which the transaction began: that may have waited for a
// lock since.
func (s *postgresSession) Now() (now time.Time, err error) {
	err = s.Query("SELECT clock_timestamp()", func(r *sql.Rows) error { return r.Scan(&now) })
	return now, err
}

// Clock is part of session.
func (s *postgresSession) Clock() string {
	return "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
}

// Room is part of session. Only the server knows what its disk has left.
func (s *postgresSession) Room() (int64, error) { return unlimited, nil }

// DeleteLimit is part of session.
func (s *postgresSession) DeleteLimit() (int64, error) { return mostDeleted, nil }

// script is part of session. Only the simple protocol takes several statements.
func (s *postgresSession) script(text string) error {
	if err := s.flush(); err != nil {
		return err
	}
	_, err := s.tx.ExecContext(s.ctx, text, pgx.QueryExecModeSimpleProtocol)
	return err
}

// anyOf returns the statement of QueryIn and its argument. Without keys it is empty.
func anyOf(head string, keys []any, tail string) (query string, argument any, err error) {
	if len(keys) == 0 {
		return "", nil, nil
	}
	argument, kind, err := array(keys, 0, 1)
	return strings.TrimSuffix(head, "IN ") + "= ANY (?::" + kind + ")" + tail, argument, err
}

// array returns one column of the rows in args, and the type of its array in PostgreSQL.
func array(args []any, column, columns int) (array any, kind string, err error) {
	switch args[column].(type) {
	case string:
		array, err = collect[string](args, column, columns)
		return array, "text[]", err
	case []byte:
		array, err = collect[[]byte](args, column, columns)
		return array, "bytea[]", err
	case int64:
		array, err = collect[int64](args, column, columns)
		return array, "bigint[]", err
	case int32:
		array, err = collect[int32](args, column, columns)
		return array, "bigint[]", err
	case int:
		array, err = collect[int](args, column, columns)
		return array, "bigint[]", err
	default:
		return nil, "", fmt.Errorf("column %d has a %T, which has no array here", column, args[column])
	}
}

// collect returns one column of the rows in args.
func collect[T any](args []any, column, columns int) ([]T, error) {
	values := make([]T, 0, len(args)/columns)
	for i := column; i < len(args); i += columns {
		v, ok := args[i].(T)
		if !ok {
			return nil, fmt.Errorf("column %d has a %T among values of %T", column, args[i], v)
		}
		values = append(values, v)
	}
	return values, nil
}

// rebound has the texts with PostgreSQL's placeholders by those with ?. They are few.
var rebound sync.Map

// rebind returns a text with $1, $2 and so on for each ? that is not in quotes.
func rebind(query string) string {
	if text, ok := rebound.Load(query); ok {
		return text.(string)
	}
	var b strings.Builder
	n, quoted := 0, false
	for _, c := range query {
		switch {
		case c == '\'':
			quoted = !quoted
			b.WriteRune(c)
		case c == '?' && !quoted:
			n++
			b.WriteString("$" + strconv.Itoa(n))
		default:
			b.WriteRune(c)
		}
	}
	rebound.Store(query, b.String())
	return b.String()
}
