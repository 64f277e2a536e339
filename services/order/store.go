package order

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/order/fold"
)

//go:embed migrations
var migrations embed.FS

// maxLetters and maxLettersBytes bound the dead letters that wait for Kafka. A dead-letter topic that
// refuses for long must not fill the disk.
const (
	maxLetters      = 10_000
	maxLettersBytes = 1 << 30
)

var (
	errLettersFull = errors.New("too many dead letters wait for the dead-letter topic")
	errNearlyFull  = errors.New("the volume is nearly full: only the room for deletions is left")
)

// store is the materialised view of the topics: the newest version of each order, the offsets up to
// which the topics are in it, and the dead letters that are still to be published. It is safe for
// concurrent use.
type store struct {
	db  *sqldb.DB
	box *outbox.Box
	// topics are those of which it is the view.
	topics     []string
	maxLetters int64 // maxLetters, or less in tests
	// maxLettersBytes is the constant, or less in tests.
	maxLettersBytes int64
}

// openStore opens the view of the topics in the database at url, or in dir if that is empty, and
// registers the metrics of its outbox.
//
// A commit does not wait for the disk. After a power loss orders and offsets roll back together,
// and Kafka still has what is missing.
func openStore(
	ctx context.Context, url, dir string, topics []string, log *slog.Logger, reg prometheus.Registerer,
) (*store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "order.db")
	cfg := sqldb.Config{URL: url, Path: path, Sync: sqldb.Normal, Schema: "order_view", Migrations: files}
	db, err := sqldb.Open(ctx, cfg, log)
	if _, damaged := errors.AsType[*sqldb.DamagedError](err); damaged {
		// The store is a view of the topics, so it is rebuilt from them.
		log.Error("the store is damaged: it is set aside and rebuilt from the topics; check the disk",
			"aside", path+aside, "err", err)
		if err := setAside(path); err != nil {
			return nil, err
		}
		db, err = sqldb.Open(ctx, cfg, log)
	}
	if err != nil {
		return nil, err
	}
	s := &store{db: db, topics: topics, maxLetters: maxLetters, maxLettersBytes: maxLettersBytes}
	read, err := s.offsets(ctx)
	if err == nil {
		err = broker.CheckStore(read, topics)
	}
	if err == nil {
		s.box, err = outbox.Open(ctx, db, log, reg, "order", nil)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	// Last: an attempt to open the store that fails leaves no metrics behind.
	reg.MustRegister(sqldb.NewCollector(db, "order", db.Err))
	return s, nil
}

// aside is the end of the names of a damaged database's files.
const aside = ".damaged"

// setAside renames the files of the database at path. They replace those of an earlier time: a volume
// has room for one damaged database.
func setAside(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		// Without a WAL, none of an earlier time may stay.
		if err := os.Remove(path + suffix + aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Rename(path+suffix, path+suffix+aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// close closes the database. What was committed stays.
func (s *store) close() error { return s.db.Close() }

// assign returns how far each partition is in the store.
//
// fresh are the partitions whose topic had another ID before. That topic is gone; its offsets are
// deleted, and the orders that it brought stay. After sqldb.ErrUnknownCommit they come with the error: the next
// call may not see them any more.
func (s *store) assign(
	ctx context.Context, ps []broker.Partition,
) (read map[broker.Partition]broker.Progress, fresh []broker.Partition, err error) {
	err = s.db.Tx(ctx, func(tx *sqldb.Tx) (err error) {
		read, fresh, err = assignIn(tx, ps)
		return err
	})
	if err == nil {
		return read, fresh, nil
	}
	if !errors.Is(err, sqldb.ErrUnknownCommit) {
		fresh = nil
	}
	return nil, fresh, fmt.Errorf("load the offsets of %d partitions: %w", len(ps), err)
}

// assignIn does the work of assign in its transaction.
func assignIn(
	tx *sqldb.Tx, ps []broker.Partition,
) (read map[broker.Partition]broker.Progress, fresh []broker.Partition, err error) {
	read = make(map[broker.Partition]broker.Progress, len(ps))
	// Each member takes the rows in the same order.
	for _, p := range slices.SortedFunc(slices.Values(ps), broker.Partition.Compare) {
		gone, err := tx.Exec("DELETE FROM offsets WHERE topic = ? AND partition = ? AND topic_id <> ?",
			p.Topic, p.Number, p.TopicID)
		if err != nil {
			return nil, nil, err
		}
		if gone > 0 {
			fresh = append(fresh, p)
		}
		if _, err := tx.Exec(`INSERT INTO offsets(topic_id, partition, topic, next_offset) VALUES (?, ?, ?, 0)
			ON CONFLICT DO NOTHING`, p.TopicID, p.Number, p.Topic); err != nil {
			return nil, nil, err
		}
		// The member that had the partition may still write its last batch. Its end is waited for.
		if err := tx.Query(`SELECT next_offset, last_offset, newest_time FROM offsets
			WHERE topic_id = ? AND partition = ?`+tx.ForUpdate(),
			func(rows *sql.Rows) error {
				var r broker.Progress
				var newest int64
				err := rows.Scan(&r.Next, &r.Last, &newest)
				r.Newest = time.UnixMilli(newest)
				read[p] = r
				return err
			}, p.TopicID, p.Number); err != nil {
			return nil, nil, err
		}
	}
	return read, fresh, nil
}

// move takes a partition from the end of the last batch to the end of the next one.
type move struct {
	partition broker.Partition
	// from is the offset at which the store has to be.
	from int64
	to   broker.Progress
}

// restart takes partitions to other offsets, without any record.
func (s *store) restart(ctx context.Context, moves []move) error {
	return s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		if err := lockOffsets(tx, moves); err != nil {
			return err
		}
		return moveOffsets(tx, moves)
	})
}

// maxOvertaken is how often a batch is begun again because another member has written one of its
// orders meanwhile. Each time, that member has made progress.
const maxOvertaken = 10

// apply brings a batch into the store: orders, dead letters and offsets change together or not at
// all. It returns broker.ErrFenced when an offset is not where its move begins: another member has
// the partition. It returns errLettersFull when there is no room for the dead letters, and
// errNearlyFull when the disk has room only to delete letters.
func (s *store) apply(ctx context.Context, batch []fold.Decoded, moves []move, now time.Time) (fold.Result, error) {
	for overtaken := 0; ; overtaken++ {
		var result fold.Result
		err := s.db.Tx(ctx, func(tx *sqldb.Tx) (err error) {
			result, err = s.applyIn(tx, batch, moves, now)
			return err
		})
		if err == nil {
			return result, nil
		}
		// During a handover, one member may have the creation of an order and another one its updates.
		// What the other one has written since the versions were read decides now.
		_, changed := errors.AsType[*sqldb.CountError](err)
		if !changed || !s.db.Shared() || overtaken == maxOvertaken {
			return fold.Result{}, err
		}
	}
}

// applyIn does the work of apply in its transaction. It locks the offsets first: from there on, no
// other member can write the same partitions.
func (s *store) applyIn(tx *sqldb.Tx, batch []fold.Decoded, moves []move, now time.Time) (fold.Result, error) {
	if err := hasRoom(tx); err != nil {
		return fold.Result{}, err
	}
	if err := lockOffsets(tx, moves); err != nil {
		return fold.Result{}, err
	}
	marks, err := readMarks(tx, liveTable, batch)
	if err != nil {
		return fold.Result{}, fmt.Errorf("read the known versions: %w", err)
	}
	result := fold.Batch(marks, batch)
	if len(result.Rejected) > 0 {
		ledger, err := s.box.Lock(tx)
		if err != nil {
			return fold.Result{}, err
		}
		if ledger.Rows >= s.maxLetters || ledger.Bytes >= s.maxLettersBytes {
			return fold.Result{}, fmt.Errorf("%w: %d of at most %d, %d bytes of at most %d",
				errLettersFull, ledger.Rows, s.maxLetters, ledger.Bytes, s.maxLettersBytes)
		}
		if err := ledger.Add(now, deadLetters(result.Rejected, now)); err != nil {
			return fold.Result{}, err
		}
	}
	if err := moveOffsets(tx, moves); err != nil {
		return fold.Result{}, err
	}
	return result, upsert(tx, liveTable, result.Winners)
}

// hasRoom returns errNearlyFull if the disk has room only for deletions.
func hasRoom(tx *sqldb.Tx) error {
	room, err := tx.Room()
	if err == nil && room <= 0 {
		err = errNearlyFull
	}
	return err
}

// The tables of orders.
const (
	// liveTable has the view that look-ups read.
	liveTable = "orders"
	// shadowTable has a second one, while a command rebuilds the first: see shadow.
	shadowTable = "orders_shadow"
)

// readMarks returns what a table knows of the orders of a batch.
func readMarks(tx *sqldb.Tx, table string, batch []fold.Decoded) (map[string]fold.Mark, error) {
	ids := make([]any, 0, len(batch))
	for i := range batch {
		if batch[i].Err == nil {
			ids = append(ids, batch[i].Event.Order.OrderID)
		}
	}
	marks := make(map[string]fold.Mark, len(ids))
	err := tx.QueryIn("SELECT order_id, version, event_id FROM "+table+" WHERE order_id IN ", ids, "",
		func(rows *sql.Rows) error {
			var id string
			var m fold.Mark
			err := rows.Scan(&id, &m.Version, &m.EventID)
			marks[id] = m
			return err
		})
	return marks, err
}

// The parts of a statement that writes orders into a table.
const (
	orderColumns = "order_id, version, event_id, total, body"
	// replaceOrders makes it replace those that the table has.
	replaceOrders = ` ON CONFLICT (order_id) DO UPDATE
		SET version = excluded.version, event_id = excluded.event_id, total = excluded.total, body = excluded.body`
)

// upsert writes the new versions of orders into a table, or returns a *sqldb.CountError. A version never
// goes back: the condition guards what was decided from the marks, and an order that it holds back is an
// error. The rows are in the order of their IDs, so that no two members wait for each other.
func upsert(tx *sqldb.Tx, table string, winners []*fold.Decoded) error {
	byID := slices.SortedFunc(slices.Values(winners), func(a, b *fold.Decoded) int {
		return strings.Compare(a.Event.Order.OrderID, b.Event.Order.OrderID)
	})
	const columns = 5
	args := make([]any, 0, columns*len(byID))
	for _, d := range byID {
		o := &d.Event.Order
		args = append(args, o.OrderID, o.Version, d.Event.ID, int64(o.TotalAmount), d.Body)
	}
	return tx.WriteRows("write orders", "INSERT INTO "+table+"("+orderColumns+") VALUES ", columns,
		replaceOrders+" WHERE excluded.version > "+table+".version", args)
}

// lockOffsets is the first half of a compare-and-set of all offsets. It returns broker.ErrFenced if one of
// them is not where its move begins. Until the end of the transaction, no other member can move them.
func lockOffsets(tx *sqldb.Tx, moves []move) error {
	keys := make([]any, len(moves))
	for i, m := range moves {
		keys[i] = offsetKey(m.partition)
	}
	at := make(map[string]int64, len(moves))
	// Each member takes the rows in the same order.
	err := tx.QueryIn("SELECT topic_id, partition, next_offset FROM offsets WHERE topic_id || '/' || partition IN ",
		keys, " ORDER BY topic_id, partition"+tx.ForUpdate(), func(rows *sql.Rows) error {
			var p broker.Partition
			var next int64
			err := rows.Scan(&p.TopicID, &p.Number, &next)
			at[offsetKey(p)] = next
			return err
		})
	if err != nil {
		return fmt.Errorf("read %d offsets: %w", len(moves), err)
	}
	for _, m := range moves {
		if next, known := at[offsetKey(m.partition)]; !known || next != m.from {
			return fmt.Errorf("%s/%d is no longer at offset %d: %w", m.partition.Topic, m.partition.Number, m.from,
				broker.ErrFenced)
		}
	}
	return nil
}

// moveOffsets is the second half.
func moveOffsets(tx *sqldb.Tx, moves []move) error {
	const columns = 6
	args := make([]any, 0, columns*len(moves))
	for _, m := range moves {
		p := m.partition
		args = append(args, p.TopicID, int64(p.Number), p.Topic, m.to.Next, m.to.Last, m.to.Newest.UnixMilli())
	}
	return tx.WriteRows("move the offsets",
		"INSERT INTO offsets(topic_id, partition, topic, next_offset, last_offset, newest_time) VALUES ", columns,
		` ON CONFLICT (topic_id, partition) DO UPDATE SET next_offset = excluded.next_offset,
		last_offset = excluded.last_offset, newest_time = excluded.newest_time`, args)
}

// offsetKey is a partition's key in the table of offsets, as one value.
func offsetKey(p broker.Partition) string { return p.TopicID + "/" + strconv.Itoa(int(p.Number)) }

// stored is an order as the store has it. Version 0 is an order that the store does not have.
type stored struct {
	version int64
	total   contract.Amount
	body    []byte // JSON
}

// lookUp reads one order.
const lookUp = "SELECT version, total, body FROM orders WHERE order_id = ?"

// get returns an order as the store has it at this moment. The error is not nil only if the
// database fails.
func (s *store) get(ctx context.Context, id string) (stored, error) {
	var found stored
	err := s.db.Query(ctx, lookUp, func(rows *sql.Rows) error {
		return rows.Scan(&found.version, &found.total, &found.body)
	}, id)
	if err != nil {
		return stored{}, fmt.Errorf("look up order %q: %w", id, err)
	}
	return found, nil
}

// versions returns the versions of orders, by their IDs. Orders that the store does not have are
// absent.
func (s *store) versions(ctx context.Context, ids []string) (map[string]int64, error) {
	keys := make([]any, len(ids))
	for i, id := range ids {
		keys[i] = id
	}
	known := make(map[string]int64, len(ids))
	err := s.db.QueryIn(ctx, "SELECT order_id, version FROM orders WHERE order_id IN ", keys, "",
		func(rows *sql.Rows) error {
			var id string
			var version int64
			err := rows.Scan(&id, &version)
			known[id] = version
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("read the versions of %d orders: %w", len(ids), err)
	}
	return known, nil
}

// readOffsets reads the offsets of all partitions, for scanOffset.
const readOffsets = "SELECT topic, topic_id, partition, next_offset FROM offsets"

// scanOffset returns what adds a row to all.
func scanOffset(all map[broker.Partition]int64) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var p broker.Partition
		var next int64
		err := rows.Scan(&p.Topic, &p.TopicID, &p.Number, &next)
		all[p] = next
		return err
	}
}

// offsets returns how far the topics are in the store, for each partition that any member was ever
// assigned.
func (s *store) offsets(ctx context.Context) (map[broker.Partition]int64, error) {
	all := map[broker.Partition]int64{}
	if err := s.db.Query(ctx, readOffsets, scanOffset(all)); err != nil {
		return nil, fmt.Errorf("read the offsets: %w", err)
	}
	return all, nil
}

// lockAllOffsets is offsets in a transaction. Until its end, no member can move one of them. Offsets of
// partitions that no member has had before may still be added.
func lockAllOffsets(tx *sqldb.Tx) (map[broker.Partition]int64, error) {
	all := map[broker.Partition]int64{}
	// Each member takes the rows in the same order.
	err := tx.Query(readOffsets+" ORDER BY topic_id, partition"+tx.ForUpdate(), scanOffset(all))
	if err != nil {
		return nil, fmt.Errorf("lock the offsets: %w", err)
	}
	return all, nil
}
