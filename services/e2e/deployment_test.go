package e2e

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	// The tests read the stores without the services' code.
	_ "github.com/jackc/pgx/v5/stdlib"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/testenv"
)

// Each broker and each replica has a group of its own, whose ID begins with these, so that it can be cut off.
const (
	brokerGroups  = 60_000
	replicaGroups = 61_000
)

// madeReplicas counts the replicas of all tests.
var madeReplicas atomic.Uint32

// replicas are the processes of one service behind a balancer.
type replicas struct {
	t    testing.TB
	name string
	// another makes a process that does not run yet.
	another  func() *process
	balancer *balancer

	mu  sync.Mutex
	all []*process
	// leaving are taken out of the balancer, although they may be ready.
	leaving map[*process]bool
	// spare is how many probes in a row a replica must fail until it is taken out. None is left for one that is out.
	spare map[*process]int
}

// newReplicas makes a service without replicas. Until the test ends, the balancer has those that are
// ready, as a Kubernetes Service does.
func newReplicas(t testing.TB, name, kafka string, env ...string) *replicas {
	t.Helper()
	r := &replicas{t: t, name: name, balancer: newBalancer(t), leaving: map[*process]bool{}, spare: map[*process]int{}}
	r.another = func() *process {
		p := newService(t, name, kafka, env...)
		if testenv.CutsWays() {
			p.attributes.Credential = &syscall.Credential{Gid: replicaGroups + madeReplicas.Add(1)}
		}
		return p
	}
	end := make(chan struct{})
	var probing sync.WaitGroup
	probing.Go(func() {
		for {
			r.balance()
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() {
		close(end)
		probing.Wait()
	})
	return r
}

func (r *replicas) url() string { return "http://" + r.balancer.addr() }

// probe is for probes: each has a connection of its own, and the time that the chart gives it. A slow machine does
// not respond at once.
var probe = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// failedProbes is how many probes in a row a ready service must fail, by the chart, until it counts as not ready.
const failedProbes = 3

// balance puts those that are ready into the balancer.
func (r *replicas) balance() {
	all := r.members()
	ready := make([]bool, len(all))
	var probes sync.WaitGroup
	for i, p := range all {
		probes.Go(func() {
			resp, err := probe.Get(p.ops + "/readyz")
			if err == nil {
				resp.Body.Close()
				ready[i] = resp.StatusCode == http.StatusOK
			}
		})
	}
	probes.Wait()
	var targets []string
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range all {
		if ready[i] {
			r.spare[p] = failedProbes
		} else if r.spare[p] > 0 {
			r.spare[p]--
		}
		if r.spare[p] > 0 && !r.leaving[p] {
			targets = append(targets, p.api[len("http://"):])
		}
	}
	r.balancer.use(targets...)
}

func (r *replicas) members() []*process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// scale starts or ends replicas until there are n. Those that end leave the balancer first.
func (r *replicas) scale(n int) {
	r.t.Helper()
	for len(r.members()) < n {
		p := r.another()
		p.name = fmt.Sprint(r.name, "-", len(r.members())+1)
		r.mu.Lock()
		r.all = append(r.all, p)
		r.mu.Unlock()
		p.start()
	}
	r.ready()
	for all := r.members(); len(all) > n; all = r.members() {
		last := all[len(all)-1]
		r.drain(last)
		r.mu.Lock()
		r.all = r.all[:len(r.all)-1]
		r.mu.Unlock()
	}
}

// drain takes a replica out of the balancer and then stops it, as the endpoints and preStop do. The
// connections that it has stay until it ends them.
func (r *replicas) drain(p *process) {
	r.t.Helper()
	r.setLeaving(p, true)
	r.balance()
	p.stop()
}

// restart replaces one replica after the other. Each is ready again before the next one stops.
func (r *replicas) restart() {
	r.t.Helper()
	for _, p := range r.members() {
		r.drain(p)
		p.start().ready()
		r.setLeaving(p, false)
	}
}

func (r *replicas) setLeaving(p *process, leaving bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving[p] = leaving
}

// ready waits until all replicas are ready.
func (r *replicas) ready() {
	r.t.Helper()
	for _, p := range r.members() {
		p.ready()
	}
}

// server is a PostgreSQL on a machine of its own.
type server struct {
	*localpostgres.Server
	machine *testenv.Machine
}

// database is a PostgreSQL with a synchronous standby, at one address that always leads to the primary.
type database struct {
	t testing.TB
	// primary takes writes. standby is nil once it has become the primary.
	primary, standby *server
	address          *balancer
}

func newDatabase(t testing.TB) *database {
	t.Helper()
	one, other := testenv.NewMachine(t), testenv.NewMachine(t)
	d := &database{t: t, address: newBalancer(t)}
	d.primary = &server{testenv.StartPostgres(t, localpostgres.Options{Env: one.Env}), one}
	d.standby = &server{testenv.StartStandby(t, d.primary.Server, localpostgres.Options{Env: other.Env}), other}
	d.address.use(d.primary.Addr())
	return d
}

// url is DATABASE_URL.
func (d *database) url() string {
	d.t.Helper()
	return d.through(d.address)
}

// through returns the URL of the database for a client that reaches it through a balancer.
func (d *database) through(b *balancer) string {
	d.t.Helper()
	u, err := url.Parse(d.primary.URL("postgres"))
	if err != nil {
		d.t.Fatal(err)
	}
	u.Host = b.addr()
	return u.String()
}

// follow lets the standby reach the primary through a balancer, which it returns.
func (d *database) follow() *balancer {
	d.t.Helper()
	b := newBalancer(d.t)
	b.use(d.primary.Addr())
	_, port, err := net.SplitHostPort(b.addr())
	if err != nil {
		d.t.Fatal(err)
	}
	err = d.standby.Wait(d.t.Context(), "ALTER SYSTEM SET primary_conninfo = '"+d.through(b)+"'",
		"SELECT pg_reload_conf()",
		"SELECT 1 / count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_port = "+port)
	if err != nil {
		d.t.Fatalf("lead the standby through a balancer: %v", err)
	}
	return b
}

// fail kills the primary. The standby takes its place.
func (d *database) fail() {
	d.t.Helper()
	d.primary.Kill()
	if err := d.standby.Promote(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	d.address.use(d.standby.Addr())
	d.primary, d.standby = d.standby, nil
}

func (d *database) open() *sql.DB {
	d.t.Helper()
	db, err := sql.Open("pgx", d.url())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { db.Close() })
	return db
}

// deployment is the system with replicas that share a database.
type deployment struct {
	t testing.TB
	// brokers have their directories in kafkaDir, by their IDs, and each has a clock. kafka is the address of
	// one of them, and kafkaAddrs are those of all.
	brokers       []*localkafka.Broker
	clocks        []*testenv.Clock
	kafkaDir      string
	kafka         string
	kafkaAddrs    []string
	database      *database
	db            *sql.DB
	carts, orders *replicas
}

// deploy starts Kafka with these topics, and the database. No replica runs yet.
func deploy(t testing.TB, topics []contract.Topic) *deployment {
	t.Helper()
	// Debian's PostgreSQL starts faster than Kafka, and is what may be missing.
	d := &deployment{t: t, database: newDatabase(t), kafkaDir: t.TempDir()}
	for id := 1; id <= 3; id++ {
		dir := filepath.Join(d.kafkaDir, strconv.Itoa(id))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		d.clocks = append(d.clocks, testenv.NewClock(t, filepath.Join(dir, "clock")))
	}
	options := localkafka.Options{
		Dir: d.kafkaDir,
		Settings: map[string]string{
			"log.cleaner.backoff.ms": "100",
			// As in production: what only one broker has is not acknowledged.
			"min.insync.replicas":           "2",
			"transaction.state.log.min.isr": "2",
			// By default a broker that fetches nothing stays in sync for 30 s, for which nothing is acknowledged.
			"replica.lag.time.max.ms": "3000",
		},
		// Each broker runs in its directory.
		Env: append(testenv.NewMachine(t).Env, "CLOCK_AHEAD=clock"),
	}
	if testenv.CutsWays() {
		options.Groups = brokerGroups
	}
	brokers, err := localkafka.StartCluster(t.Context(), 3, options)
	testenv.Require(t, err)
	for _, b := range brokers {
		t.Cleanup(b.Kill)
		d.kafkaAddrs = append(d.kafkaAddrs, b.Addr)
	}
	d.brokers, d.kafka = brokers, d.kafkaAddrs[0]
	if err := localkafka.CreateTopics(t.Context(), d.kafka, topics, 3); err != nil {
		t.Fatal(err)
	}
	d.db = d.database.open()
	address := "DATABASE_URL=" + d.database.url()
	d.carts = newReplicas(t, "cart", strings.Join(d.kafkaAddrs, ","), address)
	d.orders = newReplicas(t, "order", strings.Join(d.kafkaAddrs, ","), address)
	return d
}

// scale starts or ends replicas of both services, until each has n.
func (d *deployment) scale(n int) {
	d.t.Helper()
	d.carts.scale(n)
	d.orders.scale(n)
}

// relay returns the Cart that publishes the outbox.
func (d *deployment) relay() *process {
	d.t.Helper()
	var found *process
	eventually(d.t, patience, "a Cart publishes", func() (bool, string) {
		var owner string
		var epoch int64
		err := d.db.QueryRow("SELECT owner, epoch FROM cart.relay").Scan(&owner, &epoch)
		took := fmt.Sprintf(`"this replica publishes the outbox","service":"cart","epoch":%d}`, epoch)
		for _, p := range d.carts.members() {
			if err == nil && owner != "" && strings.Contains(p.log(), took) {
				found = p
			}
		}
		return found != nil, fmt.Sprint(owner, epoch, err)
	})
	return found
}

// othersRead waits until all partitions belong to other Orders than this one.
func (d *deployment) othersRead(lost *process) {
	d.t.Helper()
	begin := time.Now()
	eventually(d.t, patience, "all partitions belong to other Orders than "+lost.name, func() (bool, string) {
		held := 0.0
		for _, p := range d.orders.members() {
			if p != lost {
				held += p.metric("order_assigned_partitions")
			}
		}
		return held == 24, fmt.Sprint(held)
	})
	d.t.Logf("the partitions of %s were taken over after %s", lost.name, time.Since(begin).Round(time.Millisecond))
}

// flows creates an order and returns how long it takes until it is seen. Each request has a connection of
// its own, which does not lead to a replica that the balancer has left out.
func (d *deployment) flows(l *load) time.Duration {
	d.t.Helper()
	fresh := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	one := &load{t: d.t, cart: l.cart, client: fresh, items: 5}
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	id := fmt.Sprint("flows-", rng.Uint64())
	begin := time.Now()
	eventually(d.t, patience, "an order is accepted", func() (bool, string) {
		o := faults.Operation{Order: id, Create: true}
		one.operate(&o, fmt.Sprint(id, "-", rng.Uint64()), rng)
		l.add(o)
		return o.Outcome == faults.Accepted, fmt.Sprint(one.failures())
	})
	eventually(d.t, patience, "the order is seen", func() (bool, string) {
		got, err := sendBy(fresh, http.MethodGet, l.order+"/order/order-details?orderId="+id, "", "Prefer", "wait=2")
		return err == nil && got.status == http.StatusOK, fmt.Sprint(got.status, got.body, err)
	})
	return time.Since(begin)
}

// settle waits until all is published and read.
func (d *deployment) settle() {
	d.t.Helper()
	eventually(d.t, patience, "Cart's outbox is empty", func() (bool, string) {
		var rows int
		err := d.db.QueryRow("SELECT count(*) FROM cart.outbox").Scan(&rows)
		return err == nil && rows == 0, fmt.Sprint(rows, err)
	})
	awaitRead(d.t, d.kafka, d.orders.members()[0])
}

// end ends all replicas, and compares what clients saw with the topics and the stores.
func (d *deployment) end(l *load) {
	d.t.Helper()
	all := append(d.carts.members(), d.orders.members()...)
	for _, p := range all {
		p.stop()
	}
	order := faults.State{
		When:    "at the end",
		Orders:  readOrders(d.t, d.db, "SELECT order_id, version, event_id, body FROM order_view.orders"),
		Offsets: readOffsets(d.t, d.db, "order_view.offsets"),
	}
	inCart := readOrders(d.t, d.db, "SELECT order_id, version, '', body FROM cart.orders")
	l.verify(d.kafka, inCart, 0, order, nil, all...)
}
