package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// system is a Kafka with dead letters.
type system struct {
	*testing.T
	addr, prefix string
}

// start returns a Kafka with the topics of an installation.
func start(t *testing.T, prefix string) *system {
	t.Helper()
	s := &system{t, testenv.Fake(t), prefix}
	if err := localkafka.CreateTopics(t.Context(), s.addr, contract.TopicsOf(prefix), 1); err != nil {
		t.Fatal(err)
	}
	return s
}

// run returns the exit code and what is printed.
func (s *system) run(args ...string) (code int, stdout, stderr string) {
	s.Helper()
	vars := map[string]string{"KAFKA_BROKERS": s.addr, "KAFKA_PREFIX": s.prefix}
	var out, errs bytes.Buffer
	code = run(s.Context(), args, func(name string) string { return vars[name] }, &out, &errs)
	return code, out.String(), errs.String()
}

// lines returns the JSON objects that a command prints, by the key of their record.
func (s *system) lines(wantCode int, args ...string) map[string]map[string]any {
	s.Helper()
	code, stdout, stderr := s.run(append(args, "-json")...)
	if code != wantCode {
		s.Fatalf("%v: exit code %d, want %d: %s", args, code, wantCode, stderr)
	}
	all := make(map[string]map[string]any)
	for decoder := json.NewDecoder(strings.NewReader(stdout)); decoder.More(); {
		var one map[string]any
		if err := decoder.Decode(&one); err != nil {
			s.Fatalf("%v prints no JSON: %v: %s", args, err, stdout)
		}
		all[one["key"].(string)] = one
	}
	return all
}

// order returns an event of the order with this ID, as Cart publishes it.
func order(t *testing.T, id string, version int64) contract.Message {
	t.Helper()
	e := contract.Event{Type: contract.TypeCreated, Time: time.Now(), Order: contract.Order{
		OrderID: id, CustomerID: "c", OrderDate: time.Now().UTC(), Currency: "USD", Status: "new", Version: version,
		Items: []contract.Item{{ProductID: "P", Quantity: 2, Price: 150}}, TotalAmount: 300,
	}}
	if version > 1 {
		e.Type = contract.TypeUpdated
	}
	m, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// letter publishes the dead letter of a record.
func (s *system) letter(m contract.Message, reason contract.Reason, at time.Time, more ...contract.Header) {
	s.Helper()
	header := func(name, value string) contract.Header { return contract.Header{Key: name, Value: []byte(value)} }
	topic := m.Topic
	if !strings.Contains(topic, ".") {
		topic = s.prefix + topic
	}
	m.Headers = slices.Concat(m.Headers, []contract.Header{
		header(contract.HeaderLetterTopic, topic),
		header(contract.HeaderLetterPartition, "3"), header(contract.HeaderLetterOffset, "42"),
		header(contract.HeaderLetterReason, string(reason)), header(contract.HeaderLetterMessage, "too new"),
		header(contract.HeaderLetterTime, at.UTC().Format(time.RFC3339Nano)),
	}, more)
	m.Topic = s.prefix + contract.TopicDeadLetter
	testenv.Produce(s, s.addr, m)
}

func TestListSelectsLetters(t *testing.T) {
	t.Parallel()
	s := start(t, "")
	if code, stdout, stderr := s.run("dead-letters", "list"); code != 0 || stdout != "no dead letters\n" {
		t.Errorf("without letters: exit code %d, %q %q", code, stdout, stderr)
	}
	s.letter(order(t, "old", 1), contract.ReasonUndecodable, time.Now().Add(-48*time.Hour))
	s.letter(order(t, "new", 1), contract.ReasonUndecodable, time.Now().Add(-time.Hour))
	s.letter(order(t, "other", 2), contract.ReasonConflict, time.Now())
	for args, want := range map[string][]string{
		"":                                     {"new", "old", "other"},
		"-reason undecodable":                  {"new", "old"},
		"-key other":                           {"other"},
		"-since 24h":                           {"new", "other"},
		"-until 24h":                           {"old"},
		"-since 24h -reason undecodable":       {"new"},
		"-until 2006-01-02T15:04:05Z":          {},
		"-key old -since 24h -reason conflict": {},
	} {
		got := s.lines(0, append([]string{"dead-letters", "list"}, strings.Fields(args)...)...)
		keys := append([]string{}, slices.Sorted(maps.Keys(got))...)
		if diff := cmp.Diff(want, keys); diff != "" {
			t.Errorf("list %s (-want +got):\n%s", args, diff)
		}
	}
	one := s.lines(0, "dead-letters", "list", "-key", "new")["new"]
	if one["reason"] != "undecodable" || one["message"] != "too new" || one["topic"] != contract.TopicCreated ||
		one["partition"] != 3.0 || one["offset"] != 42.0 {
		t.Errorf("a letter is listed as %v", one)
	}
	_, table, _ := s.run("dead-letters", "list", "-key", "new")
	if !strings.Contains(table, `"new"`) || !strings.Contains(table, "order-created-topic/3/42") {
		t.Errorf("the table is\n%s", table)
	}
	shown := s.lines(0, "dead-letters", "show", one["letter"].(string))["new"]
	headers, _ := shown["headers"].(map[string]any)
	if value, _ := shown["value"].(string); !strings.Contains(value, `"orderId":"new"`) ||
		headers[contract.HeaderType] != contract.TypeCreated {
		t.Errorf("a letter is shown as %v", shown)
	}
}

// letters are dead letters of each kind. Those with a reason are refused.
func (s *system) letters() (why map[string]string) {
	s.Helper()
	now := time.Now()
	s.letter(order(s.T, "good", 2), contract.ReasonUndecodable, now)
	broken := order(s.T, "broken", 1)
	broken.Value = []byte("{")
	s.letter(broken, contract.ReasonUndecodable, now)
	s.letter(order(s.T, "good", 3), contract.ReasonKeyMismatch, now)
	s.letter(order(s.T, "conflict", 2), contract.ReasonConflict, now)
	again := order(s.T, "again", 2)
	again.Headers = append(again.Headers, contract.Header{Key: contract.HeaderRepublished, Value: []byte("true")})
	s.letter(again, contract.ReasonUndecodable, now)
	s.letter(contract.Message{Topic: contract.TopicUpdated}, contract.ReasonUnreadable, now)
	return map[string]string{"conflict": errClash.Error(), "again": errAgain.Error(), "": errNoKey.Error()}
}

// Without -confirm nothing is asked of Cart.
func TestRedriveShowsWhatItWouldDo(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "staging."} {
		s := start(t, prefix)
		why := s.letters()
		got := s.lines(1, "dead-letters", "redrive", "-cart", "http://localhost:0")
		for key, one := range got {
			want, refused := why[key]
			outcome := "would be published"
			if refused {
				outcome = "refused"
			}
			if reason, _ := one["why"].(string); one["outcome"] != outcome || reason != want {
				t.Errorf("%q is %v because of %q, want %s: %q", key, one["outcome"], reason, outcome, want)
			}
		}
		if len(got) != 5 {
			t.Errorf("the orders are %v", slices.Sorted(maps.Keys(got)))
		}
		// Alone, the good one leaves nothing to be refused.
		if code, stdout, stderr := s.run("dead-letters", "redrive", "-key", "good"); code != 0 ||
			!strings.Contains(stdout, "Nothing was published") {
			t.Errorf("exit code %d, %s %s", code, stdout, stderr)
		}
	}
}

// Each order is asked of Cart once. What Cart does not say that it has done is not done. The real Cart is in
// the tests of services/e2e.
func TestRedriveBelievesOnlyADoneOfCart(t *testing.T) {
	t.Parallel()
	s := start(t, "")
	s.letters()
	for name, tt := range map[string]struct {
		status int
		answer string
		want   string
	}{
		"done":      {200, "done: 1 orders are in Kafka again\n", "3 of 6 letters are refused"},
		"cut off":   {200, "0 of 1 orders; the relay has not published them yet\n", "the answer is 200 OK: 0 of"},
		"ended":     {200, "ended after 0 orders: stopping\n", "ended after 0 orders"},
		"busy":      {409, "orders are being published again already\n", "409 Conflict: orders are being"},
		"unknown":   {404, "no order good: nothing was published\n", "6 of 6 letters are refused"},
		"not Cart":  {404, "404 page not found\n", "the answer is 404 Not Found: 404 page"},
		"forbidden": {403, "only from this host\n", "403 Forbidden: only from"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked []string
			cart := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Method+" "+r.URL.String())
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.answer)
			}))
			defer cart.Close()
			code, _, stderr := s.run("dead-letters", "redrive", "-confirm", "-cart", cart.URL+"/")
			if code != 1 || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, %q, want 1, %q", code, stderr, tt.want)
			}
			slices.Sort(asked)
			if len(asked) != len(slices.Compact(asked)) || !strings.HasPrefix(asked[0], "POST /republish?orderId=") {
				t.Errorf("Cart was asked %q", asked)
			}
		})
	}
	code, stdout, stderr := s.run("dead-letters", "redrive", "-key", "good", "-confirm", "-cart", "http://127.0.0.1:1")
	if code != 1 || stdout != "" || !strings.Contains(stderr, "-cart has the address") {
		t.Errorf("without Cart: exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	s := start(t, "")
	has := func(text string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%q does not have %q", text, part)
			}
		}
	}
	for args, want := range map[string]string{
		"":                                      "no command is given",
		"letters":                               `there is no command "letters"`,
		"reconcile all":                         `reconcile takes no argument "all"`,
		"rebuild all":                           `rebuild takes no argument "all"`,
		"rebuild -drop":                         "-drop is for -swap",
		"skip":                                  "skip needs one TOPIC/PARTITION/OFFSET",
		"skip orders/3/17 orders/3/18":          "skip needs one TOPIC/PARTITION/OFFSET",
		"skip orders/3":                         `"orders/3" is no topic/partition/offset`,
		"dead-letters":                          "needs list, show or redrive",
		"dead-letters drop":                     "there is no dead-letters drop",
		"dead-letters list now":                 `list takes no argument "now"`,
		"dead-letters list -confirm":            "-confirm is for redrive",
		"dead-letters list -reason bad":         "it is undecodable, tombstone, key_mismatch, conflict or unreadable",
		"dead-letters list -since monday":       "invalid value",
		"dead-letters list -age 1h":             "flag provided but not defined: -age",
		"dead-letters show":                     "show needs one PARTITION/OFFSET",
		"dead-letters show 3-4":                 `"3-4" is no PARTITION/OFFSET`,
		"dead-letters show " + strconv.Itoa(-1): "flag provided but not defined",
	} {
		code, stdout, stderr := s.run(strings.Fields(args)...)
		if code != 2 || stdout != "" {
			t.Errorf("%s: exit code %d, prints %q", args, code, stdout)
		}
		has(stderr, want, "-h shows the usage")
	}
	for _, args := range [][]string{{"-h"}, {"--help"}, {"dead-letters", "list", "-h"}} {
		code, stdout, _ := s.run(args...)
		if code != 0 {
			t.Errorf("%v: exit code %d", args, code)
		}
		has(stdout, "orderctl dead-letters redrive", "-confirm", "orderctl rebuild -swap", "-drop",
			"orderctl skip TOPIC/PARTITION/OFFSET -confirm")
	}
	code, _, stderr := s.run("dead-letters", "show", "0/99")
	if code != 1 {
		t.Errorf("show a letter that is not there: exit code %d", code)
	}
	has(stderr, "no dead letter at 0/99")
	s.addr = ""
	if code, _, stderr = s.run("dead-letters", "list"); code != 2 {
		t.Errorf("without KAFKA_BROKERS: exit code %d", code)
	}
	has(stderr, "KAFKA_BROKERS is not set")
}
