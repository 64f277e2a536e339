package cart

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

const (
	// doubtsKept bounds the memory that a flood of records takes that are no events.
	doubtsKept = 100_000
	// doubtsShown is how many of them are logged.
	doubtsShown = 10
)

// newDoubtful makes and registers the counter of orders in doubt.
func newDoubtful(reg prometheus.Registerer) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "cart_orders_in_doubt_total",
		Help: "Orders that a rebuilt store may lack, or have at an old version: a record that is no event has " +
			"their key, and compaction may have removed what was before it.",
	})
	reg.MustRegister(c)
	return c
}

// doubts collects the records with the key of an order that hold no event. Compaction keeps only
// the last record of a key. So such a record may be all that is left of an order.
type doubts struct {
	// first has the first of these records, without its value, by topic and key.
	first map[doubtful]broker.Record
	// more counts those that found no place, and those that cannot be read.
	more int
}

// doubtful is a record key in a topic.
type doubtful struct{ topic, key string }

// add notes a record that holds no event.
func (d *doubts) add(r *broker.Record) {
	if r.Fault != nil {
		d.more++
		return
	}
	key := string(r.Key)
	if id, err := contract.ParseOrderID(key); err != nil || id != key {
		return
	}
	at := doubtful{r.Topic, key}
	if _, known := d.first[at]; known {
		return
	}
	if len(d.first) == doubtsKept {
		d.more++
		return
	}
	if d.first == nil {
		d.first = make(map[doubtful]broker.Record)
	}
	d.first[at] = broker.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}
}

// report logs the orders that are in doubt once the store is filled, and returns how many there
// are. An order is in doubt if its topic has such a record and no event. Else compaction has
// removed nothing that is newer than the event: it removes all records of a key before the last
// one, or none of them.
func (d *doubts) report(ctx context.Context, db *sqldb.DB, log *slog.Logger) (int, error) {
	var ids []any
	for at := range d.first {
		ids = append(ids, at.key)
	}
	versions := make(map[string]int64)
	err := db.QueryIn(ctx, "SELECT order_id, version FROM orders WHERE order_id IN ", ids, "",
		func(rows *sql.Rows) error {
			var id string
			var version int64
			err := rows.Scan(&id, &version)
			versions[id] = version
			return err
		})
	if err != nil {
		return 0, fmt.Errorf("read orders: %w", err)
	}
	maps.DeleteFunc(d.first, func(at doubtful, _ broker.Record) bool {
		// Version 1 is the only one of the created topic. An order with a later one needs no creation.
		return versions[at.key] > 1 || (versions[at.key] == 1 && contract.EventType(at.topic) == contract.TypeCreated)
	})
	all := slices.SortedFunc(maps.Keys(d.first), func(a, b doubtful) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.topic, b.topic))
	})
	for _, at := range all[:min(len(all), doubtsShown)] {
		r := d.first[at]
		log.Error("a record that is no event has the key of an order: the rebuilt store may lack its newest version",
			"order_id", at.key, "topic", r.Topic, "partition", r.Partition, "offset", r.Offset,
			"version", versions[at.key], "next", "docs/runbooks/CartOrdersInDoubt.md")
	}
	orders := make(map[string]bool)
	for _, at := range all {
		orders[at.key] = true
	}
	n := len(orders) + d.more
	if len(all) > doubtsShown || d.more > 0 {
		log.Error("more orders are in doubt", "all", n)
	}
	return n, nil
}
