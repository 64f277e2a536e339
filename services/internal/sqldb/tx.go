package sqldb

import (
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Tx is a transaction under way. It is valid only during the call of DB.Tx that made it.
type Tx struct {
	session
	// committed is what AfterCommit has collected.
	committed []func()
}

// session runs the statements of a transaction.
type session interface {
	// Exec runs a statement and returns the number of rows that it changed.
	Exec(query string, args ...any) (int64, error)

	// Query calls scan for each row of the result. It ends early when scan returns an error, and
	// returns that, or nil for ErrStop.
	Query(query string, scan func(*sql.Rows) error, args ...any) error

	// ExecRows runs head + "(?,?),(?,?)…" + tail, with as many rows of placeholders as args has rows of
	// columns values. head ends with "VALUES ". It runs few statements, each for many rows, and returns
	// how many rows they changed. The values of a column have one type.
	ExecRows(head string, columns int, tail string, args []any) (int64, error)

	// Write is Exec for a statement that has to change want rows, and WriteRows is ExecRows for rows that all
	// have to change something. The statement may be put off until the next one that is no Write, or the
	// commit, so that several share a round trip. Its error then comes from there: it begins with what, and is
	// a *CountError if another number of rows was changed.
	Write(what string, want int64, query string, args ...any) error
	WriteRows(what, head string, columns int, tail string, args []any) error

	// QueryIn runs head + "(?,?…)" + tail with a placeholder for each key, and calls scan for each row
	// of the result. head ends with a condition such as "WHERE id IN ". The keys have one type. Without
	// keys it does nothing.
	QueryIn(head string, keys []any, tail string, scan func(*sql.Rows) error) error

	// Empty deletes all rows of a table at once, whatever their number. In PostgreSQL nobody else can use the
	// table until the transaction ends.
	Empty(table string) error

	// ForUpdate returns what locks the rows that a SELECT reads, at its end, until the transaction
	// ends. It is empty where the transaction has locked the whole database.
	ForUpdate() string

	// Now returns the time of the database, which all processes that share it have in common.
	Now() (time.Time, error)

	// Clock returns an expression for that time, in Unix milliseconds. A statement that waits for a lock may have
	// the time from before or after the wait.
	Clock() string

	// Room returns how many bytes the transaction may write. It is 0 or less when the disk is so full
	// that only the reserve is left, which is for deletions. Cost returns what a row takes.
	Room() (int64, error)

	// DeleteLimit returns how many rows one transaction may delete at most, whatever their size: 5,000,
	// or fewer on a disk that is almost full.
	DeleteLimit() (int64, error)

	// script runs the statements of a text, which has no placeholders.
	script(text string) error
}

// AfterCommit runs then once the transaction is committed, and before the next one begins: what a
// transaction has changed in memory is known to the next one. It is never run after a roll-back.
// then must not begin a transaction.
func (tx *Tx) AfterCommit(then func()) { tx.committed = append(tx.committed, then) }

func (tx *Tx) afterCommit() {
	for _, then := range tx.committed {
		then()
	}
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

// wroteRows returns the error of a Write.
func wroteRows(what string, want, changed int64, err error) error {
	if err = ExpectRows(want, changed, err); err != nil {
		return fmt.Errorf("%s: %w", what, err)
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
