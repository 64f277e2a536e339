package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// A disk has changed a batch, and no replica has a whole copy. Order waits at the batch until orderctl has it
// skipped, and then goes on by itself. All that Order reads passes it, and its order is published again.
func TestADamagedBatchIsSkipped(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		d := startDamaged(t, 1)
		d.skipped(d.orders[0])
		d.stillNeedsTheSetting()
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		d := startDamaged(t, 2, "DATABASE_URL="+testenv.Postgres(t))
		// The one that is asked has other partitions.
		asked := d.orders[0]
		if asked.metric("order_consumer_failing") == 1 {
			asked = d.orders[1]
		}
		d.skipped(asked)
	})
}

// damaged is a system in which the batch with the only record of the order "damaged" is damaged.
type damaged struct {
	*testing.T
	kafka  string
	cart   *process
	orders []*process
	place  broker.Place
	// behind are the orders that were created after it.
	behind []string
}

// startDamaged starts a Cart and so many Orders, and waits until an Order waits at the batch.
func startDamaged(t *testing.T, orders int, env ...string) *damaged {
	t.Helper()
	dir := t.TempDir()
	kafka := testenv.StartKafkaWith(t, localkafka.Options{Dir: dir})
	declare(t, kafka.Addr)
	d := &damaged{T: t, kafka: kafka.Addr, cart: newCart(t, kafka.Addr, env...).start().ready()}
	for range orders {
		d.orders = append(d.orders, newOrder(t, kafka.Addr, env...))
	}
	d.cart.create("before")
	d.orders[0].start().ready()
	settle(t, kafka.Addr, d.cart, d.orders[0])
	d.orders[0].stop()

	d.damage(dir)
	// Some are in the same partition.
	for n := range 60 {
		id := fmt.Sprint("behind-", n)
		d.cart.create(id)
		d.behind = append(d.behind, id)
	}
	for _, p := range d.orders {
		p.start().listens()
	}
	d.waits()
	return d
}

// damage creates the order and damages its batch in the broker's folder. No Order may run, and nothing else may
// be published meanwhile, so that it is the only record of its batch and nobody has read it.
func (d *damaged) damage(dir string) {
	d.Helper()
	d.cart.create("damaged")
	eventually(d, patience, "Kafka has the order", func() (bool, string) {
		for _, r := range testenv.ReadAll(d, d.kafka, contract.TopicCreated) {
			if string(r.Key) == "damaged" {
				d.place = broker.Place{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}
			}
		}
		return d.place.Topic != "", ""
	})
	testenv.FlipBatch(d, dir, d.place.Topic, d.place.Partition, d.place.Offset)
}

// waits waits until exactly one Order waits at the batch, and each has its share of the partitions.
func (d *damaged) waits() {
	d.Helper()
	eventually(d, patience, "one Order waits at the batch", func() (bool, string) {
		failing, shares := 0.0, true
		for _, p := range d.orders {
			failing += p.metric("order_consumer_failing")
			shares = shares && p.metric("order_assigned_partitions") == float64(24/len(d.orders))
		}
		return failing == 1 && shares, fmt.Sprint(failing, shares)
	})
}

// skip runs orderctl skip for a member, and checks its exit code and what it prints.
func (d *damaged) skip(asked *process, wantCode int, want, place string, args ...string) {
	d.Helper()
	code, stdout, stderr := orderctl(d.T, "", append([]string{"skip", place, "-order", asked.ops}, args...)...)
	if code != wantCode || !strings.Contains(stdout+stderr, want) {
		d.Errorf("skip %s %s: exit code %d, want %d and %q:\n%s%s", place, args, code, wantCode, want, stdout, stderr)
	}
}

// goesOn checks that the Orders have read all but the batch, which is so many dead letters.
func (d *damaged) goesOn(wantLetters int) {
	d.Helper()
	for _, p := range d.orders {
		// It has caught up with the topics.
		p.ready()
		for _, id := range append([]string{"before"}, d.behind...) {
			p.sees(id, 1, contract.StatusNew)
		}
		eventually(d, patience, p.name+" waits for nothing", func() (bool, string) {
			return p.metric("order_consumer_failing") == 0, ""
		})
	}
	var letters []testenv.Record
	eventually(d, patience, "the dead letter is there", func() (bool, string) {
		letters = testenv.ReadAll(d, d.kafka, contract.TopicDeadLetter)
		return len(letters) >= wantLetters, fmt.Sprint(len(letters))
	})
	if len(letters) != wantLetters {
		d.Errorf("%d dead letters, want %d", len(letters), wantLetters)
	}
	for _, l := range letters {
		from, reason := origin(d.T, l)
		at := broker.Place{Topic: from.Topic, Partition: from.Partition, Offset: from.Offset}
		if at != d.place || reason != string(contract.ReasonUnreadable) {
			d.Errorf("a dead letter says %s of %s, want %s of %s", reason, at, contract.ReasonUnreadable, d.place)
		}
	}
}

// skipped has a member skip the batch, and nothing else.
func (d *damaged) skipped(asked *process) {
	d.Helper()
	at, next := d.place.String(), d.place
	next.Offset++
	d.skip(asked, 1, "409 Conflict: nothing is skipped: ", next.String(), "-confirm")
	d.skip(asked, 0, at+": would be skipped, 1 records and ", at)
	d.waits()
	d.skip(asked, 0, at+": skipped, 1 records and ", at, "-confirm")
	d.goesOn(1)
	d.skip(asked, 0, at+": skipped already\n", at, "-confirm")

	audit := asked.audit(contract.TopicCreated)
	if want := fmt.Sprintf("'%s': %d\"", contract.TopicCreated, 1+len(d.behind)); !strings.Contains(audit.body, want) {
		d.Errorf("audit: %d %.200s, want %q", audit.status, audit.body, want)
	}
	rebuildView(d.T, asked, 0, "no differences\n")
	d.repaired(asked)
}

// repaired has orderctl publish the order of the batch again, and nothing else.
func (d *damaged) repaired(asked *process) {
	d.Helper()
	env := []string{"KAFKA_BROKERS=" + d.kafka, "KAFKA_SKIP_DAMAGED=" + d.place.String()}
	code, stdout, stderr := orderctlWith(d.T, env,
		"reconcile", "-json", "-cart", d.cart.ops, "-order", asked.ops, "-repair")
	want := `{"orderId":"damaged","cart":1,"topics":0,"order":0,"differences":["not-in-topics"],"outcome":"repaired"}`
	if code != 0 || stdout != want+"\n" {
		d.Errorf("reconcile -repair: exit code %d, want 0 and %s:\n%s%s", code, want, stdout, stderr)
	}
	asked.sees("damaged", 1, contract.StatusNew)
}

// stillNeedsTheSetting deletes both stores. A Cart that is rebuilt meets the batch and needs the setting. The new
// store of Order does not know what was skipped, and needs the command again.
func (d *damaged) stillNeedsTheSetting() {
	d.Helper()
	at, order := d.place.String(), d.orders[0]
	for _, p := range []*process{d.cart, order} {
		p.stop()
		if err := os.RemoveAll(p.dir); err != nil {
			d.Fatal(err)
		}
		p.start().listens()
	}
	eventually(d, patience, "Cart waits at the batch", func() (bool, string) {
		log := d.cart.log()[d.cart.logged:]
		return strings.Contains(log, "the batch's CRC is wrong"), log
	})
	d.cart.notReady("rebuilding the store from the topics")
	d.cart.stop()
	d.cart.env = append(d.cart.env, "KAFKA_SKIP_DAMAGED="+at)
	d.cart.start().ready()

	d.waits()
	d.skip(order, 0, at+": skipped, 1 records and ", at, "-confirm")
	d.goesOn(2)
	if v := d.cart.update("damaged", "Shipped"); v != 2 {
		d.Errorf("the order that was published again is updated to version %d, want 2", v)
	}
	order.sees("damaged", 2, "Shipped")
	d.cart.stop()
	order.stop()
}
