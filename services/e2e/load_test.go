package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/testenv"
)

// load runs clients that create, update and look up orders, through all faults of the services. It
// records each operation and its outcome.
type load struct {
	t testing.TB
	// cart and order are the URLs of the services.
	cart, order string
	seed        uint64
	// every is the pause of a client between its operations.
	every  time.Duration
	client *http.Client
	// wait is for how many seconds a look-up may wait. It is 5 unless set.
	wait int
	// items is the highest number of items of an order. It is 5 unless set.
	items int

	stop    context.CancelFunc
	clients sync.WaitGroup
	// followers look up what clients got accepted. They get it through news.
	followers sync.WaitGroup
	news      chan faults.Lookup
	count     atomic.Int64
	// underWay is locked for reading by each operation.
	underWay sync.RWMutex

	mu sync.Mutex
	// faults are those that were done, poison has the keys of records that are no orders, replaced those that are of
	// an order, and audits how many orders were found in each topic at the end.
	faults   []faults.Span
	poison   []string
	replaced []string
	audits   map[string]int
	// tail has the records of the topics. If it is nil, they are read at the end.
	tail       *testenv.Tail
	operations []faults.Operation
	lookups    []faults.Lookup
	// failed describes the requests that got no response, or one that blames the service. It also has the
	// look-ups that did not find what was accepted.
	failed []string
}

// sharedOrders is the number of orders that all clients update.
const sharedOrders = 5

// startLoad starts clients of the services at these URLs, which end stops. If order is empty, nothing is
// looked up.
func startLoad(
	t testing.TB, cart, order string, seed uint64, clients int, every time.Duration, set ...func(*load),
) *load {
	ctx, stop := context.WithCancel(t.Context())
	l := &load{t: t, cart: cart, order: order, seed: seed, every: every, client: client, wait: 5, items: 5, stop: stop,
		news: make(chan faults.Lookup, 64)}
	for _, f := range set {
		f(l)
	}
	news := l.news // which end clears
	for n := range clients {
		l.clients.Go(func() { l.requests(ctx, n) })
	}
	for range 2 {
		if order != "" {
			l.followers.Go(func() { l.follow(news) })
		}
	}
	return l
}

// end lets each client finish what it has begun.
func (l *load) end() {
	l.stop()
	l.clients.Wait()
	if l.news != nil {
		close(l.news)
		l.news = nil
	}
	l.followers.Wait()
}

// paused calls do while no operation is under way.
func (l *load) paused(do func()) {
	l.underWay.Lock()
	defer l.underWay.Unlock()
	do()
}

// accepted returns how many operations have been accepted so far.
func (l *load) accepted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, o := range l.operations {
		if o.Outcome == faults.Accepted {
			n++
		}
	}
	return n
}

// add records an operation that is over.
func (l *load) add(o faults.Operation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations = append(l.operations, o)
}

// fails notes a failed request. Whatever is done to a service, it knows what is wrong: a response of 500 fails
// the test.
func (l *load) fails(got reply, err error, format string, args ...any) {
	text := fmt.Sprintf("%s: %d %.200s %v", fmt.Sprintf(format, args...), got.status, got.body, err)
	if got.status == http.StatusInternalServerError {
		l.t.Error(text)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, time.Now().Format("15:04:05.000 ")+text)
}

// failures returns the failed requests since it was called last.
func (l *load) failures() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	failed := l.failed
	l.failed = nil
	return failed
}

func (l *load) evidence() faults.Evidence {
	return faults.Evidence{Operations: l.operations, Lookups: l.lookups, Poison: l.poison, Audits: l.audits}
}

// requests creates and updates orders of its own, updates shared ones, and sends requests that must
// be refused.
func (l *load) requests(ctx context.Context, n int) {
	rng := rand.New(rand.NewPCG(l.seed, uint64(n)))
	news := l.news
	var mine []string
	for ctx.Err() == nil {
		o := faults.Operation{Client: n, Status: fmt.Sprintf("status-%d", l.count.Add(1))}
		switch dice := rng.IntN(100); {
		case dice < 5:
			// Most are refused: the first client creates the order.
			o.Create, o.Order = true, fmt.Sprintf("shared-%d", rng.IntN(sharedOrders))
		case dice < 25:
			o.Order = fmt.Sprintf("shared-%d", rng.IntN(sharedOrders))
		case dice < 28:
			// Refused: there is no such order.
			o.Order = fmt.Sprintf("never-%d-%d", n, rng.IntN(10))
		case dice < 31 && len(mine) > 0:
			// Refused: the order exists.
			o.Create, o.Order = true, mine[rng.IntN(len(mine))]
		case dice < 34 && len(mine) > 0:
			// Refused: the order has no such version.
			o.Order, o.IfMatch = mine[rng.IntN(len(mine))], `"1000000"`
		case dice < 36:
			// Refused: too many items.
			o.Create, o.Order = true, fmt.Sprintf("invalid-%d-%d", n, len(mine))
		case dice < 60 || len(mine) == 0:
			o.Create, o.Order = true, fmt.Sprintf("order-%d-%d", n, len(mine))
			mine = append(mine, o.Order)
		default:
			o.Order = mine[rng.IntN(len(mine))]
		}
		key := ""
		if rng.IntN(2) == 0 {
			key = fmt.Sprintf("key-%d-%s-%d", n, o.Order, rng.Uint64())
		}
		l.underWay.RLock()
		l.operate(&o, key, rng)
		l.underWay.RUnlock()
		l.add(o)
		if o.Outcome == faults.Accepted && rng.IntN(3) == 0 {
			select {
			case news <- faults.Lookup{Order: o.Order, Version: o.Version}:
			default:
				// All followers are waiting for Order. This operation is not looked up.
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(l.every):
		}
	}
}

// operate carries an operation out. With an Idempotency-Key it repeats the request until it gets a
// response that settles it. Without one, a lost response leaves the outcome unknown. The services are up
// again before the test ends, so every operation ends too.
func (l *load) operate(o *faults.Operation, key string, rng *rand.Rand) {
	method, url, body := http.MethodPut, l.cart+"/Order/update-order",
		fmt.Sprintf(`{"orderId": %q, "status": %q}`, o.Order, o.Status)
	if o.Create {
		items := 1 + rng.IntN(l.items)
		if o.Order[0] == 'i' {
			items = 0
		}
		method, url, body = http.MethodPost, l.cart+"/Order/create-order",
			fmt.Sprintf(`{"OrderId": %q, "ItemsNum": %d}`, o.Order, items)
	}
	o.Begin = time.Now()
	defer func() { o.End = time.Now() }()
	// An earlier request may have been carried out although no response came.
	sent := false
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		trace := fmt.Sprintf("%016x%016x", rng.Uint64(), rng.Uint64()|1)
		headers := []string{"traceparent", "00-" + trace + "-00000000000000ff-01"}
		if key != "" {
			headers = append(headers, "Idempotency-Key", key)
		}
		if o.IfMatch != "" {
			headers = append(headers, "If-Match", o.IfMatch)
		}
		got, err := sendBy(l.client, method, url, body, headers...)
		if err != nil || got.status >= http.StatusInternalServerError {
			l.fails(got, err, "%v", o)
		}
		if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
			// The request never reached the service.
			continue
		}
		o.Traces = append(o.Traces, trace)
		// Cart itself does not know whether PostgreSQL has committed when it died during the commit.
		unclear := err != nil ||
			got.status == http.StatusServiceUnavailable && strings.Contains(got.body, "not known whether")
		switch {
		case unclear && key == "":
			return
		case unclear:
			sent = true
		case got.status == http.StatusOK:
			o.Outcome, o.Version = faults.Accepted, got.version()
			return
		case sent && got.header.Get("Retry-After") != "":
			// This response does not show what became of the request before it.
		default:
			o.Outcome, o.Code = faults.Refused, got.status
			return
		}
	}
	l.t.Errorf("%v got no response for two minutes", o)
}

// follow looks up what was accepted, and then the same order as it is.
func (l *load) follow(news <-chan faults.Lookup) {
	for want := range news {
		l.lookUp(want.Order, want.Version)
		l.lookUp(want.Order, 0)
	}
}

// lookUp looks up an order, and waits for this version unless it is 0.
func (l *load) lookUp(order string, version int64) {
	target, headers := l.order+"/order/order-details?orderId="+order, []string(nil)
	if version > 0 {
		target = fmt.Sprintf("%s&minVersion=%d", target, version)
		headers = []string{"Prefer", fmt.Sprint("wait=", l.wait)}
	}
	found := faults.Lookup{Order: order, Begin: time.Now()}
	got, err := sendBy(l.client, http.MethodGet, target, "", headers...)
	found.End = time.Now()
	switch {
	case err == nil && got.status == http.StatusOK:
		var body struct {
			OrderID, Status string
			Version         int64
		}
		if err := json.Unmarshal([]byte(got.body), &body); err != nil || body.OrderID != order ||
			body.Version != got.version() || body.Version < version {
			l.t.Errorf("a look-up of %s at version %d, ETag %d, returned %s (%v)", order, version, got.version(),
				got.body, err)
		}
		found.Version, found.Status = body.Version, body.Status
	case err == nil && got.status == http.StatusNotFound && version == 0:
		// It may not have come to Order yet.
	default:
		// Order or Kafka is down. The state at the end is checked later.
		l.fails(got, err, "look-up of %s at version %d", order, version)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lookups = append(l.lookups, found)
}
