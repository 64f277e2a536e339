package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
)

const took = `[0-9.]+[mµ]?s`

// matches compares stdout with one pattern per line.
func (r result) matches(t *testing.T, patterns ...string) {
	t.Helper()
	whole := "^" + strings.Join(patterns, "\n") + "\n$"
	if r.code != 0 || r.stderr != "" || !regexp.MustCompile(whole).MatchString(r.stdout) {
		t.Errorf("exit code %d, stdout:\n%s\nwant 0 and:\n%s\nstderr:\n%s", r.code, r.stdout, whole, r.stderr)
	}
}

// fails checks the exit code of a run, and that stderr has every part.
func (r result) fails(t *testing.T, code int, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if r.code != code || !strings.Contains(r.stderr, part) {
			t.Errorf("exit code %d, stderr:\n%s\nwant %d and: %s\nstdout:\n%s", r.code, r.stderr, code, part, r.stdout)
		}
	}
}

func TestOneOrderThroughEveryStep(t *testing.T) {
	t.Parallel()
	system{cartURL, orderURL}.check(t, "-prefix", "helm-test-", "audit", "find", "update", "place").matches(t,
		`placed  helm-test-([a-z2-7]{8})-1 version 1 `+took,
		`updated helm-test-[a-z2-7]{8}-1 version 2 `+took,
		`found   helm-test-[a-z2-7]{8}-1 version 2 `+took,
		`audited order-created-topic total \d+, of this run 1/1 `+took,
		`audited order-updated-topic total \d+, of this run 1/1 `+took,
		`summary: placed 1, updated 1, found 1, failed 0, retried 0; found after p50 `+took+`, p99 `+took)
}

func TestManyOrders(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-n", "12"}, {"-n", "12", "-rate", "200"}, {"-for", "150ms"}, {"-for", "150ms", "-rate", "50"},
	} {
		got := system{cartURL, orderURL}.check(t, append(args, "place", "audit")...)
		var placed, failed, retried int
		summary := got.stdout[strings.Index(got.stdout, "summary: "):]
		const format = "summary: placed %d, updated 0, found 0, failed %d, retried %d\n"
		if _, err := fmt.Sscanf(summary, format, &placed, &failed, &retried); err != nil {
			t.Errorf("%v: %v: %s", args, err, summary)
		}
		if placed < 2 || (args[0] == "-n" && placed != 12) || failed != 0 || got.code != 0 {
			t.Errorf("%v: %d placed, %d failed, exit code %d: %s", args, placed, failed, got.code, got.stderr)
		}
		ids := map[string]bool{}
		for _, id := range regexp.MustCompile(`(?m)^placed  (\S+) `).FindAllString(got.stdout, -1) {
			ids[id] = true
		}
		if len(ids) != placed {
			t.Errorf("%v: %d placed, with %d IDs", args, placed, len(ids))
		}
		if want := fmt.Sprintf("of this run %d/%[1]d ", placed); !strings.Contains(got.stdout, want) {
			t.Errorf("%v: no %q in the output: %s", args, want, got.stdout)
		}
	}
}

func TestGivenOrder(t *testing.T) {
	t.Parallel()
	s, id, nobody := system{cartURL, orderURL}, "an order: of "+rand.Text(), "nobody's "+rand.Text()
	one := func(step string) result { return s.check(t, "-id", " "+id+" ", step) }
	one("place").matches(t,
		"placed  "+id+" version 1 "+took,
		"summary: placed 1, updated 0, found 0, failed 0, retried 0")
	one("place").fails(t, 1, "failed: place "+id+": 409 Conflict: Order already exists\n")
	for version := 2; version < 4; version++ {
		one("update").matches(t,
			fmt.Sprintf("updated %s version %d ", id, version)+took,
			"summary: placed 0, updated 1, found 0, failed 0, retried 0")
	}
	got := s.check(t, "-id", id, "update", "find")
	if got.code != 0 || !strings.Contains(got.stdout, "found   "+id+" version 4 ") {
		t.Errorf("%+v", got)
	}
	one("find").matches(t,
		"found   "+id+" version 4 "+took,
		"summary: placed 0, updated 0, found 1, failed 0, retried 0; found after .*")
	one("audit").matches(t,
		`audited order-created-topic total \d+, of this run 1/1 `+took,
		`audited order-updated-topic total \d+, of this run 0/0 `+took,
		"summary: placed 0, updated 0, found 0, failed 0, retried 0")
	for step, want := range map[string]string{
		"audit":  "failed: audit order-created-topic: " + nobody + " at version 1 is not there\n",
		"update": "404 Not Found: Order with ID " + nobody + " not found\n",
		"find":   "404 Not Found: Order with ID " + nobody + " not found.\n",
	} {
		s.check(t, "-id", nobody, "-timeout", "1600ms", step).fails(t, 1, want)
	}
}

// Every kind of wrong response is found.
func TestWrongResponsesFail(t *testing.T) {
	t.Parallel()
	const create, update, details, audit = "create-order", "update-order", "order-details", "getAllOrderIdsFromTopic"
	for name, c := range map[string]struct {
		// request is the part of a URL whose response is changed: old becomes new.
		request, old, new string
		want              string
	}{
		"created: version": {create, `"version":1`, `"version":2`, `, want `},
		"created: order":   {create, `"orderId":"check-`, `"orderId":"x-`, `Cart returned x-`},
		"created: status":  {create, `"status":"new"`, `"status":"old"`, `Cart returned `},
		"created: text": {
			create, `^.*$`, `Order created successfully`, `the response is not what the contract says: `,
		},
		"updated: version":    {update, `"version":2`, `"version":3`, `version 3, status `},
		"updated: status":     {update, `"status":"[^"]*"`, `"status":"new"`, `status "new", total `},
		"updated: total":      {update, `"totalAmount":`, `"totalAmount":1`, `Cart returned `},
		"found: version":      {details, `"version":2`, `"version":3`, `Order returned `},
		"found: status":       {details, `"status":"[^"]*"`, `"status":"new"`, `Order returned `},
		"found: total":        {details, `"totalAmount":`, `"totalAmount":1`, `Order returned `},
		"found: order":        {details, `"orderId":"check-`, `"orderId":"x-`, `Order returned x-`},
		"audited: order":      {audit, `"orderId":"check-`, `"orderId":"x-`, `-1 at version 1 is not there`},
		"audited: version":    {audit, `"version":[0-9]+`, `"version":1`, `-1 at version 2 is not there`},
		"audited: number":     {audit, `': (\d)`, `': 1$1`, `orders and announces 1`},
		"audited: topic":      {audit, `order-[a-z]*-topic`, `topic`, `orders and announces -1`},
		"audited: no orders":  {audit, `\[.*`, `null}`, `the response has no orders`},
		"audited: not closed": {audit, `\]\}$`, `]`, `the response does not end as it should: `},
		"audited: not JSON":   {audit, `\]\}$`, `,]}`, `invalid character ']'`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old := regexp.MustCompile(c.old)
			s := between(t, func(w http.ResponseWriter, r *http.Request, service http.Handler) {
				rewrite(w, r, service, func(body []byte) []byte {
					if !strings.HasSuffix(r.URL.Path, c.request) {
						return body
					}
					if !old.Match(body) {
						t.Errorf("the response has no %q: %.300s", c.old, body)
					}
					return old.ReplaceAll(body, []byte(c.new))
				})
			})
			got := s.check(t, "-timeout", "1s", "place", "update", "find", "audit")
			got.fails(t, 1, "failed: ", strings.TrimPrefix(c.want, ", "))
		})
	}
}

// An update by another client in between is noticed.
func TestUpdateNamesTheVersionThatCartReturned(t *testing.T) {
	t.Parallel()
	var s system
	var puts atomic.Int64
	id := "of two writers " + rand.Text()
	s = between(t, func(w http.ResponseWriter, r *http.Request, service http.Handler) {
		if r.Method == http.MethodPut && puts.Add(1) == 1 {
			if got := s.check(t, "-id", id, "update"); got.code != 0 {
				t.Errorf("%+v", got)
			}
		}
		service.ServeHTTP(w, r)
	})
	s.check(t, "-id", id, "place", "update").fails(t, 1, "failed: update "+id+": 412 Precondition Failed: ")
}

// The first request of each kind meets a temporary failure. It is sent again, and nothing is lost
// or done twice.
func TestRetries(t *testing.T) {
	t.Parallel()
	refuse := func(status int, after string) meddler {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", after)
			http.Error(w, "not now", status)
		}
	}
	for name, meddle := range map[string]meddler{
		"the connection breaks before the service has the request": func(
			http.ResponseWriter, *http.Request, http.Handler,
		) {
			cut()
		},
		"the connection breaks when the service has done it": func(
			w http.ResponseWriter, r *http.Request, service http.Handler,
		) {
			rewrite(w, r, service, func([]byte) []byte { cut(); return nil })
		},
		"the connection breaks amid the response": func(
			w http.ResponseWriter, r *http.Request, service http.Handler,
		) {
			rewrite(w, r, service, func(body []byte) []byte {
				_, _ = w.Write(body[:len(body)-1])
				_ = http.NewResponseController(w).Flush()
				cut()
				return nil
			})
		},
		"503 with Retry-After":              refuse(http.StatusServiceUnavailable, "0"),
		"409, the first is still under way": refuse(http.StatusConflict, "0"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seen [5]atomic.Bool
			s := between(t, func(w http.ResponseWriter, r *http.Request, service http.Handler) {
				kind := 0
				for i, part := range []string{
					"create", "update-order", "details", contract.TopicCreated, contract.TopicUpdated,
				} {
					if strings.Contains(r.URL.String(), part) {
						kind = i
					}
				}
				if seen[kind].CompareAndSwap(false, true) {
					meddle(w, r, service)
					return
				}
				service.ServeHTTP(w, r)
			})
			got := s.check(t, "place", "update", "find", "audit")
			const summary = "summary: placed 1, updated 1, found 1, failed 0, retried 5;"
			if got.code != 0 || !strings.Contains(got.stdout, summary) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestRefusalsForGoodAreNotTriedAgain(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusBadRequest, http.StatusInternalServerError, http.StatusServiceUnavailable} {
		var requests atomic.Int64
		s := between(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			requests.Add(1)
			http.Error(w, "went wrong", status)
		})
		for _, steps := range [][]string{{"place", "update", "find"}, {"-id", "x", "find"}} {
			got := s.check(t, append([]string{"-timeout", "3s"}, steps...)...)
			got.fails(t, 1, fmt.Sprintf("%d %s: went wrong\n", status, http.StatusText(status)))
			if n := requests.Swap(0); n != 1 || !strings.Contains(got.stdout, "failed 1, retried 0") {
				t.Errorf("%d requests: %s", n, got.stdout)
			}
		}
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// This one never accepts.
	t.Cleanup(func() { ln.Close() })
	busy := between(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "not now", http.StatusServiceUnavailable)
	})
	for name, c := range map[string]struct{ url, timeout, want string }{
		"silence": {"http://" + ln.Addr().String(), "1500ms", `: nothing heard for 1\.5s \(tries: 1\)`},
		"nobody":  {"http://127.0.0.1:1", "1500ms", `connection refused \(tries: [2-4]\)`},
		// After the second response there is no time for another 10 s.
		"not now": {busy.cart, "15s", `503 Service Unavailable: not now \(tries: 2\)`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			got := system{c.url, c.url}.check(t, "-timeout", c.timeout, "place")
			if !regexp.MustCompile(c.want).MatchString(got.stderr) || got.code != 1 {
				t.Errorf("%+v, want 1 and %s", got, c.want)
			}
			// Without the timeout, a client that waits for this listener never ends.
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// An order that is not there yet is waited for, also if the service responds at once.
func TestOrdersThatArriveLaterAreWaitedFor(t *testing.T) {
	t.Parallel()
	var lookups, audits atomic.Int64
	s := between(t, func(w http.ResponseWriter, r *http.Request, service http.Handler) {
		switch {
		case strings.HasSuffix(r.URL.Path, "order-details") && lookups.Add(1) < 4:
			http.Error(w, "not there", []int{http.StatusNotFound, http.StatusPreconditionFailed}[lookups.Load()%2])
		case strings.HasSuffix(r.URL.RawQuery, contract.TopicCreated) && audits.Add(1) == 1:
			http.Error(w, "No orders found in the specified topic.", http.StatusNotFound)
		default:
			service.ServeHTTP(w, r)
		}
	})
	got := s.check(t, "place", "find", "audit")
	if got.code != 0 || !strings.Contains(got.stdout, "placed 1, updated 0, found 1, failed 0, retried 0;") ||
		lookups.Load() != 4 || audits.Load() != 2 {
		t.Errorf("%d look-ups, %d audits: %+v", lookups.Load(), audits.Load(), got)
	}
}

// What was found is reported, although the last try is cut off by the timeout.
func TestATryThatIsCutOffHidesNothing(t *testing.T) {
	t.Parallel()
	for step, want := range map[string]string{
		"find":  "404 Not Found: not there\n",
		"audit": "audit order-created-topic: an order at version 1 is not there\n",
	} {
		var tries atomic.Int64
		s := between(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if tries.Add(1) > 1 {
				<-r.Context().Done()
			}
			http.Error(w, "not there", http.StatusNotFound)
		})
		s.check(t, "-id", "an order", "-timeout", "10s", step).fails(t, 1, want)
		if tries.Load() < 2 {
			t.Errorf("%s: %d tries, want more than one", step, tries.Load())
		}
	}
}

// A slow response does not delay later orders, and no order begins early.
func TestRateIsKeptWithSlowResponses(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var underWay, most int
	var last time.Duration
	begin := time.Now()
	s := between(t, func(w http.ResponseWriter, r *http.Request, service http.Handler) {
		mu.Lock()
		last = time.Since(begin)
		underWay++
		most = max(most, underWay)
		mu.Unlock()
		time.Sleep(400 * time.Millisecond)
		mu.Lock()
		underWay--
		mu.Unlock()
		service.ServeHTTP(w, r)
	})
	got := s.check(t, "-rate", "50", "-n", "21", "place")
	// One after another, 21 orders would take more than 8 s; at the rate, the last begins after 400
	// ms.
	if got.code != 0 || last < 400*time.Millisecond || last > 4*time.Second || most < 5 {
		t.Errorf("the last of 21 came after %s, at most %d were under way: %+v", last, most, got)
	}
	most = 0
	if got := s.check(t, "-n", "2", "place"); got.code != 0 || most != 1 {
		t.Errorf("without a rate %d were under way: %+v", most, got)
	}
}

// ending calls then once a part of the output is written.
type ending struct {
	bytes.Buffer
	part string
	then func()
}

func (e *ending) Write(b []byte) (int, error) {
	n, err := e.Buffer.Write(b)
	if strings.Contains(e.String(), e.part) {
		e.then()
	}
	return n, err
}

func TestInterruptFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"at a rate": {"-rate", "50", "-for", "1h"}, "one after another": {"-n", "1000000"},
	} {
		ctx, interrupt := context.WithCancel(t.Context())
		s := between(t, func(w http.ResponseWriter, r *http.Request, service http.Handler) {
			if r.Method == http.MethodPut {
				// Every order is under way when the interrupt comes.
				<-ctx.Done()
			}
			service.ServeHTTP(w, r)
		})
		args := append(args, "place", "update", "find", "audit")
		got := s.checkWith(ctx, &ending{part: "placed ", then: interrupt}, args...)
		placed, found := strings.Count(got.stdout, "placed  "), strings.Count(got.stdout, "found   ")
		if got.code != 0 || placed == 0 || placed != found || (args[0] == "-n" && placed > 1) {
			t.Errorf("%s: %d placed, %d found: %+v", name, placed, found, got)
		}
		audited := fmt.Sprintf("of this run %d/%[1]d ", placed)
		if strings.Count(got.stdout, audited) != 2 || !strings.Contains(got.stdout, "\nsummary: ") {
			t.Errorf("%s: the audit or the summary is not there: %s", name, got.stdout)
		}
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                             "no step is given",
		"-n 3":                         "no step is given",
		"placed":                       `there is no step "placed"`,
		"poison":                       `there is no step "poison"`,
		"place -n 3":                   `there is no step "-n": use place, update, find or audit, after the flags`,
		"-m 3 place":                   "-m",
		"-n many place":                `"many"`,
		"-n 0 place":                   "must be above 0",
		"-rate -1 place":               "must be above 0, -rate not below",
		"-for 0s place":                "must be above 0",
		"-timeout 0s place":            "must be above 0",
		"-for 1s -n 1 place":           "exclude each other",
		"-id x -n 2 place":             "-id is about one order",
		"-id x -rate 2 place":          "-id is about one order",
		"update":                       "update and find need an order",
		"find audit":                   "update and find need an order",
		"-cart localhost:5000 place":   `-cart "localhost:5000": must be a URL such as http://localhost:5000`,
		"-order ftp://localhost place": `-order "ftp://localhost": must be a URL`,
	} {
		system{cartURL, orderURL}.check(t, strings.Fields(args)...).fails(t, 2, want)
	}
	help := system{cartURL, orderURL}.check(t, "-h")
	help.fails(t, 0, "-rate", "audit", "Exit code", "CART_URL", "Examples")
}
