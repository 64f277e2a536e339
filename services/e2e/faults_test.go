package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// setting returns a setting of the test run from the environment, as parse reads it.
func setting[T any](t testing.TB, name string, fallback T, parse func(string) (T, error)) T {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return fallback
	}
	value, err := parse(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return value
}

// seedOf returns E2E_SEED, or a new seed.
func seedOf(t testing.TB) uint64 {
	t.Helper()
	seed := setting(t, "E2E_SEED", rand.Uint64()>>1, func(text string) (uint64, error) {
		return strconv.ParseUint(text, 10, 64)
	})
	t.Logf("E2E_SEED=%d", seed)
	return seed
}

// compactedSoon returns the declared topics with settings that let compaction remove all the time what newer
// records have replaced. It waits for longer than Kafka is away, so that the test sees every record before.
func compactedSoon() []contract.Topic {
	return topicsWith(map[string]string{
		"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.001", "min.compaction.lag.ms": "30000",
	})
}

// foreignKinds are faults of other programs.
var foreignKinds = []faults.Kind{
	{Name: "open transaction", Longest: 2 * time.Second},
	{Name: "record that is no order"},
	{Name: "record in the place of an order"},
}

// faulty is a system to which faults are done.
type faulty interface {
	// do does a fault, and mends what it has broken.
	do(fault faults.Fault, l *load)
	// kafkaAddr is for clients that are none of the services.
	kafkaAddr() string
	// urls are those of both services, and client trusts their certificates.
	urls() (cart, order string)
	client() *http.Client
	// republishAlways publishes all orders again and again, until stop is called.
	republishAlways() (stop func() int)
	// ready waits until all is up again.
	ready()
	// verify waits until all is published and read, ends the services, and checks everything.
	verify(l *load)
}

// Processes are killed, frozen, stopped, parted and started under load, databases fail over, and stores are
// lost, in any order. Every acknowledged order is in its topic and in both stores, at its newest version. No
// operation takes effect twice, and no refused one takes any. What clients see of an order is as if each
// operation took effect at one moment, and no look-up finds an older version than one before it. All orders are
// published again meanwhile, which changes nothing. At the end, orderctl finds no difference.
//
// E2E_DURATION is how long the faults go on, on each kind of database at the same time. E2E_SEED repeats the
// faults and requests of a run, and E2E_FAULTS a schedule of faults, but not their exact timing. With
// E2E_SHRINK=1, a run that fails is repeated with fewer faults, to find out which of them are needed. A run that
// fails leaves a page with its history.
func TestFaultsUnderLoad(t *testing.T) {
	duration := setting(t, "E2E_DURATION", 0, time.ParseDuration)
	if duration == 0 && os.Getenv("E2E_FAULTS") == "" {
		t.Skip("make faults runs it")
	}
	seed := seedOf(t)
	for _, system := range []struct {
		name  string
		kinds []faults.Kind
		start func(*testing.T) faulty
	}{{"sqlite", aloneKinds, startAlone}, {"postgres", sharedKinds, startShared}} {
		kinds := slices.Concat(system.kinds, foreignKinds)
		t.Run(system.name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1<<32))
			drawn := faults.Draw(rng, kinds, duration, 1500*time.Millisecond)
			schedule := setting(t, "E2E_FAULTS", drawn, func(text string) (faults.Schedule, error) {
				return faults.ParseSchedule(text, kinds)
			})
			fails := func(s faults.Schedule) bool {
				return !t.Run(fmt.Sprintf("%d faults", len(s)), func(t *testing.T) {
					underFaults(t, seed, system.start(t), s, duration)
				})
			}
			if !fails(schedule) {
				return
			}
			if os.Getenv("E2E_SHRINK") == "1" {
				schedule = faults.Shrink(schedule, fails)
			}
			t.Logf("again: E2E_SEED=%d E2E_FAULTS=%q "+
				"go test ./services/e2e -count=1 -v -run '^TestFaultsUnderLoad$/^%s$'", seed, schedule, system.name)
		})
	}
}

// underFaults does the faults of a schedule to a system under load. To mend what a fault has broken may take
// longer than the fault, so a long schedule ends early: after that duration, unless it is 0.
func underFaults(t *testing.T, seed uint64, f faulty, schedule faults.Schedule, duration time.Duration) {
	cart, order := f.urls()
	tail := testenv.StartTail(t, f.kafkaAddr(), contract.OrderTopics()...)
	l := startLoad(t, cart, order, seed, 8, 10*time.Millisecond, func(l *load) {
		l.tail, l.client = tail, f.client()
	})
	defer l.end()
	republished := f.republishAlways()
	lag := watchLag(t, f.kafkaAddr())
	begin := time.Now()
	for n, fault := range schedule {
		if duration > 0 && time.Since(begin) > duration {
			t.Logf("the time is up: %d of %d faults were done", n, len(schedule))
			break
		}
		time.Sleep(fault.After)
		t.Logf("%6s %s", time.Since(begin).Round(time.Millisecond), fault)
		span := faults.Span{Name: fault.Name, Begin: time.Now()}
		switch fault.Name {
		case "open transaction":
			abort := testenv.Hang(t, f.kafkaAddr(), contract.TopicUpdated, 0, 1, 2, 3)
			time.Sleep(fault.For)
			abort()
		case "record that is no order":
			l.spoil(f.kafkaAddr(), fmt.Sprint("poison-", len(l.poison)))
		case "record in the place of an order":
			if id := l.updated(); id != "" {
				l.replaced = append(l.replaced, id)
				l.spoil(f.kafkaAddr(), id)
			}
		default:
			f.do(fault, l)
		}
		span.End = time.Now()
		l.faults = append(l.faults, span)
	}
	f.ready()
	// On a busy machine the faults may have left little time for requests.
	eventually(t, patience, "100 operations are accepted", func() (bool, string) {
		n := l.accepted()
		return n >= 100, fmt.Sprint(n)
	})
	l.end()
	t.Logf("the orders were published again %d times", republished())
	lag.check(l.faults)
	f.verify(l)
}

// spoil produces a record that is no order.
func (l *load) spoil(kafka, key string) {
	l.t.Helper()
	l.poison = append(l.poison, key)
	testenv.Produce(l.t, kafka, contract.Message{Topic: contract.TopicUpdated, Key: []byte(key), Value: []byte("{")})
}

// updated returns the order of the last accepted update, or "" if there was none yet.
func (l *load) updated() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range slices.Backward(l.operations) {
		if o.Outcome == faults.Accepted && !o.Create {
			return o.Order
		}
	}
	return ""
}

// redrive has orderctl bring back the orders in the place of which there are records that are no orders.
func (l *load) redrive(t *testing.T, kafka string, cart *process) {
	t.Helper()
	for _, id := range l.replaced {
		code, stdout, stderr := orderctl(t, kafka, "dead-letters", "redrive", "-cart", cart.ops, "-key", id, "-confirm")
		if code != 0 || !strings.Contains(stdout, "published") {
			t.Errorf("redrive of %s: exit code %d: %s%s", id, code, stdout, stderr)
		}
	}
}

// audit notes how many orders Order finds in each topic.
func (l *load) audit() {
	t := l.t
	t.Helper()
	l.audits = make(map[string]int)
	for _, topic := range contract.OrderTopics() {
		got, err := sendBy(l.client, http.MethodGet, l.order+"/order/getAllOrderIdsFromTopic?topicName="+topic, "")
		_, count, _ := strings.Cut(got.body, "'"+topic+"': ")
		n, noNumber := strconv.Atoi(count[:max(0, strings.IndexByte(count, '"'))])
		if err != nil || got.status != http.StatusOK || noNumber != nil {
			t.Fatalf("the audit of %s: %d %.200s, %v", topic, got.status, got.body, err)
		}
		l.audits[topic] = n
	}
}

// freeze stops a process for as long as pause takes.
func freeze(t testing.TB, pid int, pause func()) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	pause()
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// jumps are how far a clock may be ahead of that of this machine.
var jumps = []time.Duration{
	-time.Hour, -time.Minute, -5 * time.Second, 0, 5 * time.Second, time.Minute, time.Hour,
}

// jump lets a clock jump to where the schedule decides. It stays there until it jumps again. So other faults come
// to machines whose clocks differ.
func jump(t testing.TB, clock *testenv.Clock, fault faults.Fault) {
	t.Helper()
	ahead := jumps[int(fault.After.Milliseconds())%len(jumps)]
	t.Logf("the clock is %s ahead", ahead)
	clock.Jump(ahead)
}

// brokerPID returns the process of the broker in a directory.
func brokerPID(t testing.TB, dir string) int {
	t.Helper()
	_, pid, err := localkafka.Running(dir)
	if err != nil || pid == 0 {
		t.Fatalf("the broker's process is %d: %v", pid, err)
	}
	return pid
}

// settle waits until Cart has published everything and Order has read it.
func settle(t testing.TB, kafka string, cart, order *process) {
	t.Helper()
	eventually(t, patience, "Cart's outbox is empty", func() (bool, string) {
		rows := cart.metric("cart_outbox_rows")
		return rows == 0, fmt.Sprint(rows)
	})
	awaitRead(t, kafka, order)
}

// verify compares what clients saw with the topics and with the stores of the services, which have
// ended.
func verify(t testing.TB, kafka string, l *load, cart, order *process, crashes []faults.State) {
	t.Helper()
	inCart, outbox := cartStore(t, cart)
	l.verify(kafka, inCart, outbox, orderStore(t, order, "at the end"), crashes, cart, order)
}

// verify compares what clients saw with the topics and with what the stores hold, of services that have
// ended.
func (l *load) verify(
	kafka string, cart map[string]faults.StoredOrder, outbox int, order faults.State, crashes []faults.State,
	services ...*process,
) {
	t := l.t
	t.Helper()
	e := l.evidence()
	if l.tail != nil {
		e.Records, e.Compacted = l.tail.Records(), true
	} else {
		e.Records = readTopics(t, kafka)
	}
	e.Ends = make(map[faults.TopicPartition]int64)
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		for p, end := range testenv.HighWatermarks(t, kafka, topic) {
			e.Ends[faults.TopicPartition{Topic: topic, Partition: p}] = end
		}
	}
	e.Letters = testenv.ReadAll(t, kafka, contract.TopicDeadLetter)
	e.Cart, e.Outbox, e.Order, e.Crashes = cart, outbox, order, crashes
	violations := faults.Check(e)
	if len(violations) > 0 {
		kinds := make(map[string]bool)
		for _, v := range violations {
			kinds[v.Kind] = true
		}
		t.Logf("violated: %s", strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
		for _, v := range violations[:min(len(violations), 3)] {
			for _, r := range e.Records {
				if string(r.Key) == v.Order {
					at := r.Time.Format("15:04:05.000")
					t.Logf("%s/%d at %d, %s: %s", r.Topic, r.Partition, r.Offset, at, trait(r))
				}
			}
		}
		t.Logf("the history is in %s", timeline(t, e, l.faults, violations))
	}
	for i, v := range violations {
		if i == 20 {
			t.Errorf("and %d more", len(violations)-i)
			break
		}
		t.Error(v)
	}

	outcomes, again := map[faults.Outcome]int{}, 0
	for _, o := range e.Operations {
		outcomes[o.Outcome]++
		again += max(0, len(o.Traces)-1)
	}
	seen, repeated := map[string]bool{}, 0
	for _, r := range e.Records {
		for _, h := range r.Headers {
			if h.Key == contract.HeaderID && seen[string(h.Value)] {
				repeated++
			} else if h.Key == contract.HeaderID {
				seen[string(h.Value)] = true
			}
		}
	}
	t.Logf("%d accepted, %d refused, %d unknown, %d requests repeated; %d look-ups",
		outcomes[faults.Accepted], outcomes[faults.Refused], outcomes[faults.Unknown], again, len(e.Lookups))
	t.Logf("%d records, %d of them repeated; %d orders; %d crashes of Order",
		len(e.Records), repeated, len(e.Cart), len(crashes))
	if outcomes[faults.Accepted] < 100 {
		t.Errorf("there was hardly any load: %v", outcomes)
	}
	// A logged error does not fail the test: faults cause errors.
	for _, p := range services {
		if n := strings.Count(p.log(), `"level":"ERROR"`); n > 0 {
			_, first, _ := strings.Cut(p.log(), `"level":"ERROR"`)
			t.Logf("%s logged %d errors, the first: %.300s", p.name, n, first)
		}
	}
}

// trait returns what tells the records of an order apart.
func trait(r testenv.Record) string {
	text := "no event"
	if e, err := faults.Parse(&r); err == nil {
		text = fmt.Sprintf("version %d, event %s, trace %s", e.Version, e.ID, e.Trace)
	}
	if (contract.Message{Headers: r.Headers}).IsRepublished() {
		text += ", published again"
	}
	return text
}

// timeline writes a page with the history of a run, which outlives the test.
func timeline(t testing.TB, e faults.Evidence, spans []faults.Span, found []faults.Violation) (path string) {
	t.Helper()
	page, err := os.Create(filepath.Join(os.TempDir(), fmt.Sprintf("faults-%d.html", time.Now().UnixNano())))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	if err := faults.Timeline(page, e, spans, found); err != nil {
		t.Fatal(err)
	}
	return page.Name()
}
