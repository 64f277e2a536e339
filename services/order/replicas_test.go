package order

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/order/ordertest"
)

// replicas are services on one PostgreSQL, and the load on them.
type replicas struct {
	t     testing.TB
	kafka string
	url   string

	mu sync.Mutex
	// versions are the newest versions that Kafka has, and seen those that any replica has shown.
	versions, seen map[string]int64
	// bad are the records that have to become dead letters, by place.
	bad []string
}

func newReplicas(t testing.TB, kafka string) *replicas {
	return &replicas{
		t: t, kafka: kafka, url: testenv.Postgres(t), versions: map[string]int64{}, seen: map[string]int64{},
	}
}

// place identifies a record.
func place(topic, partition, offset string) string { return topic + "/" + partition + "/" + offset }

// conflicting ends the IDs of orders that two events claim to have created.
const conflicting = "-0"

// produce creates orders, updates others, and adds records that have to become dead letters.
func (r *replicas) produce(round int) {
	const orders, updates = 10, 30
	next := map[string]int64{}
	r.mu.Lock()
	known := slices.Collect(maps.Keys(r.versions))
	for range min(updates, len(known)) {
		id := known[rand.IntN(len(known))]
		// One that was updated hides a conflict about its first version, which is then stale.
		if !strings.HasSuffix(id, conflicting) {
			next[id] = r.versions[id] + 1
		}
	}
	r.mu.Unlock()
	for i := range orders {
		next[fmt.Sprintf("order-%d-%d", round, i)] = 1
	}
	var ms []contract.Message
	for id, version := range next {
		ms = append(ms, message(r.t, id, version, fmt.Sprint(id, "/", version)))
	}
	good := len(ms)
	created := fmt.Sprint("order-", round, conflicting)
	ms = append(ms,
		contract.Message{Topic: contract.TopicUpdated, Key: []byte(created), Value: []byte("broken")},
		contract.Message{Topic: contract.TopicCreated, Key: []byte(created)},
		message(r.t, created, 1, "conflict"))
	records := testenv.Produce(r.t, r.kafka, ms...)
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(r.versions, next)
	for _, bad := range records[good:] {
		r.bad = append(r.bad, place(bad.Topic, fmt.Sprint(bad.Partition), fmt.Sprint(bad.Offset)))
	}
}

// keepProducing produces until the returned function is called.
func (r *replicas) keepProducing() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var producing sync.WaitGroup
	producing.Go(func() {
		for round := 0; ctx.Err() == nil && !r.t.Failed(); round++ {
			r.produce(round)
		}
	})
	return func() { cancel(); producing.Wait() }
}

// replica is one service with a client that looks orders up.
type replica struct {
	*instance
	stopClient context.CancelFunc
	client     sync.WaitGroup
}

// add starts a service and looks orders up there once it is ready.
func (r *replicas) add() *replica {
	r.t.Helper()
	p := &replica{instance: startOn(r.t, plaintext(r.kafka), database{url: r.url, dir: r.t.TempDir()})}
	p.ready(r.t)
	ctx, cancel := context.WithCancel(r.t.Context())
	p.stopClient = cancel
	p.client.Go(func() {
		for ctx.Err() == nil && !r.t.Failed() {
			r.lookUp(p)
		}
	})
	return p
}

// remove stops the client and then the service, as a load balancer drains it.
func (r *replicas) remove(p *replica) {
	r.t.Helper()
	p.stopClient()
	p.client.Wait()
	p.end(r.t)
}

// lookUp asks for an order at the version that Kafka has, and without a wait for one that some replica
// has shown. No replica may be behind that.
func (r *replicas) lookUp(p *replica) {
	one := func(of map[string]int64) (id string, version int64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for id, version := range of {
			return id, version
		}
		return "", 0
	}
	query := p.api + "/order/order-details?orderId="
	id, least := one(r.versions)
	if id == "" {
		return
	}
	r.check(p, id, least, fmt.Sprint(query, id, "&minVersion=", least), "Prefer", "wait=30")
	if id, least = one(r.seen); id != "" {
		r.check(p, id, least, query+id)
	}
}

// fetchPatiently is fetch, and once more after a 503 that took as long as a query of the database may take: a
// machine that stalls exceeds that. What a replica refuses for another reason, it refuses at once.
func fetchPatiently(ctx context.Context, url string, headers ...string) (response, error) {
	const queryTimeout = 5 * time.Second
	begin := time.Now()
	got, err := fetch(ctx, url, headers...)
	if err == nil && got.Status == http.StatusServiceUnavailable && time.Since(begin) >= queryTimeout {
		return fetch(ctx, url, headers...)
	}
	return got, err
}

// check makes a request for an order that has to be known at version least.
func (r *replicas) check(p *replica, id string, least int64, url string, headers ...string) {
	got, err := fetchPatiently(r.t.Context(), url, headers...)
	version, _ := strconv.ParseInt(strings.Trim(got.Header.Get("ETag"), `"`), 10, 64)
	if err != nil || got.Status != http.StatusOK || version < least {
		r.t.Errorf("%s: %d, version %d, want %d or later: %.200s %v", url, got.Status, version, least, got.Body, err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[id] = max(r.seen[id], version)
}

// share waits until the services have these numbers of partitions, in ascending order, and checks that
// all of them are ready and none has failed.
func (r *replicas) share(want []int, all ...*replica) {
	r.t.Helper()
	ordertest.Eventually(r.t, fmt.Sprint("the members have ", want), func() bool {
		var got []int
		for _, p := range all {
			got = append(got, int(p.metric(r.t, "order_assigned_partitions")))
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
	for _, p := range all {
		r.healthy(p)
	}
}

func (r *replicas) healthy(p *replica) {
	r.t.Helper()
	if got := get(r.t, p.ops+"/readyz"); got.Status != http.StatusOK {
		r.t.Errorf("/readyz: %+v", got)
	}
	for _, name := range []string{
		"order_consumer_failing", "order_apply_failures_total", "order_partitions_elsewhere",
	} {
		if n := p.metric(r.t, name); n != 0 {
			r.t.Errorf("%s is %v", name, n)
		}
	}
}

// metric returns the value of a metric without labels.
func (s *instance) metric(t testing.TB, name string) float64 {
	t.Helper()
	for line := range strings.Lines(get(t, s.ops+"/metrics").Body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// settled checks that a service knows all orders as Kafka has them, and that the dead letters are those
// that one member makes: one for each bad record.
func (r *replicas) settled(p *replica) {
	r.t.Helper()
	for id, version := range r.versions {
		url := p.detailsURL(fmt.Sprint("orderId=", id, "&minVersion=", version))
		got, err := fetchPatiently(r.t.Context(), url, "Prefer", "wait=30")
		if tag := got.Header.Get("ETag"); err != nil || got.Status != http.StatusOK || tag != etag(version) {
			r.t.Fatalf("order %s: %d %s %v, want version %d", id, got.Status, tag, err, version)
		}
	}
	want := slices.Sorted(slices.Values(r.bad))
	var got []string
	letters := func() []string {
		var at []string
		for _, l := range testenv.ReadAll(r.t, r.kafka, contract.TopicDeadLetter) {
			from := map[string]string{}
			for _, h := range l.Headers {
				from[h.Key] = string(h.Value)
			}
			at = append(at, place(from["dlt-topic"], from["dlt-partition"], from["dlt-offset"]))
		}
		slices.Sort(at)
		return at
	}
	ordertest.Eventually(r.t, "as many dead letters as bad records", func() bool {
		got = letters()
		return len(got) >= len(want)
	})
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("dead letters (-want +got):\n%s", diff)
	}
}

// startPatientKafka starts a broker with Kafka's own session timeouts, so that no member loses its partitions to
// a machine that stalls. The members of these tests leave the group when they end.
func startPatientKafka(t *testing.T) string {
	t.Helper()
	return testenv.StartKafkaWith(t, localkafka.Options{Settings: map[string]string{
		"group.consumer.session.timeout.ms": "", "broker.session.timeout.ms": "",
	}}).Addr
}

// Members come and go while orders come in and are looked up at each of them. No look-up fails, none
// shows less than another one has shown, and the dead letters are those of one member.
func TestReplicasComeAndGo(t *testing.T) {
	t.Parallel()
	kafka := startPatientKafka(t)
	if err := localkafka.CreateTopics(t.Context(), kafka, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	r := newReplicas(t, kafka)
	stop := r.keepProducing()
	first := r.add()
	r.share([]int{24}, first)
	second, third := r.add(), r.add()
	r.share([]int{8, 8, 8}, first, second, third)
	// Members with a store each would not be ready after that time.
	time.Sleep(sharingGrace + 2*time.Second)
	r.share([]int{8, 8, 8}, first, second, third)
	r.remove(first)
	r.share([]int{12, 12}, second, third)
	r.remove(second)
	r.share([]int{24}, third)
	stop()
	third.stopClient()
	third.client.Wait()
	r.settled(third)
	t.Logf("%d orders, %d dead letters", len(r.versions), len(r.bad))
}

// There are more members than partitions. Those without any are ready, show every order, and take over.
// Then a topic is recreated while they run.
func TestReplicasWithoutPartitionsAndARecreatedTopic(t *testing.T) {
	t.Parallel()
	kafka := startPatientKafka(t)
	topics := contract.Topics()
	for i := range topics {
		topics[i].Partitions = 2
	}
	create := func() {
		if err := localkafka.CreateTopics(t.Context(), kafka, topics, 1); err != nil {
			t.Fatal(err)
		}
	}
	create()
	r := newReplicas(t, kafka)
	r.produce(0)
	var all []*replica
	for range 4 {
		all = append(all, r.add())
	}
	r.share([]int{0, 0, 2, 2}, all...)
	r.produce(1)
	for _, p := range all {
		r.settled(p)
		p.stopClient()
		p.client.Wait()
	}
	var with, without []*replica
	// Partitions may be on their way from one member to another.
	ordertest.Eventually(t, "two members with partitions, two without", func() bool {
		with, without = nil, nil
		for _, p := range all {
			if p.metric(t, "order_assigned_partitions") > 0 {
				with = append(with, p)
			} else {
				without = append(without, p)
			}
		}
		return len(with) == 2 && len(without) == 2
	})
	for _, p := range with {
		r.remove(p)
	}
	all = without
	r.share([]int{2, 2}, all...)
	r.produce(2)
	for _, p := range all {
		r.settled(p)
	}

	if err := localkafka.DeleteTopic(t.Context(), kafka, contract.TopicCreated); err != nil {
		t.Fatal(err)
	}
	create()
	for i := range 4 {
		id := fmt.Sprint("new-", i)
		testenv.Produce(t, kafka, message(t, id, 1, id))
		r.versions[id] = 1
	}
	for _, p := range all {
		r.settled(p)
	}
	r.share([]int{2, 2}, all...)
	recreated := 0.0
	for _, p := range all {
		recreated += p.metric(t, "order_topics_recreated_total")
	}
	// Each member has seen it in its partition of that topic, or one of them in both.
	if recreated < 1 || recreated > 2 {
		t.Errorf("the recreated topic was counted %v times", recreated)
	}
}
