package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// Every response of the running services is one that the OpenAPI documents describe, to the last
// field. The test provokes every response that they describe.
func TestDocumentsDescribeTheServices(t *testing.T) {
	t.Parallel()
	_, cart, order := startSystem(t)
	issuer := testenv.NewIssuer(t)
	key := issuer.Publish(t, "key")
	powerless := "Bearer " + testenv.SignToken(t, key, jose.ES256, map[string]any{"scope": ""})
	nowhere := local(freePorts(1))
	lonelyCart, lonelyOrder := newCart(t, nowhere), newOrder(t, nowhere) // without Kafka
	strictCart, strictOrder := newCart(t, nowhere, issuer.Env()...), newOrder(t, nowhere, issuer.Env()...)
	for _, p := range []*process{lonelyCart, lonelyOrder, strictCart, strictOrder} {
		p.start()
	}
	for _, p := range []*process{lonelyCart, lonelyOrder, strictCart, strictOrder} {
		p.listens()
	}
	inCart, inOrder := newDocument(t, contract.CartOpenAPI), newDocument(t, contract.OrderOpenAPI)

	const createPath, updatePath = "/Order/create-order", "/Order/update-order"
	const detailsPath, auditPath = "/order/order-details", "/order/getAllOrderIdsFromTopic"
	created, updated := "?topicName="+contract.TopicCreated, "?topicName="+contract.TopicUpdated
	big := `{"orderId": "` + strings.Repeat("x", 70<<10) + `"}`
	for _, tt := range []struct {
		document *document
		service  *process
		method   string
		path     string
		query    string
		body     string
		headers  []string
		want     int
	}{
		{inOrder, order, "GET", auditPath, created, "", nil, 404},
		{inCart, cart, "POST", createPath, "", `{"OrderId": "A %d", "ItemsNum": 3}`,
			[]string{"Idempotency-Key", "K %d"}, 200},
		{inCart, cart, "POST", createPath, "", `{"OrderId": "A %d", "ItemsNum": 4}`,
			[]string{"Idempotency-Key", "K %d"}, 422},
		{inCart, cart, "POST", createPath, "", `{"OrderId": "A %d", "ItemsNum": 3}`, nil, 409},
		{inCart, cart, "POST", createPath, "", `{"OrderId": "nobody's", "ItemsNum": 3}`,
			[]string{"If-Match", "*"}, 412},
		{inCart, cart, "POST", createPath, "", `{"OrderId": " ", "ItemsNum": 3.5}`, nil, 400},
		{inCart, cart, "POST", createPath, "", big, nil, 413},
		{inCart, cart, "POST", createPath, "", `{}`, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{inCart, cart, "POST", createPath, "", `{}`, []string{"Content-Encoding", "gzip"}, 415},
		{inCart, strictCart, "POST", createPath, "", "", nil, 401},
		{inCart, strictCart, "POST", createPath, "", "", []string{"Authorization", powerless}, 403},
		{inCart, cart, "DELETE", createPath, "", "", nil, 405},
		{inCart, lonelyCart, "POST", createPath, "", `{"OrderId": "A %d", "ItemsNum": 3}`, nil, 503},

		{inCart, cart, "PUT", updatePath, "", `{"orderId": "A %d", "status": "Shipped"}`,
			[]string{"If-Match", `"1"`, "Idempotency-Key", "L %d"}, 200},
		{inCart, cart, "PUT", updatePath, "", `{"orderId": "A %d", "status": "Lost"}`,
			[]string{"Idempotency-Key", "L %d"}, 422},
		{inCart, cart, "PUT", updatePath, "", `{"orderId": "A %d", "status": "Shipped"}`, nil, 409},
		{inCart, cart, "PUT", updatePath, "", `{"orderId": "A %d", "status": "Lost"}`, []string{"If-Match", `"1"`},
			412},
		{inCart, cart, "PUT", updatePath, "", `{"orderId": "A %d", "status": "Lost"}`,
			[]string{"If-None-Match", "*"}, 412},
		{inCart, cart, "PUT", updatePath, "", `{"orderId": "nobody's", "status": "Lost"}`, nil, 404},
		{inCart, cart, "PUT", updatePath, "", `{"orderId": "A %d"`, nil, 400},
		{inCart, cart, "PUT", updatePath, "", big, nil, 413},
		{inCart, cart, "PUT", updatePath, "", `{}`, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{inCart, cart, "PUT", updatePath, "", `{}`, []string{"Content-Encoding", "gzip"}, 415},
		{inCart, strictCart, "PUT", updatePath, "", "", nil, 401},
		{inCart, strictCart, "PUT", updatePath, "", "", []string{"Authorization", powerless}, 403},
		{inCart, cart, "GET", updatePath, "", "", nil, 405},
		{inCart, lonelyCart, "PUT", updatePath, "", `{"orderId": "A %d", "status": "Shipped"}`, nil, 503},

		{inOrder, order, "GET", detailsPath, "?orderId=A+%d&minVersion=2", "", []string{"Prefer", "wait=30"}, 200},
		{inOrder, order, "GET", detailsPath, "?orderId=A+%d&minVersion=3", "", []string{"Prefer", "wait=1"}, 412},
		{inOrder, order, "GET", detailsPath, "?orderId=A+%d", "",
			[]string{"If-None-Match", `W/"2"`, "Prefer", "wait=1"}, 304},
		{inOrder, order, "GET", detailsPath, "?orderId=A+%d&minVersion=none", "", nil, 400},
		{inOrder, order, "GET", detailsPath, "?orderId=nobody", "", nil, 404},
		{inOrder, order, "GET", detailsPath, "?orderId=nobody", "", []string{"Prefer", "wait=1"}, 404},
		{inOrder, order, "PUT", detailsPath, "", "", nil, 405},
		{inOrder, strictOrder, "GET", detailsPath, "", "", nil, 401},
		{inOrder, strictOrder, "GET", detailsPath, "", "", []string{"Authorization", powerless}, 403},
		{inOrder, lonelyOrder, "GET", detailsPath, "?orderId=A+%d", "", nil, 503},

		{inOrder, order, "GET", auditPath, created, "", nil, 200},
		{inOrder, order, "GET", auditPath, updated, "", []string{"Cache-Control", "no-cache"}, 200},
		{inOrder, order, "GET", auditPath, "?topicName=" + contract.TopicDeadLetter, "", nil, 400},
		{inOrder, order, "POST", auditPath, "", "", nil, 405},
		{inOrder, strictOrder, "GET", auditPath, "", "", nil, 401},
		{inOrder, strictOrder, "GET", auditPath, "", "", []string{"Authorization", powerless}, 403},
		{inOrder, lonelyOrder, "GET", auditPath, updated, "", nil, 503},
	} {
		// An operation that responds in two forms gets an order for each.
		for n, accept := range []string{"*/*", "application/json"} {
			number := func(s string) string { return strings.ReplaceAll(s, "%d", fmt.Sprint(n)) }
			headers := []string{"Accept", accept}
			for _, h := range tt.headers {
				headers = append(headers, number(h))
			}
			got := do(t, tt.method, tt.service.api+tt.path+number(tt.query), number(tt.body), headers...)
			if got.status != tt.want {
				t.Errorf("%s %s%s %.80s: %d %.300s, want %d", tt.method, tt.path, tt.query, tt.body, got.status,
					got.body, tt.want)
				continue
			}
			tt.document.covers(t, tt.path, got)
		}
	}
	for document, services := range map[*document][]*process{inCart: {cart, lonelyCart},
		inOrder: {order, lonelyOrder}} {
		for _, p := range services {
			for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.yaml", "/asyncapi.yaml"} {
				got := do(t, http.MethodGet, p.ops+path, "")
				document.covers(t, path, got)
				if path == "/openapi.yaml" && got.body != string(document.text) {
					t.Errorf("%s serves another document than the one in the repository", p.name)
				}
				if path == "/asyncapi.yaml" && got.body != string(contract.AsyncAPI) {
					t.Errorf("%s serves another description of the topics than the one in the repository", p.name)
				}
			}
			document.covers(t, "/metrics",
				do(t, http.MethodGet, p.ops+"/metrics", "", "Accept", "application/openmetrics-text"))
		}
	}
	for _, tt := range []struct {
		document *document
		service  *process
		path     string
		// part is the parameter that has the value, or "" for the body.
		part, value string
		// lenient: the service takes the value too, as a description says.
		lenient bool
	}{
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": 1}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": 0}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": 1000, "x": {"y": null}}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": 1001}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": -1}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": 1.5}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": 1.0}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": 1e400}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": "1"}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain", "itemsNum": null}`, false},
		{inCart, cart, createPath, "", `{"orderId": "plain"}`, false},
		{inCart, cart, createPath, "", `{"orderId": 5, "itemsNum": 1}`, false},
		{inCart, cart, createPath, "", `["orderId", "itemsNum"]`, false},
		{inCart, cart, createPath, "", `"plain"`, false},
		{inCart, cart, createPath, "", `null`, false},
		{inCart, cart, createPath, "", `{"OrderId": "plain", "ItemsNum": 1}`, true},
		{inCart, cart, createPath, "", `{"orderId": "a", "OrderId": "a", "itemsNum": 1}`, false},
		{inCart, cart, createPath, "", `{"orderId": "a", "itemsNum": 1, "item\u017Fnum": 1}`, false},
		{inCart, cart, updatePath, "", `{"orderId": "A 0", "status": "plain"}`, false},
		{inCart, cart, updatePath, "", `{"ORDERID": "A 0", "STATUS": "plainer"}`, true},
		{inCart, cart, updatePath, "", `{"orderId": "A 0", "status": "a", "Status": "b"}`, false},
		{inCart, cart, updatePath, "", `{"orderId": "A 0", "status": "a", "\u017Ftatus": "b"}`, false},
		{inCart, cart, updatePath, "", `{"orderId": "A 0", "status": ""}`, false},
		{inCart, cart, updatePath, "", `{"orderId": "A 0", "status": " \u3000\u200b"}`, false},
		{inCart, cart, updatePath, "", `{"orderId": "A 0", "status": "` + strings.Repeat("x", 257) + `"}`, false},
		{inCart, cart, createPath, "Idempotency-Key", `k`, false},
		{inCart, cart, createPath, "Idempotency-Key", `"k"`, false},
		{inCart, cart, createPath, "Idempotency-Key", `"`, false},
		{inCart, cart, createPath, "Idempotency-Key", `""`, false},
		{inCart, cart, createPath, "Idempotency-Key", `" "`, false},
		{inCart, cart, createPath, "Idempotency-Key", `"k`, false},
		{inCart, cart, createPath, "Idempotency-Key", `k k"`, false},
		{inCart, cart, createPath, "Idempotency-Key", `ключ`, false},
		{inCart, cart, createPath, "Idempotency-Key", "k\tk", false},
		{inCart, cart, createPath, "Idempotency-Key", strings.Repeat("k", 255), false},
		{inCart, cart, createPath, "Idempotency-Key", strings.Repeat("k", 256), false},
		{inCart, cart, createPath, "Idempotency-Key", `"` + strings.Repeat("k", 255) + `"`, false},
		{inCart, cart, createPath, "Idempotency-Key", `"` + strings.Repeat("k", 256) + `"`, false},
		{inCart, cart, createPath, "Idempotency-Key", `"` + strings.Repeat("k", 255), false},
		{inOrder, order, detailsPath, "orderId", "x", false},
		{inOrder, order, detailsPath, "orderId", "на складе 📦;&=+%", false},
		{inOrder, order, detailsPath, "orderId", "", false},
		{inOrder, order, detailsPath, "orderId", " \u00a0", false},
		{inOrder, order, detailsPath, "orderId", "\t x \n", true},
		{inOrder, order, detailsPath, "orderId", "a\tb", false},
		{inOrder, order, detailsPath, "orderId", "a\u0085b", false},
		{inOrder, order, detailsPath, "orderId", "\u200b\u3164\ufe0f\u2800", false},
		{inOrder, order, detailsPath, "orderId", "\u200bx", false},
		{inOrder, order, detailsPath, "orderId", "\ue000", false},
		{inOrder, order, detailsPath, "orderId", strings.Repeat("x", 256), false},
		{inOrder, order, detailsPath, "orderId", strings.Repeat("x", 257), false},
		{inOrder, order, detailsPath, "minVersion", "1", false},
		{inOrder, order, detailsPath, "minVersion", "0", false},
		{inOrder, order, detailsPath, "minVersion", "-1", false},
		{inOrder, order, detailsPath, "minVersion", "", false},
		{inOrder, order, detailsPath, "minVersion", "1.5", false},
		{inOrder, order, detailsPath, "minVersion", "9007199254740991", false},
		{inOrder, order, detailsPath, "minVersion", "9007199254740992", false},
		{inOrder, order, auditPath, "topicName", contract.TopicUpdated, false},
		{inOrder, order, auditPath, "topicName", contract.TopicDeadLetter, false},
		{inOrder, order, auditPath, "topicName", "", false},
	} {
		violations := tt.document.refuses(tt.path, tt.part, tt.value)
		got := tt.document.try(t, tt.service, tt.path, tt.part, tt.value)
		allowed, accepted := violations == nil, got.status != http.StatusBadRequest
		if (accepted != allowed) != tt.lenient || (tt.lenient && !accepted) {
			t.Errorf("%s %s %q: the service responds %d %.100s; the document says %q",
				tt.path, tt.part, tt.value, got.status, got.body, violations)
		}
	}
	keyInFlight(t, cart, inCart, http.MethodPost, createPath, `{"OrderId": "in-flight-%d", "ItemsNum": 1}`)
	keyInFlight(t, cart, inCart, http.MethodPut, updatePath, `{"orderId": "A 0", "status": "in-flight-%d"}`)

	inCart.complete(t, nil)
	inOrder.complete(t, map[string]string{
		"get " + detailsPath + " 500":                          "a store that cannot be read ends Order",
		"get " + detailsPath + " 500 text/plain":               "likewise",
		"get " + detailsPath + " 500 application/problem+json": "likewise",
		"get " + auditPath + " 500":                            "its index would have to fail between two checks of it",
		"get " + auditPath + " 500 text/plain":                 "likewise",
		"get " + auditPath + " 500 application/problem+json":   "likewise",
	})
}

// keyInFlight provokes the refusal of a second request with a key whose first request is still
// under way.
func keyInFlight(t *testing.T, cart *process, d *document, method, path, body string) {
	t.Helper()
	seen, n := false, 0
	eventually(t, patience, "a second request with the same key comes while the first is under way",
		func() (bool, string) {
			n++
			var wg sync.WaitGroup
			var mu sync.Mutex
			for range 8 {
				wg.Go(func() {
					got, err := send(method, cart.api+path, fmt.Sprintf(body, n), "Idempotency-Key",
						fmt.Sprint(path, n))
					mu.Lock()
					defer mu.Unlock()
					if err == nil && got.header.Get("Retry-After") != "" && got.status == http.StatusConflict {
						seen = true
						d.covers(t, path, got)
					}
				})
			}
			wg.Wait()
			return seen, ""
		})
}

// document is an OpenAPI document, with the parts of it that the test has seen.
type document struct {
	text []byte
	root map[string]any
	seen map[string]bool
}

func newDocument(t *testing.T, text []byte) *document {
	t.Helper()
	d := &document{text: text, seen: map[string]bool{}}
	if err := yaml.Unmarshal(text, &d.root); err != nil {
		t.Fatal(err)
	}
	return d
}

// follow returns the value at the keys, and follows references.
func (d *document) follow(node any, keys ...string) map[string]any {
	m, _ := node.(map[string]any)
	for {
		if ref, ok := m["$ref"].(string); ok {
			m = d.follow(d.root, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
			continue
		}
		if len(keys) == 0 {
			return m
		}
		m, _ = m[keys[0]].(map[string]any)
		keys = keys[1:]
	}
}

// operation returns the only operation of a path.
func (d *document) operation(path string) (method string, operation map[string]any) {
	for method, node := range d.follow(d.root["paths"], path) {
		if method != "servers" {
			return method, d.follow(node)
		}
	}
	return "", nil
}

// covers checks a response against the document's description of it.
func (d *document) covers(t *testing.T, path string, got reply) {
	t.Helper()
	method, operation := d.operation(path)
	name := fmt.Sprintf("%s %s %d", method, path, got.status)
	response := d.follow(operation, "responses", fmt.Sprint(got.status))
	if response == nil {
		t.Errorf("%s is not documented: %.200s", name, got.body)
		return
	}
	d.seen[name] = true
	headers := d.follow(response, "headers")
	for _, h := range []string{"Allow", "ETag", "Preference-Applied", "Retry-After", "WWW-Authenticate"} {
		value := got.header.Get(h)
		if value == "" {
			continue
		}
		if headers[h] == nil {
			t.Errorf("%s: header %s is not documented", name, h)
			continue
		}
		d.seen[name+" "+h] = true
		var v any = value
		schema := d.follow(headers[h], "schema")
		if schema["type"] == "integer" {
			v = json.Number(value)
		}
		d.valid(t, name+" "+h, schema, v)
	}

	if response["content"] == nil {
		if kind := got.header.Get("Content-Type"); got.body != "" || kind != "" {
			t.Errorf("%s has no documented body; got %.200q as %q", name, got.body, kind)
		}
		return
	}
	kind, _, err := mime.ParseMediaType(got.header.Get("Content-Type"))
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	content := d.follow(response, "content", kind)
	if content == nil {
		t.Errorf("%s as %s is not documented", name, kind)
		return
	}
	d.seen[name+" "+kind] = true
	var v any = got.body
	if strings.HasSuffix(kind, "json") {
		decoder := json.NewDecoder(strings.NewReader(got.body))
		decoder.UseNumber()
		if err := decoder.Decode(&v); err != nil {
			t.Errorf("%s: %v: %.200s", name, err, got.body)
			return
		}
	}
	d.valid(t, name, d.follow(content, "schema"), v)
}

// schemaOf returns the schema of a parameter of the path's operation, or of the body if part is "".
func (d *document) schemaOf(path, part string) map[string]any {
	_, operation := d.operation(path)
	if part == "" {
		return d.follow(operation, "requestBody", "content", "application/json", "schema")
	}
	for _, p := range operation["parameters"].([]any) {
		if p := d.follow(p); p["name"] == part {
			return d.follow(p, "schema")
		}
	}
	return nil
}

// refuses returns how the value violates the schema of a part of a request.
func (d *document) refuses(path, part, value string) []string {
	schema := d.schemaOf(path, part)
	var v any = value
	switch {
	case part == "":
		decoder := json.NewDecoder(strings.NewReader(value))
		decoder.UseNumber()
		if err := decoder.Decode(&v); err != nil {
			return []string{err.Error()}
		}
	case schema["type"] == "integer":
		v = json.Number(value)
	}
	return d.violations(part, schema, v)
}

// try sends a request in which everything else is as the document has it.
func (d *document) try(t *testing.T, p *process, path, part, value string) reply {
	t.Helper()
	method, _ := d.operation(path)
	switch part {
	case "":
		return do(t, strings.ToUpper(method), p.api+path, value)
	case "Idempotency-Key":
		return do(t, strings.ToUpper(method), p.api+path, `{"orderId": "tried", "itemsNum": 1}`, part, value)
	}
	query := url.Values{part: {value}}
	if part == "minVersion" {
		query.Set("orderId", "tried")
	}
	return do(t, strings.ToUpper(method), p.api+path+"?"+query.Encode(), "")
}

// complete checks that the test has seen everything documented, except what is explained.
func (d *document) complete(t *testing.T, unseen map[string]string) {
	t.Helper()
	for path := range d.follow(d.root["paths"]) {
		method, operation := d.operation(path)
		for status := range d.follow(operation, "responses") {
			response, name := d.follow(operation, "responses", status), fmt.Sprintf("%s %s %s", method, path, status)
			// The empty part is the response itself, which may have neither body nor headers.
			parts := []string{""}
			for _, part := range []string{"content", "headers"} {
				for what := range d.follow(response, part) {
					parts = append(parts, " "+what)
				}
			}
			for _, part := range parts {
				seen := d.seen[name+part]
				if _, explained := unseen[name+part]; explained == seen {
					t.Errorf("%s%s: documented; seen: %t, explained why not: %t", name, part, seen, explained)
				}
			}
		}
	}
}

// schema merges what several parts of a document say about one value.
type schema struct {
	keywords   map[string]any
	properties map[string]any
	required   []string
}

func (d *document) gather(node any) schema {
	s := schema{keywords: map[string]any{}, properties: map[string]any{}}
	m, _ := node.(map[string]any)
	for keyword, value := range m {
		switch keyword {
		case "$ref":
			s.add(d.gather(d.follow(m)))
		case "allOf":
			for _, part := range value.([]any) {
				s.add(d.gather(part))
			}
		case "properties":
			maps.Copy(s.properties, value.(map[string]any))
		case "required":
			for _, name := range value.([]any) {
				s.required = append(s.required, name.(string))
			}
		default:
			s.keywords[keyword] = value
		}
	}
	return s
}

func (s *schema) add(o schema) {
	maps.Copy(s.keywords, o.keywords)
	maps.Copy(s.properties, o.properties)
	s.required = append(s.required, o.required...)
}

// valid checks a value against a schema.
func (d *document) valid(t *testing.T, at string, node, value any) {
	t.Helper()
	for _, violation := range d.violations(at, node, value) {
		t.Error(violation)
	}
}

// unicodeEscape is how a pattern of JSON Schema names a character, which Go writes as \x{…}.
var unicodeEscape = regexp.MustCompile(`\\u([0-9A-F]{4})`)

// violations returns what is wrong with a value by a schema. An unknown keyword is a violation, so
// that nothing goes unchecked.
func (d *document) violations(at string, node, value any) (all []string) {
	violated := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	s := d.gather(node)
	text, isText := value.(string)
	list, isList := value.([]any)
	object, isObject := value.(map[string]any)
	number, isNumber := new(big.Rat), false
	if n, ok := value.(json.Number); ok {
		_, isNumber = number.SetString(n.String())
	}
	compare := func(limit any) int {
		l, ok := new(big.Rat).SetString(fmt.Sprint(limit))
		if !ok {
			violated("%s: limit %v", at, limit)
		}
		return number.Cmp(l)
	}
	for keyword, want := range s.keywords {
		holds := true
		switch keyword {
		case "description", "example", "examples", "default", "additionalProperties":
		case "type":
			switch want {
			case "string":
				holds = isText
			case "array":
				holds = isList
			case "object":
				holds = isObject
			case "integer":
				holds = isNumber && number.IsInt()
			case "number":
				holds = isNumber
			default:
				holds = false
			}
		case "pattern":
			pattern := unicodeEscape.ReplaceAllString(want.(string), `\x{$1}`)
			holds = regexp.MustCompile(pattern).MatchString(text)
		case "not":
			holds = d.violations(at, want, value) != nil
		case "anyOf":
			holds = slices.ContainsFunc(want.([]any), func(option any) bool {
				return d.violations(at, option, value) == nil
			})
		case "propertyNames":
			for name := range object {
				all = append(all, d.violations(at+": key "+name, want, name)...)
			}
		case "enum":
			holds = slices.Contains(want.([]any), value)
		case "minLength":
			holds = len([]rune(text)) >= want.(int)
		case "maxLength":
			holds = len([]rune(text)) <= want.(int)
		case "minItems":
			holds = len(list) >= want.(int)
		case "maxItems":
			holds = len(list) <= want.(int)
		case "minimum":
			holds = compare(want) >= 0
		case "maximum":
			holds = compare(want) <= 0
		case "multipleOf":
			step, _ := new(big.Rat).SetString(fmt.Sprint(want))
			holds = new(big.Rat).Quo(number, step).IsInt()
		case "format":
			holds = validFormat(want, text, isNumber)
		case "items":
			for i, item := range list {
				all = append(all, d.violations(fmt.Sprintf("%s[%d]", at, i), want, item)...)
			}
		default:
			violated("%s: this test does not know the keyword %s", at, keyword)
		}
		if !holds {
			violated("%s: %.200v is not as documented: %s %v", at, value, keyword, want)
		}
	}
	for _, name := range s.required {
		if _, ok := object[name]; !ok {
			violated("%s has no %s", at, name)
		}
	}
	for name, v := range object {
		property, documented := s.properties[name]
		if !documented {
			if s.keywords["additionalProperties"] == true {
				continue
			}
			violated("%s: field %s is not documented", at, name)
			continue
		}
		all = append(all, d.violations(at+"."+name, property, v)...)
	}
	return all
}

func validFormat(format any, text string, isNumber bool) bool {
	switch format {
	case "int64":
		return isNumber
	case "uuid":
		return uuid.Validate(text) == nil
	case "date-time":
		at, err := time.Parse(time.RFC3339, text)
		return err == nil && at.Location() == time.UTC
	case "uri-reference":
		return text == "about:blank"
	}
	return false
}
