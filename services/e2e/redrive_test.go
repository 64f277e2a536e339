package e2e

import (
	"fmt"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// A record that is no event has the key of an order. orderctl finds its dead letter, and has Cart publish the
// newest version of the order behind it, so that compaction keeps that one.
func TestDeadLettersAreRedriven(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("order")
	cart.update("order", "Shipped")
	cart.create("bystander")
	settle(t, kafka.Addr, cart, order)
	for _, key := range []string{"order", "nobody"} {
		testenv.Produce(t, kafka.Addr,
			contract.Message{Topic: contract.TopicUpdated, Key: []byte(key), Value: []byte("{")})
	}
	eventually(t, patience, "both are dead letters", func() (bool, string) {
		n := len(testenv.ReadAll(t, kafka.Addr, contract.TopicDeadLetter))
		return n == 2, fmt.Sprint(n)
	})

	letters := func(wantCode int, want string, args ...string) {
		t.Helper()
		code, stdout, stderr := orderctl(t, kafka.Addr, append([]string{"dead-letters"}, args...)...)
		if code != wantCode || !strings.Contains(stdout+stderr, want) {
			t.Errorf("dead-letters %s: exit code %d, want %d and %q:\n%s%s", args, code, wantCode, want, stdout, stderr)
		}
	}
	letters(0, "broken JSON", "list", "-key", "order")
	letters(0, "would be published", "redrive", "-cart", cart.ops)
	if got := order.metric("order_duplicates_total"); got != 0 {
		t.Errorf("order_duplicates_total is %v before anything was published again, want 0", got)
	}
	letters(1, "no order of Cart has this ID", "redrive", "-cart", cart.ops, "-confirm")
	settle(t, kafka.Addr, cart, order)
	records := testenv.ReadAll(t, kafka.Addr, contract.TopicUpdated)
	var last string
	for _, r := range records {
		if string(r.Key) == "order" {
			last = string(r.Value)
		}
	}
	if !strings.Contains(last, `"status":"Shipped"`) {
		t.Errorf("the last record of the order is %q", last)
	}
	if got := order.metric("order_duplicates_total"); got != 1 {
		t.Errorf("order_duplicates_total is %v, want 1: one order, once", got)
	}
	cart.stop()
	order.stop()
}
