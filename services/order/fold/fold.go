// Package fold turns records of the order topics into the newest version of each order. Order's
// store and its audit both use it, so that they come to the same state.
package fold

import (
	"cmp"
	"errors"
	"runtime"
	"sync"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// minPart is how many records are worth a goroutine of their own.
const minPart = 64

// Decoded is a record and the event that it holds, or why it holds none.
type Decoded struct {
	// Record points into the slice that was given to Decode.
	Record *broker.Record
	Event  contract.Event
	// Body is the order as it is stored and sent to clients.
	Body []byte
	// Err is why the record holds no event; Event and Body are then of no use.
	Err error
}

// Decode decodes the records on all processors, because decoding is most of the work that a record
// makes. The result has the order of the records.
func Decode(records []broker.Record) []Decoded {
	all := make([]Decoded, len(records))
	processors := runtime.GOMAXPROCS(0)
	part := max(minPart, (len(records)+processors-1)/processors)
	var wg sync.WaitGroup
	for from := 0; from < len(records); from += part {
		wg.Go(func() {
			for i := from; i < min(from+part, len(records)); i++ {
				all[i].decode(&records[i])
			}
		})
	}
	wg.Wait()
	return all
}

// decode fills d from a record.
func (d *Decoded) decode(r *broker.Record) {
	d.Record = r
	if r.Fault != nil {
		d.Err = &contract.DecodeError{Reason: contract.ReasonUnreadable, Message: r.Fault.Error()}
		return
	}
	d.Event, d.Body, d.Err = contract.DecodeRecord(r.Topic, r.Offset, r.Key, r.Value, r.Headers)
}

// Mark is what an event is compared with: the version of an order that is known, and the event that
// brought it. The zero Mark is an unknown order.
type Mark struct {
	Version int64
	EventID string
}

// Rejected is a record that takes no effect because something is wrong with it.
type Rejected struct {
	Record *broker.Record
	Reason contract.Reason
	// Message explains the reason to a person.
	Message string
}

// Result is what a batch comes to.
type Result struct {
	// Winners are the newest events of the orders that move forward, one for each order. Older ones that
	// moved it too are not among them.
	Winners []*Decoded
	// Duplicates counts the events that were applied before.
	Duplicates int
	// Stale counts the events that are older than what is known.
	Stale    int
	Rejected []Rejected
}

// Batch decides about each record of a batch, in order. known has the marks of the orders that are
// known already; Batch does not change it.
//
// Of several events of one version the first wins. All events of one version of an order are in one
// partition, so every reader of the topics comes to the same state, however the partitions
// interleave.
func Batch(known map[string]Mark, batch []Decoded) Result {
	var result Result
	winner := make(map[string]int, len(batch)) // index into result.Winners
	for i := range batch {
		d := &batch[i]
		if d.Err != nil {
			result.Rejected = append(result.Rejected, undecodable(d))
			continue
		}
		id := d.Event.Order.OrderID
		last := known[id]
		at, won := winner[id]
		if won {
			e := &result.Winners[at].Event
			last = Mark{e.Order.Version, e.ID}
		}
		switch cmp.Compare(d.Event.Order.Version, last.Version) {
		case +1:
			if won {
				result.Winners[at] = d
			} else {
				winner[id] = len(result.Winners)
				result.Winners = append(result.Winners, d)
			}
		case -1:
			result.Stale++
		default:
			if d.Event.ID == last.EventID {
				result.Duplicates++
				continue
			}
			result.Rejected = append(result.Rejected, Rejected{d.Record, contract.ReasonConflict,
				"another event has brought the order to this version: " + last.EventID})
		}
	}
	return result
}

// undecodable returns why a record holds no event. A reason that contract gives takes precedence.
func undecodable(d *Decoded) Rejected {
	if e, ok := errors.AsType[*contract.DecodeError](d.Err); ok {
		return Rejected{d.Record, e.Reason, e.Message}
	}
	return Rejected{d.Record, contract.ReasonUndecodable, d.Err.Error()}
}
