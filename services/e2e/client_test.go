package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// reply is an HTTP response.
type reply struct {
	status int
	header http.Header
	body   string
}

// version returns the version in the ETag, or 0 without one.
func (r reply) version() int64 {
	v, _ := strconv.ParseInt(strings.Trim(r.header.Get("ETag"), `"`), 10, 64)
	return v
}

var client = &http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}

// send sends a request. headers holds names and values in turn.
func send(method, target, body string, headers ...string) (reply, error) {
	return sendBy(client, method, target, body, headers...)
}

func sendBy(client *http.Client, method, target, body string, headers ...string) (reply, error) {
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	// Without GetBody the HTTP client does not repeat a request with an Idempotency-Key by itself,
	// which a test could not see.
	req.GetBody = nil
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(text)}, err
}

func do(t testing.TB, method, target, body string, headers ...string) reply {
	t.Helper()
	got, err := send(method, target, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// create creates an order, which must succeed, and returns the version.
func (p *process) create(id string) int64 {
	p.t.Helper()
	return p.accepted(do(p.t, http.MethodPost, p.api+"/Order/create-order",
		fmt.Sprintf(`{"OrderId": %q, "ItemsNum": 2}`, id)))
}

func (p *process) update(id, status string) int64 {
	p.t.Helper()
	return p.accepted(do(p.t, http.MethodPut, p.api+"/Order/update-order",
		fmt.Sprintf(`{"orderId": %q, "status": %q}`, id, status)))
}

func (p *process) accepted(got reply) int64 {
	p.t.Helper()
	if got.status != http.StatusOK || got.version() == 0 {
		p.t.Fatalf("got %d %q, ETag %q", got.status, got.body, got.header.Get("ETag"))
	}
	return got.version()
}

// find asks Order for a version of an order and waits for it.
func (p *process) find(id string, version int64) reply {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		got, err := send(http.MethodGet,
			fmt.Sprintf("%s/order/order-details?orderId=%s&minVersion=%d", p.api, url.QueryEscape(id), version), "",
			"Prefer", "wait=30")
		if err != nil {
			// Fatal is not allowed here, because goroutines of tests call find.
			p.t.Error(err)
		}
		// Order has waited in vain. On a busy machine an order may need longer. A test that has failed waits no more.
		late := got.status == http.StatusNotFound || got.status == http.StatusPreconditionFailed
		if !late || p.t.Failed() || time.Now().After(deadline) {
			return got
		}
	}
}

// sees checks that Order gets to know an order at exactly this version.
func (p *process) sees(id string, version int64, status string) {
	p.t.Helper()
	got := p.find(id, version)
	if got.status != http.StatusOK || got.version() != version ||
		!strings.Contains(got.body, fmt.Sprintf(`"status":%q`, status)) {
		p.t.Errorf("%s knows order %s as %d, version %d: %s; want version %d, status %s", p.name, id, got.status,
			got.version(), got.body, version, status)
	}
}

// audit asks Order which orders are in a topic, until it does not refuse that for now: on a busy machine Kafka may
// need longer than an audit waits for it.
func (p *process) audit(topic string) (got reply) {
	p.t.Helper()
	eventually(p.t, patience, "an audit of "+topic, func() (bool, string) {
		got = do(p.t, http.MethodGet, p.api+"/order/getAllOrderIdsFromTopic?topicName="+topic, "")
		return got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "", got.body
	})
	return got
}

// metric returns the sum of a metric's series, or 0 if there is none.
func (p *process) metric(name string) float64 {
	p.t.Helper()
	return metric(p.t, do(p.t, http.MethodGet, p.ops+"/metrics", "").body, name)
}

func metric(t testing.TB, text, name string) float64 {
	t.Helper()
	var sum float64
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (.+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}
