package order

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/order/fold"
)

const (
	// askStore is how often a shared store is asked for the orders that look-ups wait for.
	askStore = 5 * time.Millisecond
	// askSlowStore is how often it is asked at least.
	askSlowStore = 250 * time.Millisecond
)

// waiters are the look-ups that wait for an order to change. It is safe for concurrent use.
type waiters struct {
	// places bounds how many look-ups wait.
	places  chan struct{}
	refused prometheus.Counter
	// began has a token if the first of the look-ups has begun to wait.
	began chan struct{}

	mu sync.Mutex
	by map[string]*waiting // by order ID
}

// waiting are the look-ups that wait for the same change of one order.
type waiting struct {
	changed chan struct{} // closed when the order changes
	lookups int
	// least is the lowest version that one of them waits for.
	least int64
}

// newWaiters returns waiters for so many look-ups at most, and registers their metrics.
func newWaiters(most int, reg prometheus.Registerer) *waiters {
	w := &waiters{
		places: make(chan struct{}, most), began: make(chan struct{}, 1), by: map[string]*waiting{},
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "order_waits_refused_total",
			Help: "Look-ups that got their response at once, although they preferred to wait: as many waited as may.",
		}),
	}
	reg.MustRegister(w.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "order_waiting_lookups", Help: "Look-ups that wait for their order to change.",
	}, func() float64 { return float64(w.count()) }))
	return w
}

// enter reports whether one more look-up may wait. If so, the caller must call leave in the end.
func (w *waiters) enter() bool {
	select {
	case w.places <- struct{}{}:
		return true
	default:
		w.refused.Inc()
		return false
	}
}

// leave gives a place back.
func (w *waiters) leave() { <-w.places }

// watch returns a channel that is closed at the next change of the order, and at the latest when the
// order is known at version least. A caller that watches before it reads the order misses no change.
// It must call leave in the end.
func (w *waiters) watch(id string, least int64) (changed <-chan struct{}, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	on := w.by[id]
	if on == nil {
		on = &waiting{changed: make(chan struct{}), least: least}
		w.by[id] = on
	}
	on.lookups++
	on.least = min(on.least, least)
	select {
	case w.began <- struct{}{}:
	default:
		// It has a token already.
	}
	return on.changed, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		// After a wake, the order may have another entry, which is not this caller's.
		if on.lookups--; on.lookups == 0 && w.by[id] == on {
			delete(w.by, id)
		}
	}
}

// wake ends the wait for these orders.
func (w *waiters) wake(changed []*fold.Decoded) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.by) == 0 {
		return
	}
	for _, d := range changed {
		w.end(d.Event.Order.OrderID)
	}
}

// wakeAll ends all waits: any order may have changed.
func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.by {
		w.end(id)
	}
}

// end ends the wait for an order. The caller holds mu.
func (w *waiters) end(id string) {
	if on := w.by[id]; on != nil {
		delete(w.by, id)
		close(on.changed)
	}
}

// follow ends the wait for orders that another process has written: it asks the store for all of them
// at once, as long as a look-up waits. It blocks until ctx ends.
//
// If the store cannot be read, all look-ups are woken. Each then finds that out for itself.
func (w *waiters) follow(ctx context.Context, s *store) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.began:
		}
		// Waits that this process ends by itself are often shorter than the first pause.
		for took := time.Duration(0); backoff.Sleep(ctx, pauseAfter(took)); {
			least := w.awaited()
			if len(least) == 0 {
				break
			}
			begin := time.Now()
			known, err := s.versions(ctx, slices.Collect(maps.Keys(least)))
			took = time.Since(begin)
			w.mu.Lock()
			for id, version := range least {
				if err != nil || known[id] >= version {
					w.end(id)
				}
			}
			w.mu.Unlock()
		}
	}
}

// pauseAfter returns when to ask the store again after a query that took so long. A store that takes longer is
// asked less often, up to a point: a query that took seconds says nothing about the next one, because this
// process or the database has stood still.
func pauseAfter(took time.Duration) time.Duration {
	return min(max(askStore, 4*took), askSlowStore)
}

// awaited returns the lowest version that look-ups wait for, by the ID of the order.
func (w *waiters) awaited() map[string]int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	least := make(map[string]int64, len(w.by))
	for id, on := range w.by {
		least[id] = on.least
	}
	return least
}

// count returns how many look-ups wait.
func (w *waiters) count() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, on := range w.by {
		n += on.lookups
	}
	return n
}
