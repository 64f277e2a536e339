package order

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/rebuild"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/order/fold"
)

const (
	// claimTime is for how long a command has the shadow after each batch. One that was killed holds up the
	// next one by this.
	claimTime = time.Minute
	// closePatience is what the last transaction of a command may take.
	closePatience = 5 * time.Second
	// longest is what a transaction about the whole view may take. Batches of the consumer wait meanwhile.
	longest = 2 * time.Minute
	// mostExamples is how many orders of each difference are named.
	mostExamples = 20
	// mostSwapped is how many orders a swap changes. Their IDs are in memory.
	mostSwapped = 1_000_000
	// swapRows is how many of them a statement changes.
	swapRows = 1000
)

var (
	errClaimed = fmt.Errorf(
		"another process rebuilds the view, or one that did was killed less than %s ago", claimTime)
	errClaimLost = errors.New("another command to rebuild the view has begun, or the database has lost what this " +
		"one has written: repeat the command")
	errPartitions = errors.New(
		"meanwhile a topic was recreated, or got partitions, or is read again: repeat the command")
)

// shadow is a second view of the topics, in a table beside the live one, which look-ups read. The same code
// writes both. A shadow belongs to one command: the row of the table rebuild names it, and the command locks
// that row in each of its transactions.
type shadow struct {
	db *sqldb.DB
	// owner is the name of the command.
	owner string
	// expires is when its claim ends, as its last transaction has written it. It grows each time, and is
	// compared: a database that has lost a transaction, such as after a failover, has an earlier one.
	expires int64
	// read is how far the topics are in the shadow. It has the partitions that the live view has.
	read map[broker.Partition]int64
	// unusable counts the records that take no effect. Their dead letters are the consumer's.
	unusable int64
	// passed and known count offsets, for those who wait: those that are read, and all that are to be read.
	passed, known atomic.Int64
}

// newShadow returns the empty shadow, or errClaimed. The caller must call close in the end.
func newShadow(ctx context.Context, db *sqldb.DB) (*shadow, error) {
	sh := &shadow{db: db, owner: rand.Text()}
	err := db.LongTx(ctx, longest, func(tx *sqldb.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		expires := now.Add(claimTime).UnixMilli()
		// A claim that ends much later than this one is from before the database's clock went back. Many quick
		// batches may be ahead of the clock by some milliseconds.
		latest := now.Add(claimTime + time.Second).UnixMilli()
		if !db.Shared() {
			// Any claim is that of a process that has ended.
			latest = 0
		}
		claimed, err := tx.Exec(`INSERT INTO rebuild(key, owner, expires_at) VALUES (0, ?, ?)
			ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
			WHERE rebuild.expires_at <= ? OR rebuild.expires_at > ?`, sh.owner, expires, now.UnixMilli(), latest)
		if err == nil && claimed == 0 {
			err = errClaimed
		}
		if err != nil {
			return err
		}
		tx.AfterCommit(func() { sh.expires = expires })
		return tx.Empty(shadowTable)
	})
	if err != nil {
		return nil, fmt.Errorf("begin a shadow of the view: %w", err)
	}
	return sh, nil
}

// close empties the shadow, and lets the next command begin, unless it has begun already. A database that does
// not respond must not hold up the end of the service: the next command empties the shadow too.
func (sh *shadow) close(ctx context.Context) error {
	release := func(then func(tx *sqldb.Tx) error) error {
		return sh.db.LongTx(context.WithoutCancel(ctx), closePatience, func(tx *sqldb.Tx) error {
			released, err := tx.Exec("UPDATE rebuild SET expires_at = 0 WHERE key = 0 AND owner = ?", sh.owner)
			if err != nil || released == 0 {
				return err
			}
			return then(tx)
		})
	}
	// Twice: whoever reads the shadow, as pg_dump does, keeps it from being emptied, and not from being released.
	if err := release(func(*sqldb.Tx) error { return nil }); err != nil {
		return err
	}
	return release(func(tx *sqldb.Tx) error { return tx.Empty(shadowTable) })
}

// hold renews the claim, or returns errClaimLost. No other command gets the shadow before the transaction
// ends.
func (sh *shadow) hold(tx *sqldb.Tx) error {
	now, err := tx.Now()
	if err != nil {
		return err
	}
	expires := max(now.Add(claimTime).UnixMilli(), sh.expires+1)
	held, err := tx.Exec("UPDATE rebuild SET expires_at = ? WHERE key = 0 AND owner = ? AND expires_at = ?",
		expires, sh.owner, sh.expires)
	if err == nil && held == 0 {
		err = errClaimLost
	}
	if err != nil {
		return err
	}
	tx.AfterCommit(func() { sh.expires = expires })
	return nil
}

// begin sets where reading begins: at the first offsets, in the partitions that end where end says. The live
// view has come to the offsets at, which were read before the ends.
func (sh *shadow) begin(at, first, end map[broker.Partition]int64) error {
	if err := ahead(at, end); err != nil {
		return err
	}
	sh.read = make(map[broker.Partition]int64, len(at))
	for p, next := range at {
		// A partition that Kafka does not have any more is not read.
		sh.read[p] = next
		if _, exists := end[p]; exists {
			sh.read[p] = min(first[p], next)
		}
	}
	for p := range end {
		if _, assigned := at[p]; !assigned {
			return fmt.Errorf("no member has had %s/%d yet: its topic was recreated, or got partitions",
				p.Topic, p.Number)
		}
	}
	return nil
}

// missing returns how many offsets the shadow is behind the live view, which has come to the offsets at, or
// errPartitions if it cannot follow.
func (sh *shadow) missing(at map[broker.Partition]int64) (offsets int64, err error) {
	if len(at) != len(sh.read) {
		return 0, errPartitions
	}
	for p, next := range at {
		read, same := sh.read[p]
		if !same || next < read {
			return 0, errPartitions
		}
		offsets += next - read
	}
	return offsets, nil
}

// add brings a batch of records into the shadow, in a transaction of its own. They take turns with the
// batches of the consumer.
func (sh *shadow) add(ctx context.Context, records []broker.Record) error {
	batch := fold.Decode(records)
	var unusable int64
	err := sh.db.Tx(ctx, func(tx *sqldb.Tx) (err error) {
		if err := sh.hold(tx); err != nil {
			return err
		}
		unusable, err = addIn(tx, batch)
		return err
	})
	if err != nil {
		return fmt.Errorf("bring %d records into the shadow: %w", len(records), err)
	}
	sh.unusable += unusable
	sh.passed.Add(int64(len(records)))
	return nil
}

// addIn does the work of add in a transaction, and returns how many of the records take no effect.
func addIn(tx *sqldb.Tx, batch []fold.Decoded) (unusable int64, err error) {
	if err := hasRoom(tx); err != nil {
		return 0, err
	}
	marks, err := readMarks(tx, shadowTable, batch)
	if err != nil {
		return 0, fmt.Errorf("read the known versions: %w", err)
	}
	result := fold.Batch(marks, batch)
	return int64(len(result.Rejected)), upsert(tx, shadowTable, result.Winners)
}

// comparison is how the live view differs from the shadow, when both have the topics up to the same offsets.
type comparison struct {
	rebuild.Result
	// surplus are the IDs of the orders that only the live view has, and others those of all else that
	// differs, mostSwapped at most. There are none unless they are to be swapped.
	surplus, others []any
	swaps           bool
	// bytes is what a swap writes at most.
	bytes int64
}

// compare compares the live view with the shadow, for a swap if that is wanted.
func compare(tx *sqldb.Tx, swaps bool) (*comparison, error) {
	c := &comparison{swaps: swaps}
	c.Differing, c.Examples = make(map[rebuild.Difference]int64), []rebuild.Order{}
	err := tx.Query("SELECT count(*) FROM "+shadowTable, func(rows *sql.Rows) error { return rows.Scan(&c.Orders) })
	if err == nil {
		err = tx.Query(`SELECT coalesce(v.order_id, t.order_id), v.version, t.version,
				v.event_id IS DISTINCT FROM t.event_id, coalesce(length(t.body), 0)
			FROM `+liveTable+` v FULL JOIN `+shadowTable+` t ON t.order_id = v.order_id
			WHERE v.version IS DISTINCT FROM t.version OR v.event_id IS DISTINCT FROM t.event_id
			OR v.total IS DISTINCT FROM t.total OR v.body IS DISTINCT FROM t.body`, c.scan)
	}
	if err != nil {
		return nil, fmt.Errorf("compare the view with the shadow: %w", err)
	}
	slices.SortFunc(c.Examples, rebuild.Order.Compare)
	return c, nil
}

// scan takes a row of an order that differs: its ID, both versions, whether they are of different events, and
// the size of its contents in the topics.
func (c *comparison) scan(rows *sql.Rows) error {
	var o rebuild.Order
	var view, topics sql.NullInt64
	var otherEvent bool
	var size int
	if err := rows.Scan(&o.OrderID, &view, &topics, &otherEvent, &size); err != nil {
		return err
	}
	o.View, o.Topics = view.Int64, topics.Int64
	ids := &c.others
	switch {
	case !topics.Valid:
		o.Difference, ids = rebuild.OnlyInView, &c.surplus
	case !view.Valid:
		o.Difference = rebuild.OnlyInTopics
	case o.View > o.Topics:
		o.Difference = rebuild.NewerInView
	case o.View == o.Topics && otherEvent:
		// The first of two events with one version counts. Compaction may have left the other one.
		o.Difference = rebuild.OtherEventInView
	default:
		o.Difference = rebuild.Different
	}
	if c.Differing[o.Difference]++; c.Differing[o.Difference] <= mostExamples {
		c.Examples = append(c.Examples, o)
	}
	if c.swaps && len(c.surplus)+len(c.others) < mostSwapped {
		*ids = append(*ids, o.OrderID)
		c.bytes += sqldb.Cost(size)
	}
	return nil
}

// refusal returns why the view must not be swapped, or "". room is how many bytes may be written.
func (c *comparison) refusal(o rebuild.Options, room int64) string {
	lost := c.Differing[rebuild.OnlyInView] + c.Differing[rebuild.NewerInView] + c.Differing[rebuild.OtherEventInView]
	switch {
	case lost > 0 && !o.Drop:
		return fmt.Sprintf("nothing is changed: of %d orders, only the view has the newest version. If they are to "+
			"be lost, use drop=true (orderctl rebuild -swap -drop)", lost)
	case c.bytes > room:
		return fmt.Sprintf("nothing is changed: the volume has room for %d MiB more, and the swap may write %d",
			max(0, room)>>20, c.bytes>>20)
	case c.Differ() > mostSwapped:
		return fmt.Sprintf("nothing is changed: %d orders differ, and a swap takes %d at most. Delete the store "+
			"instead (docs/operations.md, Storage)", c.Differ(), mostSwapped)
	default:
		return ""
	}
}

// swap makes the live view what the shadow is, where they differ.
func (c *comparison) swap(tx *sqldb.Tx) error {
	for ids := range slices.Chunk(c.surplus, swapRows) {
		if err := tx.WriteRows("delete orders that only the view has",
			"DELETE FROM "+liveTable+" WHERE order_id IN (VALUES ", 1, ")", ids); err != nil {
			return err
		}
	}
	for ids := range slices.Chunk(c.others, swapRows) {
		if err := tx.WriteRows("write the orders of the shadow",
			"INSERT INTO "+liveTable+"("+orderColumns+") SELECT "+orderColumns+" FROM "+shadowTable+
				" WHERE order_id IN (VALUES ", 1, ")"+replaceOrders, ids); err != nil {
			return err
		}
	}
	return nil
}
