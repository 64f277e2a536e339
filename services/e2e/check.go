// Package e2e tests the whole system from outside: the real programs as processes of their own, on
// a real Kafka, by their HTTP responses, records and stores.
package e2e

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

// outcome is what a client knows of its operation.
type outcome int

const (
	// unknown: the connection broke before a response came, or the response was that it is unknown.
	unknown outcome = iota
	// accepted: the response was 200.
	accepted
	// refused: the response was anything else.
	refused
)

// operation is what a client requested and what it knows of the result. It is one request, or
// several with one Idempotency-Key.
type operation struct {
	order string
	// create is true for a creation, false for an update.
	create bool
	// status is what an update sets.
	status string
	// traces holds the trace ID of each request. The event has the one of the request that made it.
	traces  []string
	outcome outcome
	// version is known if the operation was accepted.
	version    int64
	begin, end time.Time
}

func (o *operation) String() string {
	what := "update to " + o.status
	if o.create {
		what = "creation"
	}
	return fmt.Sprintf("%s of %s (traces %v)", what, o.order, o.traces)
}

// lookup is an order as the Order service returned it.
type lookup struct {
	order   string
	version int64
	status  string
}

// topicPartition is a partition of a topic.
type topicPartition struct {
	topic     string
	partition int32
}

// storedOrder is an order in a store.
type storedOrder struct {
	version int64
	// eventID is empty for Cart's store, which does not keep it.
	eventID string
	body    string
}

// state is Order's store at one moment.
type state struct {
	// when names the moment in messages.
	when   string
	orders map[string]storedOrder
	// offsets are those of the next records to read.
	offsets map[topicPartition]int64
}

// evidence is what check compares: what clients saw, the records and both stores. It is collected
// after the last fault, when the system has come to rest.
type evidence struct {
	operations []operation
	lookups    []lookup
	// records are those of both order topics.
	records []testenv.Record
	// ends are the high watermarks of the order topics.
	ends map[topicPartition]int64
	// letters are those of the dead-letter topic.
	letters []testenv.Record
	cart    map[string]storedOrder
	// outbox is the number of rows left in Cart's outbox.
	outbox int
	// order is Order's store at the end.
	order state
	// crashes holds Order's store as each kill -9 left it.
	crashes []state
}

// event is a decoded record. The checker decodes records by itself: with the services' code it
// would make the same mistakes.
type event struct {
	record  *testenv.Record
	id      string
	trace   string
	created bool
	order   string
	version int64
	status  string
}

// violation is a broken promise. Its kind is one of a fixed set, and the checker's own test has
// every kind.
type violation struct{ kind, detail string }

func (v violation) String() string { return v.kind + ": " + v.detail }

// checker collects violations. Its methods are the parts of check.
type checker struct {
	evidence
	events []event
	// byOrder holds the first record of each event, ordered by version.
	byOrder map[string][]*event
	found   []violation
}

func (c *checker) add(kind, format string, args ...any) {
	c.found = append(c.found, violation{kind, fmt.Sprintf(format, args...)})
}

// check compares the evidence with what the system promises and returns the violations. Every
// acknowledged order is in its topic and in both stores, at its newest version. No operation takes
// effect twice, and a refused one takes none.
func check(e evidence) []violation {
	c := &checker{evidence: e, byOrder: map[string][]*event{}}
	c.read()
	c.topics()
	c.clients()
	c.stores()
	return c.found
}

// read decodes the records.
func (c *checker) read() {
	seen := map[string]*event{}
	for i := range c.records {
		e, err := parse(&c.records[i])
		if err != nil {
			c.add("unreadable", "%v", err)
			continue
		}
		c.events = append(c.events, e)
		first := seen[e.id]
		if first == nil {
			seen[e.id] = &e
			c.byOrder[e.order] = append(c.byOrder[e.order], &e)
		} else if !bytes.Equal(first.record.Value, e.record.Value) {
			c.add("changed repetition", "event %s of %s is repeated with another content", e.id, e.order)
		}
	}
	for _, events := range c.byOrder {
		slices.SortStableFunc(events, func(a, b *event) int { return cmp.Compare(a.version, b.version) })
	}
	for _, l := range c.letters {
		c.add("dead letter", "of key %s", l.Key)
	}
}

// parse decodes one record.
func parse(r *testenv.Record) (event, error) {
	var body struct {
		OrderID string
		Status  string
		Version int64
	}
	if err := json.Unmarshal(r.Value, &body); err != nil {
		return event{}, fmt.Errorf("%s/%d at %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	e := event{record: r, order: body.OrderID, version: body.Version, status: body.Status,
		created: r.Topic == contract.TopicCreated}
	for _, h := range r.Headers {
		switch h.Key {
		case contract.HeaderID:
			e.id = string(h.Value)
		case contract.HeaderTraceparent:
			if parts := strings.Split(string(h.Value), "-"); len(parts) == 4 {
				e.trace = parts[1]
			}
		}
	}
	if e.id == "" || e.trace == "" || string(r.Key) != e.order {
		return event{},
			fmt.Errorf("%s/%d at %d: key %q, order %q, event %q, trace %q", r.Topic, r.Partition, r.Offset, r.Key,
				e.order, e.id, e.trace)
	}
	return e, nil
}

// topics compares the records with each other: partitions, versions and their order.
func (c *checker) topics() {
	type key struct{ order, topic string }
	newest, last := map[key]int64{}, map[key]int64{}
	partition, seen := map[string]int32{}, map[string]bool{}
	for i := range c.events {
		e := &c.events[i]
		k := key{e.order, e.record.Topic}
		if p, ok := partition[e.order]; ok && p != e.record.Partition {
			c.add("two partitions", "order %s is in %d and %d", e.order, p, e.record.Partition)
		}
		partition[e.order] = e.record.Partition
		// A record that is sent again after a failure may have a lower version than the one before
		// it. A new event must not.
		if !seen[e.id] && e.version < newest[k] {
			c.add("version went back", "order %s in %s: %d after %d", e.order, e.record.Topic, e.version, newest[k])
		}
		seen[e.id] = true
		newest[k], last[k] = max(newest[k], e.version), e.version
		if e.created != (e.version == 1) {
			c.add("wrong topic", "version %d of %s is in %s", e.version, e.order, e.record.Topic)
		}
	}
	for k, version := range last {
		// Compaction would keep the older one.
		if version != newest[k] {
			c.add("newest is not last", "order %s in %s ends with version %d, the newest is %d", k.order, k.topic,
				version, newest[k])
		}
	}
	for order, events := range c.byOrder {
		for i, e := range events {
			switch {
			case i > 0 && e.version == events[i-1].version:
				c.add("version given twice", "order %s has version %d by events %s and %s", order, e.version,
					events[i-1].id, e.id)
			case i == 0 && e.version != 1, i > 0 && e.version != events[i-1].version+1:
				c.add("gap", "order %s has no version %d in the topics", order, e.version-1)
			}
		}
	}
}

// clients compares the responses that clients got with the topics.
func (c *checker) clients() {
	byTrace, asked := map[string][]*event{}, map[string]bool{}
	for _, events := range c.byOrder {
		for _, e := range events {
			byTrace[e.trace] = append(byTrace[e.trace], e)
		}
	}
	byOrder := map[string][]*operation{}
	for i := range c.operations {
		o := &c.operations[i]
		byOrder[o.order] = append(byOrder[o.order], o)
		var made []*event
		for _, trace := range o.traces {
			asked[trace] = true
			made = append(made, byTrace[trace]...)
		}
		switch {
		case len(made) > 1:
			c.add("twice in effect", "%s made versions %d and %d", o, made[0].version, made[1].version)
		case o.outcome == refused && len(made) > 0:
			c.add("refused, yet published", "%s is version %d", o, made[0].version)
		case o.outcome == accepted && len(made) == 0:
			c.add("lost", "%s was accepted as version %d and is in no topic", o, o.version)
		case o.outcome == accepted && made[0].version != o.version:
			c.add("another version", "%s got version %d in its response and is %d", o, o.version, made[0].version)
		}
		if len(made) > 0 &&
			(made[0].order != o.order || made[0].created != o.create || (!o.create && made[0].status != o.status)) {
			c.add("another event", "%s made version %d of %s, status %q", o, made[0].version, made[0].order,
				made[0].status)
		}
	}
	for trace, events := range byTrace {
		if !asked[trace] {
			c.add("not requested", "version %d of %s, trace %s", events[0].version, events[0].order, trace)
		}
	}
	for _, operations := range byOrder {
		c.inTime(operations)
	}
	for _, l := range c.lookups {
		if i := slices.IndexFunc(c.byOrder[l.order], func(e *event) bool { return e.version == l.version }); i < 0 ||
			c.byOrder[l.order][i].status != l.status {
			c.add("seen, yet not published", "a look-up returned version %d of %s, status %q", l.version, l.order,
				l.status)
		}
	}
}

// inTime checks that an operation that began after another one's response got a higher version.
func (c *checker) inTime(operations []*operation) {
	done := slices.DeleteFunc(slices.Clone(operations), func(o *operation) bool { return o.outcome != accepted })
	slices.SortFunc(done, func(a, b *operation) int { return cmp.Compare(a.version, b.version) })
	// latest is the operation that began last, of those with lower versions.
	var latest *operation
	for _, o := range done {
		if latest != nil && o.end.Before(latest.begin) {
			c.add("out of time", "%s got version %d before %s began, which got %d", o, o.version, latest,
				latest.version)
		}
		if latest == nil || o.begin.After(latest.begin) {
			latest = o
		}
	}
}

// stores compares both stores with the topics.
func (c *checker) stores() {
	ends := map[topicPartition]int64{}
	for i := range c.records {
		r := &c.records[i]
		at := topicPartition{r.Topic, r.Partition}
		ends[at] = max(ends[at], r.Offset+1)
	}
	want := c.fold(ends)

	inCart := maps.Clone(want)
	for id, r := range inCart {
		inCart[id] = storedOrder{version: r.version, body: r.body}
	}
	c.compare("cart's store differs", inCart, c.cart)
	if c.outbox != 0 {
		c.add("outbox not empty", "%d rows", c.outbox)
	}
	for at, end := range ends {
		// The marker of a transaction may follow the last record.
		if got := c.order.offsets[at]; got < end || got > c.ends[at] {
			c.add("order is not at the end", "%s/%d: it reads %d next, the last record is %d, the high watermark %d",
				at.topic, at.partition, got, end-1, c.ends[at])
		}
	}
	c.compare("order's store differs", want, c.order.orders)
	for _, crash := range c.crashes {
		c.compare("order's store differs after a crash", c.fold(crash.offsets), crash.orders)
	}
}

// fold returns the state that follows from the topics up to the given offsets. Each order has its
// highest version, as in the first event with that version.
func (c *checker) fold(upTo map[topicPartition]int64) map[string]storedOrder {
	state := map[string]storedOrder{}
	for i := range c.events {
		e := &c.events[i]
		if e.record.Offset < upTo[topicPartition{e.record.Topic, e.record.Partition}] &&
			e.version > state[e.order].version {
			state[e.order] = storedOrder{e.version, e.id, string(e.record.Value)}
		}
	}
	return state
}

// compare adds a violation for each difference between two states.
func (c *checker) compare(kind string, want, got map[string]storedOrder) {
	for id, w := range want {
		if g, ok := got[id]; !ok {
			c.add(kind, "it lacks %s, which is at version %d", id, w.version)
		} else if g != w {
			c.add(kind, "%s: it has version %d by event %q: %.200s; want %d by %q: %.200s", id, g.version, g.eventID,
				g.body, w.version, w.eventID, w.body)
		}
	}
	for id, g := range got {
		if _, ok := want[id]; !ok {
			c.add(kind, "it has version %d of %s, which the topics do not", g.version, id)
		}
	}
}
