package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// replica is one of several processes that use a database. Its relay runs until stop.
type replica struct {
	*Box
	log  *testenv.Lines
	stop func()
}

// testLease is how long a lease is valid here. A replica renews it in time on a busy machine too.
const testLease = 10 * time.Second

// newReplica returns a replica that does not publish yet.
func newReplica(t *testing.T, database string) *replica {
	t.Helper()
	r := &replica{Box: openAt(t, sqldb.Config{URL: database}), log: &testenv.Lines{}}
	r.Box.log = slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), r.log), nil))
	r.lease.log, r.lease.valid = r.Box.log, testLease
	return r
}

// publish runs the relay of a replica. An error of it fails the test.
func (r *replica) publish(t *testing.T, addr, topic string) *replica {
	t.Helper()
	r.stop = relaying(t, r.Box, addr, topic)
	return r
}

// numbers adds messages to an outbox until stop is called, which returns how many there are.
func numbers(t *testing.T, b *Box, topic string) (stop func() int) {
	t.Helper()
	ended, n := make(chan struct{}), 0
	var adding sync.WaitGroup
	adding.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
				add(t, b, numbered(topic, n, 1)...)
				n++
			}
		}
	})
	stop = sync.OnceValue(func() int {
		close(ended)
		adding.Wait()
		return n
	})
	t.Cleanup(func() { stop() })
	return stop
}

// link is a TCP connection to a database that can be cut without a word, as when a machine is gone.
type link struct {
	url string
	// frozen is held while nothing passes.
	frozen sync.RWMutex
}

func newLink(t *testing.T, database string) *link {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	to := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	u.Host = listener.Addr().String()
	l := &link{url: u.String()}
	pass := func(to, from net.Conn) {
		defer to.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := from.Read(buffer)
			l.frozen.RLock()
			_, failed := to.Write(buffer[:n])
			l.frozen.RUnlock()
			if err != nil || failed != nil {
				return
			}
		}
	}
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				continue
			}
			go pass(to, from)
			go pass(from, to)
		}
	}()
	return l
}

func TestOneReplicaPublishesAndAnotherOneTakesOver(t *testing.T) {
	addr, database := testenv.SharedKafka(t).Addr, testenv.Postgres(t)
	topic := testenv.NewTopic(t, addr, 3)
	cut := newLink(t, database)
	clients := newReplica(t, database)
	first := newReplica(t, cut.url).publish(t, addr, topic)
	eventually(t, "the first replica holds the lease", first.Leads)
	second := newReplica(t, database).publish(t, addr, topic)
	stop := numbers(t, clients.Box, topic)
	held := func(r *replica) bool { return strings.Contains(shownLease(t, r.Box), "1") }
	for range 100 {
		if !held(first) || held(second) {
			t.Fatal("the second replica has taken the lease of one that renews it")
		}
		time.Sleep(20 * time.Millisecond)
	}

	// The machine of the first replica is gone, as far as the database can see.
	cut.frozen.Lock()
	id := clients.head(t)
	eventually(t, "the second replica publishes", func() bool {
		return second.Leads() && isPublished(t, clients.Box, id)
	})
	if first.Leads() {
		t.Error("the first replica still holds a lease that has expired")
	}
	cut.frozen.Unlock()
	eventually(t, "the first one waits", func() bool { return first.log.Has("waiting for its lease") })

	// An orderly stop hands over at once, and not when the lease expires.
	second.stop()
	begin, id := time.Now(), clients.head(t)
	eventually(t, "the first replica publishes again", func() bool {
		return first.Leads() && isPublished(t, clients.Box, id)
	})
	if took := time.Since(begin); took > testLease-time.Second {
		t.Errorf("the first replica publishes again after %s", took)
	}
	n := stop()
	eventually(t, "the outbox is empty", empty(t, clients.Box))
	if err := inOrder(byKey(numbered(topic, 0, n)), published(t, addr, topic)); err != nil {
		t.Error(err)
	}
}

// The database's clock goes back by an hour, or a standby takes over whose clock is behind. A holder that is
// there keeps its lease. One that is gone does not keep the outbox for that hour.
func TestTheClockOfTheDatabaseGoesBack(t *testing.T) {
	addr, database := testenv.SharedKafka(t).Addr, testenv.Postgres(t)
	topic := testenv.NewTopic(t, addr, 1)
	clients := newReplica(t, database)
	const back = "UPDATE relay SET expires_at = expires_at + 3600000 WHERE key = 0"

	first := newReplica(t, database).publish(t, addr, topic)
	eventually(t, "the first replica holds the lease", first.Leads)
	second := newReplica(t, database).publish(t, addr, topic)
	eventually(t, "the second one waits", func() bool { return second.log.Has("waiting for its lease") })
	exec(t, clients.Box, back)
	for range 100 {
		if !first.Leads() || second.Leads() {
			t.Fatal("the second replica has taken the lease of one that renews it")
		}
		time.Sleep(20 * time.Millisecond)
	}

	first.stop()
	second.stop()
	exec(t, clients.Box, "UPDATE relay SET owner = 'gone', agreed = epoch, begun = epoch WHERE key = 0")
	exec(t, clients.Box, back)
	begun, agreed, err := clients.Agreement(t.Context())
	if begun || agreed || err != nil {
		t.Errorf("a holder that is gone counts: %t, %t, %v", begun, agreed, err)
	}
	add(t, clients.Box, numbered(topic, 0, 1)...)
	newReplica(t, database).publish(t, addr, topic)
	eventually(t, "another replica publishes", empty(t, clients.Box))
}

// A holder that stalls inside a transaction has locked the lease. PostgreSQL ends that transaction.
func TestAReplicaThatStallsInATransactionIsReplaced(t *testing.T) {
	addr, database := testenv.SharedKafka(t).Addr, testenv.Postgres(t)
	topic := testenv.NewTopic(t, addr, 1)
	cut := newLink(t, database)
	clients := newReplica(t, database)
	first := newReplica(t, cut.url).publish(t, addr, topic)
	eventually(t, "the first replica holds the lease", first.Leads)
	second := newReplica(t, database).publish(t, addr, topic)
	eventually(t, "the second one waits", func() bool { return second.log.Has("waiting for its lease") })
	locked, release := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(locked) })
	var stalled sync.WaitGroup
	stalled.Go(func() {
		// It is run again after it was ended, and has lost the lease then.
		_ = first.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			err := first.Guard(tx)
			once()
			<-release
			return err
		})
	})
	<-locked
	cut.frozen.Lock()
	add(t, clients.Box, numbered(topic, 0, 1)...)
	eventually(t, "the second replica publishes", empty(t, clients.Box))
	cut.frozen.Unlock()
	close(release)
	stalled.Wait()
}

// A process that stalls does not notice that its lease is over. What it sends when it wakes up is refused
// by Kafka. It then waits for the lease, and begins with what the database has.
func TestAReplicaThatWakesUpPublishesNothing(t *testing.T) {
	addr, database := testenv.SharedKafka(t).Addr, testenv.Postgres(t)
	topic := testenv.NewTopic(t, addr, 3)
	clients := newReplica(t, database)
	stalled := newReplica(t, database)
	stalled.lease.valid = time.Hour // so that it does not notice
	stalled.publish(t, addr, topic)
	add(t, clients.Box, numbered(topic, 0, 1)...)
	eventually(t, "the first replica has published", empty(t, clients.Box))

	// It neither renews its lease nor sees that it is over. It can still read.
	blocked, release := make(chan struct{}), make(chan struct{})
	// PostgreSQL may end it, and then it runs again.
	begins := sync.OnceFunc(func() { close(blocked) })
	go func() {
		_ = stalled.db.Tx(t.Context(), func(*sqldb.Tx) error { begins(); <-release; return nil })
	}()
	<-blocked
	add(t, clients.Box, numbered(topic, 1, 1)...)
	eventually(t, "it publishes a message that it cannot delete",
		func() bool { return len(testenv.ReadAll(t, addr, topic)) == 2 })
	exec(t, clients.Box, "UPDATE relay SET owner = '' WHERE key = 0")
	successor := newReplica(t, database).publish(t, addr, topic)
	eventually(t, "another replica publishes", func() bool {
		return successor.Leads() && rows(t, clients.Box) == 0
	})
	if !stalled.Leads() {
		t.Fatal("the stalled replica knows that it has lost the lease, so this test shows nothing")
	}
	for i := 2; i < 50; i++ {
		add(t, clients.Box, numbered(topic, i, 1)...)
		time.Sleep(5 * time.Millisecond)
	}
	eventually(t, "Kafka has refused the stalled replica", func() bool {
		return stalled.log.Has("another replica has taken the transactional IDs") ||
			stalled.log.Has("the lease of the outbox is lost")
	})
	close(release)
	eventually(t, "the stalled replica waits", func() bool { return stalled.log.Has("waiting for its lease") })
	eventually(t, "all is published", empty(t, clients.Box))
	// The message that was not deleted comes twice, as after any takeover.
	want := byKey(numbered(topic, 0, 50))
	want["key1"] = append([]string{"1"}, want["key1"]...)
	if diff := cmp.Diff(want, published(t, addr, topic)); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}

	successor.stop()
	add(t, clients.Box, numbered(topic, 50, 1)...)
	eventually(t, "the replica that had stalled publishes again", empty(t, clients.Box))
	if !stalled.Leads() {
		t.Error("the replica that had stalled does not hold the lease")
	}
}

// A process that uses another database publishes other orders to the same topics. Kafka refuses one of the
// two, again and again, and one of them ends.
func TestADeploymentWithAnotherDatabaseIsAnError(t *testing.T) {
	addr := testenv.SharedKafka(t).Addr
	topic := testenv.NewTopic(t, addr, 1)
	cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{addr}}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 2)
	var two [2]*replica
	for i := range two {
		two[i] = newReplica(t, testenv.Postgres(t))
		go func() { ended <- two[i].Relay(ctx, target(t, cfg, topic), nil) }()
	}
	for i := 0; ; i++ {
		select {
		case err := <-ended:
			if !errors.Is(err, broker.ErrProducerFenced) {
				t.Errorf("the relay ends with %v, want ErrProducerFenced", err)
			}
			cancel()
			<-ended
			return
		case <-time.After(20 * time.Millisecond):
			if i == 1000 {
				t.Fatal("both publish")
			}
			for _, r := range two {
				add(t, r.Box, numbered(topic, i, 1)...)
			}
		}
	}
}

// head returns the ID of the newest message.
func (r *replica) head(t *testing.T) (id int64) {
	t.Helper()
	if err := r.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		l, err := r.Lock(tx)
		if err == nil {
			id = l.Head
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return id
}

func isPublished(t *testing.T, b *Box, id int64) bool {
	t.Helper()
	done, err := b.Published(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// shownLease returns the value of the gauge that shows who holds the lease.
func shownLease(t *testing.T, b *Box) string {
	t.Helper()
	for _, f := range gather(t, b) {
		if f.GetName() == "test_outbox_lease_held" {
			return fmt.Sprint(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	return ""
}
