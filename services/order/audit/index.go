package audit

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/order/fold"
)

//go:embed migrations
var migrations embed.FS

// index holds what was read of one topic so far, in a database file of its own. It is a cache that
// every start deletes, so its commits do not wait for the disk and its offsets are in memory.
type index struct {
	// topicID is the ID of the topic. A topic that is recreated has another one.
	topicID string
	// first is where the log began when the index was created. Records below a later beginning were
	// deleted since, and may be in the index.
	first map[broker.Partition]int64
	path  string
	// limit is how many bytes all files beside path may take together; 0: as many as the disk has.
	limit int64
	db    *sqldb.DB

	// The fields below are under the reader's lock.

	// read is how far the topic is in the index, by partition.
	read map[broker.Partition]broker.Progress
	// replaced is true when Kafka has lost records that are in the index.
	replaced bool
	// broken is true when the index itself could not be written or read.
	broken bool
	// refs counts the users: the reader itself while this is its current index, and each audit that
	// was promised it.
	refs int
}

// newIndex creates an empty index at path, for a log that begins at first.
func newIndex(
	ctx context.Context, path string, limit int64, topicID string, first map[broker.Partition]int64, log *slog.Logger,
) (*index, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, sqldb.Config{Path: path, Sync: sqldb.Off, Migrations: files}, log)
	if err != nil {
		// The end of ctx may leave a file that is not whole.
		return nil, errors.Join(err, removeFiles(path))
	}
	return &index{
		topicID: topicID, first: first, path: path, limit: limit, db: db, read: map[broker.Partition]broker.Progress{},
	}, nil
}

// progress returns how far a partition is in the index. The caller holds the reader's lock.
func (ix *index) progress(p broker.Partition) broker.Progress {
	if at, ok := ix.read[p]; ok {
		return at
	}
	return broker.Progress{Last: -1}
}

// covers reports whether the index has everything from first to end, and nothing else.
func (ix *index) covers(first, end map[broker.Partition]int64) bool {
	for p, want := range end {
		if ix.read[p].Next < want {
			return false
		}
	}
	return ix.valid(first)
}

// valid reports whether the index can be brought forward: it is whole and of this very topic, and no record
// was deleted or lost since it was created.
func (ix *index) valid(first map[broker.Partition]int64) bool {
	if ix.replaced || ix.broken {
		return false
	}
	for p, begin := range first {
		if p.TopicID != ix.topicID || begin > ix.first[p] {
			return false
		}
	}
	return true
}

// add brings records into the index. Of several records of one version the first stays. It returns
// how many of the records hold no order. The index ends with ErrNoRoom before it takes what the store
// on the same volume keeps in reserve, and as much again for the store to grow; or before all indexes
// are larger than the limit.
func (ix *index) add(ctx context.Context, records []broker.Record) (unusable int, err error) {
	result := fold.Batch(nil, fold.Decode(records))
	const columns = 3
	args := make([]any, 0, columns*len(result.Winners))
	var cost int64
	for _, d := range result.Winners {
		args = append(args, d.Event.Order.OrderID, d.Event.Order.Version, d.Body)
		cost += sqldb.Cost(len(d.Body))
	}
	space, err := ix.db.Space(ctx)
	if err != nil {
		return 0, err
	}
	if space.Left-space.Reserve < cost {
		return 0, ErrNoRoom
	}
	if used, err := usedBytes(filepath.Dir(ix.path)); err != nil {
		return 0, err
	} else if ix.limit > 0 && used+cost > ix.limit {
		return 0, ErrNoRoom
	}
	err = ix.db.Tx(ctx, func(tx *sqldb.Tx) error {
		// Here the condition decides, because the batch was folded without what the index knows. So
		// it is no fault when fewer rows change.
		_, err := tx.ExecRows("INSERT INTO orders(order_id, version, body) VALUES ", columns,
			` ON CONFLICT (order_id) DO UPDATE SET version = excluded.version, body = excluded.body
			WHERE excluded.version > orders.version`, args)
		return err
	})
	if sqldb.IsFull(err) {
		err = fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	if err != nil {
		return 0, fmt.Errorf("add %d orders to the audit's index: %w", len(result.Winners), err)
	}
	for _, rejected := range result.Rejected {
		if rejected.Reason != contract.ReasonConflict {
			unusable++
		}
	}
	return unusable, nil
}

// usedBytes returns how large the files in dir are together.
func usedBytes(dir string) (used int64, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("look up what the audits' indexes use: %w", err)
	}
	for _, file := range files {
		info, err := file.Info()
		// Another reader may remove its index meanwhile.
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("look up what the audits' indexes use: %w", err)
		}
		used += info.Size()
	}
	return used, nil
}

// close closes the index and removes it from the disk.
func (ix *index) close() error { return errors.Join(ix.db.Close(), removeFiles(ix.path)) }

// removeFiles removes the files of the database at path, as far as there are any.
func removeFiles(path string) error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		if err := os.Remove(path + suffix); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
