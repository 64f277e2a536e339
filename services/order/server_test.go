package order

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
)

// api is a server of the API on a store whose only writer is the test.
type api struct {
	*consumer
	url  string
	stop context.CancelFunc
}

func newAPI(t *testing.T) *api {
	t.Helper()
	c := member(t, t.TempDir())
	c.mustAssign(t, one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0))
	c.view.caughtUp.Store(true)
	ctx, stop := context.WithCancel(t.Context())
	s := &server{store: c.store, view: c.view, waiters: c.waiters, log: c.log, stopping: ctx}
	srv := httptest.NewServer(s.handler(prometheus.NewRegistry()))
	t.Cleanup(srv.Close)
	t.Cleanup(stop)
	return &api{consumer: c, url: srv.URL, stop: stop}
}

type answered struct {
	Status int
	Body   string
	Header http.Header
}

func get(t testing.TB, url string, headers ...string) answered {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{resp.StatusCode, string(body), resp.Header}
}

func TestOrderDetails(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(event(t, "A", 1, "a1"), event(t, "A", 2, "a2")))
	spaced := event(t, "with blank + ü", 1, "b1")
	spaced.Offset = 1
	a.mustApply(t, batch(spaced))

	details := `{"orderId":"A","customerId":"7b9f1a52-5f0e-4a8e-9a25-0d7d3b6d1c11","orderDate":"2026-03-01T12:00:00Z",` +
		`"items":[{"productId":"Product1","quantity":2,"price":10.5},{"productId":"Product2","quantity":1,"price":25.25}],` +
		`"totalAmount":46.25,"currency":"USD","status":"by a2","version":2,"shippingCost":0.93}`
	for _, tt := range []struct {
		name, path string
		headers    []string
		status     int
		body       string // exact, or with … at its end a prefix
		etag       string
	}{
		{"as the reference has it", "/order/order-details?orderId=A", nil, 200, details, `"2"`},
		{"path and query names ignore case", "/Order/ORDER-Details?ORDERid=A", nil, 200, details, `"2"`},
		{"blanks at the ends of the ID are trimmed", "/order/order-details?orderId=%20A+", nil, 200, details, `"2"`},
		{"what is not known in the query is ignored", "/order/order-details?orderId=A&x=1&x=2", nil, 200, details, `"2"`},
		{"inner blanks stay", "/order/order-details?orderId=with+blank+%2B+%C3%BC", nil, 200, `{"orderId":"with blank + ü",…`, `"1"`},
		{"unknown order", "/order/order-details?orderId=B", nil, 404, "Order with ID B not found.", ""},
		{"an ID's case counts", "/order/order-details?orderId=a", nil, 404, "Order with ID a not found.", ""},
		{"no orderId", "/order/order-details", nil, 400, "Invalid input fields. orderId is missing: GET /order/order-details?orderId=X.", ""},
		{"blank orderId", "/order/order-details?orderId=%20", nil, 400, "Invalid input fields. orderId is blank…", ""},
		{"orderId too long", "/order/order-details?orderId=" + strings.Repeat("x", 257), nil, 400,
			"Invalid input fields. orderId has 257 bytes, …", ""},
		{"orderId with a control character", "/order/order-details?orderId=A%07B", nil, 400, "Invalid input fields. orderId contains a control character…", ""},
		{"orderId is not UTF-8", "/order/order-details?orderId=A%FF", nil, 400, "Invalid input fields. orderId is not valid UTF-8.", ""},
		{"orderId twice", "/order/order-details?orderId=A&orderID=A", nil, 400, "Invalid input fields. orderId is given more than once.", ""},
		{"the query is broken", "/order/order-details?orderId=%zz", nil, 400, "Invalid input fields. the query cannot be read: …", ""},
		{"minVersion reached", "/order/order-details?orderId=A&minVersion=2", nil, 200, details, `"2"`},
		{"minVersion passed", "/order/order-details?orderId=A&minversion=1", nil, 200, details, `"2"`},
		{"minVersion ahead", "/order/order-details?orderId=A&minVersion=3", nil, 412, "Order with ID A is known at version 2, not yet at 3.", `"2"`},
		{"minVersion of an unknown order", "/order/order-details?orderId=B&minVersion=3", nil, 404, "Order with ID B not found.", ""},
		{"minVersion 0", "/order/order-details?orderId=A&minVersion=0", nil, 400, "Invalid input fields. minVersion must be a whole number from 1, not \"0\".", ""},
		{"minVersion is no number", "/order/order-details?orderId=A&minVersion=1.5", nil, 400,
			"Invalid input fields. minVersion must be a whole number from 1, not \"1.5\".", ""},
		{"minVersion beyond every number", "/order/order-details?orderId=A&minVersion=9223372036854775808", nil, 400,
			"Invalid input fields. minVersion must be a whole number from 1, not \"92233720368547758…", ""},
		{"problem details", "/order/order-details?orderId=B", []string{"Accept", "application/json"}, 404,
			`{"type":"about:blank","title":"Not Found","status":404,"detail":"Order with ID B not found."}`, ""},
		{"wrong topic", "/order/getAllOrderIdsFromTopic?topicName=order-dead-letter-topic", nil, 400, "Invalid topic name.", ""},
		{"no topic", "/order/getAllOrderIdsFromTopic", nil, 400, "Invalid topic name.", ""},
		{"elsewhere", "/order/nothing", nil, 404, "There is nothing at this path.…", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := get(t, a.url+tt.path, tt.headers...)
			body, more := strings.CutSuffix(tt.body, "…")
			if more && strings.HasPrefix(got.Body, body) {
				got.Body = body
			}
			if diff := cmp.Diff(answered{Status: tt.status, Body: body}, answered{Status: got.Status, Body: got.Body}); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if got := got.Header.Get("ETag"); got != tt.etag {
				t.Errorf("ETag = %s, want %s", got, tt.etag)
			}
			if kind := got.Header.Get("Content-Type"); tt.status == 200 && (kind != "application/json" || !json.Valid([]byte(get(t, a.url+tt.path).Body))) {
				t.Errorf("the answer is no JSON, or does not say so: %s", kind)
			}
		})
	}
}

func TestLookUpsWaitUntilTheViewHasCaughtUp(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.view.caughtUp.Store(false)
	for _, headers := range [][]string{nil, {"Prefer", "wait=30"}} {
		got := get(t, a.url+"/order/order-details?orderId=A", headers...)
		if got.Status != 503 || got.Header.Get("Retry-After") == "" || !strings.Contains(got.Body, "not connected to Kafka yet") {
			t.Errorf("before it has caught up: %+v", got)
		}
	}
	if got := get(t, a.url+"/order/order-details"); got.Status != 400 {
		t.Errorf("what can never be right is said at once, got %d", got.Status)
	}
	a.view.caughtUp.Store(true)
	if got := get(t, a.url+"/order/order-details?orderId=A"); got.Status != 404 {
		t.Errorf("after it has caught up: %+v", got)
	}
}

// asking is a look-up under way.
func (a *api) asking(t testing.TB, path string, headers ...string) <-chan answered {
	done := make(chan answered, 1)
	go func() { done <- get(t, a.url+path, headers...) }()
	return done
}

// watched waits until so many look-ups wait.
func (a *api) watched(t testing.TB, callers int) {
	t.Helper()
	eventually(t, "waiting look-ups", func() bool {
		a.waiters.mu.Lock()
		defer a.waiters.mu.Unlock()
		n := 0
		for _, on := range a.waiters.by {
			n += on.callers
		}
		return n == callers
	})
}

func TestLookUpWaitsForItsOrder(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	unknown := a.asking(t, "/order/order-details?orderId=A", "Prefer", "respond-async, wait=30")
	second := a.asking(t, "/order/order-details?orderId=A&minVersion=2", "Prefer", "wait=30")
	a.watched(t, 2)

	other := event(t, "B", 1, "b1")
	a.mustApply(t, batch(other))
	select {
	case got := <-unknown:
		t.Fatalf("another order's event answered the look-up: %+v", got)
	default:
	}
	created := event(t, "A", 1, "a1")
	created.Offset = 1
	a.mustApply(t, batch(created))
	if got := <-unknown; got.Status != 200 || got.Header.Get("ETag") != `"1"` || got.Header.Get("Preference-Applied") != "wait=30" {
		t.Errorf("once the order is known: %+v", got)
	}
	a.watched(t, 1) // it saw version 1, and waits again
	a.mustApply(t, batch(event(t, "A", 2, "a2")))
	if got := <-second; got.Status != 200 || got.Header.Get("ETag") != `"2"` {
		t.Errorf("once version 2 is known: %+v", got)
	}
	a.watched(t, 0)
}

// However a look-up and the order's event fall together, the look-up sees it: the wait would last for ever else.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	s := &server{store: a.store, waiters: a.waiters, stopping: t.Context()}
	const rounds, lookUps = 100, 50
	for round := range int64(rounds) {
		var wg sync.WaitGroup
		for range lookUps {
			wg.Go(func() {
				if k, err := s.await(t.Context(), "A", round+2, time.Minute); err != nil || k.version != round+2 {
					t.Errorf("version %d: got %d, %v", round+2, k.version, err)
				}
			})
		}
		r := event(t, "A", round+2, fmt.Sprint(round))
		r.Offset = round
		a.mustApply(t, batch(r))
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("version %d is known, and look-ups still wait for it", round+2)
		}
	}
}

func TestLookUpWaitsNoLongerThanItSays(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(event(t, "A", 1, "a1")))
	for _, tt := range []struct {
		query, prefer string
		status        int
		applied       string
		least         time.Duration
	}{
		{"orderId=B", "wait=1", 404, "wait=1", time.Second},
		{"orderId=B&minVersion=2", "wait=1", 404, "wait=1", time.Second},
		{"orderId=A&minVersion=2", "wait=1", 412, "wait=1", time.Second},
		{"orderId=A", "wait=1", 200, "wait=1", 0},
		{"orderId=B", "wait=0", 404, "", 0},
		{"orderId=B", "wait=soon", 404, "", 0},
	} {
		t.Run(tt.query+" "+tt.prefer, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			got := get(t, a.url+"/order/order-details?"+tt.query, "Prefer", tt.prefer)
			took := time.Since(start)
			if got.Status != tt.status || got.Header.Get("Preference-Applied") != tt.applied {
				t.Errorf("answer %d %q, Preference-Applied %q; want %d, %q", got.Status, got.Body, got.Header.Get("Preference-Applied"), tt.status, tt.applied)
			}
			if took < tt.least || (tt.least == 0 && took > 900*time.Millisecond) {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestStoppingServerAnswersItsWaiters(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(event(t, "A", 1, "a1")))
	unknown := a.asking(t, "/order/order-details?orderId=B", "Prefer", "wait=30")
	older := a.asking(t, "/order/order-details?orderId=A&minVersion=2", "Prefer", "wait=30")
	a.watched(t, 2)
	a.stop()
	for _, waiting := range []<-chan answered{unknown, older} {
		select {
		case got := <-waiting:
			if got.Status != 503 || got.Header.Get("Retry-After") == "" {
				t.Errorf("a look-up cut off by the server's end: %+v", got)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a waiting look-up is not answered")
		}
	}
	a.watched(t, 0)
	if got := get(t, a.url+"/order/order-details?orderId=A", "Prefer", "wait=5"); got.Status != 200 {
		t.Errorf("what needs no waiting is still answered: %+v", got)
	}
}

// A client that goes away leaves nothing behind.
func TestClientThatLeavesWaitsNoLonger(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, a.url+"/order/order-details?orderId=A", nil)
		req.Header.Set("Prefer", "wait=30")
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	a.watched(t, 1)
	leave()
	a.watched(t, 0)
}

func TestPreferredWait(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":                          0,
		"wait=5":                    5 * time.Second,
		"Wait=5":                    5 * time.Second,
		`wait="5"`:                  5 * time.Second,
		" wait = 5 ":                5 * time.Second,
		"wait=5; strict":            5 * time.Second,
		"respond-async, wait=5":     5 * time.Second,
		"respond-async;wait=5":      0, // a parameter of another preference
		`x="a, wait=9", wait=2`:     2 * time.Second,
		`x="a\", wait=9", wait=2`:   2 * time.Second,
		"wait=1, wait=7":            time.Second, // the first counts
		"wait=x, wait=7":            0,
		"wait":                      0,
		"wait=":                     0,
		"wait=-1":                   0,
		"wait=1.5":                  0,
		"wait=0":                    0,
		"wait=30":                   30 * time.Second,
		"wait=31":                   30 * time.Second,
		"wait=99999999999999999999": 30 * time.Second,
		"waiting=5":                 0,
	} {
		if got := preferredWait(http.Header{"Prefer": {header}}); got != want {
			t.Errorf("Prefer: %s = %s, want %s", header, got, want)
		}
	}
	if got := preferredWait(http.Header{"Prefer": {"respond-async", "wait=3", "wait=4"}}); got != 3*time.Second {
		t.Errorf("several header fields = %s, want the first wait", got)
	}
}
