package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/mattn/go-sqlite3"
)

// Tx runs fn in a transaction: committed when fn returns nil, else rolled back. Once begun it runs to its end, whatever becomes of
// ctx, so that what an answer or an offset depends on is never half known. Transactions come one after the other.
func (db *DB) Tx(ctx context.Context, fn func(*Tx) error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	tx := &Tx{db: db, ctx: context.WithoutCancel(ctx)} // go-sqlite3 starts a goroutine per statement for a context that can end
	if _, err := tx.Exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := fn(tx)
	if err == nil {
		if _, err = tx.Exec("COMMIT"); err != nil {
			err = fmt.Errorf("commit: %w", err)
		}
	}
	if err != nil {
		return errors.Join(err, tx.rollback())
	}
	return nil
}

// Tx is a transaction under way. Its statements are prepared once per text and kept.
type Tx struct {
	db  *DB
	ctx context.Context
}

// rollback ends the transaction, unless SQLite has done so by itself, as it does on some errors (a full disk).
func (tx *Tx) rollback() error {
	var ended bool
	if err := tx.db.write.Raw(func(c any) error {
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

func (tx *Tx) stmt(query string) (*sql.Stmt, error) {
	if s, ok := tx.db.stmts[query]; ok {
		return s, nil
	}
	s, err := tx.db.write.PrepareContext(tx.ctx, query)
	if err != nil {
		return nil, err
	}
	tx.db.stmts[query] = s
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
	return r.RowsAffected()
}

// Query runs scan for each row of the result.
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

// ExecRows runs head + "(?,?),(?,?)…" + tail with as many rows of placeholders as args have: one statement for many rows.
// It returns the number of rows changed.
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

// QueryIn runs head + "(?,?…)" + tail, a condition `x IN`, with as many placeholders as there are keys.
func (tx *Tx) QueryIn(head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	for n := range chunks(len(keys)) {
		if err := tx.Query(head+"("+marks(n)+")"+tail, scan, keys[:n]...); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// QueryIn is Tx.QueryIn on the readers, outside of a transaction.
func (db *DB) QueryIn(ctx context.Context, head string, keys []any, tail string, scan func(*sql.Rows) error) error {
	for n := range chunks(len(keys)) {
		rows, err := db.Read.QueryContext(ctx, head+"("+marks(n)+")"+tail, keys[:n]...)
		if err != nil {
			return err
		}
		if err := each(rows, scan); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// each runs scan for each row and closes rows.
func each(rows *sql.Rows, scan func(*sql.Rows) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func marks(n int) string { return strings.Repeat("?,", n-1) + "?" }

// chunks cuts n rows into powers of two, at most 256, so that there are few different statements to prepare.
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
