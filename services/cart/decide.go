package cart

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/sqldb"
)

// Why a request is refused. A refused request writes nothing.
var (
	errExists      = errors.New("order exists")
	errNotFound    = errors.New("order not found")
	errSameStatus  = errors.New("order has this status already")
	errLastVersion = errors.New("order has the highest version")
	errKeyReused   = errors.New("idempotency key was used for another request")
	errKeyInFlight = errors.New("a request with this idempotency key is under way")
	errBacklog     = errors.New("backlog to Kafka is full")
	errNearlyFull  = errors.New("storage is nearly full")
	errUnavailable = errors.New("store cannot be written")
	errStopping    = fmt.Errorf("%w: the service is stopping", errUnavailable)
)

// preconditionError refuses a change because of its If-Match or its If-None-Match.
type preconditionError struct {
	// header is the name of the header.
	header string
	// current is the version of the order; 0: there is no such order.
	current int64
}

func (e preconditionError) Error() string {
	return fmt.Sprintf("order has version %s, against %s", etag(e.current), e.header)
}

// change is one request to create or to update an order. It is checked, and prepared as far as it
// can be without knowing the order.
type change struct {
	orderID string
	// created is the whole event of a creation. It is nil for an update.
	created *contract.Message

	// status and traceparent are those of an update.
	status      string
	traceparent string

	// The order must have a version that ifMatch names, and none that ifNoneMatch names; nil: any.
	ifMatch, ifNoneMatch entityTags

	// key is the Idempotency-Key; "": none.
	key string
	// fingerprint identifies the request if it comes again with the same key.
	fingerprint []byte
}

// orderState is an order after a change.
type orderState struct {
	version int64
	body    []byte // contract.Order.Encode
}

// result is what became of a change: the order after it, or why it was refused.
type result struct {
	order orderState
	err   error
}

// keptResult is the result of a successful request with an Idempotency-Key.
type keptResult struct {
	order orderState
	// Of the request.
	fingerprint []byte
}

// entityTags are those of a header. The tag * names every version.
type entityTags []string

// names reports whether the version is named. A weak tag names none.
func (tags entityTags) names(version int64) bool {
	return slices.Contains(tags, "*") || slices.Contains(tags, etag(version))
}

// etag returns the entity tag of a version.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// newOrder returns the order of a creation. As in the reference system, its items are invented.
func newOrder(req contract.CreateOrder, now time.Time) contract.Order {
	o := contract.Order{
		OrderID:    req.OrderID,
		CustomerID: uuid.NewString(),
		OrderDate:  now,
		Items:      make([]contract.Item, req.ItemsNum),
		Currency:   "USD",
		Status:     contract.StatusNew,
		Version:    1,
	}
	for i := range o.Items {
		it := contract.Item{
			ProductID: "Product" + strconv.Itoa(i+1),
			Quantity:  1 + rand.Int64N(4),
			Price:     100 * contract.Amount(10+rand.Int64N(90)),
		}
		o.Items[i] = it
		o.TotalAmount += contract.Amount(it.Quantity) * it.Price
	}
	return o
}

// newEvent returns the event of a change. o is the order after the change.
func newEvent(kind string, o contract.Order, traceparent string, now time.Time) contract.Event {
	return contract.Event{Type: kind, Time: now, Traceparent: traceparent, Order: o}
}

// batch decides changes in memory, one after the other, against the state that was read
// for all of them. It holds what is to be written when all are decided. A refusal leaves it as it
// was, so it never affects the other changes of the batch.
type batch struct {
	now  time.Time
	room room
	// orders has the orders that the batch names, by ID, with the changes decided so far.
	orders map[string]orderState
	// kept has the results for the idempotency keys that the batch names, by key.
	kept map[string]keptResult

	// messages, changed and newKeys are to be written: the events, the IDs of changed orders, and
	// the idempotency keys that are new in kept.
	messages []contract.Message
	changed  map[string]bool
	newKeys  map[string]bool
}

// room is what the store still takes. A change is refused when one of them does not suffice.
type room struct {
	// events and bytes are those of the backlog to Kafka.
	events, bytes int64
	// disk is how many bytes may be written.
	disk int64
}

// full reports whether the backlog is full.
func (r room) full() bool { return r.events <= 0 || r.bytes <= 0 }

// newBatch returns a batch that knows no orders and has no room.
func newBatch(now time.Time) *batch {
	return &batch{
		now:    now,
		orders: map[string]orderState{}, kept: map[string]keptResult{},
		changed: map[string]bool{}, newKeys: map[string]bool{},
	}
}

// decideAll decides changes in their order.
func (b *batch) decideAll(changes []change) []result {
	results := make([]result, len(changes))
	for i, c := range changes {
		results[i].order, results[i].err = b.decide(c)
	}
	return results
}

// decide decides one change and keeps what is to be written for it.
func (b *batch) decide(c change) (orderState, error) {
	if kept, ok := b.kept[c.key]; ok && c.key != "" {
		if !bytes.Equal(kept.fingerprint, c.fingerprint) {
			return orderState{}, errKeyReused
		}
		return kept.order, nil
	}
	order, m, err := b.apply(c)
	if err != nil {
		return orderState{}, err
	}
	cost := changeCost(len(m.Value), c.key != "")
	switch {
	case b.room.full():
		return orderState{}, errBacklog
	case b.room.disk < cost:
		return orderState{}, errNearlyFull
	}
	b.room.events--
	b.room.bytes -= int64(len(m.Key) + len(m.Value))
	b.room.disk -= cost
	b.orders[c.orderID], b.changed[c.orderID] = order, true
	b.messages = append(b.messages, m)
	if c.key != "" {
		b.kept[c.key], b.newKeys[c.key] = keptResult{order, c.fingerprint}, true
	}
	return order, nil
}

// changeCost returns how many bytes are written at most for a change to an order of n bytes: the
// order, its event, and the result to keep for a key.
func changeCost(n int, keyed bool) int64 {
	rows := int64(2)
	if keyed {
		rows++
	}
	return rows * sqldb.Cost(n)
}

// apply returns the order after a change, and the event to publish. It changes nothing.
func (b *batch) apply(c change) (orderState, contract.Message, error) {
	current, exists := b.orders[c.orderID]
	if c.created != nil {
		if exists {
			return orderState{}, contract.Message{}, errExists
		}
		// An order that does not exist has no version. It fulfils every If-None-Match.
		if c.ifMatch != nil {
			return orderState{}, contract.Message{}, preconditionError{"If-Match", 0}
		}
		return orderState{1, c.created.Value}, *c.created, nil
	}
	if !exists {
		return orderState{}, contract.Message{}, errNotFound
	}
	if c.ifMatch != nil && !c.ifMatch.names(current.version) {
		return orderState{}, contract.Message{}, preconditionError{"If-Match", current.version}
	}
	if c.ifNoneMatch.names(current.version) {
		return orderState{}, contract.Message{}, preconditionError{"If-None-Match", current.version}
	}
	o, err := contract.DecodeOrder(current.body)
	if err != nil {
		return orderState{}, contract.Message{},
			fmt.Errorf("%w: decode the stored order %q: %w", errUnavailable, c.orderID, err)
	}
	if o.Status == c.status {
		return orderState{}, contract.Message{}, errSameStatus
	}
	// A record that Cart did not publish can have brought the order there.
	if current.version >= contract.MaxVersion {
		return orderState{}, contract.Message{}, errLastVersion
	}
	o.Status, o.Version = c.status, current.version+1
	m, err := newEvent(contract.TypeUpdated, o, c.traceparent, b.now).Message()
	if err != nil {
		return orderState{}, contract.Message{}, err
	}
	return orderState{o.Version, m.Value}, m, nil
}
