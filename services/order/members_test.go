package order

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/order/fold"
	"ordersystem.dev/services/order/ordertest"
)

// awaitLocks waits until so many transactions on the database wait for another one.
func (s *store) awaitLocks(t testing.TB, n int) {
	t.Helper()
	const query = `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock'`
	ordertest.Eventually(t, fmt.Sprint("transactions that wait for another one: ", n), func() bool {
		waiting := 0
		err := s.db.Query(t.Context(), query, func(rows *sql.Rows) error { return rows.Scan(&waiting) })
		if err != nil {
			t.Fatal(err)
		}
		return waiting == n
	})
}

// hold begins a transaction that does some work and then waits. commit ends it, or the end of the test. A busy
// machine needs a database that is testenv.Patient.
func (s *store) hold(t testing.TB, work func(*sqldb.Tx) error) (commit func()) {
	t.Helper()
	done, released, result := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	// A deadlock may end the transaction, and then it runs again.
	works := sync.OnceFunc(func() { close(done) })
	release := sync.OnceFunc(func() { close(released) })
	t.Cleanup(release)
	go func() {
		result <- s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			if err := work(tx); err != nil {
				return err
			}
			// A statement that reads takes those along that were put off.
			if err := tx.Query("SELECT 1", func(*sql.Rows) error { return nil }); err != nil {
				return err
			}
			works()
			<-released
			return nil
		})
	}()
	select {
	case <-done:
	case err := <-result:
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		release()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
	}
}

// A member takes a partition over while the one before it still writes its last batch. It goes on
// behind that batch.
func TestAHandoverWaitsForTheBatchUnderWay(t *testing.T) {
	t.Parallel()
	at := database{url: testenv.Patient(testenv.Postgres(t))}
	before, after := memberOn(t, at), memberOn(t, at)
	p := ordertest.Partition(contract.TopicCreated, 0)
	before.mustAssign(t, p)
	commit := before.store.hold(t, func(tx *sqldb.Tx) error {
		_, err := before.store.applyIn(tx, fold.Decode([]broker.Record{ordertest.Event(t, "A", 1, "a1")}),
			[]move{{partition: p, to: broker.Progress{Next: 1}}}, ordertest.At)
		return err
	})
	next := make(chan offsets, 1)
	go func() {
		at, err := after.Assigned(t.Context(), []broker.Partition{p})
		if err != nil {
			t.Error(err)
		}
		next <- at
	}()
	before.store.awaitLocks(t, 1)
	commit()
	if diff := cmp.Diff(offsets{p: 1}, <-next); diff != "" {
		t.Errorf("the next member goes on at (-want +got):\n%s", diff)
	}
}

// During a handover, one member has the creation of an order and another one its updates. The batch
// that comes second is decided again with what the first has written. It is no failure, and an event
// that is now old is no dead letter.
func TestABatchThatWasOvertakenIsDecidedAgain(t *testing.T) {
	t.Parallel()
	at := database{url: testenv.Patient(testenv.Postgres(t))}
	creates, updates := memberOn(t, at), memberOn(t, at)
	created, updated := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
	creates.mustAssign(t, created)
	updates.mustAssign(t, updated)
	commit := updates.store.hold(t, func(tx *sqldb.Tx) error {
		_, err := updates.store.applyIn(tx,
			fold.Decode([]broker.Record{ordertest.Event(t, "A", 2, "a2"), ordertest.Event(t, "B", 3, "b3")}),
			[]move{{partition: updated, to: broker.Progress{Next: 1}}}, ordertest.At)
		return err
	})
	applied := make(chan error, 1)
	go func() {
		applied <- creates.Apply(t.Context(), batch(ordertest.Event(t, "B", 1, "b1"), ordertest.Event(t, "A", 1, "a1"),
			ordertest.Event(t, "C", 1, "c1")))
	}()
	updates.store.awaitLocks(t, 1)
	commit()
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"A": 2, "B": 3, "C": 1}, creates.store.state(t)); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	got := []float64{count(t, creates.metrics.stale), count(t, creates.metrics.applyFailures)}
	if diff := cmp.Diff([]float64{2, 0}, got); diff != "" {
		t.Errorf("stale events, failures (-want +got):\n%s", diff)
	}
	if letters := creates.store.deadLetters(t); len(letters) > 0 {
		t.Errorf("dead letters: %v", letters)
	}
}

// Two members that write the same orders never wait for each other in a circle.
func TestMembersDoNotDeadlock(t *testing.T) {
	t.Parallel()
	at := database{url: testenv.Patient(testenv.Postgres(t))}
	one, two := memberOn(t, at), memberOn(t, at)
	p, q := ordertest.Partition(contract.TopicUpdated, 0), ordertest.Partition(contract.TopicUpdated, 1)
	one.mustAssign(t, p)
	two.mustAssign(t, q)
	events := func(version int64, ids ...string) (b broker.Batch) {
		for _, id := range ids {
			b.Records = append(b.Records, ordertest.Event(t, id, version, fmt.Sprint(id, "/", version)))
		}
		return b
	}
	b := events(2, "A", "M", "Z")
	b.Next = offsets{p: 1}
	one.mustApply(t, b)
	// Both wait for the order in the middle, when each has one of the others if they take the rows as
	// they come.
	commit := one.store.hold(t, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("UPDATE orders SET version = version WHERE order_id = 'M'")
		return err
	})
	three := memberOn(t, at)
	three.mustAssign(t, p)
	var applying sync.WaitGroup
	for _, to := range []struct {
		c    *topicConsumer
		b    broker.Batch
		next offsets
	}{{three, events(3, "Z", "M", "A"), offsets{p: 2}}, {two, events(4, "A", "M", "Z"), offsets{q: 1}}} {
		to.b.Next = to.next
		applying.Go(func() {
			if err := to.c.Apply(t.Context(), to.b); err != nil {
				t.Error(err)
			}
		})
	}
	one.store.awaitLocks(t, 2)
	commit()
	applying.Wait()
	if diff := cmp.Diff(map[string]int64{"A": 4, "M": 4, "Z": 4}, one.store.state(t)); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
	// A server process writes down what it counted at its end, at the latest.
	if err := errors.Join(one.store.close(), two.store.close(), three.store.close()); err != nil {
		t.Fatal(err)
	}
	var connections, deadlocks int
	last := memberOn(t, at)
	ordertest.Eventually(t, "the end of the other connections", func() bool {
		const query = `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`
		err := last.store.db.Query(t.Context(), query, func(rows *sql.Rows) error { return rows.Scan(&connections) })
		return err == nil && connections == 0
	})
	const query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
	err := last.store.db.Query(t.Context(), query, func(rows *sql.Rows) error { return rows.Scan(&deadlocks) })
	if err != nil || deadlocks > 0 {
		t.Errorf("%d deadlocks, %v", deadlocks, err)
	}
}

// stalling is a member whose first batch of records waits until it is released.
type stalling struct {
	*topicConsumer
	stalled, release chan struct{}
	once             sync.Once
	// result is what the store said to the batch.
	result chan error
}

func (s *stalling) Apply(ctx context.Context, b broker.Batch) error {
	stall := false
	if len(b.Records) > 0 {
		s.once.Do(func() { stall = true })
	}
	if !stall {
		return s.topicConsumer.Apply(ctx, b)
	}
	close(s.stalled)
	<-s.release
	err := s.topicConsumer.Apply(ctx, b)
	s.result <- err
	return err
}

// A member that stalls with a batch in hand loses its partitions. When it wakes up it changes nothing,
// and makes no dead letter a second time.
func TestAMemberThatStalledBeyondItsSessionChangesNothing(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t).Addr
	if err := localkafka.CreateTopics(t.Context(), kafka, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	at := database{url: testenv.Postgres(t)}
	stalled := &stalling{
		topicConsumer: memberOn(t, at), stalled: make(chan struct{}), release: make(chan struct{}),
		result: make(chan error, 1),
	}
	other, group := memberOn(t, at), "group-"+uuid.NewString()
	run := func(h broker.Handler) (c *broker.Consumer, stop func()) {
		cfg := plaintext(kafka)
		admin, err := broker.NewAdmin(cfg, other.log)
		if err != nil {
			t.Fatal(err)
		}
		c = broker.NewConsumer(cfg, broker.ConsumerConfig{
			Group: group, Topics: []string{contract.TopicCreated, contract.TopicUpdated},
			MaxSilence: 2 * time.Second,
		}, admin, other.log)
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		var wg sync.WaitGroup
		wg.Go(func() { c.Run(ctx, h) })
		return c, func() { cancel(); wg.Wait(); admin.Close() }
	}
	const orders = 50
	want := map[string]int64{}
	produce := func(version int64) {
		var ms []contract.Message
		for i := range orders {
			id := fmt.Sprint("order-", i)
			ms = append(ms, message(t, id, version, fmt.Sprint(id, "/", version)))
			want[id] = version
		}
		ms = append(ms, contract.Message{Topic: contract.TopicCreated, Key: []byte("bad"), Value: []byte("broken")})
		testenv.Produce(t, kafka, ms...)
	}
	applied := func(letters int) func() bool {
		return func() bool {
			return maps.Equal(want, other.store.state(t)) && len(other.store.deadLetters(t)) == letters
		}
	}
	_, stopStalled := run(stalled)
	defer stopStalled()
	produce(1)
	<-stalled.stalled
	c, stopOther := run(other)
	defer stopOther()
	ordertest.Eventually(t, "the other member has all partitions", func() bool { return c.Assigned() == 24 })
	produce(2)
	ordertest.Eventually(t, "the other member has applied everything", applied(2))
	close(stalled.release)
	if err := <-stalled.result; !errors.Is(err, broker.ErrFenced) {
		t.Errorf("the batch of the member that stalled: %v, want ErrFenced", err)
	}
	ordertest.Eventually(t, "both share the partitions", func() bool { return c.Assigned() == 12 })
	produce(3)
	ordertest.Eventually(t, "everything is applied", applied(3))
}

// While the database is away, look-ups are refused for as long, also those that wait. Nothing ends, and
// nothing is lost.
func TestADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	kafka, server := testenv.Fake(t), testenv.StartPostgres(t, localpostgres.Options{})
	s := startOn(t, plaintext(kafka), database{url: server.URL("postgres"), dir: t.TempDir()})
	s.ready(t)
	testenv.Produce(t, kafka, message(t, "A", 1, "a1"))
	if got := s.details(t, "orderId=A"); got.Status != http.StatusOK {
		t.Errorf("before: %+v", got)
	}
	waits := s.waiting(t, "orderId=A&minVersion=2")
	server.Kill()
	begin := time.Now()
	for what, got := range map[string]response{
		"a look-up that waits": <-waits,
		"a look-up":            get(t, s.api+"/order/order-details?orderId=A"),
	} {
		if got.Status != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %+v, want 503 with Retry-After", what, got)
		}
	}
	// A look-up gives up after 5 s. The rest is for a slow machine.
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("the responses took %s", took)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := get(t, s.ops+path); got.Status != http.StatusOK {
			t.Errorf("%s: %+v", path, got)
		}
	}
	testenv.Produce(t, kafka, message(t, "A", 2, "a2"))
	ordertest.Eventually(t, "the consumer fails", func() bool {
		return strings.Contains(get(t, s.ops+"/metrics").Body, "order_consumer_failing 1\n")
	})
	if err := server.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	ordertest.Eventually(t, "the update", func() bool {
		return s.details(t, "orderId=A&minVersion=2").Status == http.StatusOK
	})
}
