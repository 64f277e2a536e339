package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
)

// ack is what Cart acknowledged by a 200.
type ack struct {
	order   string
	version int64
	status  string
}

// load runs clients that place and update orders, through all disturbances of the services.
type load struct {
	stop    context.CancelFunc
	clients sync.WaitGroup

	mu    sync.Mutex
	acked []ack
}

// startLoad starts clients, which end stops. The IDs of their orders begin with prefix.
func (i *installation) startLoad(t *testing.T, prefix string) *load {
	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop}
	for client := range 4 {
		l.clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.handle(t, ctx, i, fmt.Sprintf("%s-%d-%d", prefix, client, n))
			}
		})
	}
	t.Cleanup(func() { l.end() })
	return l
}

// end lets each client finish its order, and returns everything that was acknowledged.
func (l *load) end() []ack {
	l.stop()
	l.clients.Wait()
	return l.acked
}

// count returns how many acknowledgements there are so far.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// handle places an order and updates it at most three times, until the load ends. It repeats each
// request with its Idempotency-Key until it gets 200.
func (l *load) handle(t *testing.T, ctx context.Context, i *installation, order string) {
	for version := int64(1); version <= 4 && (version == 1 || ctx.Err() == nil); version++ {
		a := ack{order, version, "new"}
		if version > 1 {
			a.status = fmt.Sprintf("status-%d", version)
		}
		for deadline := time.Now().Add(90 * time.Second); ; {
			time.Sleep(20 * time.Millisecond)
			got, err := i.change(t.Context(), a)
			if err == nil && got.status == http.StatusOK {
				if got.version != version {
					t.Errorf("%+v got version %d", a, got.version)
				}
				break
			}
			// The test has already failed.
			if t.Context().Err() != nil {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%+v got no 200; last: %d %s %v", a, got.status, got.body, err)
				return
			}
		}
		l.mu.Lock()
		l.acked = append(l.acked, a)
		l.mu.Unlock()
	}
}

// change requests a creation if the version is 1, and else an update. A repeated request has the
// same key.
func (i *installation) change(ctx context.Context, a ack) (reply, error) {
	key := fmt.Sprintf("%s-%d", a.order, a.version)
	if a.version == 1 {
		return send(ctx, http.MethodPost, i.cart.api+"/Order/create-order",
			fmt.Sprintf(`{"OrderId": %q, "ItemsNum": 2}`, a.order), "Idempotency-Key", key)
	}
	return send(ctx, http.MethodPut, i.cart.api+"/Order/update-order",
		fmt.Sprintf(`{"orderId": %q, "status": %q}`, a.order, a.status), "Idempotency-Key", key)
}

// nothingIsLost checks that Order knows each order at its last acknowledged version, and that
// everything acknowledged is in its topic.
func (i *installation) nothingIsLost(t *testing.T, acked []ack) {
	t.Helper()
	last := map[string]ack{}
	for _, a := range acked {
		if a.version > last[a.order].version {
			last[a.order] = a
		}
	}
	for _, a := range last {
		i.finds(t, a)
	}
	published := map[ack]bool{}
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		for _, r := range i.strimzi.read(t, topic) {
			var body struct {
				OrderID, Status string
				Version         int64
			}
			if err := json.Unmarshal(r.Value, &body); err != nil {
				t.Errorf("%s/%d at %d: %v", r.Topic, r.Partition, r.Offset, err)
			}
			published[ack{body.OrderID, body.Version, body.Status}] = true
		}
	}
	lost := slices.DeleteFunc(slices.Clone(acked), func(a ack) bool { return published[a] })
	if len(lost) > 0 {
		t.Errorf("%d of %d acknowledged events are in no topic, first %+v", len(lost), len(acked), lost[0])
	}
	if letters := i.strimzi.read(t, contract.TopicDeadLetter); len(letters) > 0 {
		t.Errorf("%d dead letters, first %s: %s", len(letters), letters[0].Key, letters[0].Value)
	}
}

// finds waits until Order knows an order with this version and status.
func (i *installation) finds(t *testing.T, a ack) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("Order knows %+v", a), func() (bool, string) {
		got, err := send(t.Context(), http.MethodGet,
			fmt.Sprintf("%s/order/order-details?orderId=%s&minVersion=%d", i.order.api, a.order, a.version), "",
			"Prefer", "wait=2")
		var body struct{ Status string }
		// A body that is no JSON has no status.
		_ = json.Unmarshal([]byte(got.body), &body)
		return err == nil && got.status == http.StatusOK && got.version == a.version && body.Status == a.status,
			fmt.Sprintf("%d, version %d, %s %v", got.status, got.version, got.body, err)
	})
}
