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

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/order/ordertest"
)

// api serves the API on a store whose only writer is the test.
type api struct {
	*topicConsumer
	url  string
	stop context.CancelFunc
}

func newAPI(t *testing.T) *api {
	t.Helper()
	c := member(t, t.TempDir())
	c.mustAssign(t, ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0))
	c.catchUp.done.Store(true)
	ctx, stop := context.WithCancel(t.Context())
	s := &server{store: c.store, catchUp: c.catchUp, waiters: c.waiters, log: c.log, stopping: ctx}
	srv := httptest.NewServer(s.handler(prometheus.NewRegistry()))
	t.Cleanup(srv.Close)
	t.Cleanup(stop)
	return &api{topicConsumer: c, url: srv.URL, stop: stop}
}

type response struct {
	Status int
	Body   string
	Header http.Header
}

// get returns the response to a request that must get one.
func get(t testing.TB, url string, headers ...string) response {
	t.Helper()
	got, err := fetch(t.Context(), url, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// getting is get in the background.
func getting(t testing.TB, url string, headers ...string) <-chan response {
	done := make(chan response, 1)
	go func() {
		got, err := fetch(t.Context(), url, headers...)
		if err != nil {
			t.Error(err)
		}
		done <- got
	}()
	return done
}

// fetch returns the response to a request. It gives up after a minute.
func fetch(ctx context.Context, url string, headers ...string) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return response{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, string(body), resp.Header}, err
}

func TestOrderDetails(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "A", 2, "a2")))
	spaced := ordertest.Event(t, "with blank + ü", 1, "b1")
	spaced.Offset = 1
	a.mustApply(t, batch(spaced))
	semicolon := ordertest.Event(t, "a;b", 1, "c1")
	semicolon.Offset = 2
	a.mustApply(t, batch(semicolon))

	details := `{"orderId":"A","customerId":"7b9f1a52-5f0e-4a8e-9a25-0d7d3b6d1c11",` +
		`"orderDate":"2026-03-01T12:00:00Z","items":[{"productId":"Product1","quantity":2,"price":10.5},` +
		`{"productId":"Product2","quantity":1,"price":25.25}],"totalAmount":46.25,"currency":"USD",` +
		`"status":"by a2","version":2,"shippingCost":0.93}`
	const path, invalid = "/order/order-details?", "Invalid input fields. "
	for _, tt := range []struct {
		name, path string
		status     int
		// body is exact, or a prefix with … at its end.
		body string
		etag string
	}{
		{"as the reference has it", path + "orderId=A", 200, details, `"2"`},
		{"path and query names ignore case", "/Order/ORDER-Details?ORDERid=A", 200, details, `"2"`},
		{"blanks at the ends of the ID are trimmed", path + "orderId=%20A+", 200, details, `"2"`},
		{"unknown parameters are ignored", path + "orderId=A&x=1&x=2", 200, details, `"2"`},
		{"inner blanks stay", path + "orderId=with+blank+%2B+%C3%BC", 200, `{"orderId":"with blank + ü",…`, `"1"`},
		{"a semicolon is part of the ID", path + "orderId=a;b", 200, `{"orderId":"a;b",…`, `"1"`},
		{"a semicolon elsewhere", path + "orderId=A&utm=100%25;x", 200, details, `"2"`},
		{"unknown order", path + "orderId=B", 404, "Order with ID B not found.", ""},
		{"the case of an ID counts", path + "orderId=a", 404, "Order with ID a not found.", ""},
		{
			"no orderId", "/order/order-details", 400,
			invalid + "orderId is missing: GET /order/order-details?orderId=X.", "",
		},
		{"blank orderId", path + "orderId=%20", 400, invalid + "orderId is blank…", ""},
		{
			"orderId too long", path + "orderId=" + strings.Repeat("x", 257), 400,
			invalid + "orderId has 257 bytes, …", "",
		},
		{
			"orderId with a control character", path + "orderId=A%07B", 400,
			invalid + "orderId contains a control character…", "",
		},
		{"orderId is not UTF-8", path + "orderId=A%FF", 400, invalid + "orderId is not valid UTF-8.", ""},
		{"orderId twice", path + "orderId=A&orderID=A", 400, invalid + "orderId is given more than once.", ""},
		{"the query is broken", path + "orderId=%zz", 400, invalid + "the query cannot be read: …", ""},
		{"minVersion reached", path + "orderId=A&minVersion=2", 200, details, `"2"`},
		{"minVersion passed", path + "orderId=A&minversion=1", 200, details, `"2"`},
		{
			"minVersion ahead", path + "orderId=A&minVersion=3", 412,
			"Order with ID A is known at version 2, not yet at 3.", `"2"`,
		},
		{"minVersion of an unknown order", path + "orderId=B&minVersion=3", 404, "Order with ID B not found.", ""},
		{
			"minVersion 0", path + "orderId=A&minVersion=0", 400,
			invalid + `minVersion must be a whole number from 1 to 9007199254740991, not "0".`, "",
		},
		{
			"minVersion is no number", path + "orderId=A&minVersion=1.5", 400,
			invalid + `minVersion must be a whole number from 1 to 9007199254740991, not "1.5".`, "",
		},
		{
			"minVersion beyond every version", path + "orderId=A&minVersion=9007199254740992", 400,
			invalid + `minVersion must be a whole number from 1 to 9007199254740991, not "9007199254740992".`, "",
		},
		{
			"wrong topic", "/order/getAllOrderIdsFromTopic?topicName=order-dead-letter-topic", 400,
			"Invalid topic name.", "",
		},
		{"no topic", "/order/getAllOrderIdsFromTopic", 400, "Invalid topic name.", ""},
		{"elsewhere", "/order/nothing", 404, "There is nothing at this path.…", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := get(t, a.url+tt.path)
			want, more := strings.CutSuffix(tt.body, "…")
			if got.Status != tt.status || !strings.HasPrefix(got.Body, want) || (!more && got.Body != want) {
				t.Errorf("response %d %q, want %d %q", got.Status, got.Body, tt.status, tt.body)
			}
			if got := got.Header.Get("ETag"); got != tt.etag {
				t.Errorf("ETag = %s, want %s", got, tt.etag)
			}
			if tt.status != 200 {
				return
			}
			if kind := got.Header.Get("Content-Type"); kind != "application/json" || !json.Valid([]byte(got.Body)) {
				t.Errorf("the response is no JSON, or has another Content-Type: %s", kind)
			}
		})
	}
}

func TestClientThatHasTheOrderGetsNoBody(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "A", 2, "a2")))
	for _, tt := range []struct {
		query string
		has   []string // If-None-Match
		want  int
	}{
		{"orderId=A", []string{`"2"`}, 304},
		{"orderId=A", []string{`W/"2"`}, 304},
		{"orderId=A", []string{`*`}, 304},
		{"orderId=A", []string{`"x,y" ,W/"7" , "2"`}, 304},
		{"orderId=A", []string{`"1"`, `"2"`}, 304},
		{"orderId=A&minVersion=2", []string{`"2"`}, 304},
		{"orderId=A", []string{``}, 200},
		{"orderId=A", []string{`"1"`}, 200},
		{"orderId=A", []string{`"3"`}, 200},
		{"orderId=A", []string{`2`}, 200},
		{"orderId=A", []string{`w/"2"`}, 200},
		{"orderId=A", []string{`"02"`}, 200},
		// A condition changes only what would be a success.
		{"orderId=A&minVersion=3", []string{`"2"`}, 412},
		{"orderId=A&minVersion=3", []string{`*`}, 412},
		{"orderId=B", []string{`*`}, 404},
		{"orderId=A&orderId=A", []string{`*`}, 400},
	} {
		var headers []string
		for _, tags := range tt.has {
			headers = append(headers, "If-None-Match", tags)
		}
		got := get(t, a.url+"/order/order-details?"+tt.query, headers...)
		if got.Status != tt.want {
			t.Errorf("%s, If-None-Match %q: %d %s, want %d", tt.query, tt.has, got.Status, got.Body, tt.want)
		}
		if got.Status == 304 && (got.Header.Get("ETag") != `"2"` || got.Body != "" ||
			got.Header.Get("Content-Type") != "") {
			t.Errorf("%s, If-None-Match %q: %+v, want an ETag and no body", tt.query, tt.has, got)
		}
	}
}

// A wait without minVersion is for a version that the client does not have.
func TestLookUpWaitsForAVersionThatTheClientDoesNotHave(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
	const path = "/order/order-details?orderId=A"
	got := get(t, a.url+path, "Prefer", "wait=1", "If-None-Match", `"1"`)
	if got.Status != 304 || got.Header.Get("ETag") != `"1"` || got.Header.Get("Preference-Applied") != "wait=1" {
		t.Errorf("nothing changes within the wait: %+v, want 304", got)
	}
	for query, tag := range map[string]string{"&minVersion=1": `"1"`, "": "*"} {
		got := get(t, a.url+path+query, "Prefer", "wait=30", "If-None-Match", tag)
		if got.Status != 304 {
			t.Errorf("%s, If-None-Match %s: %+v, want 304 at once", query, tag, got)
		}
	}
	newer := a.asking(t, path, "Prefer", "wait=30", "If-None-Match", `W/"1", "0"`)
	a.watched(t, 1)
	a.mustApply(t, batch(ordertest.Event(t, "A", 2, "a2")))
	if got := <-newer; got.Status != 200 || got.Header.Get("ETag") != `"2"` {
		t.Errorf("once a newer version is known: %+v, want 200", got)
	}
	for _, tags := range []string{`"9007199254740991"`, `"9223372036854775807"`} {
		got := get(t, a.url+path, "Prefer", "wait=1", "If-None-Match", tags)
		if got.Status != 200 || got.Header.Get("ETag") != `"2"` {
			t.Errorf("a client that has version %s: %+v, want 200", tags, got)
		}
	}
}

func TestProblemDetailsOfALookUp(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	got := get(t, a.url+"/order/order-details?orderId=B", "Accept", "application/json")
	const want = `{"type":"about:blank","title":"Not Found","status":404,"detail":"Order with ID B not found."}`
	if got.Status != 404 || got.Body != want {
		t.Errorf("response %d %s, want 404 %s", got.Status, got.Body, want)
	}
}

func TestLookUpsAreRefusedUntilTheStoreHasCaughtUp(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.catchUp.done.Store(false)
	for _, headers := range [][]string{nil, {"Prefer", "wait=30"}} {
		got := get(t, a.url+"/order/order-details?orderId=A", headers...)
		if got.Status != 503 || got.Header.Get("Retry-After") == "" ||
			!strings.Contains(got.Body, "not connected to Kafka yet") {
			t.Errorf("before it has caught up: %+v", got)
		}
	}
	if got := get(t, a.url+"/order/order-details"); got.Status != 400 {
		t.Errorf("a request that can never succeed: %d, want 400 at once", got.Status)
	}
	a.catchUp.done.Store(true)
	if got := get(t, a.url+"/order/order-details?orderId=A"); got.Status != 404 {
		t.Errorf("after it has caught up: %+v", got)
	}
}

// asking starts a look-up and returns a channel for its response.
func (a *api) asking(t testing.TB, path string, headers ...string) <-chan response {
	return getting(t, a.url+path, headers...)
}

// watched waits until so many look-ups wait.
func (a *api) watched(t testing.TB, lookups int) {
	t.Helper()
	ordertest.Eventually(t, fmt.Sprintf("%d waiting look-ups", lookups), func() bool {
		return a.waiters.count() == lookups
	})
}

func TestLookUpWaitsForItsOrder(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	unknown := a.asking(t, "/order/order-details?orderId=A", "Prefer", "respond-async, wait=30")
	second := a.asking(t, "/order/order-details?orderId=A&minVersion=2", "Prefer", "wait=30")
	a.watched(t, 2)

	// Another order's event is no reason to respond: the version below shows that none did.
	a.mustApply(t, batch(ordertest.Event(t, "B", 1, "b1")))
	created := ordertest.Event(t, "A", 1, "a1")
	created.Offset = 1
	a.mustApply(t, batch(created))
	if got := <-unknown; got.Status != 200 || got.Header.Get("ETag") != `"1"` ||
		got.Header.Get("Preference-Applied") != "wait=30" {
		t.Errorf("once the order is known: %+v", got)
	}
	// The second saw version 1, and waits again.
	a.watched(t, 1)
	a.mustApply(t, batch(ordertest.Event(t, "A", 2, "a2")))
	if got := <-second; got.Status != 200 || got.Header.Get("ETag") != `"2"` {
		t.Errorf("once version 2 is known: %+v", got)
	}
	a.watched(t, 0)
}

// However a look-up and the order's event fall together, the look-up is woken by the event, and has not to wait
// until its time is up.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	s := &server{store: a.store, waiters: a.waiters, stopping: t.Context()}
	const rounds, lookUps = 100, 50
	for round := range int64(rounds) {
		want := round + 2
		inTime, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		var wg sync.WaitGroup
		for range lookUps {
			wg.Go(func() {
				found, err := s.await(inTime, "A", want, time.Hour)
				if err != nil || found.version != want {
					t.Errorf("version %d: got %d, %v", want, found.version, err)
				}
			})
		}
		r := ordertest.Event(t, "A", want, fmt.Sprint(round))
		r.Offset = round
		a.mustApply(t, batch(r))
		wg.Wait()
		cancel()
	}
}

// It is counted with the response that it would have got, not as a failure of the service.
func TestAClientThatGoesIsNoFailure(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	s := &server{store: a.store, waiters: a.waiters, stopping: t.Context()}
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.await(ctx, "A", 1, time.Hour)
		ended <- err
	}()
	a.watched(t, 1)
	leave()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Nobody woke these look-ups. They find the order all the same when their wait is over, or the service stops.
func TestLookUpHasTheOrderAsItIsAtItsEnd(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	timeUp := a.asking(t, "/order/order-details?orderId=A", "Prefer", "wait=15")
	stopped := a.asking(t, "/order/order-details?orderId=A", "Prefer", "wait=30")
	a.watched(t, 2)
	silent := *a.topicConsumer
	silent.waiters = newWaiters(1, prometheus.NewRegistry())
	silent.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
	if got := <-timeUp; got.Status != 200 || got.Header.Get("ETag") != `"1"` {
		t.Errorf("when the time was up: %+v", got)
	}
	a.stop()
	if got := <-stopped; got.Status != 200 || got.Header.Get("ETag") != `"1"` {
		t.Errorf("when the service stopped: %+v", got)
	}
}

func TestLookUpWaitsAsLongAsItPrefers(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
	for _, tt := range []struct {
		query, prefer string
		status        int
		applied       string
		least         time.Duration
	}{
		{"orderId=B", "wait=1", 404, "wait=1", time.Second},
		{"orderId=B&minVersion=2", "wait=1", 404, "wait=1", time.Second},
		{"orderId=A&minVersion=2", "wait=1", 412, "wait=1", time.Second},
		{"orderId=A", "wait=30", 200, "wait=30", 0},
		{"orderId=B", "wait=0", 404, "", 0},
		{"orderId=B", "wait=soon", 404, "", 0},
	} {
		t.Run(tt.query+" "+tt.prefer, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			got := get(t, a.url+"/order/order-details?"+tt.query, "Prefer", tt.prefer)
			took := time.Since(start)
			if got.Status != tt.status || got.Header.Get("Preference-Applied") != tt.applied {
				t.Errorf("response %d %q, Preference-Applied %q; want %d, %q", got.Status, got.Body,
					got.Header.Get("Preference-Applied"), tt.status, tt.applied)
			}
			// 20 s are far less than the wait that is not needed, and far more than a slow machine
			// takes.
			if took < tt.least || took > 20*time.Second {
				t.Errorf("it took %s, want at least %s and less than 20 s", took, tt.least)
			}
		})
	}
}

func TestAStopEndsLookUpsThatWait(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
	unknown := a.asking(t, "/order/order-details?orderId=B", "Prefer", "wait=30")
	older := a.asking(t, "/order/order-details?orderId=A&minVersion=2", "Prefer", "wait=30")
	a.watched(t, 2)
	a.stop()
	for _, waiting := range []<-chan response{unknown, older} {
		if got := <-waiting; got.Status != 503 || got.Body != "The Order service is stopping; ask again." ||
			got.Header.Get("Retry-After") == "" {
			t.Errorf("a look-up that waits when the server stops: %+v, want 503", got)
		}
	}
	a.watched(t, 0)
	if got := get(t, a.url+"/order/order-details?orderId=A", "Prefer", "wait=5"); got.Status != 200 {
		t.Errorf("a look-up that need not wait: %+v, want 200", got)
	}
}

// As many look-ups wait as may. One more gets its response at once.
func TestOneLookUpTooManyDoesNotWait(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var waiting []<-chan response
	for range mostWaiting {
		waiting = append(waiting, a.asking(t, "/order/order-details?orderId=A", "Prefer", "wait=30"))
	}
	a.watched(t, mostWaiting)
	got := get(t, a.url+"/order/order-details?orderId=A", "Prefer", "wait=30")
	if got.Status != 404 || got.Header.Get("Preference-Applied") != "" {
		t.Errorf("one look-up too many: %+v, want 404 at once", got)
	}
	if got := count(t, a.waiters.refused); got != 1 {
		t.Errorf("order_waits_refused_total = %v, want 1", got)
	}
	a.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
	for _, w := range waiting {
		<-w
	}
	again := a.asking(t, "/order/order-details?orderId=B", "Prefer", "wait=30")
	a.watched(t, 1)
	a.stop()
	if got := <-again; got.Status != 503 {
		t.Errorf("a look-up that waits once others have left: %+v, want 503 at the stop", got)
	}
}

// A client that leaves keeps no watch.
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
