package cart

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
)

//go:embed migrations
var migrations embed.FS

const (
	// keyLifetime is how long the result of a request with an Idempotency-Key is kept.
	keyLifetime = 24 * time.Hour
	// largestOrder is the size of an order with the most items and the longest texts, rounded up.
	largestOrder = 128 << 10
	// countTimeout is what the count of all orders gets. PostgreSQL reads all rows for it, and ends any statement
	// after 60 s.
	countTimeout = 50 * time.Second
)

// store holds the orders, the results of requests with an Idempotency-Key, and the outbox. All SQL
// of the service is here.
type store struct {
	db  *sqldb.DB
	box *outbox.Box
	// topicIDs are Kafka's IDs of the order topics by name. They are known before anything is
	// published.
	topicIDs atomic.Pointer[map[string]string]
}

// openStore opens the store of the database at url, or in dir if that is empty. It makes the store if
// there is none, and registers the metrics of its outbox. The topics are where its events go.
func openStore(
	ctx context.Context, url, dir string, topics []string, log *slog.Logger, reg prometheus.Registerer,
) (*store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, sqldb.Config{
		URL: url, Schema: "cart", Migrations: files,
		// Full: an acknowledged order survives a power loss.
		Path: filepath.Join(dir, "cart.db"), Sync: sqldb.Full,
	}, log)
	if _, damaged := errors.AsType[*sqldb.DamagedError](err); damaged {
		return nil, fmt.Errorf("%w (restore a backup, or move cart.db, cart.db-wal and cart.db-shm away: "+
			"the store is then rebuilt from Kafka, without what was not published yet)", err)
	}
	if err != nil {
		return nil, err
	}
	s := &store{db: db}
	published, err := s.publishedPositions(ctx)
	if err == nil {
		err = broker.CheckStore(published, topics)
	}
	if err == nil {
		s.box, err = outbox.Open(ctx, db, log, reg, "cart", s.writePublished)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// close closes the database. run of the committer and the relay must have ended.
func (s *store) close() error { return s.db.Close() }

// commit decides changes one after the other and writes them with their events in one transaction.
// take returns them and the time of their events. It is called when the store is locked, and once more if the
// transaction is repeated. commit returns a result for each change, and what room is left: limit is how many
// events and bytes the backlog may have. After an error nothing is written, unless the error says that this is
// unknown.
func (s *store) commit(ctx context.Context, take func() ([]change, time.Time), limit room) (
	results []result, left room, err error,
) {
	err = s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		// First of all: what another replica has committed before is seen, and it waits with its next.
		ledger, err := s.box.Lock(tx)
		if err != nil {
			return err
		}
		changes, now := take()
		b, err := load(tx, changes, now.UTC().Truncate(time.Millisecond), ledger.Now)
		if err != nil {
			return err
		}
		b.room = room{events: limit.events - ledger.Rows, bytes: limit.bytes - ledger.Bytes}
		if b.room.disk, err = tx.Room(); err != nil {
			return err
		}
		results = b.decideAll(changes)
		left = b.room
		return write(tx, ledger, b)
	})
	return results, left, err
}

// load reads what the decisions on changes depend on. now is the time of new events, and clock that of the
// database: keys must expire at the same time for all replicas.
func load(tx *sqldb.Tx, changes []change, now, clock time.Time) (*batch, error) {
	b := newBatch(now)
	ids := make([]any, 0, len(changes))
	var keys []any
	for i := range changes {
		ids = append(ids, changes[i].orderID)
		if changes[i].key != "" {
			keys = append(keys, changes[i].key)
		}
	}
	err := tx.QueryIn("SELECT order_id, version, body FROM orders WHERE order_id IN ", ids, "",
		func(rows *sql.Rows) error {
			var id string
			var order orderState
			err := rows.Scan(&id, &order.version, &order.body)
			b.orders[id] = order
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("read orders: %w", err)
	}
	err = tx.QueryIn(`SELECT idempotency_key, fingerprint, version, body, expires_at FROM idempotency_keys
		WHERE idempotency_key IN `, keys, "",
		func(rows *sql.Rows) error {
			var key string
			var kept keptResult
			// Unix time in milliseconds.
			var expires int64
			err := rows.Scan(&key, &kept.fingerprint, &kept.order.version, &kept.order.body, &expires)
			if expires > clock.UnixMilli() {
				b.kept[key] = kept
			}
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("read idempotency keys: %w", err)
	}
	return b, nil
}

// write writes what was decided: the orders that changed, the results to keep, and the events.
func write(tx *sqldb.Tx, ledger *outbox.Ledger, b *batch) error {
	if len(b.messages) == 0 {
		return nil
	}
	orders := make(map[string]orderState, len(b.changed))
	for id := range b.changed {
		orders[id] = b.orders[id]
	}
	if err := writeOrders(tx, orders); err != nil {
		return err
	}
	const columns = 5
	args := make([]any, 0, columns*len(b.newKeys))
	for key := range b.newKeys {
		kept := b.kept[key]
		args = append(args, key, kept.fingerprint, kept.order.version, kept.order.body,
			ledger.Now.Add(keyLifetime).UnixMilli())
	}
	// A key that is there has expired and was not deleted yet.
	if err := tx.WriteRows("write idempotency keys",
		"INSERT INTO idempotency_keys(idempotency_key, fingerprint, version, body, expires_at) VALUES ", columns,
		` ON CONFLICT (idempotency_key) DO UPDATE SET fingerprint = excluded.fingerprint,
			version = excluded.version, body = excluded.body, expires_at = excluded.expires_at`, args); err != nil {
		return err
	}
	return ledger.Add(b.now, b.messages)
}

// writeOrders inserts or replaces orders. It is an error if one of them is stored already at the
// same version or a later one: a version never goes back.
func writeOrders(tx *sqldb.Tx, orders map[string]orderState) error {
	const columns = 3
	args := make([]any, 0, columns*len(orders))
	for id, order := range orders {
		args = append(args, id, order.version, order.body)
	}
	return tx.WriteRows("write orders", "INSERT INTO orders(order_id, version, body) VALUES ", columns,
		` ON CONFLICT (order_id) DO UPDATE SET version = excluded.version, body = excluded.body
			WHERE excluded.version > orders.version`, args)
}

// deleteExpired deletes idempotency keys that have expired by now, some at a time so that no request
// waits long, and reports whether there may be more. It writes in any case, so that an error shows
// that the store cannot be written. It returns errNearlyFull if there is no room for any order.
func (s *store) deleteExpired(ctx context.Context) (more bool, err error) {
	var left int64
	err = s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		// A request of another replica may use an expired key again.
		ledger, err := s.box.Lock(tx)
		if err != nil {
			return err
		}
		most, err := tx.DeleteLimit()
		if err != nil {
			return err
		}
		deleted, err := tx.Exec(`DELETE FROM idempotency_keys WHERE idempotency_key IN
			(SELECT idempotency_key FROM idempotency_keys WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)`,
			ledger.Now.UnixMilli(), most)
		if err != nil {
			return fmt.Errorf("delete expired idempotency keys: %w", err)
		}
		more = deleted == most
		if left, err = tx.Room(); err != nil {
			return err
		}
		return probe(tx)
	})
	if err == nil && left < changeCost(largestOrder, true) {
		err = fmt.Errorf("%w: the next order may write %d bytes", errNearlyFull, max(0, left))
	}
	return more, err
}

// probe writes the row that marks the store as rebuilt, which changes nothing. A store that is not
// rebuilt has no such row yet, and takes no orders.
func probe(tx *sqldb.Tx) error {
	var marks int64
	err := tx.Query("SELECT count(*) FROM rebuilt", func(rows *sql.Rows) error { return rows.Scan(&marks) })
	if err != nil {
		return fmt.Errorf("read whether the store is rebuilt: %w", err)
	}
	return tx.Write("probe the store", marks, "UPDATE rebuilt SET at = at")
}

// isRebuilt reports whether the store holds what the topics held when it was made.
func (s *store) isRebuilt(ctx context.Context) (bool, error) {
	var marks int
	err := s.db.Query(ctx, "SELECT count(*) FROM rebuilt", func(r *sql.Rows) error { return r.Scan(&marks) })
	if err != nil {
		return false, fmt.Errorf("read whether the store is rebuilt: %w", err)
	}
	return marks > 0, nil
}

// restore writes orders as the topics have them. The store keeps an order that it has at the same
// version or a later one: after a failure of the relay or of a rebuild, older records come again. It
// returns outbox.ErrLeaseLost if that is the task of another replica.
func (s *store) restore(ctx context.Context, orders map[string]orderState) error {
	return s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		if _, err := s.lockAsHolder(tx); err != nil {
			return err
		}
		_, _, err := restoreIn(tx, orders)
		return err
	})
}

// lockAsHolder locks the ledger for what only the replica that holds the lease may do. It keeps the lease
// until the transaction ends, or returns outbox.ErrLeaseLost.
func (s *store) lockAsHolder(tx *sqldb.Tx) (*outbox.Ledger, error) {
	ledger, err := s.box.Lock(tx)
	if err != nil {
		return nil, err
	}
	return ledger, s.box.Guard(tx)
}

// restoreIn does the work of restore in its transaction. It returns how many orders it wrote, and the versions
// that the store then has of all of them.
func restoreIn(tx *sqldb.Tx, orders map[string]orderState) (written int, stored map[string]int64, err error) {
	newer, stored := maps.Clone(orders), make(map[string]int64, len(orders))
	ids := make([]any, 0, len(orders))
	for id, order := range orders {
		ids, stored[id] = append(ids, id), order.version
	}
	err = tx.QueryIn("SELECT order_id, version FROM orders WHERE order_id IN ", ids, "",
		func(rows *sql.Rows) error {
			var id string
			var version int64
			err := rows.Scan(&id, &version)
			if version >= orders[id].version {
				delete(newer, id)
				stored[id] = version
			}
			return err
		})
	if err != nil {
		return 0, nil, fmt.Errorf("read orders: %w", err)
	}
	return len(newer), stored, writeOrders(tx, newer)
}

// newestVersions returns the newest version of each order among events.
func newestVersions(events []contract.Event) (map[string]orderState, error) {
	newest := make(map[string]orderState, len(events))
	for _, e := range events {
		if e.Order.Version <= newest[e.Order.OrderID].version {
			continue
		}
		body, err := e.Order.Encode()
		if err != nil {
			return nil, err
		}
		newest[e.Order.OrderID] = orderState{e.Order.Version, body}
	}
	return newest, nil
}

// adopt takes events over that are in the topics. An event that waits in the outbox is no longer
// published: it is there already. Any other event is someone else's. The store takes its version
// over, unless the outbox has that version or a later one of the same order: that is a conflict,
// and the order stays as it is. An event that waits to be published again is no change, so it gives
// way to a newer version. The error is outbox.ErrLeaseLost if another replica has the lease.
//
// overtaken are the orders whose last update among events is older than what the store has, and of which
// nothing waits to come behind it.
func (s *store) adopt(
	ctx context.Context, events []contract.Event,
) (adopted int, conflicts, overtaken []string, err error) {
	err = s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		ledger, err := s.lockAsHolder(tx)
		if err != nil {
			return err
		}
		newest, err := newestVersions(events)
		if err != nil {
			return err
		}
		keys := make(map[string]bool, len(newest))
		for id := range newest {
			keys[id] = true
		}
		inTopics := make(map[string]bool, len(events))
		for _, e := range events {
			inTopics[e.ID] = true
		}
		var published []int64
		// ours has those of the events that wait.
		ours, lowest := make(map[string]bool), make(map[string]int64)
		err = ledger.Waiting(keys, func(row outbox.Row) error {
			e, err := contract.DecodeEvent(row.Topic, 0, row.Key, row.Value, row.Headers)
			if err != nil {
				return fmt.Errorf("row %d of the outbox: %w", row.ID, err)
			}
			if inTopics[e.ID] {
				ours[e.ID] = true
			}
			replaced := row.IsRepublished() && newest[e.Order.OrderID].version > e.Order.Version
			if inTopics[e.ID] || replaced {
				published = append(published, row.ID)
			} else if low, ok := lowest[e.Order.OrderID]; !ok || e.Order.Version < low {
				lowest[e.Order.OrderID] = e.Order.Version
			}
			return nil
		})
		if err != nil {
			return err
		}
		conflicts = nil
		for _, e := range events {
			id := e.Order.OrderID
			low, waits := lowest[id]
			if waits && !ours[e.ID] && e.Order.Version >= low {
				if _, counted := newest[id]; counted {
					conflicts = append(conflicts, id)
					delete(newest, id)
				}
			}
		}
		if err := ledger.Discard(published); err != nil {
			return err
		}
		var stored map[string]int64
		if adopted, stored, err = restoreIn(tx, newest); err != nil {
			return err
		}
		last := make(map[string]int64)
		for _, e := range events {
			if _, waits := lowest[e.Order.OrderID]; e.Type == contract.TypeUpdated && !waits {
				last[e.Order.OrderID] = e.Order.Version
			}
		}
		overtaken = nil
		for id, version := range last {
			if version < stored[id] {
				overtaken = append(overtaken, id)
			}
		}
		return nil
	})
	return adopted, conflicts, overtaken, err
}

// repeated is a page of orders that were put into the outbox to be published again.
type repeated struct {
	// orders is how many there are. 0 is the end of the table.
	orders int64
	// lastRow is the row of the last order, and lastMessage that of its message in the outbox.
	lastRow, lastMessage int64
}

// nextRepeated returns the next page behind a row, up to the row end: limit orders at most, and not
// many more bytes than limit has. size is what they have together, and cost is what the transaction
// writes at most.
func (s *store) nextRepeated(ctx context.Context, after, end int64, limit room) (
	page repeated, size, cost int64, err error,
) {
	const query = `SELECT id, length(order_id) + length(body) FROM orders WHERE id > ? AND id <= ?
		ORDER BY id LIMIT ?`
	err = s.db.Query(ctx, query, func(rows *sql.Rows) error {
		if size >= limit.bytes {
			return sqldb.ErrStop
		}
		var n int64
		err := rows.Scan(&page.lastRow, &n)
		page.orders, size, cost = page.orders+1, size+n, cost+sqldb.Cost(int(n))
		return err
	}, after, end, limit.events)
	if err != nil {
		return repeated{}, 0, 0, fmt.Errorf("read orders: %w", err)
	}
	return page, size, cost, nil
}

// repeat puts the newest version of each order of the next page behind a row into the outbox. A
// page is limited by page, and the outbox by limit. It reports whether there was room for the page
// now: if not, nothing is written. No update of the same orders comes in between, so the newest
// version of each order is the last one that is published.
func (s *store) repeat(
	ctx context.Context, after, end int64, page, limit room, now time.Time, traceparent string,
) (done repeated, roomy bool, err error) {
	next, size, cost, err := s.nextRepeated(ctx, after, end, page)
	if err != nil || next.orders == 0 {
		return next, true, err
	}
	err = s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		ledger, err := s.box.Lock(tx)
		if err != nil {
			return err
		}
		if roomy, err = hasRoom(tx, ledger, next.orders, size, cost, limit); err != nil || !roomy {
			return err
		}
		var ms []contract.Message
		err = tx.Query("SELECT order_id, version, body FROM orders WHERE id > ? AND id <= ? ORDER BY id",
			func(rows *sql.Rows) error {
				m, err := scanRepetition(rows, now, traceparent)
				ms = append(ms, m)
				return err
			}, after, next.lastRow)
		if err != nil {
			return fmt.Errorf("read orders: %w", err)
		}
		err = ledger.Add(now, ms)
		next.lastMessage = ledger.Head
		return err
	})
	return next, roomy, err
}

// repeatOrders does for these orders what repeat does for a page. It returns an *unknownOrdersError, and
// writes nothing, if the store lacks one of them.
func (s *store) repeatOrders(
	ctx context.Context, ids []string, limit room, now time.Time, traceparent string,
) (done repeated, roomy bool, err error) {
	keys := make([]any, len(ids))
	for i, id := range ids {
		keys[i] = id
	}
	err = s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		ledger, err := s.box.Lock(tx)
		if err != nil {
			return err
		}
		unknown := make(map[string]bool, len(ids))
		for _, id := range ids {
			unknown[id] = true
		}
		var ms []contract.Message
		var size, cost int64
		err = tx.QueryIn("SELECT order_id, version, body FROM orders WHERE order_id IN ", keys, "",
			func(rows *sql.Rows) error {
				m, err := scanRepetition(rows, now, traceparent)
				n := len(m.Key) + len(m.Value)
				ms, size, cost = append(ms, m), size+int64(n), cost+sqldb.Cost(n)
				delete(unknown, string(m.Key))
				return err
			})
		if err != nil {
			return fmt.Errorf("read orders: %w", err)
		}
		if len(unknown) > 0 {
			return &unknownOrdersError{slices.Sorted(maps.Keys(unknown))}
		}
		if roomy, err = hasRoom(tx, ledger, int64(len(ms)), size, cost, limit); err != nil || !roomy {
			return err
		}
		err = ledger.Add(now, ms)
		done = repeated{orders: int64(len(ms)), lastMessage: ledger.Head}
		return err
	})
	return done, roomy, err
}

// unknownOrdersError reports orders that are not in the store.
type unknownOrdersError struct{ ids []string }

func (e *unknownOrdersError) Error() string {
	return fmt.Sprintf("no order %s: nothing was published", strings.Join(e.ids, ", no order "))
}

// hasRoom reports whether orders of a size fit into the outbox, and what they cost onto the disk. An empty
// outbox takes any.
func hasRoom(tx *sqldb.Tx, ledger *outbox.Ledger, orders, size, cost int64, limit room) (bool, error) {
	disk, err := tx.Room()
	fits := ledger.Rows == 0 || (ledger.Rows+orders <= limit.events && ledger.Bytes+size <= limit.bytes)
	return fits && cost <= disk, err
}

// scanRepetition reads the columns order_id, version and body. It returns the message that publishes the
// order again.
func scanRepetition(rows *sql.Rows, now time.Time, traceparent string) (contract.Message, error) {
	var id string
	var order orderState
	err := rows.Scan(&id, &order.version, &order.body)
	return contract.Republish(id, order.version, order.body, now, traceparent), err
}

// extent returns how many orders there are, and the row of the newest one.
func (s *store) extent(ctx context.Context) (orders, last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	err = s.db.Query(ctx, "SELECT count(*), coalesce(max(id), 0) FROM orders",
		func(r *sql.Rows) error { return r.Scan(&orders, &last) })
	if err != nil {
		return 0, 0, fmt.Errorf("count the orders: %w", err)
	}
	return orders, last, nil
}

// publishedPositions returns the offset after the last published record of each partition. It is
// empty in a store that an earlier release has made.
func (s *store) publishedPositions(ctx context.Context) (map[broker.Partition]int64, error) {
	next := make(map[broker.Partition]int64)
	const query = "SELECT topic, partition, topic_id, next_offset FROM published"
	err := s.db.Query(ctx, query, func(rows *sql.Rows) error {
		var p broker.Partition
		var offset int64
		err := rows.Scan(&p.Topic, &p.Number, &p.TopicID, &offset)
		next[p] = offset
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the published positions: %w", err)
	}
	return next, nil
}

// setPublished stores positions, with the IDs of the topics. Positions of a topic that had another ID
// are dropped. It returns outbox.ErrLeaseLost if another replica has the lease.
func (s *store) setPublished(ctx context.Context, next map[broker.Partition]int64) error {
	ids := make(map[string]string)
	if known := s.topicIDs.Load(); known != nil {
		maps.Copy(ids, *known)
	}
	for p := range next {
		ids[p.Topic] = p.TopicID
	}
	s.topicIDs.Store(&ids)
	return s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		if err := s.box.Guard(tx); err != nil {
			return err
		}
		for topic, id := range ids {
			if _, err := tx.Exec("DELETE FROM published WHERE topic = ? AND topic_id <> ?", topic, id); err != nil {
				return fmt.Errorf("drop the positions of a former topic: %w", err)
			}
		}
		return s.writePublished(tx, next)
	})
}

// writePublished stores positions. Their partitions may lack the IDs of the topics.
func (s *store) writePublished(tx *sqldb.Tx, next map[broker.Partition]int64) error {
	const columns = 4
	ids := *s.topicIDs.Load()
	args := make([]any, 0, columns*len(next))
	for p, offset := range next {
		args = append(args, p.Topic, p.Number, ids[p.Topic], offset)
	}
	return tx.WriteRows("write the published positions",
		"INSERT INTO published(topic, partition, topic_id, next_offset) VALUES ", columns,
		` ON CONFLICT (topic, partition) DO UPDATE SET topic_id = excluded.topic_id,
			next_offset = excluded.next_offset`, args)
}

// markRebuilt marks the store as rebuilt. It may be called again: a commit that reported an error may
// have taken effect. It returns outbox.ErrLeaseLost if another replica has the lease.
func (s *store) markRebuilt(ctx context.Context, now time.Time) error {
	return s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		if err := s.box.Guard(tx); err != nil {
			return err
		}
		const insert = "INSERT INTO rebuilt(at) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM rebuilt)"
		_, err := tx.Exec(insert, now.UnixMilli())
		var marks int64
		if err == nil {
			err = tx.Query("SELECT count(*) FROM rebuilt", func(r *sql.Rows) error { return r.Scan(&marks) })
		}
		if err := sqldb.ExpectRows(1, marks, err); err != nil {
			return fmt.Errorf("mark the store as rebuilt: %w", err)
		}
		return nil
	})
}
