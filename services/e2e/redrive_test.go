package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	eventually(t, 30*time.Second, "both are dead letters", func() (bool, string) {
		n := len(testenv.ReadAll(t, kafka.Addr, contract.TopicDeadLetter))
		return n == 2, fmt.Sprint(n)
	})

	programs, err := build()
	if err != nil {
		t.Fatal(err)
	}
	orderctl := func(wantCode int, want string, args ...string) {
		t.Helper()
		args = append([]string{"dead-letters"}, args...)
		cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "orderctl"), args...)
		cmd.Env = []string{"KAFKA_BROKERS=" + kafka.Addr}
		out, err := cmd.CombinedOutput()
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		}
		if code != wantCode || !strings.Contains(string(out), want) {
			t.Errorf("orderctl %s: exit code %d, want %d and %q:\n%s", args, code, wantCode, want, out)
		}
	}
	orderctl(0, "broken JSON", "list", "-key", "order")
	orderctl(0, "would be published", "redrive", "-cart", cart.ops)
	if got := order.metric("order_duplicates_total"); got != 0 {
		t.Errorf("order_duplicates_total is %v before anything was published again, want 0", got)
	}
	orderctl(1, "no order of Cart has this ID", "redrive", "-cart", cart.ops, "-confirm")
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
