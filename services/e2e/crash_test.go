package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// Order is stopped many times while it reads as fast as it can. The state on disk is always the one
// that follows from the topics up to the offsets on disk. Some records repeat or contradict others.
//
// Most stops freeze the process. The disk then holds what a kill would have left, and a freeze
// takes less than a second. A few real kills show that Order goes on from such a state.
func TestOrderCrashesWhileItCatchesUp(t *testing.T) {
	t.Parallel()
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	// With short sessions, the partitions of a killed member are soon free again.
	kafka := testenv.StartKafkaWith(t, localkafka.Options{Settings: map[string]string{
		"group.consumer.min.session.timeout.ms":    "1000",
		"group.consumer.session.timeout.ms":        "1000",
		"group.consumer.heartbeat.interval.ms":     "200",
		"group.consumer.min.heartbeat.interval.ms": "200",
	}})
	declare(t, kafka.Addr)

	const orders, versions, kills, images = 5000, 8, 3, 30
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
	// Versions of different orders mix, so that a batch has many orders and an order is in many
	// batches.
	rng.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	order := newOrder(t, kafka.Addr)
	var taken []string
	for chunk := range slices.Chunk(ms, len(ms)/kills+1) {
		// Order is down, so that it has many records to read at once.
		testenv.Produce(t, kafka.Addr, chunk...)
		order.start()
		eventually(t, patience, "Order reads", func() (bool, string) {
			got, err := send("GET", order.ops+"/metrics", "")
			return err == nil && metric(t, got.body, "order_apply_batch_records_sum") > 0, got.body
		})
		for range images {
			// The pause is random, so that the freezes come at different points of a batch.
			time.Sleep(time.Duration(rng.Int64N(int64(15 * time.Millisecond))))
			order.signal(syscall.SIGSTOP)
			frozen(t, order.cmd.Process.Pid)
			taken = append(taken, image(t, order))
			order.signal(syscall.SIGCONT)
		}
		order.kill()
		taken = append(taken, image(t, order))
	}
	c := faults.NewChecker(faults.Evidence{Records: readTopics(t, kafka.Addr)})
	different := map[int64]bool{}
	for n, dir := range taken {
		s := orderState(t, openImage(t, dir), fmt.Sprintf("image %d", n+1))
		if c.Compare(s.When, c.Fold(s.Offsets), s.Orders); len(c.Found) > 0 {
			for _, v := range c.Found[:min(10, len(c.Found))] {
				t.Error(v)
			}
			t.Fatalf("%d violations at offsets %v", len(c.Found), s.Offsets)
		}
		read := int64(0)
		for _, next := range s.Offsets {
			read += next
		}
		different[read] = true
	}
	t.Logf("%d images, %d of them at different offsets, of %d records", len(taken), len(different), len(ms))
	if len(different) < 5 {
		t.Error("the images differ too little to show anything")
	}
	order.start().ready()
	awaitRead(t, kafka.Addr, order)
	order.stop()
	c.Order, c.Cart = orderStore(t, order, "at the end"), nil
	c.Compare("at the end", c.Fold(c.Order.Offsets), c.Order.Orders)
	if len(c.Found) > 0 || len(c.Order.Orders) != orders {
		t.Errorf("at the end Order knows %d orders of %d: %v", len(c.Order.Orders), orders,
			c.Found[:min(10, len(c.Found))])
	}
}

// Cart is killed many times while it publishes what piled up during an outage. At each kill some
// records are under way, some partitions have acknowledged theirs, and rows are being deleted.
// Kafka freezes now and then, so that these states last longer. In the end all records are
// published in order, and repeated ones have the same event ID.
func TestCartCrashesWhileItPublishes(t *testing.T) {
	t.Parallel()
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	dir := t.TempDir()
	kafka := testenv.StartKafkaWith(t, localkafka.Options{Dir: dir})
	declare(t, kafka.Addr)
	cart, order := newCart(t, kafka.Addr), newOrder(t, kafka.Addr)
	cart.start().ready()

	kafka.Stop()
	l := startLoad(t, cart.api, "", seed, 16, 0, func(l *load) { l.items = 300 })
	defer l.end()
	eventually(t, patience, "orders pile up", func() (bool, string) {
		rows := cart.metric("cart_outbox_rows")
		return rows > 1500, fmt.Sprint(rows)
	})
	l.end()
	cart.kill()
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, broker, err := localkafka.Running(dir)
	if err != nil || broker == 0 {
		t.Fatalf("the broker's process is %d: %v", broker, err)
	}
	_, rows := cartStore(t, cart)
	left := []int{rows}
	for n := 0; n < 8 && rows > 0; n++ {
		cart.start()
		acknowledged := func() bool {
			got, err := send("GET", cart.ops+"/metrics", "")
			return err == nil && metric(t, got.body, "cart_produce_ack_seconds_count") > 0
		}
		for deadline := time.Now().Add(patience); !acknowledged(); {
			if time.Now().After(deadline) {
				t.Fatal("Cart does not publish")
			}
		}
		if n%2 == 0 {
			if err := syscall.Kill(broker, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			frozen(t, broker)
			// Cart deletes the acknowledged rows meanwhile, except behind a row that is not
			// acknowledged. A test cannot see when it is done, so it waits for a while.
			time.Sleep(150 * time.Millisecond)
		} else {
			// The pause is random, so that the kills come at different points.
			time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
		}
		cart.kill()
		if err := syscall.Kill(broker, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
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
