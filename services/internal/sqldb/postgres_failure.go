package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrUnknownCommit reports that a transaction may have been committed, and may not: its connection was
// lost during the commit.
var ErrUnknownCommit = errors.New("it is not known whether the transaction was committed")

// errStandby reports a server that takes no writes.
var errStandby = errors.New("the server only reads: it is a standby, or no primary any more")

// readOnlyTransaction is PostgreSQL's code for a write on a standby.
const readOnlyTransaction = "25006"

// refuseStandby refuses a connection to a server that takes no writes. If the URL has several hosts,
// the next one is tried.
func refuseStandby(ctx context.Context, c *pgconn.PgConn) error {
	r := c.ExecParams(ctx, "SHOW transaction_read_only", nil, nil, nil, nil).Read()
	if r.Err != nil {
		return fmt.Errorf("ask whether the server takes writes: %w", r.Err)
	}
	if len(r.Rows) == 1 && string(r.Rows[0][0]) == "on" {
		return errStandby
	}
	return nil
}

// server recognises the server behind new connections. The zero value knows none.
type server struct {
	mu sync.Mutex
	// started is when it was started.
	started time.Time
	changes atomic.Int64
}

// note counts a connection to another server than that of the one before.
func (s *server) note(ctx context.Context, c *pgx.Conn) error {
	var started time.Time
	if err := c.QueryRow(ctx, "SELECT pg_postmaster_start_time()").Scan(&started); err != nil {
		return fmt.Errorf("ask when the server was started: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started.IsZero() && !started.Equal(s.started) {
		s.changes.Add(1)
	}
	s.started = started
	return nil
}

// isCode reports whether err is an error of the server with one of these codes.
func isCode(err error, codes ...string) bool {
	e, is := errors.AsType[*pgconn.PgError](err)
	return is && slices.Contains(codes, e.Code)
}

// repeatable reports whether the transaction that failed with err can be run again at once.
func repeatable(err error) bool {
	if errors.Is(err, ErrUnknownCommit) {
		return false
	}
	// A serialization failure and a deadlock.
	return isCode(err, "40001", "40P01", readOnlyTransaction) || lost(err)
}

// lost reports whether err says that a connection was cut, or could not be made.
func lost(err error) bool {
	if e, is := errors.AsType[*pgconn.PgError](err); is {
		switch e.Code {
		// The server stops or starts, or has ended this connection.
		case "57P01", "57P02", "57P03", "57P05", "25P03":
			return true
		default:
			return e.Code[:2] == "08"
		}
	}
	if _, connecting := errors.AsType[*pgconn.ConnectError](err); connecting {
		return true
	}
	_, network := errors.AsType[net.Error](err)
	return network || pgconn.SafeToRetry(err) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, pgconn.ErrConnClosed)
}

// postgresUnavailable reports whether err is one of those of IsUnavailable.
func postgresUnavailable(err error) bool {
	if e, is := errors.AsType[*pgconn.PgError](err); is {
		switch e.Code {
		// The user, the password, the database or a right is refused.
		case "28000", "28P01", "3D000", "42501":
			return true
		// The server is a standby, has cut off a transaction, or has let others go first.
		case readOnlyTransaction, "25P03", "40001", "40P01", "55P03":
			return true
		}
		switch e.Code[:2] {
		// The connection, no more resources, an operator, the system.
		case "08", "53", "57", "58":
			return true
		}
		return false
	}
	return lost(err) || errors.Is(err, ErrUnknownCommit) || errors.Is(err, errStandby) ||
		errors.Is(err, context.DeadlineExceeded)
}
