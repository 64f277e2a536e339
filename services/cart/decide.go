package cart

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
)

// Why a request is refused. Nothing is written for a refused request.
var (
	errExists      = errors.New("order exists")
	errNotFound    = errors.New("order not found")
	errSameStatus  = errors.New("order has this status already")
	errKeyReused   = errors.New("idempotency key was used for another request")
	errKeyInFlight = errors.New("a request with this idempotency key is under way")
	errBacklog     = errors.New("backlog to Kafka is full")
	errUnavailable = errors.New("store cannot be written")
	errStopping    = fmt.Errorf("%w: the service is stopping", errUnavailable)
)

// versionError refuses an update whose If-Match does not name the order's version.
type versionError struct{ current int64 }

func (e versionError) Error() string { return "order has version " + etag(e.current) }

// change is one request to create or to update an order. It is checked, and prepared as far as it can be
// without knowing the order.
type change struct {
	orderID     string
	created     *contract.Message // the whole event of a creation; nil for an update
	status      string            // of an update
	ifMatch     []string          // entity tags of which the order must have one; nil: any
	traceparent string            // of an update; that of a creation is in its event

	key         string // Idempotency-Key; "": none
	fingerprint []byte // of the request; nil without a key
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
	order       orderState
	fingerprint []byte // of the request
}

// etag is the entity tag of a version.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// newOrder makes the order of a creation. As in the reference system, its items are made up.
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

// newEvent stamps an order's state after a change as an event.
func newEvent(kind string, o contract.Order, traceparent string, now time.Time) contract.Event {
	return contract.Event{ID: uuid.NewString(), Type: kind, Time: now, Traceparent: traceparent, Order: o}
}

// ledger decides a batch of changes in memory, one after the other, against the state that was read for
// all of them. It holds what is to be written when all are decided. A refusal leaves it as it was, so it
// never affects the other changes of the batch.
type ledger struct {
	now    time.Time
	room   int64                 // events that the backlog still takes
	orders map[string]orderState // the orders that the batch names, by ID, as they are by now
	kept   map[string]keptResult // by the idempotency keys that the batch names

	messages []contract.Message
	changed  map[string]bool // IDs of the orders to write
	newKeys  map[string]bool // keys of the results to write
}

func newLedger(now time.Time) *ledger {
	return &ledger{
		now:    now,
		orders: map[string]orderState{}, kept: map[string]keptResult{},
		changed: map[string]bool{}, newKeys: map[string]bool{},
	}
}

// decideAll decides changes in their order.
func (l *ledger) decideAll(changes []change) []result {
	results := make([]result, len(changes))
	for i, c := range changes {
		results[i].order, results[i].err = l.decide(c)
	}
	return results
}

// decide decides one change and keeps what is to be written for it.
func (l *ledger) decide(c change) (orderState, error) {
	if kept, ok := l.kept[c.key]; ok && c.key != "" {
		if !bytes.Equal(kept.fingerprint, c.fingerprint) {
			return orderState{}, errKeyReused
		}
		return kept.order, nil
	}
	order, m, err := l.apply(c)
	if err != nil {
		return orderState{}, err
	}
	if l.room <= 0 {
		return orderState{}, errBacklog
	}
	l.room--
	l.orders[c.orderID], l.changed[c.orderID] = order, true
	l.messages = append(l.messages, m)
	if c.key != "" {
		l.kept[c.key], l.newKeys[c.key] = keptResult{order, c.fingerprint}, true
	}
	return order, nil
}

// apply returns the order after a change, and the event to publish. It changes nothing.
func (l *ledger) apply(c change) (orderState, contract.Message, error) {
	current, exists := l.orders[c.orderID]
	if c.created != nil {
		if exists {
			return orderState{}, contract.Message{}, errExists
		}
		return orderState{1, c.created.Value}, *c.created, nil
	}
	if !exists {
		return orderState{}, contract.Message{}, errNotFound
	}
	if c.ifMatch != nil && !slices.Contains(c.ifMatch, etag(current.version)) {
		return orderState{}, contract.Message{}, versionError{current.version}
	}
	var o contract.Order
	if err := json.Unmarshal(current.body, &o); err != nil {
		return orderState{}, contract.Message{},
			fmt.Errorf("%w: decode the stored order %q: %w", errUnavailable, c.orderID, err)
	}
	if o.Status == c.status {
		return orderState{}, contract.Message{}, errSameStatus
	}
	o.Status, o.Version = c.status, current.version+1
	m, err := newEvent(contract.TypeUpdated, o, c.traceparent, l.now).Message()
	if err != nil {
		return orderState{}, contract.Message{}, err
	}
	return orderState{o.Version, m.Value}, m, nil
}
