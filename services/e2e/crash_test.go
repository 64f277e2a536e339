package e2e

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// Order is killed again and again while it reads as fast as it can, so that each kill hits a transaction: what is on disk is always
// what the topics tell up to the offsets on disk, not one record more or less. The records repeat and contradict themselves, too.
func TestOrderCrashesWhileItCatchesUp(t *testing.T) {
	t.Parallel()
	seed := number(t, "E2E_SEED", rand.Uint64()>>1)
	t.Logf("E2E_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	kafka, err := testenv.Start(t.Context(), testenv.Options{
		Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Settings: map[string]string{ // what a killed member held is free again soon
			"group.consumer.min.session.timeout.ms": "1000", "group.consumer.session.timeout.ms": "1000",
			"group.consumer.heartbeat.interval.ms": "200", "group.consumer.min.heartbeat.interval.ms": "200",
		},
	})
	testenv.Require(t, err)
	t.Cleanup(kafka.Kill)
	declare(t, kafka.Addr)

	const orders, versions, crashes = 4000, 8, 6
	var ms []contract.Message
	for n := range orders {
		id := fmt.Sprint("order-", n)
		for v := range versions {
			version, status := int64(v+1), fmt.Sprint("step ", v)
			if v == 0 {
				status = contract.StatusNew
			}
			m := message(id, fmt.Sprint(id, "-", version), status, version)
			m.Headers = append(m.Headers, contract.Header{Key: contract.HeaderTraceparent, Value: []byte("00-0-0-00")})
			ms = append(ms, m)
			if rng.IntN(10) == 0 {
				ms = append(ms, m, ms[rng.IntN(len(ms))])
			}
		}
	}
	// Versions of different orders mix, so that a batch holds many orders once and each order is in many batches.
	rng.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	testenv.Produce(t, kafka.Addr, ms...)
	c := &checker{evidence: evidence{records: readTopics(t, kafka.Addr)}, byOrder: map[string][]*event{}}
	c.read()

	order := newOrder(t, kafka.Addr)
	read := 0
	for n := range crashes {
		order.start()
		eventually(t, 30*time.Second, "Order reads", func() (bool, string) {
			got, err := send("GET", order.ops+"/metrics", "")
			return err == nil && metric(t, got.body, "order_apply_batch_records_sum") > 0, got.body
		})
		time.Sleep(time.Duration(rng.Int64N(int64(60 * time.Millisecond)))) // and is somewhere in the midst of it
		order.kill()
		s := orderStore(t, order, fmt.Sprint("crash ", n+1))
		if c.compare(s.when, c.fold(s.offsets), s.orders); len(c.found) > 0 {
			for _, v := range c.found[:min(10, len(c.found))] {
				t.Error(v)
			}
			t.Fatalf("%d violations at offsets %v", len(c.found), s.offsets)
		}
		before := read
		read = 0
		for _, next := range s.offsets {
			read += int(next)
		}
		t.Logf("%s: %d of %d records are read, %d of them before", s.when, read, len(ms), before)
	}
	order.start().ready()
	awaitRead(t, kafka.Addr, order)
	order.stop()
	c.order, c.cart = orderStore(t, order, "at the end"), nil
	c.compare("at the end", c.fold(c.order.offsets), c.order.orders)
	if len(c.found) > 0 || len(c.order.orders) != orders {
		t.Errorf("at the end Order knows %d orders of %d: %v", len(c.order.orders), orders, c.found[:min(10, len(c.found))])
	}
}

// Cart is killed again and again while it publishes what piled up during an outage: some of it is on its way, acknowledged in some
// partitions and not in others, and rows are being deleted. All of it is published in the end, in order; what is repeated is known
// by its event ID.
func TestCartCrashesWhileItPublishes(t *testing.T) {
	t.Parallel()
	seed := number(t, "E2E_SEED", rand.Uint64()>>1)
	t.Logf("E2E_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	cart, order := newCart(t, kafka.Addr), newOrder(t, kafka.Addr)
	cart.start().ready()

	kafka.Stop()
	l := startLoad(t, cart, nil, seed, 16, 0)
	defer l.end()
	eventually(t, time.Minute, "orders pile up", func() (bool, string) {
		rows := cart.metric("cart_outbox_rows")
		return rows > 4000, fmt.Sprint(rows)
	})
	l.end()
	cart.kill()
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, rows := cartStore(t, cart)
	left := []int{rows}
	for n := 0; n < 8 && rows > 0; n++ {
		cart.start()
		eventually(t, 30*time.Second, "Cart publishes", func() (bool, string) {
			got, err := send("GET", cart.ops+"/metrics", "")
			if err != nil {
				return false, err.Error()
			}
			if n%2 == 0 { // rows are deleted a little later than they are acknowledged
				return metric(t, got.body, "cart_produce_ack_seconds_count") > 0, got.body
			}
			return metric(t, got.body, "cart_outbox_rows") < float64(rows), got.body
		})
		time.Sleep(time.Duration(rng.Int64N(int64(10 * time.Millisecond)))) // and is somewhere in the midst of it
		cart.kill()
		_, rows = cartStore(t, cart)
		left = append(left, rows)
	}
	t.Logf("rows in the outbox before and after each crash: %v", left)
	cart.start().ready()
	order.start().ready()
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
	verify(t, kafka.Addr, l, cart, order, nil)
}
