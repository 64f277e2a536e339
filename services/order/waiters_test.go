package order

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/order/fold"
	"ordersystem.dev/services/order/ordertest"
)

func TestWaiters(t *testing.T) {
	t.Parallel()
	// wake has closed the channels when it returns, so there is nothing to wait for.
	open := func(changed <-chan struct{}) bool {
		select {
		case <-changed:
			return false
		default:
			return true
		}
	}
	w := newWaiters(1, prometheus.NewRegistry())
	wake := func(id string) {
		d := fold.Decode([]broker.Record{ordertest.Event(t, id, 1, "e")})
		w.wake([]*fold.Decoded{&d[0]})
	}
	first, leaveFirst := w.watch("A")
	second, leaveSecond := w.watch("A")
	other, leaveOther := w.watch("B")
	wake("A")
	if open(first) || open(second) || !open(other) {
		t.Error("a change must wake all look-ups of the order, and no other")
	}
	again, leaveAgain := w.watch("A")
	// These two are of the change before. The new watch stays.
	leaveFirst()
	leaveSecond()
	if !open(again) {
		t.Error("a new watch is woken by an old change")
	}
	wake("A")
	if open(again) {
		t.Error("a watch was lost when an earlier one left")
	}
	leaveAgain()
	leaveOther()
	if len(w.by) != 0 {
		t.Errorf("%d orders are kept although no look-up waits", len(w.by))
	}
	for i := range 3 {
		_, leave := w.watch(fmt.Sprint(i))
		leave()
	}
	if len(w.by) != 0 {
		t.Errorf("%d orders are kept after their look-ups left", len(w.by))
	}
}
