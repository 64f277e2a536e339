package faults

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// Outcome is what a client knows of its operation.
type Outcome int

const (
	// Unknown means that the connection broke before a response came, or the response was that it is unknown.
	Unknown Outcome = iota
	// Accepted means that the response was 200.
	Accepted
	// Refused means that the response was anything else.
	Refused
)

// Operation is what a client requested and what it knows of the result. It is one request, or
// several with one Idempotency-Key.
type Operation struct {
	// Client is a number of the client.
	Client int
	Order  string
	// Create is true for a creation, false for an update.
	Create bool
	// Status is what an update sets.
	Status string
	// Traces holds the trace ID of each request. The event has the one of the request that made it.
	Traces []string
	// IfMatch is the header, if there was one.
	IfMatch string
	Outcome Outcome
	// Code is the HTTP status of the response, if the operation was refused.
	Code int
	// Version is known if the operation was accepted.
	Version    int64
	Begin, End time.Time
}

func (o *Operation) String() string {
	what := "update to " + o.Status
	if o.Create {
		what = "creation"
	}
	return fmt.Sprintf("%s of %s (traces %v)", what, o.Order, o.Traces)
}

// Lookup is an order as the Order service returned it. Version 0: there was no such order.
type Lookup struct {
	Order      string
	Version    int64
	Status     string
	Begin, End time.Time
}

// TopicPartition is a partition of a topic.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// StoredOrder is an order in a store.
type StoredOrder struct {
	Version int64
	// EventID is empty for Cart's store, which does not keep it.
	EventID string
	Body    string
}

// State is Order's store at one moment.
type State struct {
	// When names the moment in messages.
	When   string
	Orders map[string]StoredOrder
	// Offsets are those of the next records to read.
	Offsets map[TopicPartition]int64
}

// Evidence is what Check compares: what clients saw, the records and both stores. It is collected
// after the last fault, when the system has come to rest.
type Evidence struct {
	Operations []Operation
	Lookups    []Lookup
	// Records are those of both order topics. With Compacted, some of them may have been removed meanwhile.
	Records   []testenv.Record
	Compacted bool
	// Ends are the high watermarks of the order topics.
	Ends map[TopicPartition]int64
	// Letters are those of the dead-letter topic.
	Letters []testenv.Record
	// Poison has the keys of records that were written to be no orders. Each has to be a dead letter. It may be the key
	// of an order; then a version has to come behind that record, because compaction keeps the last one.
	Poison []string
	Cart   map[string]StoredOrder
	// Audits are how many orders Order has found in each topic.
	Audits map[string]int
	// Outbox is the number of rows left in Cart's outbox.
	Outbox int
	// Order is Order's store at the end.
	Order State
	// Crashes holds Order's store as each kill -9 left it.
	Crashes []State
}

// Event is a decoded record. The checker decodes records by itself: with the services' code it
// would make the same mistakes.
type Event struct {
	Record  *testenv.Record
	ID      string
	Trace   string
	Created bool
	Order   string
	Version int64
	Status  string
}

// Violation is a broken promise. Its Kind is one of a fixed set, and the checker's own test has
// every kind. Order is empty if it is not about one order.
type Violation struct{ Kind, Order, Detail string }

func (v Violation) String() string {
	if v.Order == "" {
		return v.Kind + ": " + v.Detail
	}
	return v.Kind + ": order " + v.Order + ": " + v.Detail
}

// Checker collects violations. Its methods are the parts of Check.
type Checker struct {
	Evidence
	events []Event
	// spoiled has the offset of the last record that is no order.
	spoiled map[orderIn]int64
	// ByOrder holds the first record of each event, ordered by version.
	ByOrder map[string][]*Event
	Found   []Violation
}

// orderIn is an order in a topic.
type orderIn struct{ Order, Topic string }

func (c *Checker) add(kind, order, format string, args ...any) {
	c.Found = append(c.Found, Violation{kind, order, fmt.Sprintf(format, args...)})
}

// Check compares the evidence with what the system promises and returns the violations. Every
// acknowledged order is in its topic and in both stores, at its newest version. No operation takes
// effect twice, and a refused one takes none.
func Check(e Evidence) []Violation {
	c := NewChecker(e)
	c.Topics()
	c.clients()
	c.linearizable()
	c.monotonic()
	c.audits()
	c.stores()
	return c.Found
}

// NewChecker returns a checker that has decoded the records.
func NewChecker(e Evidence) *Checker {
	c := &Checker{Evidence: e, ByOrder: map[string][]*Event{}, spoiled: map[orderIn]int64{}}
	seen := map[string]*Event{}
	poison := make(map[string]bool)
	for _, key := range c.Poison {
		poison[key] = true
	}
	for i := range c.Records {
		if r := &c.Records[i]; poison[string(r.Key)] && !json.Valid(r.Value) {
			c.spoiled[orderIn{string(r.Key), r.Topic}] = r.Offset
			continue
		}
		e, err := Parse(&c.Records[i])
		if err != nil {
			c.add("unreadable", "", "%v", err)
			continue
		}
		c.events = append(c.events, e)
		first := seen[e.ID]
		if first == nil {
			seen[e.ID] = &e
			c.ByOrder[e.Order] = append(c.ByOrder[e.Order], &e)
		} else if !bytes.Equal(first.Record.Value, e.Record.Value) {
			c.add("changed repetition", e.Order, "event %s is repeated with another content", e.ID)
		}
	}
	for _, events := range c.ByOrder {
		slices.SortStableFunc(events, func(a, b *Event) int { return cmp.Compare(a.Version, b.Version) })
	}
	letters := make(map[string]bool)
	for _, l := range c.Letters {
		letters[string(l.Key)] = true
		if !poison[string(l.Key)] {
			c.add("dead letter", string(l.Key), "there is one")
		}
	}
	for key := range poison {
		if !letters[key] {
			c.add("no dead letter", key, "its record is no order")
		}
	}
	return c
}

// Parse decodes one record.
func Parse(r *testenv.Record) (Event, error) {
	var body struct {
		OrderID string
		Status  string
		Version int64
	}
	if err := json.Unmarshal(r.Value, &body); err != nil {
		return Event{}, fmt.Errorf("%s/%d at %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	e := Event{Record: r, Order: body.OrderID, Version: body.Version, Status: body.Status,
		Created: r.Topic == contract.TopicCreated}
	for _, h := range r.Headers {
		switch h.Key {
		case contract.HeaderID:
			e.ID = string(h.Value)
		case contract.HeaderTraceparent:
			if parts := strings.Split(string(h.Value), "-"); len(parts) == 4 {
				e.Trace = parts[1]
			}
		}
	}
	if e.ID == "" || e.Trace == "" || string(r.Key) != e.Order {
		return Event{},
			fmt.Errorf("%s/%d at %d: key %q, order %q, event %q, trace %q", r.Topic, r.Partition, r.Offset, r.Key,
				e.Order, e.ID, e.Trace)
	}
	return e, nil
}

// Topics compares the records with each other: partitions, versions and their order.
func (c *Checker) Topics() {
	newest, last := map[orderIn]int64{}, map[orderIn]*Event{}
	partition, seen := map[string]int32{}, map[string]bool{}
	for i := range c.events {
		e := &c.events[i]
		k := orderIn{e.Order, e.Record.Topic}
		if p, ok := partition[e.Order]; ok && p != e.Record.Partition {
			c.add("two partitions", e.Order, "it is in %d and %d", p, e.Record.Partition)
		}
		partition[e.Order] = e.Record.Partition
		// A record that is sent again after a failure may have a lower version than the one before
		// it. A new event must not.
		if !seen[e.ID] && e.Version < newest[k] {
			c.add("version went back", e.Order, "in %s: %d after %d", e.Record.Topic, e.Version, newest[k])
		}
		seen[e.ID] = true
		newest[k], last[k] = max(newest[k], e.Version), e
		if e.Created != (e.Version == 1) {
			c.add("wrong topic", e.Order, "version %d is in %s", e.Version, e.Record.Topic)
		}
	}
	for k, e := range last {
		// Compaction would keep the older one, or the record that is none.
		if e.Version != newest[k] {
			c.add("newest is not last", k.Order, "%s ends with version %d, the newest is %d", k.Topic, e.Version,
				newest[k])
		}
		if at, is := c.spoiled[k]; is && at > e.Record.Offset {
			c.add("newest is not last", k.Order, "%s ends with a record that is no order", k.Topic)
		}
	}
	for order, events := range c.ByOrder {
		for i, e := range events {
			switch {
			case i > 0 && e.Version == events[i-1].Version:
				c.add("version given twice", order, "version %d is that of events %s and %s", e.Version,
					events[i-1].ID, e.ID)
			case i == 0 && e.Version != 1, i > 0 && e.Version != events[i-1].Version+1:
				c.add("gap", order, "the topics have no version %d", e.Version-1)
			}
		}
	}
}

// clients compares the responses that clients got with the topics.
func (c *Checker) clients() {
	byTrace, asked := map[string][]*Event{}, map[string]bool{}
	for _, events := range c.ByOrder {
		for _, e := range events {
			byTrace[e.Trace] = append(byTrace[e.Trace], e)
		}
	}
	byOrder := map[string][]*Operation{}
	for i := range c.Operations {
		o := &c.Operations[i]
		byOrder[o.Order] = append(byOrder[o.Order], o)
		var made []*Event
		for _, trace := range o.Traces {
			asked[trace] = true
			made = append(made, byTrace[trace]...)
		}
		switch {
		case len(made) > 1:
			c.add("twice in effect", o.Order, "%s made versions %d and %d", o, made[0].Version, made[1].Version)
		case o.Outcome == Refused && len(made) > 0:
			c.add("refused, yet published", o.Order, "%s is version %d", o, made[0].Version)
		case o.Outcome == Accepted && len(made) == 0:
			c.add("lost", o.Order, "%s was accepted as version %d and is in no topic", o, o.Version)
		case o.Outcome == Accepted && made[0].Version != o.Version:
			c.add("another version", o.Order, "%s got version %d in its response and is %d", o, o.Version,
				made[0].Version)
		}
		if len(made) > 0 &&
			(made[0].Order != o.Order || made[0].Created != o.Create || (!o.Create && made[0].Status != o.Status)) {
			c.add("another event", o.Order, "%s made version %d of %s, status %q", o, made[0].Version, made[0].Order,
				made[0].Status)
		}
	}
	for trace, events := range byTrace {
		if !asked[trace] {
			c.add("not requested", events[0].Order, "version %d, trace %s", events[0].Version, trace)
		}
	}
	for _, operations := range byOrder {
		c.inTime(operations)
	}
	for _, l := range c.Lookups {
		if l.Version == 0 {
			continue
		}
		if i := slices.IndexFunc(c.ByOrder[l.Order], func(e *Event) bool { return e.Version == l.Version }); i < 0 ||
			c.ByOrder[l.Order][i].Status != l.Status {
			c.add("seen, yet not published", l.Order, "a look-up returned version %d, status %q", l.Version, l.Status)
		}
	}
}

// inTime checks that an operation that began after another one's response got a higher version.
func (c *Checker) inTime(operations []*Operation) {
	done := slices.DeleteFunc(slices.Clone(operations), func(o *Operation) bool { return o.Outcome != Accepted })
	slices.SortFunc(done, func(a, b *Operation) int { return cmp.Compare(a.Version, b.Version) })
	// latest is the operation that began last, of those with lower versions.
	var latest *Operation
	for _, o := range done {
		if latest != nil && o.End.Before(latest.Begin) {
			c.add("out of time", o.Order, "%s got version %d before %s began, which got %d", o, o.Version, latest,
				latest.Version)
		}
		if latest == nil || o.Begin.After(latest.Begin) {
			latest = o
		}
	}
}

// audits compares the audits of the topics with what is in them.
func (c *Checker) audits() {
	for topic, found := range c.Audits {
		orders := make(map[string]bool)
		for i := range c.events {
			if c.events[i].Record.Topic == topic {
				orders[c.events[i].Order] = true
			}
		}
		if found != len(orders) {
			c.add("audit differs", "", "%d orders were found in %s, and there are %d", found, topic, len(orders))
		}
	}
}

// stores compares both stores with the topics.
func (c *Checker) stores() {
	ends := map[TopicPartition]int64{}
	for i := range c.Records {
		r := &c.Records[i]
		at := TopicPartition{r.Topic, r.Partition}
		ends[at] = max(ends[at], r.Offset+1)
	}
	want := c.Fold(ends)

	inCart := maps.Clone(want)
	for id, r := range inCart {
		inCart[id] = StoredOrder{Version: r.Version, Body: r.Body}
	}
	c.Compare("cart's store differs", inCart, c.Cart)
	if c.Outbox != 0 {
		c.add("outbox not empty", "", "%d rows", c.Outbox)
	}
	for at, end := range ends {
		// The marker of a transaction may follow the last record.
		if got := c.Order.Offsets[at]; got < end || got > c.Ends[at] {
			c.add("order is not at the end", "",
				"%s/%d: it reads %d next; the last record is %d, the high watermark %d",
				at.Topic, at.Partition, got, end-1, c.Ends[at])
		}
	}
	c.Compare("order's store differs", want, c.Order.Orders)
	for _, crash := range c.Crashes {
		want := c.Fold(crash.Offsets)
		if c.Compacted {
			c.leaveReplaced(want, crash)
		}
		c.Compare("order's store differs after a crash", want, crash.Orders)
	}
}

// leaveReplaced makes want what a store has that was rebuilt after compaction. It lacks the versions of which
// there is a newer one that it has not read yet.
func (c *Checker) leaveReplaced(want map[string]StoredOrder, crash State) {
	for i := range c.events {
		e := &c.events[i]
		unread := e.Record.Offset >= crash.Offsets[TopicPartition{e.Record.Topic, e.Record.Partition}]
		got, ok := crash.Orders[e.Order]
		if !unread || got.Version >= want[e.Order].Version {
			continue
		}
		if delete(want, e.Order); ok {
			want[e.Order] = got
		}
	}
}

// Fold returns the state that follows from the topics up to the given offsets. Each order has its
// highest version, as in the first event with that version.
func (c *Checker) Fold(upTo map[TopicPartition]int64) map[string]StoredOrder {
	State := map[string]StoredOrder{}
	for i := range c.events {
		e := &c.events[i]
		if e.Record.Offset < upTo[TopicPartition{e.Record.Topic, e.Record.Partition}] &&
			e.Version > State[e.Order].Version {
			State[e.Order] = StoredOrder{e.Version, e.ID, string(e.Record.Value)}
		}
	}
	return State
}

// Compare adds a violation for each difference between two states.
func (c *Checker) Compare(kind string, want, got map[string]StoredOrder) {
	for id, w := range want {
		if g, ok := got[id]; !ok {
			c.add(kind, id, "it is missing, the version is %d", w.Version)
		} else if g != w {
			c.add(kind, id, "it has version %d by event %q: %.200s; want %d by %q: %.200s", g.Version, g.EventID,
				g.Body, w.Version, w.EventID, w.Body)
		}
	}
	for id, g := range got {
		if _, ok := want[id]; !ok {
			c.add(kind, id, "it has version %d, which the topics do not", g.Version)
		}
	}
}
