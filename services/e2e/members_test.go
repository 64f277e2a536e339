package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// A member that sleeps for longer than its session (a stopped virtual machine, a long swap) has
// lost its partitions when it wakes up, and goes on in the belief that they are its own. It must
// notice, join again, and end with the state that the topics tell.
//
// SQLite cannot be shared, so the second member has a store of its own: this shows the group's part
// and the way back. That the one who slept cannot write to a *shared* store is shown where it is
// decided, by the tests of the order package.
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
	// When the session of the one that sleeps has ended.
	other.start().ready()
	t.Logf("its partitions were taken over after %s", time.Since(begin).Round(time.Millisecond))
	for n := range orders {
		other.sees(id(n), 2, "while it sleeps")
	}

	stalled.signal(syscall.SIGCONT)
	eventually(t, 30*time.Second, "both members share the partitions", func() (bool, string) {
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
	for n := range orders {
		stalled.sees(id(n), 3, "shared")
	}
	settle(t, kafka.Addr, cart, stalled)
	stalled.stop()
	cart.stop()
	c, _ := cartStore(t, cart)
	if o := orderStore(t, stalled, "").orders; hash(o) != hash(c) {
		t.Errorf("the member that slept ended with another state than Cart's: %d and %d orders", len(o), len(c))
	}
}

// Who was answered 200 and asks Order for that version with Prefer: wait always gets it.
func TestReadYourWrite(t *testing.T) {
	t.Parallel()
	_, cart, order := startSystem(t)
	const clients = 8
	var writes, slowest atomic.Int64
	var wg sync.WaitGroup
	until := time.Now().Add(4 * time.Second)
	for c := range clients {
		wg.Go(func() {
			for n := 0; time.Now().Before(until) && !t.Failed(); n++ {
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
				slowest.Store(max(slowest.Load(), int64(time.Since(begin))))
				writes.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d writes, each seen; the slowest after %s", writes.Load(),
		time.Duration(slowest.Load()).Round(time.Millisecond))
	if writes.Load() < 100 {
		t.Errorf("only %d writes", writes.Load())
	}
	cart.stop()
	order.stop()
}
