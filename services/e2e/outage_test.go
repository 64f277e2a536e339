package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// While Kafka is away, Cart accepts orders and Order reports that it is not ready. Nothing is lost,
// and no version overtakes another.
func TestKafkaIsDown(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("before")
	order.sees("before", 1, "new")

	kafka.Stop()
	cart.create("during")
	for n := range 50 {
		cart.update("during", fmt.Sprint("step ", n))
	}
	cart.ready() // still
	order.sees("before", 1, "new")
	if got := do(t, http.MethodGet, order.api+"/order/getAllOrderIdsFromTopic?topicName="+contract.TopicCreated,
		""); got.status != http.StatusServiceUnavailable {
		t.Errorf("an audit without Kafka: %d %s, want 503", got.status, got.body)
	}

	// Both services stop in time though Kafka is away, and no accepted order is lost.
	cart.stop()
	order.stop()
	// Cart's store is complete, so Cart needs no Kafka to become ready.
	cart.start().ready()
	cart.update("during", "after Cart's restart")
	cart.create("after Cart's restart")
	order.start()
	order.notReady("Kafka is unreachable")
	if got := do(t, http.MethodGet, order.api+"/order/order-details?orderId=before",
		""); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("a look-up before Order has caught up: %d %s, want 503 with Retry-After", got.status, got.body)
	}
	if rows := cart.metric("cart_outbox_rows"); rows != 53 {
		t.Errorf("cart_outbox_rows is %v, want the 53 events accepted without Kafka", rows)
	}
	if age := cart.metric("cart_outbox_oldest_seconds"); age <= 0 {
		t.Errorf("cart_outbox_oldest_seconds is %v", age)
	}

	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	order.ready()
	order.sees("during", 52, "after Cart's restart")
	order.sees("after Cart's restart", 1, "new")
	var versions []int64
	for _, r := range readTopics(t, kafka.Addr) {
		if string(r.Key) == "during" {
			e, err := faults.Parse(&r)
			if err != nil {
				t.Fatal(err)
			}
			versions = append(versions, e.Version)
		}
	}
	if !slices.IsSorted(versions) || len(versions) != 52 {
		t.Errorf("versions in the order in which they were published: %v, want 1 to 52", versions)
	}
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
}

// A new Cart does not know which orders exist before it has read the topics. It refuses orders
// until then, so that it never gives a version twice.
func TestNewCartNeedsKafkaOnce(t *testing.T) {
	t.Parallel()
	cart := newCart(t, local(freePorts(1)))
	cart.start()
	cart.notReady("Kafka is unreachable")
	got := do(t, http.MethodPost, cart.api+"/Order/create-order", `{"OrderId": "early", "ItemsNum": 1}`)
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("a creation: %d %s, want 503 with Retry-After", got.status, got.body)
	}
	cart.stop()
}

// The services wait for missing topics and never create them.
func TestMissingTopics(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	cart, order := newCart(t, kafka.Addr), newOrder(t, kafka.Addr)
	cart.start().notReady("missing topics: " + contract.TopicCreated + ", " + contract.TopicUpdated)
	order.start().notReady("missing topics: " +
		strings.Join([]string{contract.TopicCreated, contract.TopicDeadLetter, contract.TopicUpdated}, ", "))

	topics := contract.Topics()
	declare(t, kafka.Addr, topics[0])
	cart.notReady("missing topics: " + contract.TopicUpdated)
	order.notReady("missing topics: " + contract.TopicDeadLetter + ", " + contract.TopicUpdated)

	declare(t, kafka.Addr, topics[1])
	// The services look for topics several times a second. The limit leaves the rest to slow machines,
	// and is far below the minutes after which a client reads all metadata again.
	within := 30 * time.Second
	cart.readyIn(within)
	cart.create("A")
	order.notReady("missing topics: " + contract.TopicDeadLetter)

	declare(t, kafka.Addr, topics[2])
	order.readyIn(within)
	order.sees("A", 1, "new")

	// A Cart that was ready stays ready when Kafka loses its topics. After a restart it is not
	// ready, even with a complete store.
	for _, topic := range topics {
		if err := localkafka.DeleteTopic(t.Context(), kafka.Addr, topic.Name); err != nil {
			t.Fatal(err)
		}
	}
	cart.ready()
	cart.stop()
	cart.start().notReady("missing topics: " + contract.TopicCreated + ", " + contract.TopicUpdated)
	// Its store is complete, so it accepts orders and publishes them when the topics exist.
	cart.create("B")
	declare(t, kafka.Addr)
	cart.readyIn(within)
	order.sees("B", 1, "new")
	cart.stop()
	order.stop()
}

// After SIGTERM under load the services end in time and in order. No acknowledged order is lost.
func TestGracefulStopUnderLoad(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	l := startLoad(t, cart.api, order.api, seedOf(t), 16, time.Millisecond)
	defer l.end()
	for range 3 {
		before := cart.metric("cart_produce_ack_seconds_count")
		eventually(t, patience, "the load reaches Kafka", func() (bool, string) {
			n := cart.metric("cart_produce_ack_seconds_count")
			return n > before+300, fmt.Sprint(n)
		})
		waiting := make(chan reply, 1)
		go func() {
			got, err := send(http.MethodGet, order.api+"/order/order-details?orderId=nobody", "", "Prefer", "wait=30")
			if err != nil {
				got.body = err.Error()
			}
			waiting <- got
		}()
		cart.stop()
		order.stop()
		// Status 0 means that the request had not arrived yet.
		if got := <-waiting; got.status != http.StatusServiceUnavailable && got.status != 0 {
			t.Errorf("a look-up that waits while Order stops: %d %s, want 503", got.status, got.body)
		}
		cart.start().ready()
		order.start().ready()
	}
	l.end()
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
	verify(t, kafka.Addr, l, cart, order, nil)

	published := map[string]bool{}
	for _, r := range readTopics(t, kafka.Addr) {
		e, err := faults.Parse(&r)
		if err != nil {
			t.Fatal(err)
		}
		published[e.Trace] = true
	}
	for _, o := range l.operations {
		// All requests of an operation but the last got no response.
		failed := o.Traces
		if o.Outcome != faults.Unknown {
			failed = failed[:len(failed)-1]
		}
		for _, trace := range failed {
			if published[trace] {
				t.Errorf("%v was carried out without a response", &o)
			}
		}
	}
}
