package cart

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ordersystem.dev/services/contract"
)

func metric(t *testing.T, m prometheus.Metric) *dto.Metric {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// api is a Cart API over a store of its own. It has no relay and no Kafka.
type api struct {
	t *testing.T
	h http.Handler
	*server
}

func newAPI(t *testing.T, maxBacklog int) api {
	c, _ := running(t, t.TempDir(), maxBacklog)
	return apiOf(t, c)
}

func apiOf(t *testing.T, c *committer) api {
	srv := &server{commits: c, log: c.log}
	srv.open.Store(true)
	return api{t, srv.handler(prometheus.NewRegistry()), srv}
}

func (a api) do(method, path, body string, headers ...string) *http.Response {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	return w.Result()
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const (
	create = "/Order/create-order"
	put    = "/Order/update-order"
)

func TestResponsesAreThoseOfTheContract(t *testing.T) { databases(t, responsesAreThoseOfTheContract) }

func responsesAreThoseOfTheContract(t *testing.T, open opener) {
	t.Parallel()
	c, _ := open(100)
	a := apiOf(t, c)
	long := strings.Repeat("x", 257)
	for _, c := range []struct {
		name               string
		method, path, body string
		status             int
		text               string
	}{
		{
			"create, as the reference's collection does", "POST", create,
			`{"OrderId": "test-order-101", "ItemsNum": 3}`, 200, "Order created successfully",
		},
		{
			"update, as the reference's collection does", "PUT", put,
			`{"orderId": "test-order-101", "status": "Shipped"}`, 200, "Order updated successfully",
		},
		{"create again", "POST", create, `{"OrderId": "test-order-101", "ItemsNum": 3}`, 409, "Order already exists"},
		{
			"update to the same status", "PUT", put, `{"orderId": "test-order-101", "status": " Shipped "}`, 409,
			"Order status is the same as entered.",
		},
		{
			"update what is not there", "PUT", put, `{"orderId": "no such order", "status": "Shipped"}`, 404,
			"Order with ID no such order not found",
		},
		{
			"any case of path and keys, unknown keys", "POST", "/ORDER/Create-Order",
			`{"ORDERID": "other", "itemsnum": 1, "note": "x"}`, 200, "Order created successfully",
		},
		{
			"a slash at the end of the path", "POST", create + "/", `{"orderId": "other", "itemsNum": 1}`, 409,
			"Order already exists",
		},
		{
			"half of a surrogate pair", "POST", create, `{"orderId": "cut-\ud83d", "itemsNum": 1}`, 400,
			`Invalid input fields. not valid Unicode: \ud83d is half of a surrogate pair.`,
		},
		{
			"a key given twice", "PUT", put, `{"orderId": "other", "status": "a", "Status": "b"}`, 400,
			"Invalid input fields. Status is given more than once.",
		},
		{
			"blanks at the ends are trimmed", "POST", create, `{"orderId": "\tother ", "itemsNum": 1}`, 409,
			"Order already exists",
		},
		{
			"blanks inside are kept", "POST", create, `{"orderId": "o t h e r", "itemsNum": 1000}`, 200,
			"Order created successfully",
		},
		{"nothing", "POST", create, ``, 400, "Invalid input fields. broken JSON: it ends too early."},
		{
			"missing", "POST", create, `{}`, 400,
			"Invalid input fields. orderId is missing, must be a string that is not blank; " +
				"itemsNum is missing, must be a whole number from 1 to 1000.",
		},
		{
			"null", "POST", create, `{"orderId": null, "itemsNum": null}`, 400,
			"Invalid input fields. orderId is missing, must be a string that is not blank; " +
				"itemsNum is missing, must be a whole number from 1 to 1000.",
		},
		{
			"blank", "POST", create, `{"orderId": " ", "itemsNum": 1}`, 400,
			"Invalid input fields. orderId is blank, must be 1 to 256 bytes of UTF-8 without control characters.",
		},
		{
			"zero", "POST", create, `{"orderId": "z", "itemsNum": 0}`, 400,
			"Invalid input fields. itemsNum is 0, must be from 1 to 1000.",
		},
		{
			"negative", "POST", create, `{"orderId": "z", "itemsNum": -1}`, 400,
			"Invalid input fields. itemsNum is -1, must be from 1 to 1000.",
		},
		{
			"over the cap", "POST", create, `{"orderId": "z", "itemsNum": 1001}`, 400,
			"Invalid input fields. itemsNum is 1001, must be from 1 to 1000.",
		},
		{
			"wrong types", "POST", create, `{"orderId": 7, "itemsNum": "3"}`, 400,
			`Invalid input fields. orderId must be a string, not 7; ` +
				`itemsNum must be a whole number from 1 to 1000, not "3".`,
		},
		{
			"not whole", "POST", create, `{"orderId": "z", "itemsNum": 1.5}`, 400,
			"Invalid input fields. itemsNum must be a whole number from 1 to 1000, not 1.5.",
		},
		{
			"too long", "POST", create, `{"orderId": "` + long + `", "itemsNum": 1}`, 400,
			"Invalid input fields. orderId has 257 bytes, must be 1 to 256 bytes of UTF-8 without control characters.",
		},
		{
			"control character", "POST", create, `{"orderId": "a\u0000b", "itemsNum": 1}`, 400,
			"Invalid input fields. orderId contains a control character, " +
				"must be 1 to 256 bytes of UTF-8 without control characters.",
		},
		{
			"broken JSON", "POST", create, `{"orderId": "z",`, 400,
			"Invalid input fields. broken JSON: it ends too early.",
		},
		{
			"data after the JSON", "POST", create, `{"orderId": "z", "itemsNum": 1} x`, 400,
			"Invalid input fields. something follows the JSON value.",
		},
		{
			"not an object", "POST", create, `["z", 1]`, 400,
			"Invalid input fields. the JSON value must be an object, not array.",
		},
		{
			"2 MB", "POST", create, `{"orderId": "z", "itemsNum": 1, "x": "` + strings.Repeat("x", 2<<20) + `"}`, 413,
			"The request body is over the limit of 65536 bytes.",
		},
		{
			"blank status", "PUT", put, `{"orderId": "other", "status": "  "}`, 400,
			"Invalid input fields. status is blank, must be 1 to 256 bytes of UTF-8 without control characters.",
		},
		{
			"missing status", "PUT", put, `{"orderId": "other"}`, 400,
			"Invalid input fields. status is missing, must be a string that is not blank.",
		},
		{
			"long status", "PUT", put, `{"orderId": "other", "status": "` + long + `"}`, 400,
			"Invalid input fields. status has 257 bytes, must be 1 to 256 bytes of UTF-8 without control characters.",
		},
		{"another method", "GET", create, ``, 405, "This path takes POST, not GET."},
		{
			"another path", "GET", "/order", ``, 404,
			"There is nothing at this path. This service has: POST /order/create-order, PUT /order/update-order.",
		},
	} {
		resp := a.do(c.method, c.path, c.body, "Content-Type", "anything/goes")
		if got := text(t, resp); resp.StatusCode != c.status || got != c.text {
			t.Errorf("%s: %d %q\nwant %d %q", c.name, resp.StatusCode, got, c.status, c.text)
		}
	}
	// The refused requests have written nothing.
	want := []string{"o t h e r 1", "other 1", "test-order-101 2"}
	got := rows(t, a.commits.store, "SELECT order_id || ' ' || version FROM orders ORDER BY order_id")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stored orders (-want +got):\n%s", diff)
	}
	if got := len(rows(t, a.commits.store, "SELECT id FROM outbox")); got != 4 {
		t.Errorf("%d events, want one for each of the 4 requests with status 200", got)
	}
}

func TestRequestsThatAreRefusedForTheirHeaders(t *testing.T) {
	t.Parallel()
	a := newAPI(t, 100)
	for name, c := range map[string]struct {
		header, value string
		status        int
		text          string
	}{
		"a page of another site": {
			"Sec-Fetch-Site", "cross-site", 403,
			"A page of another origin sent this request (Sec-Fetch-Site, Origin). " +
				"Send it from this origin, or from a program.",
		},
		"a page of another origin, in an old browser": {
			"Origin", "https://elsewhere.example", 403,
			"A page of another origin sent this request (Sec-Fetch-Site, Origin). " +
				"Send it from this origin, or from a program.",
		},
		"a page of this origin": {"Sec-Fetch-Site", "same-origin", 200, "Order created successfully"},
		"a compressed body": {
			"Content-Encoding", "gzip", 415,
			"The request body has a Content-Encoding. Send it without one, as plain JSON.",
		},
		"a body that is not encoded": {"Content-Encoding", "identity", 200, "Order created successfully"},
	} {
		resp := a.do("POST", create, `{"orderId": "`+name+`", "itemsNum": 1}`, c.header, c.value)
		if got := text(t, resp); resp.StatusCode != c.status || got != c.text {
			t.Errorf("%s: %d %q, want %d %q", name, resp.StatusCode, got, c.status, c.text)
		}
	}
}

func TestJSONResponses(t *testing.T) {
	t.Parallel()
	a := newAPI(t, 100)
	resp := a.do("POST", create, `{"orderId":"a","itemsNum":2}`, "Accept", "application/json")
	var got struct {
		Message string
		Order   contract.Order
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("ETag") != `"1"` ||
		got.Message != "Order created successfully" ||
		got.Order.OrderID != "a" || len(got.Order.Items) != 2 || got.Order.Version != 1 {
		t.Errorf("%v %+v", resp.Header, got)
	}
	resp = a.do("POST", create, `{"orderId":"a","itemsNum":2}`, "Accept", "application/json")
	const problem = `{"type":"about:blank","title":"Conflict","status":409,"detail":"Order already exists"}`
	if body := text(t, resp); resp.Header.Get("Content-Type") != "application/problem+json" || body != problem {
		t.Errorf("%s %s, want %s", resp.Header.Get("Content-Type"), body, problem)
	}
}

func TestConditionalRequests(t *testing.T) { databases(t, conditionalRequests) }

func conditionalRequests(t *testing.T, open opener) {
	t.Parallel()
	c, _ := open(100)
	a := apiOf(t, c)
	a.do("POST", create, `{"orderId":"a","itemsNum":2}`)
	for _, c := range []struct {
		header, value, status string
		want                  int
		etag                  string
	}{
		{"If-Match", `"2"`, "x", 412, ""}, {"If-Match", `W/"1"`, "x", 412, ""}, {"If-Match", `nonsense`, "x", 412, ""},
		{"If-Match", `"1"`, "x", 200, `"2"`}, {"If-Match", `"1"`, "y", 412, ""},
		{"If-Match", `"1", "2"`, "y", 200, `"3"`}, {"If-Match", `*`, "z", 200, `"4"`},
		{"If-None-Match", `*`, "x", 412, ""}, {"If-None-Match", `"4"`, "x", 412, ""},
		{"If-None-Match", `"1", W/"4"`, "x", 412, ""}, {"If-None-Match", `"1", "3"`, "x", 200, `"5"`},
	} {
		resp := a.do("PUT", put, `{"orderId":"a","status":"`+c.status+`"}`, c.header, c.value)
		if resp.StatusCode != c.want || resp.Header.Get("ETag") != c.etag {
			t.Errorf("update with %s %s: %d %q with ETag %q, want %d %q",
				c.header, c.value, resp.StatusCode, text(t, resp), resp.Header.Get("ETag"), c.want, c.etag)
		}
	}
	for _, c := range []struct {
		header, value, id string
		want              int
	}{
		// There is no version yet that could match.
		{"If-Match", `*`, "b", 412}, {"If-Match", `"1"`, "b", 412},
		{"If-None-Match", `"1"`, "b", 200}, {"If-None-Match", `*`, "c", 200},
		// The response would be no success anyway, so the preconditions do not count.
		{"If-Match", `"9"`, "c", 409}, {"If-None-Match", `*`, "c", 409},
	} {
		resp := a.do("POST", create, `{"orderId":"`+c.id+`","itemsNum":2}`, c.header, c.value)
		if resp.StatusCode != c.want {
			t.Errorf("creation of %s with %s %s: %d %q, want %d",
				c.id, c.header, c.value, resp.StatusCode, text(t, resp), c.want)
		}
	}
	resp := a.do("PUT", put, `{"orderId":"nobody","status":"x"}`, "If-None-Match", "*")
	if resp.StatusCode != 404 {
		t.Errorf("update of an unknown order with If-None-Match: %d, want 404", resp.StatusCode)
	}
}

func TestIdempotencyKeys(t *testing.T) { databases(t, idempotencyKeys) }

func idempotencyKeys(t *testing.T, open opener) {
	t.Parallel()
	c, _ := open(100)
	a := apiOf(t, c)
	const body = `{"orderId":"a","itemsNum":2}`
	first := a.do("POST", create, body, "Idempotency-Key", `"k1"`, "Accept", "application/json")
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		text                     string
	}{
		{
			"same request, written otherwise", "POST", "/order/CREATE-order", `{"ItemsNum":2,"OrderId":" a "}`,
			[]string{"Idempotency-Key", "k1", "Accept", "application/json"}, 200, text(t, first),
		},
		{
			"as text this time", "POST", create, body, []string{"Idempotency-Key", "k1"}, 200,
			"Order created successfully",
		},
		{
			"another request", "POST", create, `{"orderId":"b","itemsNum":2}`, []string{"Idempotency-Key", "k1"}, 422,
			"This Idempotency-Key was used for another request; a new request needs a new key.",
		},
		{
			"another precondition", "POST", create, body, []string{"Idempotency-Key", "k1", "If-Match", "*"}, 422,
			"This Idempotency-Key was used for another request; a new request needs a new key.",
		},
		{
			"another route", "PUT", put, `{"orderId":"a","status":"x"}`, []string{"Idempotency-Key", "k1"}, 422,
			"This Idempotency-Key was used for another request; a new request needs a new key.",
		},
		{
			"a failure", "PUT", put, `{"orderId":"later","status":"x"}`, []string{"Idempotency-Key", "k2"}, 404,
			"Order with ID later not found",
		},
		{"its cause goes", "POST", create, `{"orderId":"later","itemsNum":2}`, nil, 200, "Order created successfully"},
		{
			"and the key is as good as new", "PUT", put, `{"orderId":"later","status":"x"}`,
			[]string{"Idempotency-Key", "k2"}, 200, "Order updated successfully",
		},
		{
			"an update again", "PUT", put, `{"orderId":"later","status":"x"}`, []string{"Idempotency-Key", "k2"}, 200,
			"Order updated successfully",
		},
		{
			"an empty key", "POST", create, body, []string{"Idempotency-Key", ""}, 400,
			"Invalid input fields. Idempotency-Key must be given once, as 1 to 255 printable ASCII characters.",
		},
		{
			"two keys", "POST", create, body, []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}, 400,
			"Invalid input fields. Idempotency-Key must be given once, as 1 to 255 printable ASCII characters.",
		},
	} {
		resp := a.do(c.method, c.path, c.body, c.headers...)
		if got := text(t, resp); resp.StatusCode != c.status || got != c.text {
			t.Errorf("%s: %d %q\nwant %d %q", c.name, resp.StatusCode, got, c.status, c.text)
		}
	}
	if got := len(rows(t, a.commits.store, "SELECT id FROM outbox")); got != 3 {
		t.Errorf("%d events, want 3: a repeated request publishes nothing", got)
	}
}

func TestAFullBacklogIsAnUnavailableService(t *testing.T) {
	t.Parallel()
	a := newAPI(t, 2)
	var got []int
	for _, id := range []string{"a", "b", "c"} {
		resp := a.do("POST", create, `{"orderId":"`+id+`","itemsNum":1}`)
		got = append(got, resp.StatusCode)
		if resp.StatusCode == 503 && resp.Header.Get("Retry-After") == "" {
			t.Error("503 without Retry-After")
		}
	}
	if diff := cmp.Diff([]int{200, 200, 503}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNothingIsTakenBeforeTheStoreIsRebuilt(t *testing.T) {
	t.Parallel()
	a := newAPI(t, 2)
	a.open.Store(false)
	resp := a.do("POST", create, `{"orderId":"a","itemsNum":1}`)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d with Retry-After %q, want 503 with one", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
}

func TestTracesAreContinued(t *testing.T) {
	t.Parallel()
	const caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for header, want := range map[string]string{
		caller: caller[:36],
		"":     "00-",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01": "00-",
		"nonsense": "00-",
	} {
		got := continueTrace(header)
		if !validTraceparent.MatchString(got) || !strings.HasPrefix(got, want) || got == header ||
			strings.HasPrefix(got, "00-0000000000000000") {
			t.Errorf("continueTrace(%q) = %q, want a new span of %s…", header, got, want)
		}
	}
}
