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
)

// versionError refuses an update whose If-Match does not name the order's version.
type versionError struct{ current int64 }

func (e versionError) Error() string { return "order has version " + etag(e.current) }

// change is one request to create or to update an order, checked and as far prepared as it can be without the order's state.
type change struct {
	orderID     string
	created     *contract.Message // the whole event of a creation; nil for an update
	status      string            // of an update
	ifMatch     []string          // entity tags of which the order must have one; nil for any
	traceparent string

	key         string // Idempotency-Key, may be empty
	fingerprint []byte // of the request, when there is a key
}

// answer is what a successful change says: the order as it is then.
type answer struct {
	version int64
	body    []byte // contract.Order.Encode
}

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

// ledger decides a group of changes in memory, one after the other, against the state that was read for all of them. It holds what
// is to be written when all are decided. A refusal leaves it as it was, so it never costs a neighbour anything.
type ledger struct {
	now     time.Time
	room    int64                   // events that the backlog still takes
	orders  map[string]answer       // of the orders named by the group, as they are by now
	answers map[string]storedAnswer // of the idempotency keys named by the group

	messages []contract.Message
	changed  map[string]bool // orders to write
	newKeys  map[string]bool // answers to write
}

type storedAnswer struct {
	answer
	fingerprint []byte
}

func (l *ledger) decide(c change) (answer, error) {
	if stored, ok := l.answers[c.key]; ok && c.key != "" {
		if !bytes.Equal(stored.fingerprint, c.fingerprint) {
			return answer{}, errKeyReused
		}
		return stored.answer, nil
	}
	a, m, err := l.apply(c)
	if err != nil {
		return answer{}, err
	}
	if l.room <= 0 {
		return answer{}, errBacklog
	}
	l.room--
	l.orders[c.orderID], l.changed[c.orderID] = a, true
	l.messages = append(l.messages, m)
	if c.key != "" {
		l.answers[c.key], l.newKeys[c.key] = storedAnswer{a, c.fingerprint}, true
	}
	return a, nil
}

func (l *ledger) apply(c change) (answer, contract.Message, error) {
	current, exists := l.orders[c.orderID]
	if c.created != nil {
		if exists {
			return answer{}, contract.Message{}, errExists
		}
		return answer{1, c.created.Value}, *c.created, nil
	}
	if !exists {
		return answer{}, contract.Message{}, errNotFound
	}
	if c.ifMatch != nil && !slices.Contains(c.ifMatch, etag(current.version)) {
		return answer{}, contract.Message{}, versionError{current.version}
	}
	var o contract.Order
	if err := json.Unmarshal(current.body, &o); err != nil {
		return answer{}, contract.Message{}, fmt.Errorf("%w: decode the stored order %q: %w", errUnavailable, c.orderID, err)
	}
	if o.Status == c.status {
		return answer{}, contract.Message{}, errSameStatus
	}
	o.Status, o.Version = c.status, current.version+1
	m, err := newEvent(contract.TypeUpdated, o, c.traceparent, l.now).Message()
	if err != nil {
		return answer{}, contract.Message{}, err
	}
	return answer{o.Version, m.Value}, m, nil
}
