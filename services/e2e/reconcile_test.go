package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/inventory"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// orderctl runs orderctl and returns its exit code and what it prints.
func orderctl(t *testing.T, kafka string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return orderctlWith(t, []string{"KAFKA_BROKERS=" + kafka}, args...)
}

// orderctlWith is orderctl with an environment.
func orderctlWith(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	programs, err := build()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs, "orderctl"), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), out.String(), errs.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out.String(), errs.String()
}

// reconcile compares the stores with the topics. It returns what it says about each order that differs.
func reconcile(t *testing.T, kafka string, cart, order *process, wantCode int, args ...string) map[string]string {
	t.Helper()
	args = append([]string{"reconcile", "-json", "-cart", cart.ops, "-order", order.ops}, args...)
	code, stdout, stderr := orderctl(t, kafka, args...)
	if code != wantCode {
		t.Errorf("orderctl %s: exit code %d, want %d: %s%s", args, code, wantCode, stdout, stderr)
	}
	found := make(map[string]string)
	for lines := json.NewDecoder(strings.NewReader(stdout)); lines.More(); {
		var row struct {
			OrderID             string
			Cart, Topics, Order int64
			Differences         []string
			Outcome             string
		}
		if err := lines.Decode(&row); err != nil {
			t.Fatalf("%v: %s", err, stdout)
		}
		found[row.OrderID] = fmt.Sprintf("%d/%d/%d %s: %s", row.Cart, row.Topics, row.Order,
			strings.Join(row.Differences, ","), row.Outcome)
	}
	return found
}

// Something was lost or changed in each of the four places. orderctl names each order, and what of it Cart can
// repair is repaired while clients go on.
func TestStoresAndTopicsAreReconciled(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		kafka, cart, order := startSystem(t)
		testReconciliation(t, kafka.Addr, cart, order,
			func(p *process, statement string) { execute(t, p, statement) },
			`CAST(replace(CAST(body AS TEXT), 'order-0', 'lost in Kafka') AS BLOB)`)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		d := startWithDatabase(t, map[string]string{})
		d.cart.start().ready()
		d.order.start().ready()
		schemas := map[*process]string{d.cart: "cart", d.order: "order_view"}
		testReconciliation(t, d.kafka, d.cart, d.order,
			func(p *process, statement string) {
				d.exec("SET search_path = " + schemas[p])
				d.exec(statement)
			},
			`convert_to(replace(convert_from(body, 'UTF8'), 'order-0', 'lost in Kafka'), 'UTF8')`)
	})
}

// testReconciliation is the test on one kind of database. execute changes the store of a service. renamed is
// what makes the body of another order of that of order-0.
func testReconciliation(
	t *testing.T, kafka string, cart, order *process, execute func(p *process, statement string), renamed string,
) {
	t.Helper()
	const orders = 150
	id := func(n int) string { return fmt.Sprint("order-", n) }
	for n := range orders {
		cart.create(id(n))
	}
	for _, id := range []string{"lost in Order", "overtaken", "changed in Order", "lost in Cart", "broken behind"} {
		cart.create(id)
		cart.update(id, "Shipped")
	}
	cart.update("overtaken", "Delivered")
	if found := reconcile(t, kafka, cart, order, 0); len(found) > 0 {
		t.Errorf("all is well, but %v", found)
	}

	cart.stop()
	order.stop()
	execute(order, `DELETE FROM orders WHERE order_id = 'lost in Order'`)
	execute(order, `UPDATE orders SET body = 'null' WHERE order_id = 'changed in Order'`)
	execute(cart, `DELETE FROM orders WHERE order_id = 'lost in Cart'`)
	// It stands for an order of which Kafka has lost every record.
	execute(cart, `INSERT INTO orders(order_id, version, body) SELECT 'lost in Kafka', 1, `+renamed+
		` FROM orders WHERE order_id = 'order-0'`)
	cart.start().ready()
	order.start().ready()
	testenv.Produce(t, kafka,
		message("overtaken", "an old one", "old", 2),
		contract.Message{Topic: contract.TopicUpdated, Key: []byte("broken behind"), Value: []byte("{")},
		message("nobody's", "of another program", "new", 9))
	want := map[string]string{
		"lost in Order":    "2/2/0 not-in-order: would be published",
		"changed in Order": "2/2/2 other-contents-in-order: left",
		"lost in Cart":     "0/2/2 not-in-cart: left",
		"lost in Kafka":    "1/0/0 not-in-topics: would be published",
		"overtaken":        "3/3/3 overtaken: would be published",
		"broken behind":    "2/2/2 overtaken: would be published",
		"nobody's":         "0/9/9 not-in-cart: left",
	}
	if diff := cmp.Diff(want, reconcile(t, kafka, cart, order, 1)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}

	stop := updateAll(t, cart, orders, id)
	got := reconcile(t, kafka, cart, order, 1, "-repair")
	t.Logf("%d updates meanwhile", stop())
	for id, outcome := range want {
		want[id] = strings.Replace(outcome, "would be published", "repaired", 1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("repaired (-want +got):\n%s", diff)
	}
	order.sees("lost in Order", 2, "Shipped")
	order.sees("lost in Kafka", 1, "new")
	cart.stop()
	order.stop()
}

// Kafka and Order come back with old copies of their disks, and Cart with what it has. One command brings all
// of them to the same orders again, with nothing that was acknowledged missing.
func TestRestoredCopiesAreBroughtBackToAgreement(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kafka, cart, order := startSystemWith(t, localkafka.Options{Dir: dir})
	const orders = 60
	id := func(n int) string { return fmt.Sprint("order-", n) }
	for n := range orders {
		cart.create(id(n))
	}
	settle(t, kafka.Addr, cart, order)
	stop := func() {
		t.Helper()
		cart.stop()
		order.stop()
		kafka.Stop()
	}
	start := func() {
		t.Helper()
		if err := kafka.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		cart.start().ready()
		order.start().ready()
	}
	stop()
	oldKafka, oldOrder := copyOf(t, filepath.Join(dir, "data")), copyOf(t, order.dir)
	start()
	for n := range 2 * orders {
		if n < orders {
			cart.update(id(n), "Shipped")
		} else {
			cart.create(id(n))
		}
	}
	settle(t, kafka.Addr, cart, order)
	stop()
	restore(t, oldKafka, filepath.Join(dir, "data"))
	restore(t, oldOrder, order.dir)
	start()

	found := reconcile(t, kafka.Addr, cart, order, 0, "-repair")
	if len(found) != 2*orders {
		t.Errorf("%d orders differed, want %d", len(found), 2*orders)
	}
	for n := range 2 * orders {
		want, version, status := "2/1/1 not-in-topics: repaired", int64(2), "Shipped"
		if n >= orders {
			want, version, status = "1/0/0 not-in-topics: repaired", 1, "new"
		}
		if found[id(n)] != want {
			t.Errorf("%s: %s, want %s", id(n), found[id(n)], want)
		}
		order.sees(id(n), version, status)
	}
	noLetters(t, kafka.Addr)
	sameAfterARebuild(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
}

// An inventory is not given while it could be wrong.
func TestInventoriesAreOfADefiniteTime(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("order")
	settle(t, kafka.Addr, cart, order)
	kafka.Stop()
	cart.create("waits")
	for p, want := range map[*process]string{cart: "the relay has not published", order: "Kafka"} {
		err := inventory.Read(t.Context(), p.ops, nil, func(inventory.Entry) {})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the inventory of %s without Kafka: %v, want %q", p.name, err, want)
		}
	}
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := reconcile(t, kafka.Addr, cart, order, 0); len(found) > 0 {
		t.Errorf("once Kafka is back: %v", found)
	}
	cart.stop()
	order.stop()
}
