package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// number returns a setting of the test run from the environment.
func number(t testing.TB, name string, fallback uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return fallback
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// The services and Kafka are killed, stopped and started under load, in any order. Every
// acknowledged order is in its topic and in both stores, at its newest version. No operation takes
// effect twice, and no refused one takes any. All orders are published again meanwhile, which
// changes nothing. Each crash leaves in Order's store what follows from the topics up to the
// offsets in it.
//
// E2E_SECONDS sets the duration. E2E_SEED repeats the faults and requests of a run, but not their
// exact timing.
func TestFaultsUnderLoad(t *testing.T) {
	seed := number(t, "E2E_SEED", rand.Uint64()>>1)
	duration := time.Duration(number(t, "E2E_SECONDS", 20)) * time.Second
	t.Logf("E2E_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1<<32))

	kafka, cart, order := startSystem(t)
	l := startLoad(t, cart.api, order.api, seed, 8, 10*time.Millisecond)
	defer l.end()
	republished := cart.republishAlways()

	var crashes []state
	killOrder := func() {
		order.kill()
		crashes = append(crashes, orderStore(t, order, fmt.Sprintf("crash %d", len(crashes)+1)))
	}
	again := func() {
		if err := kafka.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	// pause lets the system run, or stay down, for a random time.
	pause := func(most time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(most)))) }
	faults := map[string]func(){
		"kill cart":  func() { cart.kill(); pause(300 * time.Millisecond); cart.start() },
		"kill order": func() { killOrder(); pause(300 * time.Millisecond); order.start() },
		"kill both": func() {
			cart.kill()
			killOrder()
			pause(time.Second)
			order.start()
			cart.start()
		},
		"restart cart":  func() { cart.stop(); cart.start() },
		"restart order": func() { order.stop(); order.start() },
		"stop kafka":    func() { kafka.Stop(); pause(2 * time.Second); again() },
		"kill kafka":    func() { kafka.Kill(); pause(time.Second); again() },
		"kill all": func() {
			kafka.Kill()
			cart.kill()
			killOrder()
			// Cart's store is complete, so Cart accepts orders without Kafka.
			cart.start()
			pause(500 * time.Millisecond)
			cart.kill()
			again()
			cart.start()
			order.start()
		},
		// Cart dies while it publishes what piled up. It then repeats some of these records.
		"kill cart as kafka comes back": func() {
			kafka.Stop()
			pause(time.Second)
			again()
			pause(50 * time.Millisecond)
			cart.kill()
			cart.start()
		},
	}
	names := []string{
		"kill cart", "kill order", "kill both", "restart cart", "restart order", "stop kafka", "kill kafka", "kill all",
		"kill cart as kafka comes back",
	}
	// next holds the coming faults. Each fault comes once before any comes again.
	var next []string
	for time.Since(begin) < duration {
		if len(next) == 0 {
			next = append(next, names...)
			rng.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
		}
		pause(1500 * time.Millisecond)
		t.Logf("%6s %s", time.Since(begin).Round(time.Millisecond), next[0])
		faults[next[0]]()
		next = next[1:]
	}

	cart.ready()
	order.ready()
	// On a busy machine the faults may have left little time for requests.
	eventually(t, time.Minute, "100 operations are accepted", func() (bool, string) {
		n := l.accepted()
		return n >= 100, fmt.Sprint(n)
	})
	l.end()
	t.Logf("the orders were published again %d times", republished())
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
	verify(t, kafka.Addr, l, cart, order, crashes)
}

// settle waits until Cart has published everything and Order has read it.
func settle(t testing.TB, kafka string, cart, order *process) {
	t.Helper()
	eventually(t, time.Minute, "Cart's outbox is empty", func() (bool, string) {
		rows := cart.metric("cart_outbox_rows")
		return rows == 0, fmt.Sprint(rows)
	})
	awaitRead(t, kafka, order)
}

// verify compares what clients saw with the topics and with the stores of the services, which have
// ended.
func verify(t testing.TB, kafka string, l *load, cart, order *process, crashes []state) {
	t.Helper()
	inCart, outbox := cartStore(t, cart)
	l.verify(kafka, inCart, outbox, orderStore(t, order, "at the end"), crashes, cart, order)
}

// verify compares what clients saw with the topics and with what the stores hold, of services that have
// ended.
func (l *load) verify(
	kafka string, cart map[string]storedOrder, outbox int, order state, crashes []state, services ...*process,
) {
	t := l.t
	t.Helper()
	e := l.evidence()
	e.records = readTopics(t, kafka)
	e.ends = make(map[topicPartition]int64)
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		for p, end := range testenv.HighWatermarks(t, kafka, topic) {
			e.ends[topicPartition{topic, p}] = end
		}
	}
	e.letters = testenv.ReadAll(t, kafka, contract.TopicDeadLetter)
	e.cart, e.outbox, e.order, e.crashes = cart, outbox, order, crashes
	violations := check(e)
	for i, v := range violations {
		if i == 20 {
			t.Errorf("and %d more", len(violations)-i)
			break
		}
		t.Error(v)
	}

	outcomes, again := map[outcome]int{}, 0
	for _, o := range e.operations {
		outcomes[o.outcome]++
		again += max(0, len(o.traces)-1)
	}
	seen, repeated := map[string]bool{}, 0
	for _, r := range e.records {
		for _, h := range r.Headers {
			if h.Key == contract.HeaderID && seen[string(h.Value)] {
				repeated++
			} else if h.Key == contract.HeaderID {
				seen[string(h.Value)] = true
			}
		}
	}
	t.Logf("%d accepted, %d refused, %d unknown, %d requests repeated; %d look-ups",
		outcomes[accepted], outcomes[refused], outcomes[unknown], again, len(e.lookups))
	t.Logf("%d records, %d of them repeated; %d orders; %d crashes of Order",
		len(e.records), repeated, len(e.cart), len(crashes))
	if outcomes[accepted] < 100 {
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
