package order

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/order/audit"
	"ordersystem.dev/services/order/ordertest"
)

// patient is the pace of a client that has all the time.
var patient = web.Pace{Grace: time.Minute, Rate: 1 << 10}

const auditPath = "/order/getAllOrderIdsFromTopic?topicName=" + contract.TopicUpdated

// auditAPI serves audits.
type auditAPI struct {
	*server
	source audit.Source
	dir    string // of the indexes
}

func newAuditAPI(t testing.TB, source audit.Source, pace web.Pace) *auditAPI {
	t.Helper()
	a := &auditAPI{source: source, dir: filepath.Join(t.TempDir(), "audit")}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	// Through a, so that a test can replace the functions.
	auditor, err := audit.New(t.Context(), a.dir, 0, audit.Source{
		Bounds: func(
			ctx context.Context, topics ...string,
		) (first, end map[broker.Partition]int64, err error) {
			return a.source.Bounds(ctx, topics...)
		},
		Read: source.Read, Replaced: source.Replaced, Withheld: source.Withheld,
	}, prometheus.NewRegistry(), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := auditor.Close(); err != nil {
			t.Error(err)
		}
	})
	a.server = &server{auditor: auditor, log: log, pace: pace, stopping: t.Context()}
	return a
}

// serve serves the API until the test ends, or as long as stopping lasts if that is shorter.
func (a *auditAPI) serve(t testing.TB, stopping context.Context) (url string, end func()) {
	t.Helper()
	s := *a.server
	s.stopping = stopping
	srv := httptest.NewServer(s.handler(prometheus.NewRegistry()))
	t.Cleanup(srv.Close)
	return srv.URL, srv.Close
}

// serveLate is like serve. But a deadline that cuts a response off comes as late as it can: after
// the handler has returned, and before the response is sent.
func (a *auditAPI) serveLate(t testing.TB, stopping context.Context) (url string, end func()) {
	t.Helper()
	s := *a.server
	s.stopping = stopping
	handler := s.handler(prometheus.NewRegistry())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		late := &lateDeadlines{ResponseWriter: w, returned: make(chan struct{})}
		handler.ServeHTTP(late, r)
		close(late.returned)
		// Whether a deadline is still to come cannot be known.
		time.Sleep(2 * time.Millisecond)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, srv.Close
}

// lateDeadlines holds deadlines in the past back until the handler has returned.
type lateDeadlines struct {
	http.ResponseWriter
	returned chan struct{}
}

// SetWriteDeadline is what http.ResponseController calls.
func (l *lateDeadlines) SetWriteDeadline(at time.Time) error {
	if !at.After(time.Now()) {
		<-l.returned
	}
	return http.NewResponseController(l.ResponseWriter).SetWriteDeadline(at)
}

func sourceOf(tp *ordertest.Topic) audit.Source {
	return audit.Source{Bounds: tp.Bounds, Read: tp.Read, Replaced: tp.Replaced, Withheld: tp.Withheld}
}

// awaitOneIndex waits until no result holds an index that was replaced.
func (a *auditAPI) awaitOneIndex(t testing.TB) {
	t.Helper()
	ordertest.Eventually(t, "one index on disk", func() bool {
		files, err := filepath.Glob(filepath.Join(a.dir, "*.log"))
		return err == nil && len(files) == 1
	})
}

func TestAudit(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic()
	a := newAuditAPI(t, sourceOf(tp), patient)
	url, _ := a.serve(t, t.Context())
	if got := get(t, url+auditPath); got.Status != 404 || got.Body != "No orders found in the specified topic." {
		t.Errorf("an empty topic: %+v", got)
	}
	tp.Add(ordertest.Plain(t, contract.TopicUpdated, "A", 0))
	got := get(t, url+"/ORDER/GETALLORDERIDSFROMTOPIC?TOPICNAME=order-updated-topic")
	want := `{"message":"Total orders in topic 'order-updated-topic': 1","orders":[` +
		`{"orderId":"A","customerId":"","orderDate":"0001-01-01T00:00:00Z",` +
		`"items":[{"productId":"p","quantity":2,"price":1.5}],"totalAmount":3,"currency":"",` +
		`"status":"plain 0","version":2}]}`
	if diff := cmp.Diff(response{Status: 200, Body: want}, response{Status: got.Status, Body: got.Body}); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
	if kind := got.Header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("Content-Type = %s", kind)
	}
	for _, header := range []string{"no-cache", "max-age=0, No-Cache", "no-store"} {
		get(t, url+auditPath, "Cache-Control", header)
	}
	if diff := cmp.Diff([]int{1, 1, 1}, tp.Counts()); diff != "" {
		t.Errorf("records read, again for each no-cache (-want +got):\n%s", diff)
	}
}

func TestAuditOfATopicThatCannotBeRead(t *testing.T) {
	t.Parallel()
	a := newAuditAPI(t, sourceOf(ordertest.NewTopic()), patient)
	url, _ := a.serve(t, t.Context())
	for _, tt := range []struct {
		err  error
		text string
	}{
		{
			&broker.UnreachableError{Brokers: "kafka:9092", Err: errors.New("refused")},
			"The topic cannot be read: Kafka is unreachable.",
		},
		{context.DeadlineExceeded, "The topic cannot be read: Kafka is unreachable."},
		{
			audit.ErrStalled,
			"The topic cannot be read: nothing comes from Kafka; the Order service's log says why.",
		},
		{
			&broker.MissingTopicsError{Names: []string{"order-updated-topic"}},
			"The topic cannot be read: missing topics: order-updated-topic.",
		},
		{errors.New("secret detail"), "The topic cannot be read now; the Order service's log says why."},
	} {
		a.source.Bounds = func(context.Context, ...string) (first, end map[broker.Partition]int64, err error) {
			return nil, nil, tt.err
		}
		got := get(t, url+auditPath)
		if got.Status != 503 || got.Header.Get("Retry-After") != "5" || got.Body != tt.text {
			t.Errorf("%v: %+v, want 503 %q", tt.err, got, tt.text)
		}
	}
}

// TestProblemsOfAnAudit has the errors that no test above brings about.
func TestProblemsOfAnAudit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want web.Problem
	}{
		{
			fmt.Errorf("audit: %w", audit.ErrBusy),
			web.Problem{
				Status: 503, Text: "Too many audits are being answered; try again later.",
				RetryAfter: 5 * time.Second,
			},
		},
		{
			fmt.Errorf("%w: %w", audit.ErrUnreadable, errStopping),
			web.Problem{Status: 503, Text: "The Order service is stopping; ask again.", RetryAfter: time.Second},
		},
		{
			fmt.Errorf("read the audit's index: %w", context.Canceled),
			web.Problem{
				Status: 503, Text: "The topic cannot be read now; the Order service's log says why.",
				RetryAfter: 5 * time.Second,
			},
		},
		{
			fmt.Errorf("%w: %w", audit.ErrUnreadable, audit.ErrNoRoom),
			web.Problem{
				Status: 503, Text: "The volume of the Order service has no room for an audit.",
				RetryAfter: 5 * time.Second,
			},
		},
		{
			errors.New("disk full"),
			web.Problem{Status: 500, Text: "Something went wrong in the Order service; its log says what."},
		},
	} {
		if diff := cmp.Diff(tt.want, problem(tt.err)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.err, diff)
		}
	}
}

// Wherever an audit waits when the service stops, it gets 503, and keeps no slot and no index.
func TestAStopEndsAuditsThatWait(t *testing.T) {
	t.Parallel()
	const rounds, audits = 30, 25
	for _, where := range []string{"for the bounds", "for records", "for a slot"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			tp := ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)
			a := newAuditAPI(t, sourceOf(tp), patient)
			waiting := make(chan struct{}, audits)
			a.source.Bounds = func(
				ctx context.Context, topics ...string,
			) (first, end map[broker.Partition]int64, err error) {
				waiting <- struct{}{}
				if where == "for the bounds" {
					<-ctx.Done()
					return nil, nil, ctx.Err()
				}
				return tp.Bounds(ctx, topics...)
			}
			gate := make(chan struct{})
			var open []*audit.Result
			switch where {
			case "for records":
				gate = tp.HoldReads()
			case "for a slot":
				open = takeSlots(t, a.auditor)
				for range open {
					<-waiting
				}
			}
			for range rounds {
				if t.Failed() {
					break
				}
				stopping, stop := context.WithCancel(t.Context())
				url, end := a.serveLate(t, stopping)
				var wg sync.WaitGroup
				for range audits {
					wg.Go(func() {
						got, err := fetch(t.Context(), url+auditPath)
						if err != nil {
							t.Errorf("the connection breaks: %v", err)
							return
						}
						if got.Status != 503 || got.Body != "The Order service is stopping; ask again." {
							t.Errorf("%d %s, want 503", got.Status, got.Body)
						}
					})
				}
				for range audits {
					<-waiting
				}
				stop()
				wg.Wait()
				end()
			}
			close(gate)
			for _, result := range open {
				result.Close()
			}
			// More audits than there are slots succeed after it.
			url, _ := a.serve(t, t.Context())
			a.source.Bounds = tp.Bounds
			for range audit.MaxResults + 1 {
				if got := get(t, url+auditPath, "Cache-Control", "no-cache"); got.Status != 200 {
					t.Fatalf("after the stops: %d %s", got.Status, got.Body)
				}
			}
			a.awaitOneIndex(t)
		})
	}
}

// A client that leaves has had no response, so the service has not failed. A monitoring that counts failures
// does not see it.
func TestAClientThatLeavesIsNoFailure(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 10)...)
	defer close(tp.HoldReads())
	reg := prometheus.NewRegistry()
	srv := httptest.NewServer(newAuditAPI(t, sourceOf(tp), patient).handler(reg))
	defer srv.Close()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	ended := make(chan error, 1)
	go func() {
		_, err := fetch(ctx, srv.URL+auditPath)
		ended <- err
	}()
	ordertest.Eventually(t, "an audit that waits", func() bool { return tp.LastRead() != nil })
	leave()
	if err := <-ended; err == nil {
		t.Error("the client has a response")
	}
	codes := func() (all []string) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				all = append(all, m.GetLabel()[0].GetValue())
			}
		}
		return all
	}
	ordertest.Eventually(t, "the end of the request", func() bool { return len(codes()) > 0 })
	if diff := cmp.Diff([]string{"gone"}, codes()); diff != "" {
		t.Errorf("the request counts as (-want +got):\n%s", diff)
	}
}

// takeSlots opens as many results as may be open.
func takeSlots(t testing.TB, a *audit.Auditor) []*audit.Result {
	t.Helper()
	var open []*audit.Result
	for range audit.MaxResults {
		result, err := a.Audit(t.Context(), contract.TopicUpdated, false)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, result)
	}
	return open
}

// A response that cannot begin gives its slot back.
func TestAuditWhoseConnectionIsClosedKeepsNothing(t *testing.T) {
	t.Parallel()
	a := newAuditAPI(t, sourceOf(ordertest.NewTopic(ordertest.Updates(t, 0, 50)...)), patient)
	handler := a.handler(prometheus.NewRegistry())
	for range audit.MaxResults + 1 {
		// The recorder refuses deadlines, as a closed connection does.
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, auditPath, nil))
		if w.Code != 500 {
			t.Fatalf("a response without a deadline: %d %s, want 500", w.Code, w.Body)
		}
	}
}

// A response that breaks off must not look complete: the client gets an error, not the end of a
// body.
func TestAuditThatFailsMidwayBreaksTheConnection(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 3000)...)
	a := newAuditAPI(t, sourceOf(tp), patient)
	url, _ := a.serve(t, t.Context())
	get(t, url+auditPath)
	files, err := filepath.Glob(filepath.Join(a.dir, "*.log"))
	if err != nil || len(files) != 1 {
		t.Fatalf("indexes %v, %v", files, err)
	}
	// The disk loses the last tenth of it.
	whole, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[0], whole.Size()*9/10); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(url + auditPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil || resp.StatusCode != 200 || len(body) < 100_000 {
		t.Errorf("status %d, %d bytes, %v; want 200, most of the result, and an error", resp.StatusCode, len(body), err)
	}
	if json.Valid(body) {
		t.Error("the response looks complete")
	}
}

// Clients that read nothing lose their results early if another one waits.
func TestSlowClientsGiveTheirPlaceUp(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 30_000)...)
	tp.BatchSize = 1000
	a := newAuditAPI(t, sourceOf(tp), web.Pace{Grace: time.Hour, ShortGrace: 300 * time.Millisecond, Rate: 1 << 30})
	url, _ := a.serve(t, t.Context())
	for range audit.MaxResults {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", auditPath)
		if line, err := bufio.NewReaderSize(conn, 16).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("response %q, %v", line, err)
		}
	}
	if got := get(t, url+auditPath); got.Status != 200 {
		t.Errorf("an audit beside clients that read nothing: %d %s, want 200", got.Status, got.Body)
	}
}

// A client that reads nothing must give its result back.
func TestSlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	tp := ordertest.NewTopic(ordertest.Updates(t, 0, 30_000)...)
	tp.BatchSize = 1000
	a := newAuditAPI(t, sourceOf(tp), web.Pace{Grace: 3 * time.Second, Rate: 1 << 30})
	url, _ := a.serve(t, t.Context())
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", auditPath)
	line, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil || !strings.Contains(line, "200") {
		t.Fatalf("response %q, %v", line, err)
	}
	// The last of these waits for the slot of the slow client.
	for _, result := range takeSlots(t, a.auditor) {
		result.Close()
	}
}
