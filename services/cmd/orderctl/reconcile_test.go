package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/inventory"
	"ordersystem.dev/services/internal/testenv"
)

func TestDifferences(t *testing.T) {
	t.Parallel()
	v := func(version int64) held { return held{version, inventory.Sum{}} }
	w := func(version int64) held { return held{version, inventory.Sum{1}} }
	for name, tt := range map[string]struct {
		state
		want string
		// left: Cart cannot repair it.
		left bool
	}{
		"the same everywhere":                {state{v(3), 3, v(3), 3, v(3), 1, 3}, "", false},
		"only created":                       {state{v(1), 1, v(1), 1, v(1), 1, 0}, "", false},
		"changed while the topics were read": {state{v(4), 3, v(3), 3, v(3), 1, 3}, "", false},
		"changed while the view was read":    {state{v(4), 3, v(4), 3, v(3), 1, 4}, "", false},
		"changed after the view was read":    {state{v(5), 3, v(4), 3, v(4), 1, 4}, "", false},
		"the topics lack it":                 {state{v(1), 1, v(0), 0, v(0), 0, 0}, "not-in-topics", false},
		"the topics are older":               {state{v(3), 3, v(2), 2, v(2), 1, 2}, "not-in-topics", false},
		"only the topics are older":          {state{v(3), 3, v(2), 2, v(3), 1, 2}, "not-in-topics", false},
		"the view is older":                  {state{v(3), 3, v(3), 3, v(2), 1, 3}, "not-in-order", false},
		"the view lacks it":                  {state{v(1), 1, v(1), 1, v(0), 1, 0}, "not-in-order", false},
		"Cart is older":                      {state{v(2), 2, v(3), 3, v(3), 1, 3}, "not-in-cart", true},
		"Cart lacks it":                      {state{v(0), 0, v(3), 3, v(3), 1, 3}, "not-in-cart", true},
		"only the view has it":               {state{v(0), 0, v(0), 0, v(2), 0, 0}, "not-in-topics not-in-cart", true},
		"an older record is behind":          {state{v(3), 3, v(3), 3, v(3), 1, 2}, "overtaken", false},
		"something is behind":                {state{v(3), 3, v(3), 3, v(3), 1, 0}, "overtaken", false},
		"something is behind the creation":   {state{v(1), 1, v(1), 1, v(1), 0, 0}, "overtaken", false},
		"the creation is past":               {state{v(3), 3, v(3), 3, v(3), 0, 3}, "", false},
		"Cart has other contents":            {state{w(3), 3, v(3), 3, v(3), 1, 3}, "other-contents-in-cart", true},
		"the view has other contents":        {state{v(3), 3, v(3), 3, w(3), 1, 3}, "other-contents-in-order", true},
		"other contents are past":            {state{v(3), 3, v(3), 3, w(2), 1, 3}, "not-in-order", false},
		"a key of no order":                  {state{}, "", true},
	} {
		var got []string
		for _, d := range tt.differences() {
			got = append(got, string(d))
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if left := !tt.repairable(); left != tt.left {
			t.Errorf("%s: cannot be repaired: %t", name, left)
		}
	}
}

// The topics are read with all that others may have written there.
func TestComparisonReadsTheTopics(t *testing.T) {
	t.Parallel()
	c := &comparison{states: make(map[string]*state)}
	record := func(m contract.Message) broker.Record {
		return broker.Record{Topic: "staging." + m.Topic, Key: m.Key, Value: m.Value, Headers: m.Headers}
	}
	first := order(t, "a", 2)
	changed := order(t, "a", 2)
	changed.Value = []byte(strings.Replace(string(changed.Value), `"new"`, `"other"`, 1))
	garbage := func(key, topic string) broker.Record {
		return record(contract.Message{Topic: topic, Key: []byte(key), Value: []byte("{")})
	}
	c.add([]broker.Record{
		record(order(t, "a", 1)), record(first), record(changed),
		record(order(t, "b", 3)), record(order(t, "b", 2)),
		record(order(t, "c", 1)), garbage("c", contract.TopicCreated),
		record(order(t, "d", 1)), garbage("d", contract.TopicUpdated),
		garbage(strings.Repeat("x", contract.MaxIDBytes+1), contract.TopicUpdated),
		{Topic: "staging." + contract.TopicUpdated, Fault: fmt.Errorf("damaged")},
	})
	if got := c.states["a"].topics; got != (held{2, inventory.SumOf(first.Value)}) {
		t.Errorf("of two records with the same version, the first counts: got %v", got)
	}
	got := make(map[string][3]int64)
	for id, s := range c.states {
		got[id] = [3]int64{s.topics.version, s.created, s.updated}
	}
	want := map[string][3]int64{"a": {2, 1, 2}, "b": {3, 0, 2}, "c": {1, 0, 0}, "d": {1, 1, 0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("newest version, and the last record in each topic (-want +got):\n%s", diff)
	}
	if c.unusable != 4 {
		t.Errorf("%d records are no orders, want 4", c.unusable)
	}
}

// stores are the inventories of Cart and Order, and how often each was read as a whole.
type stores struct {
	mu          sync.Mutex
	cart, order map[string]held
	// republished has the IDs of each command to publish orders again.
	republished [][]string
	// publish does what Cart does then.
	publish func(ids []string)
}

// serve returns the addresses of both.
func (s *stores) serve(t *testing.T) (cart, order string) {
	t.Helper()
	list := func(of *map[string]held) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			lines := json.NewEncoder(w)
			orders := 0
			for id, h := range *of {
				if ids := r.URL.Query()["orderId"]; len(ids) > 0 && !slices.Contains(ids, id) {
					continue
				}
				orders++
				_ = lines.Encode(inventory.Entry{OrderID: id, Version: h.version, Sum: h.sum})
			}
			_, _ = fmt.Fprintf(w, `{"orders":%d}`, orders)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+inventory.Path, list(&s.cart))
	mux.HandleFunc("POST /republish", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		ids := r.URL.Query()["orderId"]
		s.republished = append(s.republished, ids)
		s.publish(ids)
		_, _ = io.WriteString(w, "done: they are in Kafka again\n")
	})
	view := http.NewServeMux()
	view.HandleFunc("GET "+inventory.Path, list(&s.order))
	a, b := httptest.NewServer(mux), httptest.NewServer(view)
	t.Cleanup(a.Close)
	t.Cleanup(b.Close)
	return a.URL, b.URL
}

// The real services are in the tests of services/e2e. These do what is asked of them, or not.
func TestReconcileBelievesWhatItSees(t *testing.T) {
	t.Parallel()
	s := start(t, "staging.")
	of := func(m contract.Message, version int64) held { return held{version, inventory.SumOf(m.Value)} }
	one, two := order(t, "one", 1), order(t, "two", 1)
	produce := func(m contract.Message) {
		m.Topic = s.prefix + m.Topic
		testenv.Produce(t, s.addr, m)
	}
	produce(one)
	both := &stores{
		cart:  map[string]held{"one": of(one, 1), "two": of(two, 1)},
		order: map[string]held{"one": of(one, 1)},
	}
	cart, view := both.serve(t)
	reconcile := func(wantCode int, want string, args ...string) {
		t.Helper()
		code, stdout, stderr := s.run(append([]string{"reconcile", "-cart", cart, "-order", view}, args...)...)
		if code != wantCode || !strings.Contains(stdout, want) {
			t.Errorf("reconcile %v: exit code %d, %q, %q, want %d, %q", args, code, stdout, stderr, wantCode, want)
		}
	}
	const row = `{"orderId":"two","cart":1,"topics":0,"order":0,"differences":["not-in-topics"],"outcome":"%s"}` + "\n"
	reconcile(1, fmt.Sprintf(row, outcomeWould), "-json")
	reconcile(1, `"two"     1     0       0      not-in-topics  would be published`)
	if len(both.republished) > 0 {
		t.Errorf("Cart was asked to publish %q before that was asked for", both.republished)
	}
	// Cart says that it is done, and it is not.
	both.publish = func([]string) {}
	reconcile(1, fmt.Sprintf(row, outcomeLeft), "-json", "-repair")
	both.publish = func([]string) {
		produce(two)
		both.order["two"] = of(two, 1)
	}
	reconcile(0, fmt.Sprintf(row, outcomeDone), "-json", "-repair")
	reconcile(0, "no differences\n")
	if diff := cmp.Diff([][]string{{"two"}, {"two"}}, both.republished); diff != "" {
		t.Errorf("Cart was asked to publish (-want +got):\n%s", diff)
	}
	// Nothing that Cart could publish helps.
	delete(both.cart, "one")
	reconcile(1, `"one"     0     1       1      not-in-cart  left`, "-repair")
	cart = "http://127.0.0.1:1"
	if code, stdout, stderr := s.run("reconcile", "-cart", cart); code != 1 || stdout != "" ||
		!strings.Contains(stderr, "read Cart's inventory: ") || !strings.Contains(stderr, "-cart has the address") {
		t.Errorf("without Cart: exit code %d, %q, %q", code, stdout, stderr)
	}
}
