package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"
)

// sqliteSession runs statements on the connection for writing.
type sqliteSession struct {
	db   *sqlite
	conn *sql.Conn
	// stmts has the prepared statements of conn, by their text. They outlive the transaction.
	stmts map[string]*sql.Stmt
	ctx   context.Context
	// wrote is true once a statement has changed something.
	wrote bool
}

// rollback ends the transaction, unless SQLite has rolled it back by itself, as it does on some
// errors, such as a full disk.
func (s *sqliteSession) rollback() error {
	var ended bool
	if err := s.conn.Raw(func(c any) error {
		ended = c.(*sqlite3.SQLiteConn).AutoCommit()
		return nil
	}); err != nil || ended {
		return err
	}
	if _, err := s.Exec("ROLLBACK"); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// stmt returns the prepared statement of a text. The number of different texts is small, see
// chunks.
func (s *sqliteSession) stmt(query string) (*sql.Stmt, error) {
	if stmt, ok := s.stmts[query]; ok {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(s.ctx, query)
	if err != nil {
		return nil, err
	}
	s.stmts[query] = stmt
	return stmt, nil
}

// Exec is part of session.
func (s *sqliteSession) Exec(query string, args ...any) (int64, error) {
	stmt, err := s.stmt(query)
	if err != nil {
		return 0, err
	}
	r, err := stmt.ExecContext(s.ctx, args...)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	// A statement that is not one of INSERT, UPDATE and DELETE returns the number of the last one.
	s.wrote = s.wrote || n > 0
	return n, err
}

// Query is part of session.
func (s *sqliteSession) Query(query string, scan func(*sql.Rows) error, args ...any) error {
	stmt, err := s.stmt(query)
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(s.ctx, args...)
	if err != nil {
		return err
	}
	return each(rows, scan)
}

// ExecRows is part of session.
func (s *sqliteSession) ExecRows(head string, columns int, tail string, args []any) (int64, error) {
	row := "(" + marks(columns) + ")"
	var changed int64
	for n := range chunks(len(args) / columns) {
		c, err := s.Exec(head+strings.Repeat(row+",", n-1)+row+tail, args[:n*columns]...)
		if err != nil {
			return changed, err
		}
		changed, args = changed+c, args[n*columns:]
	}
	return changed, nil
}

// Write is part of session. There is no round trip to save.
func (s *sqliteSession) Write(what string, want int64, query string, args ...any) error {
	changed, err := s.Exec(query, args...)
	return wroteRows(what, want, changed, err)
}

// WriteRows is part of session.
func (s *sqliteSession) WriteRows(what, head string, columns int, tail string, args []any) error {
	changed, err := s.ExecRows(head, columns, tail, args)
	return wroteRows(what, int64(len(args)/columns), changed, err)
}

// QueryIn is part of session.
func (s *sqliteSession) QueryIn(head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	return inChunks(head, keys, tail, func(query string, keys []any) error {
		return s.Query(query, scan, keys...)
	})
}

// Empty is part of session. SQLite gives up the pages without writing them.
func (s *sqliteSession) Empty(table string) error {
	_, err := s.Exec("DELETE FROM " + table)
	return err
}

// ForUpdate is part of session. BEGIN IMMEDIATE has locked everything.
func (s *sqliteSession) ForUpdate() string { return "" }

// Now is part of session.
func (s *sqliteSession) Now() (time.Time, error) { return time.Now(), nil }

// Clock is part of session.
func (s *sqliteSession) Clock() string {
	return "CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER)"
}

// Room is part of session.
func (s *sqliteSession) Room() (int64, error) {
	space, err := s.db.space(s.Query)
	return min(space.Left, space.once), err
}

// DeleteLimit is part of session. Each row writes its page of the table to the WAL.
func (s *sqliteSession) DeleteLimit() (int64, error) {
	room, err := s.Room()
	return max(100, min(mostDeleted, room/(2*frameBytes))), err
}

// script is part of session.
func (s *sqliteSession) script(text string) error {
	_, err := s.conn.ExecContext(s.ctx, text)
	return err
}

// inChunks calls query for some keys at a time, with the text for as many.
func inChunks(head string, keys []any, tail string, query func(query string, keys []any) error) error {
	for n := range chunks(len(keys)) {
		if err := query(head+"("+marks(n)+")"+tail, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
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
