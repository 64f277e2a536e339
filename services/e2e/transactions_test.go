package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// Records behind an open transaction exist, although no reader gets them. Nothing that claims to
// have read a topic to its end leaves them out: a rebuilt Cart would create an order a second time,
// and Order would not know it.
func TestWhatAnOpenTransactionWithholdsIsWaitedFor(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("before")
	order.sees("before", 1, "new")

	abort := testenv.Hang(t, kafka.Addr, contract.TopicCreated, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
	const orders = 40
	id := func(n int) string { return fmt.Sprint("behind-", n) }
	for n := range orders {
		cart.create(id(n))
	}
	eventually(t, patience, "Cart's outbox is empty", func() (bool, string) {
		rows := cart.metric("cart_outbox_rows")
		return rows == 0, fmt.Sprint(rows)
	})
	const why = "waiting for an open transaction on " + contract.TopicCreated + "/"
	// The lag of an Order that had caught up counts what it cannot read.
	eventually(t, patience, "Order knows what is withheld", func() (bool, string) {
		lag := order.metric("order_consumer_lag")
		return lag >= orders && order.metric("order_withheld_seconds") > 0, fmt.Sprint("lag ", lag)
	})
	if got := do(t, http.MethodGet, order.api+"/order/getAllOrderIdsFromTopic?topicName="+contract.TopicCreated,
		""); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, why) {
		t.Errorf("an audit of what is withheld: %d %.300s, want 503 with %q", got.status, got.body, why)
	}

	cart.stop()
	order.stop()
	for _, p := range []*process{cart, order} {
		if err := os.RemoveAll(p.dir); err != nil {
			t.Fatal(err)
		}
		p.start()
	}
	cart.notReady(why)
	order.notReady(why)
	again := `{"OrderId": "behind-0", "ItemsNum": 1}`
	got := do(t, http.MethodPost, cart.api+"/Order/create-order", again)
	if got.status != http.StatusServiceUnavailable {
		t.Errorf("creating an order that is withheld: %d %s, want 503", got.status, got.body)
	}

	abort()
	cart.ready()
	order.ready()
	if got := do(t, http.MethodPost, cart.api+"/Order/create-order", again); got.status != http.StatusConflict {
		t.Errorf("creating an order that was withheld: %d %s, want 409", got.status, got.body)
	}
	for n := range orders {
		order.sees(id(n), 1, "new")
	}
	audit := order.audit(contract.TopicCreated).body
	if want := fmt.Sprintf("'%s': %d", contract.TopicCreated, orders+1); !strings.Contains(audit, want) {
		t.Errorf("the audit is not complete: %.300s, want %s", audit, want)
	}
	for _, p := range []*process{cart, order} {
		if !strings.Contains(p.log(), "kafka-transactions.sh find-hanging") {
			t.Errorf("%s does not log how to find the transaction", p.name)
		}
		p.stop()
	}
}
