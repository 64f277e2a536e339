package audit

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
)

// bufferBytes is the size of the buffer through which a result is written.
const bufferBytes = 64 << 10

// Result is what a topic holds at one moment. Later reads do not change it.
type Result struct {
	// Topic is the topic's name.
	Topic string
	// Orders is the number of orders.
	Orders int64
	// Wanted ends when another audit waits for the result to be closed.
	Wanted context.Context

	tx      *sql.Tx
	release func(broken bool)
	// broken is true when the index could not be read.
	broken bool
}

// openResult begins a read transaction on the index. release is called at the end of the result,
// and when openResult fails. It takes whether the index is broken. The result ends with ctx.
func openResult(ctx context.Context, topic string, ix *index, release func(broken bool)) (*Result, error) {
	tx, err := ix.db.Snapshot(ctx)
	if err != nil {
		release(ctx.Err() == nil)
		return nil, fmt.Errorf("read the audit's index: %w", err)
	}
	r := &Result{Topic: topic, tx: tx, release: release}
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM orders").Scan(&r.Orders); err != nil {
		err = r.unreadable(ctx, err)
		r.Close()
		return nil, err
	}
	return r, nil
}

// unreadable returns the error of a read of the index. After the end of ctx, it is only that.
func (r *Result) unreadable(ctx context.Context, err error) error {
	r.broken = ctx.Err() == nil
	return fmt.Errorf("read the audit's index: %w", err)
}

// WriteJSON writes the result through one buffer, so its memory does not grow with the orders. When
// ctx ends, the error is the cause of ctx.
func (r *Result) WriteJSON(ctx context.Context, w io.Writer) error {
	if err := r.writeJSON(ctx, w); err != nil {
		return causeOf(ctx, err)
	}
	return nil
}

func (r *Result) writeJSON(ctx context.Context, w io.Writer) error {
	// A context that can end would cost go-sqlite3 a goroutine for each row.
	rows, err := r.tx.QueryContext(context.WithoutCancel(ctx), "SELECT body FROM orders ORDER BY id")
	if err != nil {
		return r.unreadable(ctx, err)
	}
	defer rows.Close()
	out := bufio.NewWriterSize(w, bufferBytes)
	fmt.Fprintf(out, `{"message":"Total orders in topic '%s': %d","orders":[`, r.Topic, r.Orders)
	var written int64
	for ; rows.Next(); written++ {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return r.unreadable(ctx, err)
		}
		if written > 0 {
			out.WriteByte(',')
		}
		if _, err := out.Write(body); err != nil {
			return fmt.Errorf("write the audit's result: %w", err)
		}
		if written%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := rows.Err(); err != nil {
		return r.unreadable(ctx, err)
	}
	if written != r.Orders {
		return r.unreadable(ctx, fmt.Errorf("it has %d orders, %d were counted", written, r.Orders))
	}
	out.WriteString("]}")
	return out.Flush()
}

// Close gives the index and the slot of the result back.
func (r *Result) Close() {
	// A rollback of what was only read can lose nothing.
	_ = r.tx.Rollback()
	r.release(r.broken)
}
