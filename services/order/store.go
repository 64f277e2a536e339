package order

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
)

//go:embed migrations
var migrations embed.FS

// maxLetters bounds the dead letters that wait for Kafka: a dead-letter topic that refuses for long must not fill the disk.
const maxLetters = 10_000

var errLettersFull = errors.New("too many dead letters wait for the dead-letter topic")

// store is the view of the orders: the newest version of each, the offsets up to which the topics are in it, and the dead letters
// that are still to be published.
type store struct {
	db         *sqldb.DB
	box        *outbox.Box // set by the service, as it reports metrics
	lookup     *sql.Stmt
	maxLetters int64
}

// openStore opens the store in dir. A commit does not wait for the disk: state and offsets roll back together, and Kafka has it all.
func openStore(ctx context.Context, dir string, log *slog.Logger) (*store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, filepath.Join(dir, "order.db"), sqldb.Normal, files, log)
	if err != nil {
		return nil, err
	}
	s := &store{db: db, maxLetters: maxLetters}
	if s.lookup, err = db.Read.PrepareContext(ctx, "SELECT version, total, body FROM orders WHERE order_id = ?"); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the look-up: %w", err), db.Close())
	}
	return s, nil
}

func (s *store) close() error { return errors.Join(s.lookup.Close(), s.db.Close()) }

// known is an order as the store knows it; version 0 is none.
type known struct {
	version int64
	total   contract.Amount
	body    []byte
}

func (s *store) get(ctx context.Context, id string) (known, error) {
	var k known
	// A read of microseconds need not be cut off; a context that can end would cost a goroutine.
	err := s.lookup.QueryRowContext(context.WithoutCancel(ctx), id).Scan(&k.version, &k.total, &k.body)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return known{}, fmt.Errorf("look up order %q: %w", id, err)
	}
	return k, nil
}

// assign returns where to go on reading for each partition; one that was never read starts at 0. Partitions whose topic had another
// ID before are returned too: that topic is gone, and what it told about orders stays.
func (s *store) assign(ctx context.Context, ps []broker.Partition) (next map[broker.Partition]int64, anew []broker.Partition, err error) {
	next = make(map[broker.Partition]int64, len(ps))
	err = s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		for _, p := range ps {
			gone, err := tx.Exec("DELETE FROM offsets WHERE topic = ? AND partition = ? AND topic_id <> ?", p.Topic, p.Number, p.TopicID)
			if err != nil {
				return err
			}
			if gone > 0 {
				anew = append(anew, p)
			}
			if _, err := tx.Exec("INSERT INTO offsets(topic_id, partition, topic, next_offset) VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING",
				p.TopicID, p.Number, p.Topic); err != nil {
				return err
			}
			if err := tx.Query("SELECT next_offset FROM offsets WHERE topic_id = ? AND partition = ?", func(rows *sql.Rows) error {
				var offset int64
				err := rows.Scan(&offset)
				next[p] = offset
				return err
			}, p.TopicID, p.Number); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("load the offsets of %d partitions: %w", len(ps), err)
	}
	return next, anew, nil
}

// move takes a partition's offset from where the last batch left it to the end of the next one.
type move struct {
	partition broker.Partition
	from, to  int64
}

// apply brings a batch into the store: orders, dead letters and offsets change together or not at all. broker.ErrFenced when an
// offset is not where the caller left it: another member has the partition.
func (s *store) apply(ctx context.Context, batch []decoded, moves []move, now time.Time) (outcome, error) {
	var out outcome
	err := s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		marks, err := readMarks(tx, batch)
		if err != nil {
			return fmt.Errorf("read the known versions: %w", err)
		}
		out = fold(marks, batch)
		if len(out.letters) > 0 {
			if n := s.box.Rows(); n >= s.maxLetters {
				return fmt.Errorf("%w: %d, the limit is %d", errLettersFull, n, s.maxLetters)
			}
			if err := s.box.Add(tx, now, deadLetters(out.letters, now)); err != nil {
				return err
			}
		}
		if err := upsert(tx, out.winners); err != nil {
			return fmt.Errorf("write %d orders: %w", len(out.winners), err)
		}
		for _, m := range moves {
			n, err := tx.Exec("UPDATE offsets SET next_offset = ? WHERE topic_id = ? AND partition = ? AND next_offset = ?",
				m.to, m.partition.TopicID, m.partition.Number, m.from)
			if err != nil {
				return fmt.Errorf("move the offset of %s/%d: %w", m.partition.Topic, m.partition.Number, err)
			}
			if n != 1 {
				return fmt.Errorf("%s/%d is no longer at offset %d: %w", m.partition.Topic, m.partition.Number, m.from, broker.ErrFenced)
			}
		}
		return nil
	})
	if err != nil {
		return outcome{}, err
	}
	return out, nil
}

func readMarks(tx *sqldb.Tx, batch []decoded) (map[string]mark, error) {
	ids := make([]any, 0, len(batch))
	for i := range batch {
		if batch[i].err == nil {
			ids = append(ids, batch[i].event.Order.OrderID)
		}
	}
	marks := make(map[string]mark, len(ids))
	err := tx.QueryIn("SELECT order_id, version, event_id FROM orders WHERE order_id IN ", ids, "", func(rows *sql.Rows) error {
		var id string
		var m mark
		err := rows.Scan(&id, &m.version, &m.eventID)
		marks[id] = m
		return err
	})
	return marks, err
}

// upsert writes the orders' new versions. That a version never goes back holds here once more, whatever was read before.
func upsert(tx *sqldb.Tx, winners []*decoded) error {
	const columns = 5
	args := make([]any, 0, columns*len(winners))
	for _, d := range winners {
		o := &d.event.Order
		args = append(args, o.OrderID, o.Version, d.event.ID, int64(o.TotalAmount), d.body)
	}
	_, err := tx.ExecRows("INSERT INTO orders(order_id, version, event_id, total, body) VALUES ", columns, ` ON CONFLICT (order_id) DO UPDATE
		SET version = excluded.version, event_id = excluded.event_id, total = excluded.total, body = excluded.body
		WHERE excluded.version > orders.version`, args)
	return err
}

// offsets returns where the store is in each partition that any member was ever assigned.
func (s *store) offsets(ctx context.Context) (map[broker.Partition]int64, error) {
	rows, err := s.db.Read.QueryContext(ctx, "SELECT topic, topic_id, partition, next_offset FROM offsets")
	if err != nil {
		return nil, fmt.Errorf("read the offsets: %w", err)
	}
	defer rows.Close()
	all := map[broker.Partition]int64{}
	for rows.Next() {
		var p broker.Partition
		var next int64
		if err := rows.Scan(&p.Topic, &p.TopicID, &p.Number, &next); err != nil {
			return nil, fmt.Errorf("read the offsets: %w", err)
		}
		all[p] = next
	}
	return all, rows.Err()
}
