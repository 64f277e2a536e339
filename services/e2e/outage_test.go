package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// With Kafka away Cart goes on, Order says that it cannot, and nothing is lost or overtaken.
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

	// Both services stop in time though Kafka is away, and what was accepted survives it.
	cart.stop()
	order.stop()
	// Its store is whole.
	cart.start().readyIn(3 * time.Second)
	cart.update("during", "after Cart's restart")
	cart.create("after Cart's restart")
	order.start()
	order.notReady("Kafka is unreachable")
	if got := do(t, http.MethodGet, order.api+"/order/order-details?orderId=before",
		""); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("a look-up before the view has caught up: %d %s, want 503 with Retry-After", got.status, got.body)
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
			e, err := parse(&r)
			if err != nil {
				t.Fatal(err)
			}
			versions = append(versions, e.version)
		}
	}
	if !slices.IsSorted(versions) || len(versions) != 52 {
		t.Errorf("versions in the order in which they went out: %v, want 1 to 52", versions)
	}
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
}

// A new Cart cannot know which orders exist before it has read the topics: it refuses rather than
// give a version twice.
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

// Topics that do not exist are waited for: nobody creates them but who declares them.
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
	// They are looked for once a second; the rest is for slow machines.
	within := 5 * time.Second
	cart.readyIn(within)
	cart.create("A")
	order.notReady("missing topics: " + contract.TopicDeadLetter)

	declare(t, kafka.Addr, topics[2])
	order.readyIn(within)
	order.sees("A", 1, "new")

	// A store that is whole does not make Cart ready on a reachable Kafka that lost its topics, but
	// one that has seen them stays so.
	for _, topic := range topics {
		if err := localkafka.DeleteTopic(t.Context(), kafka.Addr, topic.Name); err != nil {
			t.Fatal(err)
		}
	}
	cart.ready()
	cart.stop()
	cart.start().notReady("missing topics: " + contract.TopicCreated + ", " + contract.TopicUpdated)
	// It is whole: what it takes goes out when there are topics.
	cart.create("B")
	declare(t, kafka.Addr)
	cart.readyIn(within)
	order.sees("B", 1, "new")
	cart.stop()
	order.stop()
}

// SIGTERM under load: it ends in time, in order, and nothing that was answered 200 is lost.
func TestGracefulStopUnderLoad(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	// A connection for each request: one that is kept can be closed for being idle in the moment in
	// which it carries a request again.
	l := startLoad(t, cart, order, number(t, "E2E_SEED", 1), 16, time.Millisecond, func(l *load) {
		l.headers = []string{"Connection", "close"}
	})
	defer l.end()
	for range 3 {
		before := cart.metric("cart_produce_ack_seconds_count")
		eventually(t, 20*time.Second, "the load reaches Kafka", func() (bool, string) {
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
		// 0: it had not arrived yet.
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
		e, err := parse(&r)
		if err != nil {
			t.Fatal(err)
		}
		published[e.trace] = true
	}
	for _, o := range l.operations {
		unanswered := o.traces
		if o.outcome != unknown {
			unanswered = unanswered[:len(unanswered)-1]
		}
		for _, trace := range unanswered {
			if published[trace] {
				t.Errorf("%v was carried out and not answered", &o)
			}
		}
	}
}
