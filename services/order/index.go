package order

import (
	"bufio"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

//go:embed audit
var indexMigrations embed.FS

// index is what was read of one topic so far, in a file of its own. It is a cache that no start finds again, so its commits do not
// wait for the disk and its offsets are in memory.
type index struct {
	topicID string
	path    string
	db      *sqldb.DB

	// Under the auditor's lock:
	next map[broker.Partition]int64 // every record below is in the index
	refs int                        // the auditor's own, and one for each caller that was promised this index
}

func newIndex(ctx context.Context, path, topicID string, log *slog.Logger) (*index, error) {
	files, err := fs.Sub(indexMigrations, "audit")
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, path, sqldb.Off, files, log)
	if err != nil {
		return nil, err
	}
	return &index{topicID: topicID, path: path, db: db, next: map[broker.Partition]int64{}}, nil
}

// close removes the index from the disk.
func (ix *index) close() error {
	errs := []error{ix.db.Close()}
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		if err := os.Remove(ix.path + suffix); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// covers says whether the index is of this very topic and has everything up to these offsets.
func (ix *index) covers(end map[broker.Partition]int64) bool {
	for p, last := range end {
		if p.TopicID != ix.topicID || ix.next[p] < last {
			return false
		}
	}
	return true
}

// add brings records into the index; of the same version the first stays. It returns how many of them hold no order.
func (ix *index) add(ctx context.Context, records []broker.Record) (unusable int, err error) {
	out := fold(nil, decode(records))
	const columns = 3
	args := make([]any, 0, columns*len(out.winners))
	for _, d := range out.winners {
		args = append(args, d.event.Order.OrderID, d.event.Order.Version, d.body)
	}
	err = ix.db.Tx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.ExecRows("INSERT INTO orders(order_id, version, body) VALUES ", columns, ` ON CONFLICT (order_id) DO UPDATE
			SET version = excluded.version, body = excluded.body WHERE excluded.version > orders.version`, args)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("add %d orders to the audit's index: %w", len(out.winners), err)
	}
	for _, l := range out.letters {
		if l.reason != contract.ReasonConflict {
			unusable++
		}
	}
	return unusable, nil
}

// snapshot is an index as it was at one moment.
type snapshot struct {
	topic  string
	orders int64
	tx     *sql.Tx
	close  func()
}

// writeJSON streams the answer, whatever its size through one buffer.
func (s *snapshot) writeJSON(ctx context.Context, w io.Writer) error {
	// A context that can end would cost go-sqlite3 a goroutine for each row.
	rows, err := s.tx.QueryContext(context.WithoutCancel(ctx), "SELECT body FROM orders ORDER BY id")
	if err != nil {
		return fmt.Errorf("read the audit's index: %w", err)
	}
	defer rows.Close()
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, `{"message":"Total orders in topic '%s': %d","orders":[`, s.topic, s.orders)
	var n int64
	for ; rows.Next(); n++ {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return fmt.Errorf("read the audit's index: %w", err)
		}
		if n > 0 {
			out.WriteByte(',')
		}
		if _, err := out.Write(body); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
		if n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the audit's index: %w", err)
	}
	if n != s.orders {
		return fmt.Errorf("the audit's index has %d orders, %d were counted", n, s.orders)
	}
	out.WriteString("]}")
	return out.Flush()
}
