package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
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
	// Shorter or longer than the session of a broker, which is 3 s.
	{Name: "part a broker from the others", Longest: 6 * time.Second},
	{Name: "part two brokers", Longest: 6 * time.Second},
	{Name: "no requests of a broker to another", Longest: 6 * time.Second},
	{Name: "no requests of a broker to the others", Longest: 6 * time.Second},
	{Name: "no requests of the others to a broker", Longest: 6 * time.Second},
	{Name: "no requests of a cart to a broker", Longest: 6 * time.Second},
	{Name: "no requests of an order to a broker", Longest: 6 * time.Second},
	{Name: "no requests of a cart to kafka", Longest: 6 * time.Second},
	// Longer than its session.
	{Name: "no requests of an order to kafka", Longest: 8 * time.Second},
	{Name: "kill the database", Longest: time.Second},
	{Name: "stop the standby", Longest: 2 * time.Second},
	{Name: "cut the connections to the database"},
	{Name: "no WAL to the standby", Longest: 4 * time.Second},
	{Name: "no confirmations of the standby", Longest: 4 * time.Second},
	// The standby lacks what the primary has not confirmed meanwhile.
	{Name: "fail over", Longest: 2 * time.Second},
	{Name: "no requests to the database", Longest: 4 * time.Second},
	{Name: "no responses of the database", Longest: 4 * time.Second},
	{Name: "a failed fsync of the database"},
	{Name: "the database's disk is slow", Longest: 4 * time.Second},
	{Name: "the database's clock jumps"},
	{Name: "a cart's clock jumps"},
	{Name: "an order's clock jumps"},
	{Name: "a broker's clock jumps"},
	{Name: "the certificates are renewed"},
	// Longer than the lease.
	{Name: "no requests of a cart to the database", Longest: 6 * time.Second},
	{Name: "no requests of an order to the database", Longest: 6 * time.Second},
}

// brokersApart has the faults between brokers: who does not reach whom. The schedule decides which broker is
// 0. Clients reach all of them.
var brokersApart = map[string][][2]int{
	"part a broker from the others":         {{0, 1}, {0, 2}, {1, 0}, {2, 0}},
	"part two brokers":                      {{0, 1}, {1, 0}},
	"no requests of a broker to another":    {{0, 1}},
	"no requests of a broker to the others": {{0, 1}, {0, 2}},
	"no requests of the others to a broker": {{1, 0}, {2, 0}},
}

// shared is a system with three brokers, a database with a standby, and replicas of both services.
type shared struct {
	*testing.T
	*deployment
	// authority signs the certificates of the APIs, which are in certificate.
	authority   *testenv.Authority
	certificate testenv.Secret
	// replication is between the primary and its first standby.
	replication *balancer
}

func startShared(t *testing.T) faulty {
	t.Helper()
	f := &shared{
		T: t, deployment: deploy(t, compactedSoon()),
		authority: testenv.NewAuthority(t, "ca"), certificate: testenv.Secret{Dir: t.TempDir()},
	}
	f.replication = f.database.follow()
	f.certify()
	for _, r := range []*replicas{f.carts, f.orders} {
		another := r.another
		r.another = func() *process {
			p := another().jumping()
			p.env = append(p.env, "HTTP_TLS_CERT="+filepath.Join(f.certificate.Dir, "tls.crt"),
				"HTTP_TLS_KEY="+filepath.Join(f.certificate.Dir, "tls.key"))
			return p
		}
	}
	f.scale(2)
	return f
}

// certify issues a new certificate for the APIs, and returns it.
func (f *shared) certify() (cert []byte) {
	f.Helper()
	cert, key := f.authority.Issue(f.T, "orders")
	f.certificate.Change(f.T, map[string][]byte{"tls.crt": cert, "tls.key": key})
	return cert
}

// shows checks that new connections to an API get this certificate.
func (f *shared) shows(p *process, cert []byte) {
	f.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(p.api, "http://"), &tls.Config{RootCAs: f.authority.Roots()})
	if err != nil {
		f.Errorf("connect to %s: %v", p.name, err)
		return
	}
	defer conn.Close()
	if block, _ := pem.Decode(cert); !bytes.Equal(block.Bytes, conn.ConnectionState().PeerCertificates[0].Raw) {
		f.Errorf("%s shows another certificate than the one that was renewed", p.name)
	}
}

func (f *shared) urls() (cart, order string) {
	return "https://" + f.carts.balancer.addr(), "https://" + f.orders.balancer.addr()
}

func (f *shared) client() *http.Client {
	transport := client.Transport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: f.authority.Roots()}
	return &http.Client{Timeout: client.Timeout, Transport: transport}
}

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
	l.redrive(f.T, f.kafka, f.carts.members()[0])
	f.settle()
	l.audit()
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
	brokerAt := func(n int) *localkafka.Broker { return f.brokers[(which+n)%len(f.brokers)] }
	broker := brokerAt(0)
	primary, standby := f.database.primary, f.database.standby
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
	case "no requests of a cart to a broker":
		f.cut(pause, one(f.carts), broker.Addr)
	case "no requests of an order to a broker":
		f.cut(pause, one(f.orders), broker.Addr)
	case "no requests of a cart to kafka":
		f.cut(pause, one(f.carts), f.kafkaAddrs...)
	case "no requests of an order to kafka":
		f.cut(pause, one(f.orders), f.kafkaAddrs...)
	case "no requests of a cart to the database":
		f.cut(pause, one(f.carts), f.database.address.addr())
	case "no requests of an order to the database":
		f.cut(pause, one(f.orders), f.database.address.addr())
	case "kill the database":
		primary.Kill()
		pause()
		if err := primary.StartAgain(f.Context()); err != nil {
			f.Fatal(err)
		}
	case "stop the standby":
		if standby == nil {
			break
		}
		standby.Stop()
		pause()
		if err := standby.StartAgain(f.Context()); err != nil {
			f.Fatal(err)
		}
	case "cut the connections to the database":
		if _, err := f.db.ExecContext(f.Context(), cutConnections); err != nil {
			f.Fatal(err)
		}
	case "no WAL to the standby":
		if standby != nil {
			f.replication.responses.hold(pause)
		}
	case "no confirmations of the standby":
		if standby != nil {
			f.replication.requests.hold(pause)
		}
	case "fail over":
		if standby != nil {
			f.replication.responses.hold(func() {
				pause()
				f.database.fail()
			})
		}
	case "no requests to the database":
		f.database.address.requests.hold(pause)
	case "no responses of the database":
		f.database.address.responses.hold(pause)
	case "a failed fsync of the database":
		f.failFsync()
	case "the database's disk is slow":
		primary.machine.Disk.Slow(pause)
	case "the database's clock jumps":
		jump(f.T, primary.machine.Clock, fault)
	case "a cart's clock jumps":
		jump(f.T, one(f.carts).clock, fault)
	case "an order's clock jumps":
		jump(f.T, one(f.orders).clock, fault)
	case "a broker's clock jumps":
		// By little: some of Kafka's own pauses end by the time of day, and compaction waits for 30 s of it
		// before it removes what this test may not have read yet.
		ahead := time.Duration(which/3%9-4) * time.Second
		f.Logf("the clock of broker %d is %s ahead", broker.ID, ahead)
		f.clocks[broker.ID-1].Jump(ahead)
	case "the certificates are renewed":
		f.ready()
		cert := f.certify()
		for _, p := range append(f.carts.members(), f.orders.members()...) {
			f.shows(p, cert)
		}
	default:
		apart := brokersApart[fault.Name]
		if apart == nil {
			f.Fatalf("nothing does the fault %q", fault.Name)
		}
		if !f.cuts() {
			break
		}
		var ways []testenv.Way
		for _, way := range apart {
			ways = append(ways, testenv.Between(brokerAt(way[0]), brokerAt(way[1])))
		}
		testenv.Cut(f, pause, ways...)
		// Until then a broker may respond with what it knew before.
		testenv.AwaitNews(f, f.kafkaAddrs...)
	}
}

// failFsync lets an fsync of the primary fail. PostgreSQL does not know what is on its disk then, ends all
// connections, and reads its log again.
func (f *shared) failFsync() {
	f.Helper()
	// It is open until the server has noticed.
	open, err := f.db.Conn(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	defer open.Close()
	f.database.primary.machine.Disk.Fail()
	eventually(f, patience, "the database ends its connections", func() (bool, string) {
		return open.PingContext(f.Context()) != nil, "it does not"
	})
	eventually(f, patience, "the database serves again", func() (bool, string) {
		err := f.db.PingContext(f.Context())
		return err == nil, fmt.Sprint(err)
	})
}

// cut drops what a replica sends to some addresses for as long as pause takes. The others still reach them.
func (f *shared) cut(pause func(), p *process, addrs ...string) {
	f.Helper()
	if f.cuts() {
		testenv.Cut(f, pause, testenv.Way{From: p.attributes.Credential.Gid, To: addrs})
	}
}

// cuts reports whether there can be this fault.
func (f *shared) cuts() bool {
	if !testenv.CutsWays() {
		f.Log("nothing is cut: only root on Linux can do that, with iptables")
		return false
	}
	return true
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
