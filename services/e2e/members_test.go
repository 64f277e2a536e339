package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// A member that sleeps for longer than its session (a paused virtual machine, a long swap) has lost
// its partitions when it wakes up, but does not know that yet. It must notice, join again, and end
// with the state that follows from the topics.
//
// SQLite cannot be shared, so the second member has a store of its own. The tests of the order
// package show that a member that slept cannot write to a shared store.
func TestStalledMember(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	cart, stalled, other := newCart(t, kafka.Addr), newOrder(t, kafka.Addr), newOrder(t, kafka.Addr)
	cart.start().ready()
	stalled.start().ready()
	id := func(n int) string { return fmt.Sprint("order-", n) }
	const orders = 40
	for n := range orders {
		cart.create(id(n))
	}
	stalled.sees(id(orders-1), 1, contract.StatusNew)
	rebalances := stalled.metric("order_rebalances_total")

	stalled.signal(syscall.SIGSTOP)
	for n := range orders {
		cart.update(id(n), "while it sleeps")
	}
	begin := time.Now()
	// It gets the partitions when the session of the sleeping member has ended.
	other.start().ready()
	t.Logf("its partitions were taken over after %s", time.Since(begin).Round(time.Millisecond))
	for n := range orders {
		other.sees(id(n), 2, "while it sleeps")
	}

	stalled.signal(syscall.SIGCONT)
	eventually(t, patience, "both members share the partitions", func() (bool, string) {
		a, b := stalled.metric("order_assigned_partitions"), other.metric("order_assigned_partitions")
		return a == 12 && b == 12, fmt.Sprint(a, b)
	})
	if n := stalled.metric("order_rebalances_total"); n <= rebalances {
		t.Errorf("order_rebalances_total is still %v", n)
	}
	for n := range orders {
		cart.update(id(n), "shared")
	}
	other.stop()
	// Until it has them all, it may still be ready, and stop to be so in a moment.
	eventually(t, patience, "the member that slept has all partitions", func() (bool, string) {
		here, elsewhere := stalled.metric("order_assigned_partitions"), stalled.metric("order_partitions_elsewhere")
		return here == 24 && elsewhere == 0, fmt.Sprint(here, elsewhere)
	})
	stalled.ready()
	for n := range orders {
		stalled.sees(id(n), 3, "shared")
	}
	settle(t, kafka.Addr, cart, stalled)
	stalled.stop()
	cart.stop()
	c, _ := cartStore(t, cart)
	if o := orderStore(t, stalled, "").Orders; hash(o) != hash(c) {
		t.Errorf("the member that slept ended with another state than Cart's: %d and %d orders", len(o), len(c))
	}
}

// Two Orders with a store each split the partitions, so that neither knows all orders. Neither answers
// look-ups then, and both say who shares the group. The one that is left reads what it missed.
func TestOrdersWithAStoreEachDoNotShareAGroup(t *testing.T) {
	t.Parallel()
	kafka, cart, first := startSystem(t)
	const orders = 24
	id := func(n int) string { return fmt.Sprint("order-", n) }
	for n := range orders {
		cart.create(id(n))
		first.sees(id(n), 1, contract.StatusNew)
	}
	second := newOrder(t, kafka.Addr).start()
	for _, p := range []*process{first, second} {
		p.notReady("other members of the consumer group hold 12 of 24 partitions, and this store lacks what " +
			"they read: order at 127.0.0.1 has 12")
		if got := do(t, http.MethodGet, p.api+"/order/order-details?orderId="+id(0), ""); got.status != 503 {
			t.Errorf("a look-up that may be stale: %d %s, want 503", got.status, got.body)
		}
		if n := p.metric("order_partitions_elsewhere"); n != 12 {
			t.Errorf("order_partitions_elsewhere is %v, want 12", n)
		}
	}
	for n := range orders {
		cart.update(id(n), "Shipped")
	}
	second.stop()
	first.ready()
	for n := range orders {
		// It has caught up when it is ready: no look-up has to wait.
		got := do(t, http.MethodGet, first.api+"/order/order-details?orderId="+id(n), "")
		if got.status != http.StatusOK || got.version() != 2 {
			t.Errorf("order %s: %d, version %d; want version 2", id(n), got.status, got.version())
		}
	}
	if n := first.metric("order_partitions_elsewhere"); n != 0 {
		t.Errorf("order_partitions_elsewhere is %v afterwards, want 0", n)
	}
	first.stop()
	cart.stop()
}

// A client that got 200 and asks Order for that version with Prefer: wait always gets it.
func TestReadYourWrite(t *testing.T) {
	t.Parallel()
	_, cart, order := startSystem(t)
	const clients, writes = 8, 40
	var mu sync.Mutex
	var slowest time.Duration
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for n := 0; n < writes && !t.Failed(); n++ {
				id, status := fmt.Sprintf("order-%d-%d", c, n/5), contract.StatusNew
				method, url, body := http.MethodPost, "/Order/create-order",
					fmt.Sprintf(`{"OrderId": %q, "ItemsNum": 3}`, id)
				if n%5 != 0 {
					status = fmt.Sprint("status-", n)
					method, url, body = http.MethodPut, "/Order/update-order",
						fmt.Sprintf(`{"orderId": %q, "status": %q}`, id, status)
				}
				wrote, err := send(method, cart.api+url, body)
				if err != nil || wrote.status != http.StatusOK {
					t.Errorf("%s %s: %d %s %v", method, body, wrote.status, wrote.body, err)
					return
				}
				begin := time.Now()
				order.sees(id, wrote.version(), status)
				mu.Lock()
				slowest = max(slowest, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d writes, each seen; the slowest after %s", clients*writes, slowest.Round(time.Millisecond))
	cart.stop()
	order.stop()
}
