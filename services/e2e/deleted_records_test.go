package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// The settings of a topic were changed, and its records are deleted before Order has read them. The
// orders are missing then, which is logged and counted, and Order reads what follows.
func TestRecordsThatAreDeletedUnreadAreReported(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr, deletable()...)
	cart, order := newCart(t, kafka.Addr).start().ready(), newOrder(t, kafka.Addr).start().ready()
	deleteAll := func() {
		t.Helper()
		ends := testenv.HighWatermarks(t, kafka.Addr, contract.TopicCreated)
		testenv.DeleteRecords(t, kafka.Addr, contract.TopicCreated, ends)
	}
	published := func() {
		t.Helper()
		eventually(t, patience, "Cart's outbox is empty", func() (bool, string) {
			return cart.metric("cart_outbox_rows") == 0, ""
		})
	}
	reported := func(when string, least float64) {
		t.Helper()
		eventually(t, patience, "Order reports what was deleted "+when, func() (bool, string) {
			return order.metric("order_records_deleted_total") >= least, order.log()
		})
		if !strings.Contains(order.log(), "records were deleted from Kafka before they were read") {
			t.Errorf("the log does not say what was deleted %s", when)
		}
	}
	order.stop()
	cart.create("deleted")
	published()
	deleteAll()
	cart.create("next")
	order.start().ready()
	reported("while it was away", 1)
	order.sees("next", 1, contract.StatusNew)

	before := order.metric("order_records_deleted_total")
	order.signal(syscall.SIGSTOP)
	frozen(t, order.cmd.Process.Pid)
	// A fetch that is under way may still get the first ones.
	for n := range 50 {
		cart.create(fmt.Sprint("deleted-", n))
	}
	published()
	deleteAll()
	cart.create("last")
	order.signal(syscall.SIGCONT)
	reported("while it was frozen", before+1)
	order.sees("last", 1, contract.StatusNew)

	// A rebuilt Cart does not know the deleted orders, and says so.
	cart.stop()
	if err := os.RemoveAll(cart.dir); err != nil {
		t.Fatal(err)
	}
	cart.start().ready()
	if cart.metric("cart_published_records_lost_total") < 2 ||
		!strings.Contains(cart.log(), "records were deleted from Kafka before they were read") {
		t.Error("a rebuilt Cart does not report that records were deleted")
	}
	if got := do(t, http.MethodPost, cart.api+"/order/create-order",
		`{"orderId": "last", "itemsNum": 1}`); got.status != http.StatusConflict {
		t.Errorf("an order that is left can be created again: %d %s", got.status, got.body)
	}
	cart.stop()
	order.stop()
}
