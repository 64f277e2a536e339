package order

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// view knows whether the store has caught up with where the topics ended when the service started.
//
// The store decides, not what this member was assigned: a member without partitions hears nothing from its group, ever, and it is
// caught up when the store that it answers from is, whoever filled it. A partition counts once some member has taken it over (it has
// a row then), so that a new deployment is not ready before its first event would be read.
type view struct {
	caughtUp atomic.Bool
	changed  chan struct{} // offsets moved

	mu      sync.Mutex
	missing error // what it waits for
}

func newView() *view {
	return &view{changed: make(chan struct{}, 1), missing: errors.New("not connected to Kafka yet")}
}

// moved is told when the offsets in the store have moved.
func (v *view) moved() {
	if v.caughtUp.Load() {
		return
	}
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// ready is nil once the view has caught up, and stays so.
func (v *view) ready() error {
	if v.caughtUp.Load() {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.missing
}

func (v *view) waitFor(missing error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.missing = missing
}

// catchUp waits for the topics, and then until the store has caught up with them.
func (v *view) catchUp(ctx context.Context, admin *broker.Admin, s *store, log *slog.Logger) error {
	start := time.Now()
	state := func(err error) {
		if err != nil {
			v.waitFor(err)
		}
	}
	if _, err := admin.AwaitTopics(ctx, state, contract.TopicCreated, contract.TopicUpdated, contract.TopicDeadLetter); err != nil {
		return ignoreEnd(ctx, err)
	}
	if err := v.follow(ctx, s, admin.Bounds); err != nil {
		return ignoreEnd(ctx, err)
	}
	log.Info("caught up with the topics", "seconds", time.Since(start).Seconds())
	return nil
}

// follow returns once the store has reached where the topics ended at the beginning. While Kafka cannot be asked it tries again.
func (v *view) follow(ctx context.Context, s *store, bounds boundsFunc) error {
	var first, end map[broker.Partition]int64
	for {
		at, err := s.offsets(ctx)
		if err != nil {
			return err
		}
		if end == nil || madeAnew(at, end) {
			if first, end, err = bounds(ctx, contract.TopicCreated, contract.TopicUpdated); err != nil {
				end = nil
			}
		}
		if err == nil {
			err = behind(at, first, end)
		}
		if err == nil {
			v.caughtUp.Store(true)
			return nil
		}
		v.waitFor(err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-v.changed:
		case <-time.After(time.Second): // another member may have moved them
		}
	}
}

// madeAnew says whether a topic was deleted and made anew since its ends were listed: those would never be reached.
func madeAnew(at, end map[broker.Partition]int64) bool {
	ids := map[string]string{}
	for p := range at {
		ids[p.Topic] = p.TopicID
	}
	for p := range end {
		if id, ok := ids[p.Topic]; ok && id != p.TopicID {
			return true
		}
	}
	return false
}

// behind is nil when the offsets have reached the ends, else it says how far they are.
func behind(at, first, end map[broker.Partition]int64) error {
	var read, all int64
	unassigned := 0
	for p, last := range end {
		next, assigned := at[p]
		if !assigned {
			unassigned++
		}
		all += last - first[p]
		read += min(max(next, first[p]), last) - first[p]
	}
	switch {
	case read < all:
		return fmt.Errorf("catching up: %d of %d records", read, all)
	case unassigned > 0:
		return fmt.Errorf("waiting for the consumer group: %d of %d partitions are not assigned to anyone yet", unassigned, len(end))
	}
	return nil
}

// ignoreEnd drops the error of work that was cut off because the service stops.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// waiters are the look-ups that wait for an order to change.
type waiters struct {
	mu sync.Mutex
	by map[string]*waiting
}

type waiting struct {
	changed chan struct{} // closed when the order changes
	callers int
}

func newWaiters() *waiters { return &waiters{by: map[string]*waiting{}} }

// watch returns a channel that is closed at the next change of the order. Who watches first and reads then misses no change.
func (w *waiters) watch(id string) (changed <-chan struct{}, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	on := w.by[id]
	if on == nil {
		on = &waiting{changed: make(chan struct{})}
		w.by[id] = on
	}
	on.callers++
	return on.changed, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if on.callers--; on.callers == 0 && w.by[id] == on {
			delete(w.by, id)
		}
	}
}

// count is how many look-ups wait.
func (w *waiters) count() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, on := range w.by {
		n += on.callers
	}
	return n
}

func (w *waiters) wake(changed []*decoded) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.by) == 0 {
		return
	}
	for _, d := range changed {
		if on := w.by[d.event.Order.OrderID]; on != nil {
			delete(w.by, d.event.Order.OrderID)
			close(on.changed)
		}
	}
}
