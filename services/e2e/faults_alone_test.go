package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// aloneKinds are the faults of a system with one process of each kind.
var aloneKinds = []faults.Kind{
	{Name: "kill cart", Longest: 300 * time.Millisecond},
	{Name: "kill order", Longest: 300 * time.Millisecond},
	{Name: "kill both", Longest: time.Second},
	{Name: "restart cart"},
	{Name: "restart order"},
	{Name: "freeze cart", Longest: 4 * time.Second},
	{Name: "freeze order", Longest: 4 * time.Second},
	{Name: "stop kafka", Longest: 2 * time.Second},
	{Name: "kill kafka", Longest: time.Second},
	{Name: "freeze kafka", Longest: 4 * time.Second},
	{Name: "kill all", Longest: 500 * time.Millisecond},
	{Name: "kill cart as kafka comes back", Longest: time.Second},
	{Name: "delete order's store"},
	{Name: "restore order's store"},
	{Name: "no requests to kafka", Longest: 4 * time.Second},
	{Name: "no responses of kafka", Longest: 4 * time.Second},
	{Name: "part cart from kafka", Longest: 4 * time.Second},
	// Longer than its session.
	{Name: "part order from kafka", Longest: 8 * time.Second},
	{Name: "a request that outlives cart", Longest: time.Second},
	{Name: "restore cart's store"},
	{Name: "a failed fsync of cart"},
	{Name: "cart's disk is slow", Longest: 4 * time.Second},
	// Only where a small disk can be mounted: as root on Linux.
	{Name: "cart's disk is full", Longest: 2 * time.Second},
	{Name: "cart's clock jumps"},
	{Name: "order's clock jumps"},
}

// alone is a system with one process of each kind. The services have SQLite.
type alone struct {
	*testing.T
	kafka    *localkafka.Broker
	kafkaDir string
	// network is between the services and Kafka.
	network     *network
	cart, order *process
	// crashes are Order's store as each kill has left it. What each has follows from the topics up to the
	// offsets in it.
	crashes []faults.State
	// small is Cart's folder on a small disk, if there can be one.
	small string
	// disk is the disk as Cart sees it.
	disk *testenv.FaultyDisk
	// backup and cartBackup are copies of the stores, as they were before the last restore or at the start.
	// kafkaBackup is a copy of Kafka's disk as it was at the start.
	backup, cartBackup, kafkaBackup string
}

func startAlone(t *testing.T) faulty {
	t.Helper()
	f := &alone{T: t, kafkaDir: t.TempDir(), network: newNetwork(t)}
	f.kafka = testenv.StartKafkaWith(t, localkafka.Options{Dir: f.kafkaDir, Settings: map[string]string{
		"advertised.listeners":   "PLAINTEXT://" + f.network.addr(),
		"log.cleaner.backoff.ms": "100",
	}})
	f.network.serve(f.kafka.Addr)
	declare(t, f.kafka.Addr, compactedSoon()...)
	var dir []string
	if testenv.MountsDisks() {
		f.small = testenv.SmallDisk(t, 256)
		dir = []string{"DATA_DIR=" + f.small}
	}
	f.cart = newCart(t, f.network.addr(), dir...).jumping()
	f.cart.dir = cmp.Or(f.small, f.cart.dir)
	f.disk = testenv.NewFaultyDisk(t, filepath.Join(f.cart.dir, "cart.db"))
	f.cart.env = append(f.cart.env, f.disk.Env...)
	f.order = newOrder(t, f.network.addr()).jumping()
	f.cart.start()
	f.order.start()
	f.ready()
	f.cart.stop()
	f.order.stop()
	f.kafka.Stop()
	f.cartBackup, f.backup, f.kafkaBackup = copyOf(t, f.cart.dir), copyOf(t, f.order.dir), copyOf(t, f.kafkaData())
	f.kafkaAgain()
	f.cart.start()
	f.order.start()
	f.ready()
	return f
}

func (f *alone) urls() (cart, order string) { return f.cart.api, f.order.api }

func (f *alone) client() *http.Client { return client }

func (f *alone) kafkaAddr() string { return f.kafka.Addr }

// kafkaData is the folder of the broker's log.
func (f *alone) kafkaData() string { return filepath.Join(f.kafkaDir, "data") }

func (f *alone) republishAlways() (stop func() int) { return f.cart.republishAlways() }

func (f *alone) ready() {
	f.Helper()
	f.cart.ready()
	f.order.ready()
}

func (f *alone) verify(l *load) {
	f.Helper()
	settle(f, f.kafka.Addr, f.cart, f.order)
	eventually(f, patience, "Order's dead letters are published", func() (bool, string) {
		rows := f.order.metric("order_outbox_rows")
		return rows == 0, fmt.Sprint(rows)
	})
	l.redrive(f.T, f.kafka.Addr, f.cart)
	settle(f, f.kafka.Addr, f.cart, f.order)
	l.audit()
	if found := reconcile(f.T, f.kafka.Addr, f.cart, f.order, 0); len(found) > 0 {
		f.Errorf("the stores and the topics differ: %v", found)
	}
	rebuildView(f.T, f.order, 0, "no differences\n")
	sameAfterARebuild(f.T, f.kafka.Addr, f.cart, f.order)
	f.cart.stop()
	f.order.stop()
	verify(f, f.kafka.Addr, l, f.cart, f.order, f.crashes)
	f.repair()
	f.skip()
}

// repair has Kafka and Order come back with old copies of their disks, and orderctl bring them to what Cart
// has.
func (f *alone) repair() {
	f.Helper()
	want, _ := cartStore(f, f.cart)
	f.kafka.Stop()
	restore(f.T, f.kafkaBackup, f.kafkaData())
	restore(f.T, f.backup, f.order.dir)
	f.kafkaAgain()
	f.cart.start()
	f.order.start()
	f.ready()
	reconcile(f.T, f.kafka.Addr, f.cart, f.order, 0, "-repair")
	if found := reconcile(f.T, f.kafka.Addr, f.cart, f.order, 0); len(found) > 0 {
		f.Errorf("after the repair, the stores and the topics differ: %v", found)
	}
	f.cart.stop()
	f.order.stop()
	for id, stored := range orderStore(f, f.order, "after the repair").Orders {
		if in := want[id]; in.Version != stored.Version || in.Body != stored.Body {
			f.Errorf("after the repair, Order has %+v of order %s, and Cart had %+v", stored, id, in)
		}
		delete(want, id)
	}
	if len(want) > 0 {
		f.Errorf("after the repair, Order lacks %d orders of Cart", len(want))
	}
}

// skip has a disk change a batch that Order has not read, and orderctl bring Order past it and its order back.
func (f *alone) skip() {
	f.Helper()
	f.cart.start().ready()
	d := &damaged{T: f.T, kafka: f.kafka.Addr, cart: f.cart, orders: []*process{f.order}}
	d.damage(f.kafkaDir)
	f.order.start().listens()
	d.waits()
	at := d.place.String()
	d.skip(f.order, 0, at+": skipped, 1 records and ", at, "-confirm")
	f.order.ready()
	d.repaired(f.order)
	f.cart.stop()
	f.order.stop()
}

func (f *alone) do(fault faults.Fault, l *load) {
	f.Helper()
	pause := func() { time.Sleep(fault.For) }
	switch fault.Name {
	case "kill cart":
		f.cart.kill()
		pause()
		f.cart.start()
	case "kill order":
		f.killOrder()
		pause()
		f.order.start()
	case "kill both":
		f.cart.kill()
		f.killOrder()
		pause()
		f.order.start()
		f.cart.start()
	case "restart cart":
		f.cart.listens().stop()
		f.cart.start()
	case "restart order":
		f.order.listens().stop()
		f.order.start()
	case "freeze cart":
		freeze(f, f.cart.cmd.Process.Pid, pause)
	case "freeze order":
		freeze(f, f.order.cmd.Process.Pid, pause)
	case "stop kafka":
		f.kafka.Stop()
		pause()
		f.kafkaAgain()
	case "kill kafka":
		f.kafka.Kill()
		pause()
		f.kafkaAgain()
	case "freeze kafka":
		freeze(f, brokerPID(f, f.kafkaDir), pause)
	case "kill all":
		f.kafka.Kill()
		f.cart.kill()
		f.killOrder()
		// Cart's store is complete, so Cart accepts orders without Kafka.
		f.cart.start()
		pause()
		f.cart.kill()
		f.kafkaAgain()
		f.cart.start()
		f.order.start()
	case "kill cart as kafka comes back":
		// Cart dies while it publishes what piled up. It then repeats some of these records.
		f.kafka.Stop()
		pause()
		f.kafkaAgain()
		time.Sleep(fault.For / 20)
		f.cart.kill()
		f.cart.start()
	case "delete order's store":
		f.order.listens().stop()
		f.replaceOrder("")
	case "restore order's store":
		f.order.listens().stop()
		backup := f.backup
		f.backup = copyOf(f.T, f.order.dir)
		f.replaceOrder(backup)
	case "restore cart's store":
		// What Cart has accepted must be in the topics, and no client may repeat a request: the copy knows
		// neither.
		l.paused(func() {
			f.ready()
			settle(f, f.kafka.Addr, f.cart, f.order)
			f.cart.stop()
			backup := f.cartBackup
			f.cartBackup = copyOf(f.T, f.cart.dir)
			restore(f.T, backup, f.cart.dir)
			f.cart.start().ready().compares()
		})
	case "a failed fsync of cart":
		// The next commits fill the log, and the checkpoint after that fails.
		f.disk.Fail()
		f.cart.ends(patience)
		f.cart.start()
	case "cart's disk is slow":
		f.disk.Slow(pause)
	case "cart's disk is full":
		if f.small == "" {
			f.Log("there is no small disk: only root on Linux mounts one")
			break
		}
		free := fill(f, filepath.Dir(f.small))
		pause()
		free()
	case "no requests to kafka":
		f.network.requests.hold(pause)
	case "no responses of kafka":
		f.network.responses.hold(pause)
	case "part cart from kafka":
		f.network.of["cart"].part(pause)
	case "part order from kafka":
		f.network.of["order"].part(pause)
	case "a request that outlives cart":
		late := f.network.holdNextProduce()
		select {
		case <-late.held:
		case <-time.After(patience):
			f.Fatal("Cart publishes nothing")
		}
		f.cart.kill()
		f.cart.start()
		pause()
		late.deliver(f.T)
	case "cart's clock jumps":
		jump(f.T, f.cart.clock, fault)
	case "order's clock jumps":
		jump(f.T, f.order.clock, fault)
	default:
		f.Fatalf("nothing does the fault %q", fault.Name)
	}
}

func (f *alone) killOrder() {
	f.Helper()
	opened := f.order.listening()
	f.order.kill()
	if !opened {
		// The store is as it was before, or is not made yet.
		return
	}
	f.crashes = append(f.crashes, orderStore(f, f.order, fmt.Sprintf("crash %d", len(f.crashes)+1)))
}

func (f *alone) kafkaAgain() {
	f.Helper()
	if err := f.kafka.StartAgain(f.Context()); err != nil {
		f.Fatal(err)
	}
}

// fill takes all room of a disk until free is called.
func fill(t testing.TB, disk string) (free func()) {
	t.Helper()
	file, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); err == nil; {
		_, err = file.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(file.Close(), os.Remove(file.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// replaceOrder starts Order with a copy of its store, or without any.
func (f *alone) replaceOrder(backup string) {
	f.Helper()
	if backup != "" {
		restore(f.T, backup, f.order.dir)
	} else if err := os.RemoveAll(f.order.dir); err != nil {
		f.Fatal(err)
	}
	f.order.start()
}
