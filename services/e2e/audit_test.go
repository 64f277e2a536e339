package e2e

import (
	"fmt"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// What was deleted from a topic is in no audit from then on, although the audit reads only what is
// new. Kafka deletes records only if the policy of the topic allows it, which the declared one does
// not.
func TestAuditLeavesOutDeletedRecords(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr, deletable()...)
	order := newOrder(t, kafka.Addr).start().ready()
	created := 0
	create := func(n int) {
		t.Helper()
		var ms []contract.Message
		for range n {
			id := fmt.Sprint("order-", created)
			ms = append(ms, message(id, id, contract.StatusNew, 1))
			created++
		}
		testenv.Produce(t, kafka.Addr, ms...)
	}
	// audit checks the number of orders that an audit finds.
	audit := func(when string, want int) {
		t.Helper()
		got := order.audit(contract.TopicCreated)
		text := fmt.Sprintf("'%s': %d\"", contract.TopicCreated, want)
		if want == 0 {
			text = "No orders found in the specified topic."
		}
		if !strings.Contains(got.body, text) {
			t.Errorf("%s: %d %.200s, want %d orders", when, got.status, got.body, want)
		}
	}

	create(100)
	audit("at first", 100)
	ends := testenv.HighWatermarks(t, kafka.Addr, contract.TopicCreated)
	some := map[int32]int64{0: ends[0], 1: ends[1] / 2, 2: ends[2]}
	testenv.DeleteRecords(t, kafka.Addr, contract.TopicCreated, some)
	left := len(testenv.ReadAll(t, kafka.Addr, contract.TopicCreated))
	if left == 0 || left == 100 {
		t.Fatalf("%d records are left of 100, want some", left)
	}
	audit("after some were deleted", left)
	testenv.DeleteRecords(t, kafka.Addr, contract.TopicCreated, ends)
	audit("after all were deleted", 0)
	create(3)
	audit("after new ones came", 3)
	// Look-ups are not an audit: the view has what it has read.
	order.sees("order-0", 1, contract.StatusNew)
	order.stop()
}
