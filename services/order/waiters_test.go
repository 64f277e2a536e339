package order

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
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
	first, leaveFirst := w.watch("A", 1)
	second, leaveSecond := w.watch("A", 1)
	other, leaveOther := w.watch("B", 1)
	wake("A")
	if open(first) || open(second) || !open(other) {
		t.Error("a change must wake all look-ups of the order, and no other")
	}
	again, leaveAgain := w.watch("A", 1)
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
		_, leave := w.watch(fmt.Sprint(i), 1)
		leave()
	}
	if len(w.by) != 0 {
		t.Errorf("%d orders are kept after their look-ups left", len(w.by))
	}
}

// A process that stood still for ten seconds once had its look-ups wait for forty more.
func TestAStoreThatStoodStillIsAskedAgainSoon(t *testing.T) {
	t.Parallel()
	for took, want := range map[time.Duration]time.Duration{
		0:                     askStore,
		time.Millisecond:      askStore,
		20 * time.Millisecond: 80 * time.Millisecond,
		10 * time.Second:      askSlowStore,
	} {
		if got := pauseAfter(took); got != want {
			t.Errorf("after a query of %s the pause is %s, want %s", took, got, want)
		}
	}
}

// Another member writes the orders, so that nothing in this process wakes its look-ups.
func TestWaitsEndWhenAnotherMemberWrites(t *testing.T) {
	t.Parallel()
	other := member(t, t.TempDir())
	other.mustAssign(t, ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0))
	w := newWaiters(mostWaiting, prometheus.NewRegistry())
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.follow(ctx, other.store) }()
	ended := func(changed <-chan struct{}, what string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatal("still waits for " + what)
		}
	}

	creation, _ := w.watch("A", 1)
	update, _ := w.watch("B", 2)
	other.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "B", 1, "b1")))
	ended(creation, "A at version 1")
	// One query showed both orders, and decided on both before it released the lock.
	w.mu.Lock()
	if w.by["B"] == nil {
		t.Error("a look-up for version 2 was woken at version 1")
	}
	w.mu.Unlock()
	later := ordertest.Event(t, "B", 3, "b3")
	other.mustApply(t, batch(later))
	ended(update, "B at version 2 or later")

	// Nobody has waited for a while.
	ordertest.Eventually(t, "no look-up is left", func() bool { return w.count() == 0 && len(w.began) == 0 })
	again, _ := w.watch("A", 2)
	update2 := ordertest.Event(t, "A", 2, "a2")
	update2.Offset = 4
	other.mustApply(t, batch(update2))
	ended(again, "A at version 2")

	// A store that cannot be read must not look like an order that does not come.
	lost, _ := w.watch("C", 1)
	if err := other.store.close(); err != nil {
		t.Fatal(err)
	}
	ended(lost, "a store that fails")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
