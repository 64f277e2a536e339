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

// answer is what a client was told by a 200.
type answer struct {
	order   string
	version int64
	status  string
}

// load is clients that place and update orders, whatever happens to the services.
type load struct {
	stop    context.CancelFunc
	clients sync.WaitGroup

	mu      sync.Mutex
	answers []answer
}

// startLoad starts clients, whose orders' IDs begin with prefix; end stops them.
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

// end lets each client finish the order that it has begun, and returns all answers.
func (l *load) end() []answer {
	l.stop()
	l.clients.Wait()
	return l.answers
}

// count is how many answers there are so far.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answers)
}

// handle places an order and updates it until the load ends, at most three times. A request that is
// not answered 200 is sent again with its Idempotency-Key, until it is.
func (l *load) handle(t *testing.T, ctx context.Context, i *installation, order string) {
	for version := int64(1); version <= 4 && (version == 1 || ctx.Err() == nil); version++ {
		a := answer{order, version, "new"}
		if version > 1 {
			a.status = fmt.Sprintf("status-%d", version)
		}
		for deadline := time.Now().Add(90 * time.Second); ; {
			time.Sleep(20 * time.Millisecond)
			got, err := i.change(t.Context(), a)
			if err == nil && got.status == http.StatusOK {
				if got.version != version {
					t.Errorf("%+v was answered version %d", a, got.version)
				}
				break
			}
			// The test has failed already.
			if t.Context().Err() != nil {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%+v is not answered; last: %d %s %v", a, got.status, got.body, err)
				return
			}
		}
		l.mu.Lock()
		l.answers = append(l.answers, a)
		l.mu.Unlock()
	}
}

// change asks Cart for a creation, with version 1, or else for an update. Asked again, it is still
// one change.
func (i *installation) change(ctx context.Context, a answer) (reply, error) {
	key := fmt.Sprintf("%s-%d", a.order, a.version)
	if a.version == 1 {
		return send(ctx, http.MethodPost, i.cart.api+"/Order/create-order",
			fmt.Sprintf(`{"OrderId": %q, "ItemsNum": 2}`, a.order), "Idempotency-Key", key)
	}
	return send(ctx, http.MethodPut, i.cart.api+"/Order/update-order",
		fmt.Sprintf(`{"orderId": %q, "status": %q}`, a.order, a.status), "Idempotency-Key", key)
}

// nothingIsLost demands that Order comes to know each order as it was answered last, and that each
// answer is in its topic.
func (i *installation) nothingIsLost(t *testing.T, answers []answer) {
	t.Helper()
	last := map[string]answer{}
	for _, a := range answers {
		if a.version > last[a.order].version {
			last[a.order] = a
		}
	}
	for _, a := range last {
		i.finds(t, a)
	}
	published := map[answer]bool{}
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		for _, r := range i.strimzi.read(t, topic) {
			var body struct {
				OrderID, Status string
				Version         int64
			}
			if err := json.Unmarshal(r.Value, &body); err != nil {
				t.Errorf("%s/%d at %d: %v", r.Topic, r.Partition, r.Offset, err)
			}
			published[answer{body.OrderID, body.Version, body.Status}] = true
		}
	}
	lost := slices.DeleteFunc(slices.Clone(answers), func(a answer) bool { return published[a] })
	if len(lost) > 0 {
		t.Errorf("%d of %d answers are in no topic, first %+v", len(lost), len(answers), lost[0])
	}
	if letters := i.strimzi.read(t, contract.TopicDeadLetter); len(letters) > 0 {
		t.Errorf("%d dead letters, first %s: %s", len(letters), letters[0].Key, letters[0].Value)
	}
}

// finds demands that Order comes to know an order exactly like this.
func (i *installation) finds(t *testing.T, a answer) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("Order knows %+v", a), func() (bool, string) {
		got, err := send(t.Context(), http.MethodGet,
			fmt.Sprintf("%s/order/order-details?orderId=%s&minVersion=%d", i.order.api, a.order, a.version), "",
			"Prefer", "wait=2")
		var body struct{ Status string }
		// What is no JSON has no status.
		_ = json.Unmarshal([]byte(got.body), &body)
		return err == nil && got.status == http.StatusOK && got.version == a.version && body.Status == a.status,
			fmt.Sprintf("%d, version %d, %s %v", got.status, got.version, got.body, err)
	})
}
