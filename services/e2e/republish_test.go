package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
)

// Kafka has lost everything, and both stores were kept. Cart says so, and one command publishes its
// orders again while updates go on. Then stores that are rebuilt from Kafka are the same as those
// that were kept, and Order, which reads its versions a second time, takes none of them for a
// conflict.
func TestOrdersArePublishedAgainAfterKafkaLostThem(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kafka, cart, order := startSystemWith(t, localkafka.Options{Dir: dir})
	const orders = 120
	id := func(n int) string { return fmt.Sprint("order-", n) }
	for n := range orders {
		cart.create(id(n))
		for u := range n % 3 {
			cart.update(id(n), fmt.Sprint("step ", u))
		}
	}
	settle(t, kafka.Addr, cart, order)
	// The orders of a rebuilt store are decoded and encoded once more.
	cart.stop()
	if err := os.RemoveAll(cart.dir); err != nil {
		t.Fatal(err)
	}
	// With so small a backlog the orders make many pages.
	cart.env = append(cart.env, "MAX_BACKLOG=40")
	cart.start().ready()

	kafka.Stop()
	if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
		t.Fatal(err)
	}
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	declare(t, kafka.Addr)

	stop := updateAll(t, cart, orders, id)
	got := cart.republish()
	accepted := stop()
	if want := fmt.Sprintf("done: %d orders are in Kafka again\n", orders); !strings.HasSuffix(got, want) {
		t.Errorf("the response ends with %q, want %q", got, want)
	}
	t.Logf("%d updates meanwhile; the response:\n%s", accepted, got)
	settle(t, kafka.Addr, cart, order)
	if cart.metric("cart_published_records_lost_total") == 0 {
		t.Error("cart_published_records_lost_total is 0")
	}
	if !strings.Contains(cart.log(), "Kafka has lost records that were published") {
		t.Error("the log of Cart does not say that records were lost")
	}
	c := faults.NewChecker(faults.Evidence{Records: readTopics(t, kafka.Addr)})
	if len(c.ByOrder) != orders {
		t.Errorf("%d orders are in the topics, want %d", len(c.ByOrder), orders)
	}
	// The versions before the newest are gone.
	c.ByOrder = nil
	c.Topics()
	for _, v := range c.Found {
		t.Error(v)
	}
	noLetters(t, kafka.Addr)
	sameAfterARebuild(t, kafka.Addr, cart, order)
	if v := cart.update(id(0), "after all"); v < 2 {
		t.Errorf("the next update is version %d", v)
	}
	cart.stop()
	order.stop()
}

// A republication when nothing was lost is harmless, also when it is cut off and begun again.
func TestARepublicationIsHarmless(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("created")
	cart.create("updated")
	cart.update("updated", "Shipped")
	settle(t, kafka.Addr, cart, order)
	for range 2 {
		cart.republish()
	}
	settle(t, kafka.Addr, cart, order)
	if got := order.metric("order_duplicates_total"); got != 4 {
		t.Errorf("order_duplicates_total is %v, want 4: two orders, twice", got)
	}
	noLetters(t, kafka.Addr)

	// The client goes away while Kafka does.
	kafka.Stop()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, cart.ops+"/republish", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if again := do(t, http.MethodPost, cart.ops+"/republish", ""); again.status != http.StatusConflict {
		t.Errorf("a second republication at the same time: %d %s, want 409", again.status, again.body)
	}
	leave()
	eventually(t, patience, "the republication ends with its connection", func() (bool, string) {
		return strings.Contains(cart.log(), "the orders are not all published again"), ""
	})
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	cart.republish()
	settle(t, kafka.Addr, cart, order)
	noLetters(t, kafka.Addr)
	sameAfterARebuild(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
}

// A copy of Cart's store that was made during a republication has messages in its outbox that
// change nothing. After its restore they neither count as conflicts with newer versions, nor end up
// behind them in the topics.
func TestACopyMadeDuringARepublicationCanBeRestored(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("order")
	cart.update("order", "before the copy")
	settle(t, kafka.Addr, cart, order)
	kafka.Stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		resp, err := http.Post(cart.ops+"/republish", "", nil)
		if err == nil {
			// To close the body early would cancel the command.
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	eventually(t, patience, "the order is in the outbox again", func() (bool, string) {
		return cart.metric("cart_outbox_rows") == 1, ""
	})
	cart.kill()
	<-ended
	backup := copyOf(t, cart.dir)
	// The volume is lost too, so the message in the outbox is never published from there.
	if err := os.RemoveAll(cart.dir); err != nil {
		t.Fatal(err)
	}
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	cart.start().ready()
	cart.update("order", "after the copy")
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	restore(t, backup, cart.dir)

	cart.start().ready()
	settle(t, kafka.Addr, cart, order)
	if got := statuses(t, kafka.Addr, "order"); got[len(got)-1] != "after the copy" {
		t.Errorf("the topics hold %q, want the newest version last", got)
	}
	if v := cart.update("order", "after the restore"); v != 4 {
		t.Errorf("the next version is %d, want 4", v)
	}
	noLetters(t, kafka.Addr)
	cart.stop()
	order.stop()
}

// Some orders can be published again: after Order was too old to read them, say. A command that is not
// understood publishes nothing, least of all everything.
func TestSomeOrdersArePublishedAgain(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	for _, id := range []string{"first", "second", "with space & sign"} {
		cart.create(id)
	}
	cart.update("first", "Shipped")
	settle(t, kafka.Addr, cart, order)
	for request, want := range map[string]struct {
		status int
		text   string
	}{
		"?orderId=first&orderId=nobody&orderId=none": {404, "no order nobody, no order none: nothing was published\n"},
		"?orderID=first": {400, `there is no parameter "orderID"`},
		"?" + strings.Repeat("orderId=first&", 600): {400, "orders are too many for one command: it takes 500"},
	} {
		got := do(t, http.MethodPost, cart.ops+"/republish"+request, "")
		if got.status != want.status || !strings.Contains(got.body, want.text) {
			t.Errorf("POST /republish%.60s: %d %q, want %d %q", request, got.status, got.body, want.status, want.text)
		}
	}
	if got := do(t, http.MethodPost, cart.ops+"/republish", "orderId=first"); got.status != http.StatusBadRequest ||
		!strings.Contains(got.body, "there is a body") {
		t.Errorf("a command in the body: %d %q, want 400", got.status, got.body)
	}
	const some = "?orderId=first&orderId=with+space+%26+sign&orderId=first"
	got := do(t, http.MethodPost, cart.ops+"/republish"+some, "")
	if got.status != http.StatusOK || got.body != "done: 2 orders are in Kafka again\n" {
		t.Errorf("two orders: %d %q", got.status, got.body)
	}
	settle(t, kafka.Addr, cart, order)
	for id, want := range map[string][]string{
		"first": {"new", "Shipped", "Shipped"}, "second": {"new"}, "with space & sign": {"new", "new"},
	} {
		if got := statuses(t, kafka.Addr, id); !slices.Equal(got, want) {
			t.Errorf("the topics hold %q of %s, want %q", got, id, want)
		}
	}
	noLetters(t, kafka.Addr)
	cart.stop()
	order.stop()
}

// republish sends the command and returns the whole response.
func (p *process) republish() string {
	p.t.Helper()
	got := do(p.t, http.MethodPost, p.ops+"/republish", "")
	if got.status != http.StatusOK || !strings.Contains(got.body, "\ndone: ") {
		p.t.Errorf("POST /republish: %d %s", got.status, got.body)
	}
	return got.body
}

// republishAlways sends the command again and again, whatever becomes of it, until stop is called.
// stop returns how often it came to its end.
func (p *process) republishAlways() (stop func() int) {
	ctx, cancel := context.WithCancel(p.t.Context())
	ended := make(chan int, 1)
	go func() {
		whole := 0
		for ctx.Err() == nil {
			// While Cart is down, or not ready, the command fails.
			got, err := send(http.MethodPost, p.ops+"/republish", "")
			if err == nil && strings.Contains(got.body, "\ndone: ") {
				whole++
			}
			time.Sleep(50 * time.Millisecond)
		}
		ended <- whole
	}()
	return func() int {
		cancel()
		return <-ended
	}
}

// updateAll updates orders one after the other, again and again, until stop is called. stop returns
// how many updates were accepted. The end of the test stops it too.
func updateAll(t *testing.T, cart *process, orders int, id func(int) string) (stop func() int64) {
	t.Helper()
	var updating sync.WaitGroup
	var accepted atomic.Int64
	done := make(chan struct{})
	const clients = 4
	for c := range clients {
		updating.Go(func() {
			for n := c; ; n += clients {
				select {
				case <-done:
					return
				default:
				}
				got, err := send(http.MethodPut, cart.api+"/Order/update-order",
					fmt.Sprintf(`{"orderId": %q, "status": "update %d"}`, id(n%orders), n))
				switch {
				case err != nil:
					t.Error(err)
					return
				case got.status == http.StatusOK:
					accepted.Add(1)
				case got.status != http.StatusServiceUnavailable:
					t.Errorf("an update: %d %s", got.status, got.body)
				}
			}
		})
	}
	stop = sync.OnceValue(func() int64 {
		close(done)
		updating.Wait()
		return accepted.Load()
	})
	// The end of the test kills Cart after that.
	t.Cleanup(func() { stop() })
	return stop
}

// sameAfterARebuild rebuilds both stores from Kafka and compares them, order by order, with those
// that were kept.
func sameAfterARebuild(t *testing.T, kafka string, cart, order *process) {
	t.Helper()
	both := func() (inCart, inOrder map[string]faults.StoredOrder) {
		t.Helper()
		settle(t, kafka, cart, order)
		cart.stop()
		order.stop()
		inCart, _ = cartStore(t, cart)
		return inCart, orderStore(t, order, "").Orders
	}
	wantCart, wantOrder := both()
	for _, p := range []*process{cart, order} {
		if err := os.RemoveAll(p.dir); err != nil {
			t.Fatal(err)
		}
		p.start().ready()
	}
	gotCart, gotOrder := both()
	if !maps.Equal(wantCart, gotCart) {
		t.Errorf("Cart was rebuilt with %d orders that are not the %d that were kept", len(gotCart), len(wantCart))
	}
	if !maps.Equal(wantOrder, gotOrder) {
		t.Errorf("Order was rebuilt with %d orders that are not the %d that were kept", len(gotOrder), len(wantOrder))
	}
	for id, r := range gotOrder {
		if k := gotCart[id]; k.Version != r.Version || k.Body != r.Body {
			t.Errorf("order %s is %+v in Cart's store, %+v in Order's", id, k, r)
		}
	}
	cart.start().ready()
	order.start().ready()
}
