package e2e

import (
	"fmt"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// An Order that gets an old copy of its database back reads on from the offsets in it. Nothing is
// missing, and what it reads a second time changes nothing.
func TestARestoredOrderReadsOnFromItsCopy(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	const orders = 30
	id := func(n int) string { return fmt.Sprint("order-", n) }
	for n := range orders {
		cart.create(id(n))
	}
	settle(t, kafka.Addr, cart, order)
	order.stop()
	backup := copyOf(t, order.dir)
	order.start().ready()
	for n := range orders {
		cart.update(id(n), "after the copy")
	}
	cart.create("new")
	settle(t, kafka.Addr, cart, order)
	order.stop()
	want := orderStore(t, order, "before the restore").Orders
	restore(t, backup, order.dir)

	order.start().ready()
	settle(t, kafka.Addr, cart, order)
	order.sees(id(0), 2, "after the copy")
	order.sees("new", 1, contract.StatusNew)
	noLetters(t, kafka.Addr)
	order.stop()
	if got := orderStore(t, order, "after the restore").Orders; hash(got) != hash(want) {
		t.Errorf("the restored Order has %d orders, which are not the %d that it had", len(got), len(want))
	}
	cart.stop()
}

// The copy is from an Order that read another Kafka. Its offsets mean nothing here, so the topics
// are read from their start. What only the other Kafka had stays, and the log says so.
func TestAnOrderRestoredFromAnotherKafkaReadsFromTheStart(t *testing.T) {
	t.Parallel()
	other, here := testenv.StartKafka(t), testenv.StartKafka(t)
	declare(t, other.Addr)
	declare(t, here.Addr)
	produce := func(addr, kind string, orders int) {
		t.Helper()
		var ms []contract.Message
		for n := range orders {
			id := fmt.Sprint(kind, "-", n)
			ms = append(ms, message(id, id, contract.StatusNew, 1))
		}
		testenv.Produce(t, addr, ms...)
	}
	produce(other.Addr, "other", 50)
	there := newOrder(t, other.Addr).start().ready()
	there.stop()
	produce(here.Addr, "here", 30)
	order := newOrder(t, here.Addr)
	restore(t, there.dir, order.dir)

	order.start().ready()
	for n := range 30 {
		order.sees(fmt.Sprint("here-", n), 1, contract.StatusNew)
	}
	order.sees("other-0", 1, contract.StatusNew)
	if got := order.metric("order_topics_recreated_total"); got != 2 {
		t.Errorf("order_topics_recreated_total is %v, want 2", got)
	}
	if !strings.Contains(order.log(), "orders that only the old one had stay") {
		t.Error("the log does not say that orders of the other Kafka stay")
	}
	order.stop()
}
