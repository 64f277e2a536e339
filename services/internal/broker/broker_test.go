package broker

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// each runs a test on the fake and on a real broker.
func each(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("fake", func(t *testing.T) { test(t, testenv.Fake(t)) })
	t.Run("kafka", func(t *testing.T) { test(t, testenv.SharedKafka(t).Addr) })
}

func config(addr string) Config {
	return Config{Client: kafkaconfig.Client{Brokers: []string{addr}, ClientID: "broker-test"}}
}

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// deadAddr returns an address without a listener.
func deadAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// poll calls ok until it returns true. It is for conditions that send no event.
func poll(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	for tick := time.NewTicker(20 * time.Millisecond); !ok(); {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not seen within a minute: %s", what)
		}
	}
}

// leaks fails the test if it leaves goroutines of the package or of the client behind.
func leaks(t *testing.T) {
	running := func() map[string]string {
		stacks := make(map[string]string)
		text := make([]byte, 4<<20)
		for stack := range strings.SplitSeq(string(text[:runtime.Stack(text, true)]), "\n\n") {
			id, _, _ := strings.Cut(stack, " [")
			ours := strings.Contains(stack, "confluent-kafka-go") || strings.Contains(stack, "internal/broker.")
			if ours && !strings.Contains(stack, "testing.tRunner") {
				stacks[id] = stack
			}
		}
		return stacks
	}
	before := running()
	t.Cleanup(func() {
		var left map[string]string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
			left = running()
			maps.DeleteFunc(left, func(id, _ string) bool { return before[id] != "" })
			if len(left) == 0 {
				return
			}
			<-time.After(10 * time.Millisecond)
		}
		t.Errorf("goroutines left:\n%s", strings.Join(slices.Collect(maps.Values(left)), "\n\n"))
	})
}

func admin(t testing.TB, addr string) *Admin {
	t.Helper()
	a, err := NewAdmin(config(addr), logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// patientAdmin waits for Kafka for as long as a busy machine needs.
func patientAdmin(t testing.TB, cfg Config) *Admin {
	t.Helper()
	a, err := NewAdmin(cfg, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	a.timeout = time.Minute
	t.Cleanup(a.Close)
	return a
}

func message(topic, key, value string) contract.Message {
	return contract.Message{Topic: topic, Key: []byte(key), Value: []byte(value)}
}

// messages returns n messages with the values 0 to n-1, over that many keys.
func messages(topic string, n, keys int) []contract.Message {
	all := make([]contract.Message, n)
	for i := range all {
		all[i] = message(topic, fmt.Sprint("key", i%keys), fmt.Sprint(i))
	}
	return all
}

// transaction writes values to one partition, and commits or aborts. Both leave a marker, which is
// an offset without a record.
func transaction(t testing.TB, addr, topic string, partition int32, commit bool, values ...string) {
	t.Helper()
	transactionWith(t, addr, kgo.SnappyCompression(), topic, partition, commit, values...)
}

// transactionWith is transaction with a codec.
func transactionWith(
	t testing.TB, addr string, codec kgo.CompressionCodec, topic string, partition int32, commit bool, values ...string,
) {
	t.Helper()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(addr), kgo.TransactionalID(t.Name()), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(codec),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	var last int64
	for _, v := range values {
		r := &kgo.Record{Topic: topic, Partition: partition, Key: []byte("key"), Value: []byte(v)}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		last = r.Offset
	}
	if err := client.EndTransaction(t.Context(), kgo.TransactionEndTry(commit)); err != nil {
		t.Fatal(err)
	}
	// A broker writes the marker after its response.
	poll(t, "the marker", func() bool { return testenv.HighWatermarks(t, addr, topic)[partition] > last+1 })
}

// newTopic is testenv.NewTopic without compaction, which forbids deleting records.
func newTopic(t testing.TB, addr string, partitions int) string {
	t.Helper()
	topic := contract.Topic{Name: "test-" + uuid.NewString(), Partitions: partitions}
	if err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{topic}, 1); err != nil {
		t.Fatal(err)
	}
	return topic.Name
}

// store keeps records and positions as the Order service does: each member of the group remembers
// the positions that it left, and writes only where they are still the same.
type store struct {
	mu sync.Mutex
	// changed is closed and replaced at each change.
	changed chan struct{}
	next    map[Partition]int64
	// values are those that were applied, in order.
	values map[topicPartition][]string
	// faults counts writes to partitions that the member did not have, and records out of order.
	faults int
}

func newStore() *store {
	return &store{
		changed: make(chan struct{}),
		next:    make(map[Partition]int64),
		values:  make(map[topicPartition][]string),
	}
}

func (s *store) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until ok returns true. The store is locked during ok.
func (s *store) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	for {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			t.Fatalf("not seen within a minute: %s", what)
		}
	}
}

// count returns how many records were applied. The caller holds the lock.
func (s *store) count() (n int) {
	for _, values := range s.values {
		n += len(values)
	}
	return n
}

// member is the Handler of one member over a store.
type member struct {
	*store
	// apply and load are called before the store is read or written, if they are set.
	apply func(ctx context.Context, b Batch) error
	load  func() error
	// expected holds the positions that this member left.
	expected map[Partition]int64
	assigned [][]Partition
	revoked  int
	batches  int
	// called is true during a call.
	called atomic.Bool
}

func newMember(s *store) *member { return &member{store: s, expected: make(map[Partition]int64)} }

// call notes a fault if another call has not ended. The one that it returns ends this one.
func (m *member) call() (end func()) {
	if m.called.Swap(true) {
		m.change(func() { m.faults++ })
	}
	return func() { m.called.Store(false) }
}

func (m *member) Assigned(_ context.Context, ps []Partition) (next map[Partition]int64, err error) {
	defer m.call()()
	if m.load != nil {
		if err := m.load(); err != nil {
			return nil, err
		}
	}
	next = make(map[Partition]int64)
	m.change(func() {
		for _, p := range ps {
			next[p] = m.next[p]
			m.expected[p] = m.next[p]
		}
		m.assigned = append(m.assigned, ps)
	})
	return next, nil
}

func (m *member) Revoked(ps []Partition) {
	defer m.call()()
	m.change(func() {
		m.revoked += len(ps)
		for _, p := range ps {
			delete(m.expected, p)
		}
	})
}

func (m *member) Apply(ctx context.Context, b Batch) (err error) {
	defer m.call()()
	if m.apply != nil {
		if err := m.apply(ctx, b); err != nil {
			return err
		}
	}
	m.change(func() {
		at := make(map[topicPartition]int64)
		for p := range b.Next {
			expected, mine := m.expected[p]
			if !mine {
				m.faults++
			}
			if m.next[p] != expected {
				err = ErrFenced
				return
			}
			at[topicPartition{p.Topic, p.Number}] = expected
		}
		for _, r := range b.Records {
			where := topicPartition{r.Topic, r.Partition}
			if from, ok := at[where]; !ok || r.Offset < from {
				m.faults++
			}
			at[where] = r.Offset + 1
			m.values[where] = append(m.values[where], string(r.Value))
		}
		for p, next := range b.Next {
			if next < at[topicPartition{p.Topic, p.Number}] {
				m.faults++
			}
			m.next[p], m.expected[p] = next, next
		}
		m.batches++
	})
	return err
}

// start runs a consumer until stop is called or the test ends.
func start(t testing.TB, addr string, cc ConsumerConfig, h Handler) (c *Consumer, stop func()) {
	t.Helper()
	return startAs(t, config(addr), cc, h)
}

func startAs(t testing.TB, cfg Config, cc ConsumerConfig, h Handler) (c *Consumer, stop func()) {
	t.Helper()
	return startWith(t, NewConsumer(cfg, cc, admin(t, cfg.Brokers[0]), logger(t)), h)
}

func startWith(t testing.TB, c *Consumer, h Handler) (_ *Consumer, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx, h)
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Error("Run did not end")
			}
		})
	}
	t.Cleanup(stop)
	return c, stop
}
