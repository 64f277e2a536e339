package audit

import (
	"bufio"
	"context"
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

	view *view
	// release takes whether the index is broken.
	release func(broken bool)
	// broken is true when the index could not be read.
	broken bool
}

// WriteJSON writes the result through one buffer, so its memory does not grow with the orders. When
// ctx ends, the error is the cause of ctx.
func (r *Result) WriteJSON(ctx context.Context, w io.Writer) error {
	out := bufio.NewWriterSize(w, bufferBytes)
	fmt.Fprintf(out, `{"message":"Total orders in topic '%s': %d","orders":[`, r.Topic, r.Orders)
	written := int64(0)
	var failed error
	if err := r.view.each(func(body []byte) error {
		if written%1024 == 0 {
			failed = context.Cause(ctx)
		}
		if failed == nil && written > 0 {
			failed = out.WriteByte(',')
		}
		if failed == nil {
			_, failed = out.Write(body)
		}
		written++
		return failed
	}); failed == nil && err != nil {
		r.broken = true
		return fmt.Errorf("read the audit's index: %w", err)
	}
	if failed == nil {
		out.WriteString("]}")
		failed = out.Flush()
	}
	if failed != nil {
		return causeOf(ctx, fmt.Errorf("write the audit's result: %w", failed))
	}
	return nil
}

// Close gives the index and the slot of the result back.
func (r *Result) Close() {
	r.view.close()
	r.release(r.broken)
}
