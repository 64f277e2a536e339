package order

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/order/fold"
)

// waiters are the look-ups that wait for an order to change. It is safe for concurrent use.
type waiters struct {
	// places bounds how many look-ups wait.
	places  chan struct{}
	refused prometheus.Counter

	mu sync.Mutex
	by map[string]*waiting // by order ID
}

// waiting are the look-ups that wait for the same change of one order.
type waiting struct {
	changed chan struct{} // closed when the order changes
	lookups int
}

// newWaiters returns waiters for so many look-ups at most, and registers their metrics.
func newWaiters(most int, reg prometheus.Registerer) *waiters {
	w := &waiters{
		places: make(chan struct{}, most), by: map[string]*waiting{},
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

// watch returns a channel that is closed at the next change of the order. A caller that watches
// before it reads the order misses no change. It must call leave in the end.
func (w *waiters) watch(id string) (changed <-chan struct{}, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	on := w.by[id]
	if on == nil {
		on = &waiting{changed: make(chan struct{})}
		w.by[id] = on
	}
	on.lookups++
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
		id := d.Event.Order.OrderID
		if on := w.by[id]; on != nil {
			delete(w.by, id)
			close(on.changed)
		}
	}
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
