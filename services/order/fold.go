package order

import (
	"cmp"
	"errors"
	"runtime"
	"sync"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// decoded is a record and the event that it holds, or why it holds none.
type decoded struct {
	record *broker.Record
	event  contract.Event
	body   []byte // the order as it is stored and answered
	err    error
}

// decode decodes the records of a batch on all processors: of all that becomes of a record, this is the most work.
func decode(records []broker.Record) []decoded {
	out := make([]decoded, len(records))
	part := max(64, (len(records)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for from := 0; from < len(records); from += part {
		wg.Go(func() {
			for i := from; i < min(from+part, len(records)); i++ {
				r, d := &records[i], &out[i]
				d.record = r
				if d.event, d.err = contract.DecodeEvent(r.Topic, r.Offset, r.Key, r.Value, r.Headers); d.err == nil {
					d.body, d.err = d.event.Order.Encode() // not later: what cannot be stored must not hold a batch up
				}
			}
		})
	}
	wg.Wait()
	return out
}

// mark is what decides about an event: the version at which an order is known, and the event that brought it there.
type mark struct {
	version int64
	eventID string
}

// letter is a record for the dead-letter topic.
type letter struct {
	record  *broker.Record
	reason  contract.Reason
	message string // for a person
}

// outcome is what a batch comes to.
type outcome struct {
	winners    []*decoded // the newest event of each order that moves forward
	applied    int        // events that moved an order forward; a later one of the batch may have followed
	duplicates int        // events that were applied before
	stale      int        // events older than what is known
	letters    []letter
}

// fold decides about each record, in order. known has the marks of the orders that the store knows; it is not changed.
//
// Of the same version the first event stays: all events of one version of one order are in one partition, so every reader of the
// topics, however the partitions interleave, comes to the same state.
func fold(known map[string]mark, batch []decoded) outcome {
	var out outcome
	place := make(map[string]int, len(batch)) // of an order in out.winners
	for i := range batch {
		d := &batch[i]
		if d.err != nil {
			out.letters = append(out.letters, undelivered(d))
			continue
		}
		id, version := d.event.Order.OrderID, d.event.Order.Version
		last := known[id]
		at, won := place[id]
		if won {
			e := &out.winners[at].event
			last = mark{e.Order.Version, e.ID}
		}
		switch cmp.Compare(version, last.version) {
		case +1:
			out.applied++
			if won {
				out.winners[at] = d
			} else {
				place[id] = len(out.winners)
				out.winners = append(out.winners, d)
			}
		case -1:
			out.stale++
		default:
			if d.event.ID == last.eventID {
				out.duplicates++
			} else {
				out.letters = append(out.letters, letter{d.record, contract.ReasonConflict,
					"another event has brought the order to this version: " + last.eventID})
			}
		}
	}
	return out
}

func undelivered(d *decoded) letter {
	l := letter{d.record, contract.ReasonUndecodable, d.err.Error()}
	if e, ok := errors.AsType[*contract.DecodeError](d.err); ok {
		l.reason, l.message = e.Reason, e.Message
	}
	return l
}
