package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// startCompactedSystem starts Cart and Order on a broker that compacts the topics at once.
func startCompactedSystem(t *testing.T) (kafka *localkafka.Broker, cart, order *process) {
	t.Helper()
	kafka = testenv.StartKafkaWith(t, localkafka.Options{
		// By default compaction waits for 15 s.
		Settings: map[string]string{"log.cleaner.backoff.ms": "100"},
	})
	declare(t, kafka.Addr, compactedAtOnce()...)
	return kafka, newCart(t, kafka.Addr).start().ready(), newOrder(t, kafka.Addr).start().ready()
}

// A store follows from the topics alone. A deleted store is rebuilt from them and is the same as
// before, also after compaction. A Cart that lost its store continues with the next versions.
func TestStoresAreRebuiltFromTheTopics(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startCompactedSystem(t)

	const orders, updates = 30, 6
	id := func(n int) string { return fmt.Sprint("order-", n) }
	for n := range orders {
		cart.create(id(n))
	}
	for u := range updates {
		for n := range orders {
			// Some are never updated.
			if n%3 != 0 {
				cart.update(id(n), fmt.Sprint("step ", u))
			}
		}
	}

	// both stops the services and returns the hashes of their stores.
	both := func() (inCart, inOrder string) {
		t.Helper()
		settle(t, kafka.Addr, cart, order)
		cart.stop()
		order.stop()
		c, _ := cartStore(t, cart)
		o := orderStore(t, order, "").Orders
		for id, r := range o {
			if k := c[id]; k.Version != r.Version || k.Body != r.Body {
				t.Errorf("order %s is %+v in Cart's store, %+v in Order's", id, k, r)
			}
		}
		return hash(c), hash(o)
	}
	rebuilt := func(name string, lost ...*process) {
		t.Helper()
		c, o := both()
		for _, p := range lost {
			if err := os.RemoveAll(p.dir); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		cart.start().ready()
		order.start().ready()
		t.Logf("%s: ready after %s", name, time.Since(begin).Round(time.Millisecond))
		if c2, o2 := both(); c2 != c || o2 != o {
			t.Errorf("%s: the rebuilt stores differ (cart %t, order %t)", name, c2 != c, o2 != o)
		}
		cart.start().ready()
		order.start().ready()
	}
	rebuilt("both stores lost", cart, order)

	old := len(readTopics(t, kafka.Addr))
	compact(t, kafka.Addr, cart, order, func() (bool, string) {
		left := 0
		for _, r := range readTopics(t, kafka.Addr) {
			if string(r.Key[:5]) == "order" {
				left++
			}
		}
		// The creations, and one update of each updated order.
		return left <= orders+2*orders/3, fmt.Sprintf("%d of %d records", left, old)
	})
	rebuilt("Order's store lost after compaction", order)
	rebuilt("Cart's store lost after compaction", cart)
	if got := do(t, http.MethodPost, cart.api+"/Order/create-order",
		`{"OrderId": "order-1", "ItemsNum": 1}`); got.status != http.StatusConflict {
		t.Errorf("creating an order again after Cart lost its store: %d %s, want 409", got.status, got.body)
	}
	if v := cart.update(id(1), "after the rebuild"); v != updates+2 {
		t.Errorf("the first update after Cart lost its store is version %d, want %d", v, updates+2)
	}
	if v := cart.update(id(0), "after the rebuild"); v != 2 {
		t.Errorf("the first update of an order that had none is version %d, want 2", v)
	}
	order.sees(id(1), updates+2, "after the rebuild")
	rebuilt("both stores lost after compaction", cart, order)
	cart.stop()
	order.stop()
}

// A topic that is deleted and recreated while Order runs starts at offset 0 again. Order notices
// it, counts it, and reads the new topic from its beginning.
func TestRecreatedTopic(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	// Most partitions get records, so that the old offsets lie beyond the ends of the new topic.
	for n := range 30 {
		id := fmt.Sprint("old-", n)
		cart.create(id)
		cart.update(id, "Shipped")
	}
	for n := range 30 {
		order.sees(fmt.Sprint("old-", n), 2, "Shipped")
	}

	if err := localkafka.DeleteTopic(t.Context(), kafka.Addr, contract.TopicUpdated); err != nil {
		t.Fatal(err)
	}
	declare(t, kafka.Addr)
	eventually(t, patience, "the new topic is noticed", func() (bool, string) {
		return order.metric("order_topics_recreated_total") > 0, ""
	})
	testenv.Produce(t, kafka.Addr, message("old-0", "by another producer", "Returned", 3))
	order.sees("old-0", 3, "Returned")
	for n := 1; n < 30; n++ {
		id := fmt.Sprint("old-", n)
		cart.update(id, "Returned")
		order.sees(id, 3, "Returned")
	}
	if n := order.metric("order_topics_recreated_total"); n != 1 {
		t.Errorf("order_topics_recreated_total is %v, want 1: one topic was recreated", n)
	}
	cart.stop()
	order.stop()
}

// Records with the key of an order that hold none take the order's place in the topics, once they
// are compacted. A rebuilt store lacks it then. Only a broker can refuse such records, but neither
// service is silent about them, and a copy of Cart's store brings the orders back.
func TestRecordsThatReplaceAnOrderAreNotSilent(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startCompactedSystem(t)
	for _, id := range []string{"erased", "garbled", "safe"} {
		cart.create(id)
	}
	cart.update("garbled", "Shipped")
	cart.update("safe", "Shipped")
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	backup := copyOf(t, cart.dir)
	cart.start().ready()

	bad := func(topic, key string, value []byte) contract.Message {
		return contract.Message{Topic: topic, Key: []byte(key), Value: value}
	}
	testenv.Produce(t, kafka.Addr,
		bad(contract.TopicCreated, "erased", nil),
		bad(contract.TopicCreated, "garbled", []byte("no order")),
		bad(contract.TopicUpdated, "garbled", body("another", "Shipped", 3)),
		// The update has the whole order.
		bad(contract.TopicCreated, "safe", nil))
	compact(t, kafka.Addr, cart, order, func() (bool, string) {
		left := map[string]int{}
		for _, r := range readTopics(t, kafka.Addr) {
			left[string(r.Key)]++
		}
		return left["erased"] == 1 && left["garbled"] == 2 && left["safe"] == 2, fmt.Sprint(left)
	})
	for _, p := range []*process{cart, order} {
		p.stop()
		if err := os.RemoveAll(p.dir); err != nil {
			t.Fatal(err)
		}
		p.start().ready()
	}
	settle(t, kafka.Addr, cart, order)
	if got := cart.metric("cart_orders_in_doubt_total"); got != 2 {
		t.Errorf("cart_orders_in_doubt_total is %v, want 2", got)
	}
	if got := order.metric("order_dead_letters_total"); got != 4 {
		t.Errorf("order_dead_letters_total is %v, want 4", got)
	}
	for _, id := range []string{"erased", "garbled"} {
		got := do(t, http.MethodGet, order.api+"/order/order-details?orderId="+id, "")
		if got.status != http.StatusNotFound {
			t.Errorf("order %s, of which nothing is left: %d %s, want 404", id, got.status, got.body)
		}
		if !strings.Contains(cart.log(), fmt.Sprintf(`"order_id":%q`, id)) {
			t.Errorf("the log of Cart does not name %s", id)
		}
	}
	order.sees("safe", 2, "Shipped")

	// The way back that the runbook describes.
	cart.stop()
	restore(t, backup, cart.dir)
	cart.start().ready().compares()
	cart.republish()
	order.sees("erased", 1, contract.StatusNew)
	order.sees("garbled", 2, "Shipped")
	sameAfterARebuild(t, kafka.Addr, cart, order)
	if got := cart.metric("cart_orders_in_doubt_total"); got != 0 {
		t.Errorf("cart_orders_in_doubt_total is %v after the orders were published again, want 0", got)
	}
	cart.stop()
	order.stop()
}

// Somebody has changed Order's view. orderctl shows how it differs from the topics, and has Order put it right
// while clients go on.
func TestAWrongViewIsRebuiltWhileClientsGoOn(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		kafka, cart, order := startSystem(t)
		testRebuild(t, kafka.Addr, cart, order, func(statements string) {
			order.stop()
			execute(t, order, statements)
			order.start().ready()
		})
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		d := startWithDatabase(t, map[string]string{})
		d.cart.start().ready()
		d.order.start().ready()
		testRebuild(t, d.kafka, d.cart, d.order, func(statements string) {
			d.exec("SET search_path = order_view; " + statements)
		})
	})
}

// rebuildView runs orderctl rebuild, and checks its exit code and that it prints what is wanted.
func rebuildView(t *testing.T, order *process, wantCode int, want string, args ...string) {
	t.Helper()
	// It needs no Kafka of its own.
	code, stdout, stderr := orderctl(t, "", append([]string{"rebuild", "-order", order.ops}, args...)...)
	if code != wantCode || !strings.Contains(stdout, want) {
		t.Errorf("rebuild %s: exit code %d, want %d and %q:\n%s%s", args, code, wantCode, want, stdout, stderr)
	}
}

// testRebuild is the test on one kind of database. change changes Order's store.
func testRebuild(t *testing.T, kafka string, cart, order *process, change func(statements string)) {
	t.Helper()
	const busy = 60
	id := func(n int) string { return fmt.Sprint("busy-", n) }
	for n := range busy {
		cart.create(id(n))
	}
	cart.create("deleted")
	cart.create("changed")
	cart.update("changed", "Shipped")
	settle(t, kafka, cart, order)
	rebuildView(t, order, 0, "no differences\n")
	change(`DELETE FROM orders WHERE order_id = 'deleted';
		UPDATE orders SET version = 1, total = 0 WHERE order_id = 'changed'`)
	stop := updateAll(t, cart, busy, id)
	const found = "all: 1 different, 1 only-in-topics"
	rebuildView(t, order, 1, found+"\n")
	rebuildView(t, order, 0, found+". The view now has what the topics have\n", "-swap")
	t.Logf("%d updates meanwhile", stop())
	order.sees("deleted", 1, "new")
	order.sees("changed", 2, "Shipped")
	settle(t, kafka, cart, order)
	rebuildView(t, order, 0, "no differences\n")
	cart.stop()
	order.stop()
}
