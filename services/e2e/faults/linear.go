package faults

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// linearPatience is how long the search for a linearization of one order may take.
const linearPatience = 20 * time.Second

// orderAt is an order at one moment. Version 0 is an order that does not exist.
type orderAt struct {
	version int64
	status  string
}

// effect is an operation with the version that it made. Version 0: it changed nothing.
type effect struct {
	*Operation
	version int64
}

// cart is what Cart promises about one order: each operation takes effect, or is refused, at one moment
// between its request and its response.
var cart = porcupine.Model{
	Init: func() any { return orderAt{} },
	Step: func(state, in, _ any) (bool, any) {
		now, e := state.(orderAt), in.(effect)
		if e.version == 0 {
			return e.changesNothing(now), now
		}
		legal := e.version == now.version+1 && e.Create == (now.version == 0) &&
			(e.Create || e.Status != now.status) && (e.IfMatch == "" || e.matches(now))
		next := orderAt{e.version, e.Status}
		if e.Create {
			next.status = "new"
		}
		return legal, next
	},
	DescribeOperation: func(in, _ any) string { return in.(effect).describe() },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// changesNothing reports whether the response to an operation that changed nothing is right for the order as
// it is now.
func (e effect) changesNothing(now orderAt) bool {
	switch {
	case e.Outcome != Refused:
		// It never came to Cart, or Cart died before it took effect.
		return e.Outcome == Unknown
	case e.Code == http.StatusNotFound:
		return now.version == 0
	case e.Code == http.StatusConflict && e.Create:
		return now.version > 0
	case e.Code == http.StatusConflict:
		return now.status == e.Status
	case e.Code == http.StatusPreconditionFailed:
		return !e.matches(now)
	default:
		// It was refused whatever the order is.
		return true
	}
}

// matches reports whether If-Match names the version of the order.
func (e effect) matches(now orderAt) bool { return e.IfMatch == fmt.Sprintf(`"%d"`, now.version) }

func (e effect) describe() string {
	what := "update to " + e.Status
	if e.Create {
		what = "create"
	}
	switch {
	case e.version > 0:
		return fmt.Sprintf("%s: version %d", what, e.version)
	case e.Outcome == Refused:
		return fmt.Sprintf("%s: %d", what, e.Code)
	default:
		return what + ": no effect"
	}
}

// effects returns the operations on each order.
func (c *Checker) effects() map[string][]porcupine.Operation {
	byTrace := make(map[string]*Event)
	for _, events := range c.ByOrder {
		for _, e := range events {
			byTrace[e.Trace] = e
		}
	}
	all := make(map[string][]porcupine.Operation)
	for i := range c.Operations {
		o := &c.Operations[i]
		e := effect{Operation: o, version: o.Version}
		until := o.End.UnixNano()
		if o.Outcome == Unknown {
			// It took effect if its event was published, and that may have been at any later time.
			until = math.MaxInt64
			for _, trace := range o.Traces {
				if made := byTrace[trace]; made != nil {
					e.version = made.Version
				}
			}
		}
		all[o.Order] = append(all[o.Order], porcupine.Operation{
			ClientId: o.Client, Input: e, Call: o.Begin.UnixNano(), Return: until,
		})
	}
	return all
}

// linearizable checks that the operations on each order can be put into one sequence, each at a moment between
// its request and its response. (Herlihy and Wing, Linearizability, 1990.)
func (c *Checker) linearizable() {
	for order, operations := range c.effects() {
		switch porcupine.CheckOperationsTimeout(cart, operations, linearPatience) {
		case porcupine.Ok:
		case porcupine.Illegal:
			c.add("not linearizable", order, "%d operations", len(operations))
		case porcupine.Unknown:
			c.add("not decided", order, "whether %d operations are linearizable", len(operations))
		}
	}
}

// monotonic checks that a look-up finds no older version of an order than one that had ended before it began.
func (c *Checker) monotonic() {
	byOrder := make(map[string][]Lookup)
	for _, l := range c.Lookups {
		byOrder[l.Order] = append(byOrder[l.Order], l)
	}
	for order, begun := range byOrder {
		ended := slices.Clone(begun)
		slices.SortFunc(begun, func(a, b Lookup) int { return a.Begin.Compare(b.Begin) })
		slices.SortFunc(ended, func(a, b Lookup) int { return a.End.Compare(b.End) })
		// newest is what those that had ended have found.
		newest, next := int64(0), 0
		for _, l := range begun {
			for ; ended[next].End.Before(l.Begin); next++ {
				newest = max(newest, ended[next].Version)
			}
			if l.Version < newest {
				c.add("went back", order, "a look-up found version %d, and one before it %d", l.Version, newest)
			}
		}
	}
}
