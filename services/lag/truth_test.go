package lag_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/lag"
)

// What the collector shows is compared with what the test did. The test appends and commits itself.
// For each of its steps it keeps the moment before the request and the moment after the response.
// The step took effect in between, so the truth at a moment is a range, as wide as what moved then.
// While nothing moves it is one number, and the collector has to show that one.

const (
	// pollInterval is how far an age may be off: a record that came between two polls may be as old
	// as either.
	pollInterval = 250 * time.Millisecond
	// allowance is added to pollInterval. The broker's timestamps are whole milliseconds, and a
	// goroutine that has read the clock may wait for one of two busy processors. Test and broker
	// have one clock.
	allowance = 50 * time.Millisecond
	// searchAllowance is how far an age may be off that was found by timestamp.
	searchAllowance = 5 * time.Millisecond

	// patience is how long the test waits for anything to happen.
	patience = 60 * time.Second
)

// step is the change to a value at some moment between from and to.
type step struct {
	from, to time.Time
	value    int64
}

// timeline is the values that one thing had, in order.
type timeline []step

// during returns the smallest and the largest value at any moment between from and to.
func (l timeline) during(from, to time.Time) (low, high int64) {
	low, high = math.MaxInt64, math.MinInt64
	for i, s := range l {
		if !s.from.After(to) && (i == len(l)-1 || !l[i+1].to.Before(from)) {
			low, high = min(low, s.value), max(high, s.value)
		}
	}
	return low, high
}

func (l timeline) last() int64 { return l[len(l)-1].value }

// record is a record, or the marker that ends a transaction.
type record struct {
	offset int64
	// The record was appended between from and to.
	from, to time.Time
	// gone means that compaction removed it.
	gone bool
}

// partitionLog is the truth about one partition.
type partitionLog struct {
	start, stable, end timeline
	records            []record
	// transactions means that the log has some.
	transactions bool
}

// topicLog is the truth about a topic from its creation to its deletion.
type topicLog struct {
	*scenario
	name       string
	producer   *kgo.Client
	partitions []*partitionLog
}

// watch is what has to be shown of a group's partition, from its first commit on.
type watch struct {
	group     string
	topic     *topicLog
	partition int32
	since     time.Time
	// until is zero if the watch lasts to the end of the scenario.
	until   time.Time
	commits timeline
	// uncommitted means that the group reads records of open transactions too.
	uncommitted bool
	// vague means that a search cannot find the age.
	vague bool
	// skew is how far the producers' clocks may be wrong, in a topic that keeps their timestamps.
	skew time.Duration
	// steady means that the leader and the coordinator do not go away with a part of Kafka.
	steady bool
}

func (w *watch) String() string {
	return fmt.Sprintf("group %s, topic %s, partition %d", w.group, w.topic.name, w.partition)
}

func (w *watch) log() *partitionLog { return w.topic.partitions[w.partition] }

// truth is what may be shown of a watch.
type truth struct {
	recordsLow, recordsHigh int64
	ageLow, ageHigh         time.Duration
	// searched is ageHigh for a collector that has to search. It is larger where compaction removed
	// records.
	searched time.Duration
	// The first unread record was appended between from and to. Both are zero if all is read.
	from, to time.Time
}

// at returns the truth between two moments for a commit. Ages are those at the first moment.
func (w *watch) at(from, to time.Time, committed int64) truth {
	log := w.log()
	startLow, startHigh := log.start.during(from, to)
	limit := log.stable
	if w.uncommitted {
		limit = log.end
	}
	limitLow, limitHigh := limit.during(from, to)
	t := truth{
		recordsLow:  max(0, limitLow-max(committed, startHigh)),
		recordsHigh: max(0, limitHigh-max(committed, startLow)),
	}
	if t.recordsHigh == 0 {
		return t
	}
	// A removed record may count, since it existed. The next one that is left may count, since a
	// consumer would read that one.
	first := func(offset int64, with func(record) bool) record {
		i := slices.IndexFunc(log.records, func(r record) bool { return r.offset >= offset && with(r) })
		return log.records[i]
	}
	every, left := func(record) bool { return true }, func(r record) bool { return !r.gone }
	low, high := max(committed, startLow), max(committed, startHigh)
	t.from, t.to = first(low, every).from, first(high, left).to
	t.ageLow = max(0, from.Sub(t.to))
	t.ageHigh = max(0, from.Sub(t.from))
	t.searched = max(0, from.Sub(first(low, left).from))
	for _, r := range log.records {
		if r.offset < low && !r.gone && log.records[low].gone {
			t.searched = from.Sub(r.from)
		}
	}
	return t
}

// lab is a Kafka and a collector that watches it all the time.
type lab struct {
	brokers []*localkafka.Broker
	// seeds are the addresses of the brokers, addr is the first.
	seeds []string
	addr  string
	kafka *kgo.Client
	admin *kadm.Client
	// tools is how the collector and the other tools connect.
	tools  kafkaconfig.Client
	always *recorder
	beside []*exporter
	// away is when a part of Kafka could not be read.
	away outages

	sync.Mutex
	results []result
}

// newLab starts a collector beside a Kafka, and the other tools.
func newLab(t *testing.T, tools kafkaconfig.Client, brokers ...*localkafka.Broker) *lab {
	t.Helper()
	l := &lab{brokers: brokers, addr: brokers[0].Addr, tools: tools}
	for _, b := range brokers {
		t.Cleanup(b.Kill)
		l.seeds = append(l.seeds, b.Addr)
	}
	var err error
	if l.kafka, err = kgo.NewClient(kgo.SeedBrokers(l.seeds...)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.kafka.Close)
	l.admin = kadm.NewClient(l.kafka)
	awaitGroups(t, l.admin)
	l.beside = startExporters(t, tools)
	for _, e := range l.beside {
		e.watch(t)
	}
	l.always = l.startRecorder(t, l.config(pollInterval, ".*"))
	return l
}

// awaitGroups makes the broker create the topics behind groups and transactions.
func awaitGroups(t *testing.T, admin *kadm.Client) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		found := admin.FindGroupCoordinators(t.Context(), "any")
		if found.Ok() && admin.FindTxnCoordinators(t.Context(), "any").Ok() {
			return
		}
		if time.Since(begin) > patience {
			t.Fatalf("the broker has no coordinators: %v", found.Error())
		}
	}
}

func (l *lab) config(interval time.Duration, groups string) lag.Config {
	return lag.Config{Name: "lab", Kafka: l.tools, Interval: interval, Groups: regexp.MustCompile("^" + groups)}
}

// outages are the times in which a part of Kafka could not be read.
type outages struct {
	mu    sync.Mutex
	spans []outage
}

// outage lasts until now if its end is zero.
type outage struct{ from, to time.Time }

// begin begins an outage. It lasts until end is called.
func (o *outages) begin() (end func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.spans)
	o.spans = append(o.spans, outage{from: time.Now()})
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.spans[n].to = time.Now()
	}
}

// during reports whether a part of Kafka could not be read at some moment between from and to.
func (o *outages) during(from, to time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.spans, func(s outage) bool {
		return !s.from.After(to) && (s.to.IsZero() || !s.to.Before(from))
	})
}

// scenario is one entry of the table, with its own topics and groups, beside the others.
type scenario struct {
	*testing.T
	*lab
	name    string
	watches []*watch
	// recorders are compared with the truth.
	recorders []*recorder
}

// play runs a scenario and compares what was seen with the truth.
func (l *lab) play(t *testing.T, name string, play func(*scenario)) {
	t.Run(name, func(t *testing.T) {
		s := &scenario{
			T:         t,
			lab:       l,
			name:      strings.NewReplacer(" ", "-", ",", "").Replace(name),
			recorders: []*recorder{l.always},
		}
		play(s)
		s.check()
	})
}

// newTopic creates a topic with a replica on each broker, that keeps the broker's timestamps unless
// the settings (name, value, ...) change that.
func (s *scenario) newTopic(suffix string, partitions int, settings ...string) *topicLog {
	s.Helper()
	topic := contract.Topic{
		Name: s.name + "-" + suffix, Partitions: partitions,
		Config: map[string]string{"message.timestamp.type": "LogAppendTime"},
	}
	for i := 0; i < len(settings); i += 2 {
		topic.Config[settings[i]] = settings[i+1]
	}
	replicas := int16(len(s.brokers))
	if err := localkafka.CreateTopics(s.Context(), s.addr, []contract.Topic{topic}, replicas); err != nil {
		s.Fatal(err)
	}
	l := &topicLog{scenario: s, name: topic.Name}
	l.grow(partitions)
	return l
}

// grow adds an empty log for each new partition.
func (l *topicLog) grow(partitions int) {
	l.Helper()
	// The former producer would not know the new partitions for minutes.
	l.producer = l.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	for range partitions - len(l.partitions) {
		zero := timeline{{}}
		l.partitions = append(l.partitions, &partitionLog{start: zero, stable: zero, end: zero})
	}
}

func (s *scenario) client(opts ...kgo.Opt) *kgo.Client {
	s.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(s.seeds...)}, opts...)...)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(client.Close)
	return client
}

// produce appends n records with n keys, the same in each call.
func (l *topicLog) produce(partition int32, n int) {
	l.Helper()
	l.produceAs(partition, "key", n, 0)
}

// noTimestamp is the clock of a producer that sets no timestamps.
const noTimestamp = math.MinInt64

// produceAs appends n records with n keys, from a producer whose clock is wrong.
func (l *topicLog) produceAs(partition int32, key string, n int, wrong time.Duration) {
	l.Helper()
	from := time.Now()
	l.appended(partition, from, l.send(l.producer, partition, key, n, wrong))
	log := l.partitions[partition]
	log.stable = append(log.stable, log.end[len(log.end)-1])
}

// produceBehind appends n records behind an open transaction.
func (l *topicLog) produceBehind(partition int32, n int) {
	l.Helper()
	from := time.Now()
	l.appended(partition, from, l.send(l.producer, partition, "key", n, 0))
}

func (l *topicLog) send(producer *kgo.Client, partition int32, key string, n int, wrong time.Duration) []*kgo.Record {
	l.Helper()
	var batch []*kgo.Record
	for i := range n {
		stamp := time.Now().Add(wrong)
		if wrong == noTimestamp {
			stamp = time.UnixMilli(-1)
		}
		batch = append(batch, &kgo.Record{
			Topic: l.name, Partition: partition, Timestamp: stamp,
			Key: fmt.Appendf(nil, "%s-%d", key, i), Value: []byte("value"),
		})
	}
	if err := producer.ProduceSync(l.Context(), batch...).FirstErr(); err != nil {
		l.Fatalf("produce %d records to %s: %v", n, l.name, err)
	}
	return batch
}

// appended notes records that were acknowledged.
func (l *topicLog) appended(partition int32, from time.Time, batch []*kgo.Record) {
	log, to := l.partitions[partition], time.Now()
	for _, r := range batch {
		log.records = append(log.records, record{offset: r.Offset, from: from, to: to})
	}
	log.end = append(log.end, step{from, to, batch[len(batch)-1].Offset + 1})
}

// transact appends n records in a transaction, calls during while it is open, and ends it.
func (l *topicLog) transact(partition int32, n int, end kgo.TransactionEndTry, during func()) {
	l.Helper()
	producer := l.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.TransactionalID(l.name+time.Now().String()), kgo.TransactionTimeout(10*time.Minute))
	if err := producer.BeginTransaction(); err != nil {
		l.Fatal(err)
	}
	log := l.partitions[partition]
	log.transactions = true
	from := time.Now()
	l.appended(partition, from, l.send(producer, partition, "key", n, 0))
	during()
	from = time.Now()
	if err := producer.EndTransaction(l.Context(), end); err != nil {
		l.Fatal(err)
	}
	// The broker responds before the marker is written.
	marker := log.end.last()
	for {
		offsets, err := l.admin.ListCommittedOffsets(l.Context(), l.name)
		if err != nil {
			l.Fatal(err)
		}
		if o, _ := offsets.Lookup(l.name, partition); o.Offset > marker {
			break
		}
	}
	to := time.Now()
	log.records = append(log.records, record{offset: marker, from: from, to: to})
	log.end = append(log.end, step{from, to, marker + 1})
	log.stable = append(log.stable, step{from, to, marker + 1})
}

// deleteBefore deletes records as retention does.
func (l *topicLog) deleteBefore(partition int32, offset int64) {
	l.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(l.name, partition, offset, -1)
	from := time.Now()
	deleted, err := l.admin.DeleteRecords(l.Context(), offsets)
	if err = errors.Join(err, deleted.Error()); err != nil {
		l.Fatalf("delete records of %s: %v", l.name, err)
	}
	log := l.partitions[partition]
	log.start = append(log.start, step{from, time.Now(), offset})
}

// commit commits for a group without members.
func (l *topicLog) commit(group string, partition int32, offset int64) *watch {
	l.Helper()
	return l.committed(group, partition, offset, func() error {
		var offsets kadm.Offsets
		offsets.AddOffset(l.name, partition, offset, -1)
		return l.admin.CommitAllOffsets(l.Context(), group, offsets)
	})
}

// commitAs commits as a member of a group.
func (l *topicLog) commitAs(member *kgo.Client, group string, partition int32, offset int64) *watch {
	l.Helper()
	return l.committed(group, partition, offset, func() error {
		var failed error
		member.CommitOffsetsSync(
			l.Context(),
			map[string]map[int32]kgo.EpochOffset{l.name: {partition: {Epoch: -1, Offset: offset}}},
			func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, response *kmsg.OffsetCommitResponse, err error) {
				if failed = err; err != nil {
					return
				}
				for _, t := range response.Topics {
					for _, p := range t.Partitions {
						failed = errors.Join(failed, kerr.ErrorForCode(p.ErrorCode))
					}
				}
			},
		)
		return failed
	})
}

// committed notes a commit. While members come and go a commit may be refused, so it is tried until
// it succeeds.
func (l *topicLog) committed(group string, partition int32, offset int64, commit func() error) *watch {
	l.Helper()
	from := time.Now()
	for {
		err := commit()
		if err == nil {
			break
		}
		if time.Since(from) > patience {
			l.Fatalf("commit %d for group %s in %s: %v", offset, group, l.name, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	to := time.Now()
	i := slices.IndexFunc(l.watches, func(w *watch) bool {
		return w.group == group && w.topic == l && w.partition == partition
	})
	if i < 0 {
		i = len(l.watches)
		l.watches = append(l.watches, &watch{group: group, topic: l, partition: partition, since: to})
	}
	l.watches[i].commits = append(l.watches[i].commits, step{from, to, offset})
	return l.watches[i]
}

// join adds a member to a group, of the new protocol if next is set. It commits only what the test
// commits.
func (l *topicLog) join(group string, next bool) *kgo.Client {
	l.Helper()
	opts := []kgo.Opt{
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(l.name),
		kgo.DisableAutoCommit(),
		kgo.Balancers(kgo.RangeBalancer()),
	}
	if next {
		opts = append(opts, kgo.ServerSideBalancer())
	}
	return l.client(opts...)
}

// await waits for a snapshot that meets a condition and returns it.
func (s *scenario) await(what string, ok func(*lag.Snapshot) bool) *lag.Snapshot {
	s.Helper()
	return s.always.await(s.T, what, ok)
}

// awaitStatus waits for a status.
func (s *scenario) awaitStatus(w *watch, want lag.Status) {
	s.Helper()
	s.await(fmt.Sprintf("status %s of %v", want, w), func(snapshot *lag.Snapshot) bool {
		p := w.in(snapshot)
		return p != nil && p.Status == want
	})
}

// awaitMembers waits until the group has this many members.
func (s *scenario) awaitMembers(group string, want int) {
	s.Helper()
	s.await(fmt.Sprintf("%d members in group %s", want, group), func(snapshot *lag.Snapshot) bool {
		g := snapshot.Groups[group]
		return g != nil && g.Members == want
	})
	for _, e := range s.beside {
		e.expectMembers(s.T, group, want)
	}
}

// polls waits for n polls that begin from now on.
func (s *scenario) polls(n int) {
	s.Helper()
	begin := time.Now()
	s.await("polls", func(snapshot *lag.Snapshot) bool {
		if snapshot.Time.After(begin) {
			n--
		}
		return n <= 0
	})
}

// pass waits for the polls of some time.
func (s *scenario) pass(d time.Duration) {
	s.Helper()
	s.polls(int(d / pollInterval))
}

func (w *watch) in(s *lag.Snapshot) *lag.Partition {
	g := s.Groups[w.group]
	if g == nil || g.Topics[w.topic.name] == nil {
		return nil
	}
	partitions := g.Topics[w.topic.name].Partitions
	i := slices.IndexFunc(partitions, func(p lag.Partition) bool { return p.Number == w.partition })
	if i < 0 {
		return nil
	}
	return &partitions[i]
}

// topicIn returns the log of the partition, if the snapshot has it.
func (w *watch) topicIn(s *lag.Snapshot) (p lag.TopicPartition, shown bool) {
	t := s.Topics[w.topic.name]
	if t == nil {
		return p, false
	}
	i := slices.IndexFunc(t.Partitions, func(p lag.TopicPartition) bool { return p.Number == w.partition })
	if i < 0 {
		return p, false
	}
	return t.Partitions[i], true
}

// recorded is a snapshot, and what a scrape showed of it.
type recorded struct {
	*lag.Snapshot
	series series
}

// recorder keeps all that a collector shows.
type recorder struct {
	*lag.Collector
	interval time.Duration
	// searched means that the collector started after everything had happened. It knows ages only
	// by search, so exactly.
	searched bool
	away     *outages

	mu   sync.Mutex
	seen []recorded
	// next is closed when seen grows.
	next chan struct{}
}

// startRecorder runs a collector until the test ends.
func (l *lab) startRecorder(t *testing.T, cfg lag.Config) *recorder {
	t.Helper()
	c, err := lag.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c.SetPatience(2 * time.Second)
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	handler := promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
	r := &recorder{Collector: c, interval: cfg.Interval, away: &l.away, next: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("the collector ended: %v", err)
		}
	})
	running.Go(func() {
		for former := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-c.Polled():
			}
			took := time.Since(former)
			former = time.Now()
			if err := c.Err(); err != nil && ctx.Err() == nil {
				if failure, ok := errors.AsType[*lag.ReadError](err); ok && r.stalled(took, failure) {
					t.Logf("a poll of %v was too late: %v", took, err)
					continue
				}
				t.Errorf("a poll failed: %v", err)
			}
			r.record(t, handler)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}

// stalled reports whether a poll failed only because requests took as long as they may. If no part of
// Kafka is away, the machine stood still.
func (r *recorder) stalled(took time.Duration, failed ...*lag.ReadError) bool {
	inTime := func(e *lag.ReadError) bool { return e.Code() != "TIMEOUT" }
	return len(failed) > 0 && took >= r.RequestTimeout() && !slices.ContainsFunc(failed, inTime)
}

// record adds what the collector shows now. It fails the test if anything could not be read that was
// not away. A poll during which the machine stood still is left out, as if there had been none.
func (r *recorder) record(t *testing.T, handler http.Handler) {
	snapshot := r.Snapshot()
	if snapshot == nil {
		return
	}
	if !r.away.during(snapshot.Time, snapshot.Time.Add(snapshot.Took)) {
		if r.stalled(snapshot.Took, snapshot.Errors...) {
			t.Logf("a poll of %v was too late: %v", snapshot.Took, snapshot.Errors)
			return
		}
		for _, err := range snapshot.Errors {
			t.Errorf("a poll at %s could not read: %v", snapshot.Time.Format("15:04:05.000"), err)
		}
	}
	response := httptest.NewRecorder()
	handler.ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if response.Code != http.StatusOK {
		t.Errorf("scrape: %s", response.Body)
		return
	}
	if r.Snapshot() != snapshot {
		return
		// The scrape may show the next poll, which is recorded next.
	}
	shown := parseSeries(response.Body.Bytes())
	for name, value := range shown {
		switch {
		case math.IsNaN(value):
			t.Errorf("series %s is NaN", name)
		case value < 0 && !strings.HasPrefix(name, "kafka_consumergroup_retention_headroom_ratio"):
			t.Errorf("series %s is %v", name, value)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, recorded{snapshot, shown})
	close(r.next)
	r.next = make(chan struct{})
}

// await waits for a snapshot that meets a condition and returns it.
func (r *recorder) await(t *testing.T, what string, ok func(*lag.Snapshot) bool) *lag.Snapshot {
	t.Helper()
	deadline := time.After(patience)
	for done := 0; ; {
		r.mu.Lock()
		seen, next := r.seen, r.next
		r.mu.Unlock()
		if done == 0 {
			done = max(0, len(seen)-1)
			// Earlier snapshots do not count.
		}
		for ; done < len(seen); done++ {
			if ok(seen[done].Snapshot) {
				return seen[done].Snapshot
			}
		}
		select {
		case <-next:
		case <-deadline:
			t.Fatalf("%s: not in %v", what, patience)
		case <-t.Context().Done():
			t.FailNow()
		}
	}
}

// all returns all that was recorded.
func (r *recorder) all() []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

// series are the values of a scrape by name and labels, as they stand in the text.
type series map[string]float64

func parseSeries(text []byte) series {
	all := make(series)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			value, err := strconv.ParseFloat(line[i+1:], 64)
			if err != nil {
				value = math.NaN()
			}
			all[line[:i]] = value
		}
	}
	return all
}

func (w *watch) series(name string) string {
	return fmt.Sprintf(`%s{consumergroup=%q,kafka_cluster="lab",partition="%d",topic=%q}`, name, w.group,
		w.partition, w.topic.name)
}

// check compares all that was recorded with the truth, and adds to the table how far it was off.
func (s *scenario) check() {
	s.Helper()
	end := time.Now()
	var found result
	for _, w := range s.watches {
		if w.until.IsZero() {
			w.until = end
		}
		for _, r := range s.recorders {
			s.checkWatch(r, w, &found)
		}
	}
	s.addResult(found, end)
}

// checkWatch compares what one recorder shows of a partition with the truth.
func (s *scenario) checkWatch(r *recorder, w *watch, found *result) {
	s.Helper()
	seen, checked, wrong := r.all(), 0, 0
	complain := func(o recorded, format string, args ...any) {
		s.Helper()
		s.Fail()
		if wrong++; wrong <= 3 {
			s.Logf("%v, at %s: %s", w, o.Time.Format("15:04:05.000"), fmt.Sprintf(format, args...))
		}
	}
	for i, o := range seen {
		from, to := o.Time, o.Time.Add(o.Took)
		if from.Before(w.since) || to.After(w.until) {
			continue
		}
		checked++
		found.polls++
		p := w.in(o.Snapshot)
		if p == nil {
			found.missing++
			if w.steady || !s.away.during(from, to) {
				complain(o, "the partition is absent")
			}
			continue
		}
		if low, high := w.commits.during(from, to); p.Committed < low || p.Committed > high {
			complain(o, "committed is %d, want %d to %d", p.Committed, low, high)
		}
		s.checkTopic(w, o, complain)
		if w.log().transactions {
			s.checkOpen(w, r, seen[:i+1], complain)
		}
		want := w.at(from, to, p.Committed)
		if p.Records < want.recordsLow || p.Records > want.recordsHigh {
			complain(o, "records are %d, want %d to %d", p.Records, want.recordsLow, want.recordsHigh)
		}
		low, high, allowed := want.ageLow, want.ageHigh, r.allowed(seen[:i+1], want.from, want.to)
		// On a busy machine a poll may take so long that this collector has to search too.
		if searched := r.searched || allowed > 2*r.interval; p.AgeUnknown && (!searched || !w.vague) {
			complain(o, "the age is not known")
		}
		if r.searched {
			low, high = max(0, low-w.skew), want.searched+w.skew
			if p.AgeUnknown {
				low = 0
			}
			if first := seen[0]; !want.to.After(first.Time) {
				// The record existed at the first poll, whatever its timestamp is.
				low = max(low, from.Sub(first.Time.Add(first.Took)))
			}
		}
		if p.Records == 0 {
			low, high = 0, 0
		}
		off := max(low-p.Age, p.Age-high, 0)
		found.recordsOff = max(found.recordsOff, want.recordsLow-p.Records, p.Records-want.recordsHigh)
		found.ageOff = max(found.ageOff, off)
		if off > allowed || p.Age < 0 {
			complain(o, "age is %v, want %v to %v (%v allowed)", p.Age, low, high, allowed)
		}
		s.checkSeries(w, o, p, complain)
	}
	if checked == 0 && (len(seen) == 0 || seen[0].Time.Before(w.until)) {
		s.Errorf("%v: no snapshot in %v", w, w.until.Sub(w.since))
	}
	if wrong > 3 {
		s.Logf("%v: %d faults in %d snapshots", w, wrong, checked)
	}
}

// checkTopic checks the bounds of a partition. Without transactions no record may look like one of
// an open transaction, however many come during a poll.
func (s *scenario) checkTopic(w *watch, o recorded, complain func(recorded, string, ...any)) {
	s.Helper()
	p, shown := w.topicIn(o.Snapshot)
	if !shown {
		complain(o, "the log is absent")
		return
	}
	from, to, log := o.Time, o.Time.Add(o.Took), w.log()
	if !o.Topics[w.topic.name].Ready && !s.away.during(from, to) {
		complain(o, "the topic is not ready")
	}
	for _, bound := range []struct {
		name string
		got  int64
		want timeline
	}{{"start", p.Start, log.start}, {"last stable offset", p.Stable, log.stable}, {"end", p.End, log.end}} {
		if low, high := bound.want.during(from, to); bound.got < low || bound.got > high {
			complain(o, "its %s is %d, want %d to %d", bound.name, bound.got, low, high)
		}
	}
	if p.End != p.Stable && !log.transactions {
		complain(o, "%d records look like those of an open transaction", p.End-p.Stable)
	}
}

// checkOpen checks for how long the last scrape shows a transaction to be open. Without one that is 0.
func (s *scenario) checkOpen(w *watch, r *recorder, seen []recorded, complain func(recorded, string, ...any)) {
	s.Helper()
	o := seen[len(seen)-1]
	labels := fmt.Sprintf(`{kafka_cluster="lab",partition="%d",topic=%q}`, w.partition, w.topic.name)
	got, shown := o.series["kafka_topic_partition_open_txn_seconds"+labels]
	p, _ := w.topicIn(o.Snapshot)
	var low, high, allowed time.Duration
	if p.Stable < p.End {
		records := w.log().records
		first := records[slices.IndexFunc(records, func(r record) bool { return r.offset >= p.Stable })]
		low, high = max(0, o.Time.Sub(first.to)), max(0, o.Time.Sub(first.from))
		allowed = r.allowed(seen, first.from, first.to)
	}
	open := time.Duration(got * float64(time.Second))
	if !shown || open < low-allowed || open > high+allowed {
		complain(o, "the transaction has been open for %v (shown: %v), want %v to %v (%v allowed)",
			open, shown, low, high, allowed)
	}
}

// allowed returns how far an age may be off: the time between the two polls between which the
// record came.
func (r *recorder) allowed(seen []recorded, from, to time.Time) time.Duration {
	if r.searched {
		return searchAllowance
	}
	allowed := r.interval
	for i := 1; i < len(seen); i++ {
		begin, end := seen[i-1].Time, seen[i].Time.Add(seen[i].Took)
		if !begin.After(to) && !end.Before(from) {
			allowed = max(allowed, end.Sub(begin))
		}
	}
	return allowed + allowance
}

// checkSeries checks that a scrape shows what the snapshot has.
func (s *scenario) checkSeries(w *watch, o recorded, p *lag.Partition, complain func(recorded, string, ...any)) {
	s.Helper()
	for name, want := range map[string]float64{
		"kafka_consumergroup_lag":                  float64(p.Records),
		"kafka_consumergroup_lag_seconds":          p.Age.Seconds(),
		"kafka_consumergroup_current_offset":       float64(p.Committed),
		"kafka_consumergroup_records_lost_total":   float64(p.Lost),
		"kafka_consumergroup_offset_rewinds_total": float64(p.Rewinds),
	} {
		got, shown := o.series[w.series(name)]
		switch hidden := p.AgeUnknown && name == "kafka_consumergroup_lag_seconds"; {
		case shown == hidden:
			complain(o, "series %s is shown: %v", name, shown)
		case shown && !(math.Abs(got-want) < 1e-6):
			complain(o, "series %s is %v, want %v", name, got, want)
		}
	}
}
