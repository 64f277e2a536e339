package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/order/fold"
)

// index holds what was read of one topic so far, in a catalog of its own. It is a cache that every start
// deletes, so its offsets are in memory.
type index struct {
	// topicID is the ID of the topic. A topic that is recreated has another one.
	topicID string
	// first is where the log began when the index was created. Records below a later beginning were
	// deleted since, and may be in the index.
	first map[broker.Partition]int64
	path  string
	// limit is how many bytes all files beside path may take together; 0: as many as the disk has.
	limit   int64
	catalog *catalog

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
func newIndex(path string, limit int64, topicID string, first map[broker.Partition]int64) (*index, error) {
	c, err := newCatalog(path)
	if err != nil {
		return nil, err
	}
	return &index{
		topicID: topicID, first: first, path: path, limit: limit, catalog: c,
		read: map[broker.Partition]broker.Progress{},
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
func (ix *index) add(records []broker.Record) (unusable int, err error) {
	// Without what the index knows: it decides itself.
	result := fold.Batch(nil, fold.Decode(records))
	orders := make([]order, len(result.Winners))
	for i, d := range result.Winners {
		orders[i] = order{d.Event.Order.OrderID, d.Event.Order.Version, d.Body}
	}
	if err := ix.checkRoom(ix.catalog.cost(orders)); err != nil {
		return 0, err
	}
	if err := ix.catalog.put(orders); err != nil {
		return 0, fmt.Errorf("add %d orders to the audit's index: %w", len(orders), roomError(err))
	}
	for _, rejected := range result.Rejected {
		if rejected.Reason != contract.ReasonConflict {
			unusable++
		}
	}
	return unusable, nil
}

// checkRoom returns ErrNoRoom if the files may not grow by so many bytes.
func (ix *index) checkRoom(cost int64) error {
	dir := filepath.Dir(ix.path)
	space, err := sqldb.SpaceOf(dir)
	if err != nil {
		return err
	}
	used, err := usedBytes(dir)
	if err != nil {
		return err
	}
	if space.Left-space.Reserve < cost || ix.limit > 0 && used+cost > ix.limit {
		return ErrNoRoom
	}
	return nil
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

// close removes the index from the disk.
func (ix *index) close() error { return ix.catalog.close() }
