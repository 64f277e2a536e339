package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"
)

// Tx is a transaction under way. It is valid only during the call of DB.Tx that made it.
type Tx struct {
	db   *DB
	conn *sql.Conn
	// stmts has the prepared statements of conn, by their text. They outlive the transaction.
	stmts map[string]*sql.Stmt
	ctx   context.Context
	// wrote is true once a statement has changed something.
	wrote bool
	// committed is what AfterCommit has collected.
	committed []func()
}

// AfterCommit runs then once the transaction is committed, and before the next one begins: what a
// transaction has changed in memory is known to the next one. It is never run after a roll-back.
// then must not begin a transaction.
func (tx *Tx) AfterCommit(then func()) { tx.committed = append(tx.committed, then) }

// rollback ends the transaction, unless SQLite has rolled it back by itself, as it does on some
// errors, such as a full disk.
func (tx *Tx) rollback() error {
	var ended bool
	if err := tx.conn.Raw(func(c any) error {
		ended = c.(*sqlite3.SQLiteConn).AutoCommit()
		return nil
	}); err != nil || ended {
		return err
	}
	if _, err := tx.Exec("ROLLBACK"); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// stmt returns the prepared statement of a text. The number of different texts is small, see
// chunks.
func (tx *Tx) stmt(query string) (*sql.Stmt, error) {
	if s, ok := tx.stmts[query]; ok {
		return s, nil
	}
	s, err := tx.conn.PrepareContext(tx.ctx, query)
	if err != nil {
		return nil, err
	}
	tx.stmts[query] = s
	return s, nil
}

// Exec runs a statement and returns the number of rows that it changed.
func (tx *Tx) Exec(query string, args ...any) (int64, error) {
	s, err := tx.stmt(query)
	if err != nil {
		return 0, err
	}
	r, err := s.ExecContext(tx.ctx, args...)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	// A statement that is not one of INSERT, UPDATE and DELETE returns the number of the last one.
	tx.wrote = tx.wrote || n > 0
	return n, err
}

// CountError reports that a statement changed another number of rows than it must. Something that
// was to be written is not, or something was written that must not be.
type CountError struct{ Changed, Want int64 }

func (e *CountError) Error() string {
	return fmt.Sprintf("%d rows were changed, want %d", e.Changed, e.Want)
}

// ExpectRows returns a *CountError if a statement, which has returned changed and err, changed
// another number of rows than want. An err that is not nil is returned as it is.
func ExpectRows(want, changed int64, err error) error {
	if err == nil && changed != want {
		return &CountError{Changed: changed, Want: want}
	}
	return err
}

// Query calls scan for each row of the result.
func (tx *Tx) Query(query string, scan func(*sql.Rows) error, args ...any) error {
	s, err := tx.stmt(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(tx.ctx, args...)
	if err != nil {
		return err
	}
	return each(rows, scan)
}

// ExecRows runs head + "(?,?),(?,?)…" + tail, with as many rows of placeholders as args has rows of
// columns values. It runs few statements, each for many rows, and returns how many rows they
// changed.
func (tx *Tx) ExecRows(head string, columns int, tail string, args []any) (int64, error) {
	row := "(" + marks(columns) + ")"
	var changed int64
	for n := range chunks(len(args) / columns) {
		c, err := tx.Exec(head+strings.Repeat(row+",", n-1)+row+tail, args[:n*columns]...)
		if err != nil {
			return changed, err
		}
		changed, args = changed+c, args[n*columns:]
	}
	return changed, nil
}

// QueryIn runs head + "(?,?…)" + tail with a placeholder for each key, and calls scan for each row
// of the result. head ends with a condition such as `WHERE id IN `. Without keys it does nothing.
func (tx *Tx) QueryIn(head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	return queryIn(head, keys, tail, func(query string, keys []any) error {
		return tx.Query(query, scan, keys...)
	})
}

// ForUpdate returns what locks the rows that a SELECT reads, at its end, until the transaction ends.
// It is empty where the transaction has locked the whole database.
func (tx *Tx) ForUpdate() string { return "" }

// Now returns the time of the database, which all processes that share it have in common.
func (tx *Tx) Now() (time.Time, error) { return time.Now(), nil }

// queryIn calls query for some keys at a time, with the text for as many.
func queryIn(head string, keys []any, tail string, query func(query string, keys []any) error) error {
	for n := range chunks(len(keys)) {
		if err := query(head+"("+marks(n)+")"+tail, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// ErrStop ends a query before its last row when scan returns it. The query returns nil.
var ErrStop = errors.New("the rows that follow are not wanted")

// each calls scan for each row and closes rows.
func each(rows *sql.Rows, scan func(*sql.Rows) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); errors.Is(err, ErrStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return rows.Err()
}

// marks returns n placeholders.
func marks(n int) string { return strings.Repeat("?,", n-1) + "?" }

// chunks cuts n rows into powers of two, 256 at most, so that there are few different statements to
// prepare and keep.
func chunks(n int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for size := 256; size > 0; size /= 2 {
			for ; n >= size; n -= size {
				if !yield(size) {
					return
				}
			}
		}
	}
}
