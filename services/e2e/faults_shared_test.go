package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/localpostgres"
)

// sharedKinds are the faults of a system with replicas.
var sharedKinds = []faults.Kind{
	{Name: "kill a cart", Longest: time.Second},
	{Name: "kill an order", Longest: time.Second},
	{Name: "kill the relay", Longest: 4 * time.Second},
	// Longer than its lease.
	{Name: "freeze the relay", Longest: 6 * time.Second},
	{Name: "steal the lease"},
	{Name: "freeze an order", Longest: 6 * time.Second},
	{Name: "restart the carts"},
	{Name: "restart the orders"},
	{Name: "one replica less and more", Longest: time.Second},
	{Name: "kill a broker", Longest: 2 * time.Second},
	{Name: "freeze a broker", Longest: 6 * time.Second},
	{Name: "kill all brokers", Longest: time.Second},
	{Name: "kill the database", Longest: time.Second},
	{Name: "stop the standby", Longest: 2 * time.Second},
	{Name: "cut the connections to the database"},
	{Name: "fail over"},
	{Name: "no requests to the database", Longest: 4 * time.Second},
	{Name: "no responses of the database", Longest: 4 * time.Second},
}

// shared is a system with three brokers, a database with a standby, and replicas of both services.
type shared struct {
	*testing.T
	*deployment
	// primary is the server that takes writes. standby is nil once it has become the primary.
	primary, standby *localpostgres.Server
}

func startShared(t *testing.T) faulty {
	t.Helper()
	f := &shared{T: t, deployment: deploy(t, compactedSoon())}
	f.primary, f.standby = f.database.primary, f.database.standby
	f.scale(2)
	return f
}

func (f *shared) urls() (cart, order string) { return f.carts.url(), f.orders.url() }

func (f *shared) kafkaAddr() string { return f.kafka }

func (f *shared) republishAlways() (stop func() int) { return f.carts.members()[0].republishAlways() }

func (f *shared) ready() {
	f.Helper()
	f.carts.ready()
	f.orders.ready()
}

func (f *shared) verify(l *load) {
	f.Helper()
	f.settle()
	eventually(f, patience, "Order's dead letters are published", func() (bool, string) {
		var rows int
		err := f.db.QueryRow("SELECT count(*) FROM order_view.outbox").Scan(&rows)
		return err == nil && rows == 0, fmt.Sprint(rows, err)
	})
	l.audits = audits(f, f.orders.url())
	if found := reconcile(f.T, f.kafka, f.carts.members()[0], f.orders.members()[0], 0); len(found) > 0 {
		f.Errorf("the stores and the topics differ: %v", found)
	}
	rebuildView(f.T, f.orders.members()[0], 0, "no differences\n")
	f.end(l)
}

func (f *shared) do(fault faults.Fault, _ *load) {
	f.Helper()
	pause := func() { time.Sleep(fault.For) }
	// The schedule decides which one it is, so that it is the same when the schedule is repeated.
	which := int(fault.After.Milliseconds())
	one := func(of *replicas) *process { return of.members()[which%len(of.members())] }
	broker := f.brokers[which%len(f.brokers)]
	restart := func(p *process) {
		p.kill()
		pause()
		p.start()
	}
	switch fault.Name {
	case "kill a cart":
		restart(one(f.carts))
	case "kill an order":
		restart(one(f.orders))
	case "kill the relay":
		restart(f.relay())
	case "freeze the relay":
		freeze(f.T, f.relay().cmd.Process.Pid, pause)
	case "steal the lease":
		// The relay goes on, while it may be another one's turn.
		const steal = "UPDATE cart.relay SET owner = '', epoch = epoch + 1, expires_at = 0"
		if _, err := f.db.ExecContext(f.Context(), steal); err != nil {
			f.Fatal(err)
		}
	case "freeze an order":
		freeze(f.T, one(f.orders).cmd.Process.Pid, pause)
	case "restart the carts":
		f.carts.restart()
	case "restart the orders":
		f.orders.restart()
	case "one replica less and more":
		f.scale(1)
		pause()
		f.scale(2)
	case "kill a broker":
		broker.Kill()
		pause()
		f.again(broker)
	case "freeze a broker":
		freeze(f.T, brokerPID(f.T, filepath.Join(f.kafkaDir, strconv.Itoa(broker.ID))), pause)
	case "kill all brokers":
		for _, b := range f.brokers {
			b.Kill()
		}
		pause()
		f.again(f.brokers...)
	case "kill the database":
		f.primary.Kill()
		pause()
		if err := f.primary.StartAgain(f.Context()); err != nil {
			f.Fatal(err)
		}
	case "stop the standby":
		if f.standby == nil {
			break
		}
		f.standby.Stop()
		pause()
		if err := f.standby.StartAgain(f.Context()); err != nil {
			f.Fatal(err)
		}
	case "cut the connections to the database":
		if _, err := f.db.ExecContext(f.Context(), cutConnections); err != nil {
			f.Fatal(err)
		}
	case "fail over":
		if f.standby == nil {
			break
		}
		f.database.fail()
		f.primary, f.standby = f.standby, nil
	case "no requests to the database":
		f.database.address.requests.hold(pause)
	case "no responses of the database":
		f.database.address.responses.hold(pause)
	default:
		f.Fatalf("nothing does the fault %q", fault.Name)
	}
}

// again starts brokers again, all of them at once: one alone is no majority.
func (f *shared) again(brokers ...*localkafka.Broker) {
	f.Helper()
	failed := make(chan error, len(brokers))
	for _, b := range brokers {
		go func() { failed <- b.StartAgain(f.Context()) }()
	}
	for range brokers {
		if err := <-failed; err != nil {
			f.Fatal(err)
		}
	}
}
