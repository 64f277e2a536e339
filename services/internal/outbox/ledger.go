package outbox

import (
	"database/sql"
	"fmt"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/sqldb"
)

// Ledger is the outbox in a transaction that has locked it.
type Ledger struct {
	// Rows is the number of messages in the outbox, as Box.Backlog counts them, and Bytes their size.
	Rows, Bytes int64
	// Head is the ID of the newest message.
	Head int64
	// Now is the time of the database when it was locked.
	Now time.Time

	box       *Box
	tx        *sqldb.Tx
	headBytes int64
}

// size computes the bytes of rows. SQLite knows the length of a value without reading it.
const size = "coalesce(sum(coalesce(length(record_key), 0) + coalesce(length(value), 0) + length(headers)), 0)"

// Add writes messages, and wakes the relay of this process once they are committed. Their IDs follow
// Head.
func (l *Ledger) Add(at time.Time, ms []contract.Message) error {
	const columns = 6
	args := make([]any, 0, columns*len(ms))
	head, added, bytes := l.Head, int64(len(ms)), int64(0)
	for i, m := range ms {
		headers := encodeHeaders(m.Headers)
		args = append(args, head+int64(i)+1, m.Topic, m.Key, m.Value, headers, at.UnixMilli())
		bytes += int64(len(m.Key) + len(m.Value) + len(headers))
	}
	const insert = "INSERT INTO outbox(id, topic, record_key, value, headers, created_at) VALUES "
	if err := l.tx.WriteRows("insert into the outbox", insert, columns, "", args); err != nil {
		return err
	}
	if err := l.tx.Write("write the ledger of the outbox", 1,
		"UPDATE ledger SET head = ?, head_bytes = ? WHERE key = 0 AND head = ?",
		head+added, l.headBytes+bytes, head); err != nil {
		return err
	}
	l.Rows, l.Bytes, l.Head, l.headBytes = l.Rows+added, l.Bytes+bytes, head+added, l.headBytes+bytes
	l.tx.AfterCommit(func() {
		select {
		case l.box.wake <- struct{}{}:
		default:
			// The relay has a token already.
		}
	})
	return nil
}

// Row is a message that waits in the table.
type Row struct {
	ID int64
	contract.Message
}

// rowColumns are the columns that scanRow reads.
const rowColumns = "id, topic, record_key, value, headers"

// scanRow reads a row. bytes is its size.
func scanRow(rows *sql.Rows) (r Row, bytes int, err error) {
	var headers []byte
	if err := rows.Scan(&r.ID, &r.Topic, &r.Key, &r.Value, &headers); err != nil {
		return r, 0, err
	}
	if r.Headers, err = decodeHeaders(headers); err != nil {
		return r, 0, fmt.Errorf("row %d: %w", r.ID, err)
	}
	return r, len(r.Key) + len(r.Value) + len(headers), nil
}

// Waiting calls each with the rows that have one of these record keys, in the order of their IDs. It reads
// the keys of the whole table, once. It keeps no row, because together they may be as large as the outbox.
func (l *Ledger) Waiting(keys map[string]bool, each func(Row) error) error {
	if l.Rows == 0 || len(keys) == 0 {
		return nil
	}
	var ids []any
	err := l.tx.Query("SELECT id, record_key FROM outbox ORDER BY id", func(rows *sql.Rows) error {
		var id int64
		// Valid during the call only, and so without a copy.
		var key sql.RawBytes
		err := rows.Scan(&id, &key)
		if err == nil && keys[string(key)] {
			ids = append(ids, id)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the keys of the outbox: %w", err)
	}
	err = l.tx.QueryIn("SELECT "+rowColumns+" FROM outbox WHERE id IN ", ids, " ORDER BY id",
		func(rows *sql.Rows) error {
			r, _, err := scanRow(rows)
			if err != nil {
				return err
			}
			return each(r)
		})
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	return nil
}

// Discard deletes rows that were published, as the topics show. It is for the begin of a relay: none
// of the rows may be acknowledged.
func (l *Ledger) Discard(rows []int64) error {
	if len(rows) == 0 {
		return nil
	}
	ids := make([]any, len(rows))
	for i, id := range rows {
		ids[i] = id
	}
	var bytes int64
	err := l.tx.QueryIn("SELECT "+size+" FROM outbox WHERE id IN ", ids, "", func(r *sql.Rows) error {
		var some int64
		err := r.Scan(&some)
		bytes += some
		return err
	})
	if err != nil {
		return fmt.Errorf("measure what is published of the outbox: %w", err)
	}
	if err := l.tx.WriteRows("delete what is published from the outbox",
		"DELETE FROM outbox WHERE id IN (VALUES ", 1, ")", ids); err != nil {
		return err
	}
	done := l.Head
	err = l.tx.Query("SELECT id FROM outbox ORDER BY id LIMIT 1",
		func(r *sql.Rows) error { err := r.Scan(&done); done--; return err })
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	if err := l.tx.Write("write how far the outbox is published", 1,
		"UPDATE relay SET done = ?, done_bytes = done_bytes + ? WHERE key = 0", done, bytes); err != nil {
		return err
	}
	l.Rows, l.Bytes = l.Head-done, l.Bytes-bytes
	return nil
}
