package contract

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// The documents are written by hand. These tests compare them with the code that they describe.

func TestDocumentReferencesResolve(t *testing.T) {
	t.Parallel()
	for name, text := range map[string][]byte{"cart": CartOpenAPI, "order": OrderOpenAPI, "asyncapi": AsyncAPI} {
		doc := parse(t, text)
		walk(doc, func(m map[string]any) {
			ref, ok := m["$ref"].(string)
			if !ok {
				return
			}
			pointer, local := strings.CutPrefix(ref, "#/")
			if !local || find(doc, strings.Split(pointer, "/")...) == nil {
				t.Errorf("%s: $ref %s leads nowhere", name, ref)
			}
		})
	}
}

func TestDocumentedRoutes(t *testing.T) {
	t.Parallel()
	ops := []string{"get /asyncapi.yaml", "get /healthz", "get /metrics", "get /openapi.yaml", "get /readyz"}
	for _, tt := range []struct {
		name string
		doc  []byte
		want []string
	}{
		{"cart", CartOpenAPI, append([]string{"post /Order/create-order", "put /Order/update-order"}, ops...)},
		{
			"order", OrderOpenAPI,
			append([]string{"get /order/getAllOrderIdsFromTopic", "get /order/order-details"}, ops...),
		},
	} {
		var got []string
		for path, item := range find(parse(t, tt.doc), "paths").(map[string]any) {
			for method := range item.(map[string]any) {
				if method != "servers" {
					got = append(got, method+" "+path)
				}
			}
		}
		slices.Sort(got)
		slices.Sort(tt.want)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: routes (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestDocumentedLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		doc  []byte
		path string
		want int
	}{
		{CartOpenAPI, "OrderID maxLength", MaxIDBytes},
		{CartOpenAPI, "Status maxLength", MaxStatusBytes},
		{CartOpenAPI, "CreateOrder properties itemsNum maximum", MaxItems},
		{CartOpenAPI, "Order properties items maxItems", MaxItems},
		{OrderOpenAPI, "OrderID maxLength", MaxIDBytes},
		{OrderOpenAPI, "Order properties status maxLength", MaxStatusBytes},
		{OrderOpenAPI, "Order properties items maxItems", MaxItems},
		{AsyncAPI, "Order properties orderId maxLength", MaxIDBytes},
		{AsyncAPI, "Order properties status maxLength", MaxStatusBytes},
		{AsyncAPI, "Order properties items maxItems", MaxItems},
	} {
		if got := find(parse(t, tt.doc), strings.Fields("components schemas "+tt.path)...); got != tt.want {
			t.Errorf("%s is %v, want %d", tt.path, got, tt.want)
		}
	}
}

func TestDocumentedOrder(t *testing.T) {
	t.Parallel()
	text, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	var order map[string]any
	if err := json.Unmarshal(text, &order); err != nil {
		t.Fatal(err)
	}
	item := order["items"].([]any)[0].(map[string]any)
	for name, doc := range map[string][]byte{"cart": CartOpenAPI, "order": OrderOpenAPI, "asyncapi": AsyncAPI} {
		for schema, want := range map[string]map[string]any{"Order": order, "Item": item} {
			s := find(parse(t, doc), "components", "schemas", schema)
			if diff := cmp.Diff(keys(want), keys(find(s, "properties"))); diff != "" {
				t.Errorf("%s: properties of %s (-code +document):\n%s", name, schema, diff)
			}
			if diff := cmp.Diff(keys(want), texts(find(s, "required"))); diff != "" {
				t.Errorf("%s: required of %s (-code +document):\n%s", name, schema, diff)
			}
		}
	}
}

func TestDocumentedTopics(t *testing.T) {
	t.Parallel()
	var got []Topic
	for _, channel := range find(parse(t, AsyncAPI), "channels").(map[string]any) {
		topic := Topic{
			Name:       find(channel, "address").(string),
			Partitions: find(channel, "bindings", "kafka", "partitions").(int),
			Config:     map[string]string{},
		}
		for k, v := range find(channel, "bindings", "kafka", "topicConfiguration").(map[string]any) {
			if list, ok := v.([]any); ok {
				v = strings.Join(texts(list), ",")
			}
			topic.Config[k] = fmt.Sprint(v)
		}
		got = append(got, topic)
	}
	want := Topics()
	for _, ts := range [][]Topic{got, want} {
		slices.SortFunc(ts, func(a, b Topic) int { return strings.Compare(a.Name, b.Name) })
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("topics (-code +document):\n%s", diff)
	}
}

func TestDocumentedEvents(t *testing.T) {
	t.Parallel()
	schemas := find(parse(t, AsyncAPI), "components", "schemas")
	m, err := Event{ID: "1", Type: TypeCreated, Traceparent: "t", Order: sample()}.Message()
	if err != nil {
		t.Fatal(err)
	}
	headers := map[string]any{}
	for _, h := range slices.Concat(m.Headers, Republish("o", 1, m.Value, time.Now(), "t").Headers) {
		headers[h.Key] = h.Value
	}
	if diff := cmp.Diff(keys(headers), keys(find(schemas, "EventHeaders", "properties"))); diff != "" {
		t.Errorf("headers (-code +document):\n%s", diff)
	}
	var reasons []string
	for _, r := range Reasons() {
		reasons = append(reasons, string(r))
	}
	slices.Sort(reasons)
	documented := texts(find(schemas, "DeadLetterHeaders", "properties", "dlt-reason", "enum"))
	if diff := cmp.Diff(reasons, documented); diff != "" {
		t.Errorf("reasons of dead letters (-code +document):\n%s", diff)
	}
}

// The examples of events can be decoded.
func TestDocumentedExamples(t *testing.T) {
	t.Parallel()
	messages := find(parse(t, AsyncAPI), "components", "messages")
	for name, topic := range map[string]string{"OrderCreated": TopicCreated, "OrderUpdated": TopicUpdated} {
		for _, example := range find(messages, name, "examples").([]any) {
			payload := find(example, "payload")
			value, err := json.Marshal(payload)
			if err != nil {
				t.Fatal(err)
			}
			var headers []Header
			for k, v := range find(example, "headers").(map[string]any) {
				headers = append(headers, Header{k, []byte(v.(string))})
			}
			if _, err := DecodeEvent(topic, 0, []byte(find(payload, "orderId").(string)), value, headers); err != nil {
				t.Errorf("the example of %s: %v", name, err)
			}
		}
	}
}

func parse(t *testing.T, text []byte) any {
	t.Helper()
	var doc any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// find follows a JSON pointer through maps and lists. It returns nil if nothing is there.
func find(node any, path ...string) any {
	for _, key := range path {
		key = strings.NewReplacer("~1", "/", "~0", "~").Replace(key)
		switch n := node.(type) {
		case map[string]any:
			node = n[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(n) {
				return nil
			}
			node = n[i]
		default:
			return nil
		}
	}
	return node
}

func walk(node any, visit func(map[string]any)) {
	switch n := node.(type) {
	case map[string]any:
		visit(n)
		for _, v := range n {
			walk(v, visit)
		}
	case []any:
		for _, v := range n {
			walk(v, visit)
		}
	}
}

func keys(node any) []string {
	m, _ := node.(map[string]any)
	return slices.Sorted(maps.Keys(m))
}

func texts(node any) []string {
	list, _ := node.([]any)
	var all []string
	for _, v := range list {
		all = append(all, fmt.Sprint(v))
	}
	slices.Sort(all)
	return all
}
