package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// group returns the configuration of a consumer in a group of its own.
func group(topics ...string) ConsumerConfig {
	return ConsumerConfig{Group: "group-" + uuid.NewString(), Topics: topics, TopicCheck: 500 * time.Millisecond}
}

// written returns what a topic holds, by partition and in order.
func written(t testing.TB, addr, topic string) map[topicPartition][]string {
	t.Helper()
	values := make(map[topicPartition][]string)
	for _, r := range testenv.ReadAll(t, addr, topic) {
		at := topicPartition{r.Topic, r.Partition}
		values[at] = append(values[at], string(r.Value))
	}
	return values
}

// sameAs checks that the store holds each record of the topics once and in order.
func (s *store) sameAs(t testing.TB, addr string, topics ...string) {
	t.Helper()
	want := make(map[topicPartition][]string)
	for _, topic := range topics {
		maps.Copy(want, written(t, addr, topic))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(want, s.values, cmp.AllowUnexported(topicPartition{})); diff != "" {
		t.Errorf("store (-topic +store):\n%s", diff)
	}
	if s.faults > 0 {
		t.Errorf("%d calls were at the same time, or writes out of order or to partitions of others", s.faults)
	}
}

func TestConsumerReadsAllInOrder(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		created, updated := testenv.NewTopic(t, addr, 4), testenv.NewTopic(t, addr, 4)
		testenv.Produce(t, addr, messages(created, 2500, 40)...)
		m := newMember(newStore())
		largest := 0
		m.apply = func(_ context.Context, b Batch) error { largest = max(largest, len(b.Records)); return nil }
		cc := group(created, updated)
		cc.MaxRecords = 100
		c, stop := start(t, addr, cc, m)
		m.await(t, "what was there before", func() bool { return m.count() == 2500 })
		testenv.Produce(t, addr, messages(updated, 500, 40)...)
		m.await(t, "what came later", func() bool { return m.count() == 3000 })
		poll(t, "it has all partitions", func() bool { return c.Assigned() == 8 && c.Err() == nil })
		if c.Rebalances() == 0 {
			t.Error("no rebalance is counted")
		}
		stop()
		m.sameAs(t, addr, created, updated)
		if largest > 100 {
			t.Errorf("a batch of %d records, the limit is 100", largest)
		}
		if c.Assigned() != 0 || len(m.expected) > 0 {
			t.Errorf("at the end: assigned %d, the handler believes to have %v", c.Assigned(), m.expected)
		}
	})
}

func TestConsumerStartsWhereTheStoreSaysAndCommitsAHint(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 3)
		cc := group(topic)
		all := testenv.Produce(t, addr, messages(topic, 9, 1)...)
		at := all[0].Partition

		m := newMember(newStore())
		_, stop := start(t, addr, cc, m)
		m.await(t, "first run", func() bool { return m.count() == 9 })
		want := map[int32]int64{0: 0, 1: 0, 2: 0}
		want[at] = 9
		poll(t, "commits, also of the idle partitions", func() bool {
			return cmp.Equal(want, testenv.CommittedOffsets(t, addr, cc.Group)[topic])
		})
		stop()

		// The store was set back to an earlier state: the commits in Kafka count for nothing.
		m = newMember(newStore())
		infos, err := patientAdmin(t, config(addr)).Topics(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		m.next[Partition{topic, infos[topic].ID, at}] = 4
		start(t, addr, cc, m)
		m.await(t, "second run", func() bool { return m.count() == 5 })
		if diff := cmp.Diff([]string{"4", "5", "6", "7", "8"}, m.values[topicPartition{topic, at}]); diff != "" {
			t.Errorf("read again (-want +got):\n%s", diff)
		}
	})
}

// It runs alone: a busy process misses heartbeats, and this counts rebalances.
func TestConsumerRepeatsABatchThatCannotBeStored(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 4)
		testenv.Produce(t, addr, messages(topic, 300, 20)...)
		m := newMember(newStore())
		broken := errors.New("disk full")
		var tries int
		var first []Record
		down := make(chan struct{})
		var began time.Time
		cc := group(topic)
		cc.MaxRecords = 50
		var committed map[int32]int64
		m.apply = func(_ context.Context, b Batch) error {
			if len(b.Records) > cc.MaxRecords {
				t.Errorf("%d records in a batch: the consumer went on reading", len(b.Records))
			}
			// That is longer than the session timeout of 6 s.
			if tries >= 4 && time.Since(began) > 7*time.Second {
				if committed == nil {
					committed = testenv.CommittedOffsets(t, addr, cc.Group)[topic]
				}
				return nil
			}
			if tries++; tries == 1 {
				first, began = slices.Clone(b.Records), time.Now()
				close(down)
			} else if diff := cmp.Diff(first, b.Records); diff != "" {
				t.Errorf("the batch has changed (-first +now):\n%s", diff)
			}
			return broken
		}
		c, stop := start(t, addr, cc, m)
		<-down
		testenv.Produce(t, addr, messages(topic, 200, 20)...)
		poll(t, "the error shows", func() bool { return errors.Is(c.Err(), broken) })
		m.await(t, "all records", func() bool { return m.count() == 500 })
		if c.Rebalances() != 1 || c.Err() != nil {
			t.Errorf("%d rebalances, want 1; error %v", c.Rebalances(), c.Err())
		}
		stop()
		if diff := cmp.Diff(map[int32]int64{0: 0, 1: 0, 2: 0, 3: 0}, committed); diff != "" {
			t.Errorf("committed before anything was stored (-want +got):\n%s", diff)
		}
		m.sameAs(t, addr, topic)
	})
}

func TestConsumerPausesPartitionsThatComeWhileItRetries(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 6)
		testenv.Produce(t, addr, messages(topic, 600, 60)...)
		shared := newStore()
		one, two := newMember(shared), newMember(shared)
		var broken atomic.Bool
		broken.Store(true)
		tried := make(chan int, 1000)
		cc := group(topic)
		cc.MaxRecords = 50
		one.apply = func(_ context.Context, b Batch) error {
			if len(b.Records) > cc.MaxRecords {
				t.Errorf("%d records in a batch: the consumer went on reading", len(b.Records))
			}
			if broken.Load() {
				tried <- len(b.Records)
				return errors.New("disk full")
			}
			return nil
		}
		c2, stop2 := start(t, addr, cc, two)
		two.await(t, "the second reads all", func() bool { return shared.count() == 600 })
		c1, stop1 := start(t, addr, cc, one)
		poll(t, "the partitions are shared", func() bool { return c1.Assigned() == 3 && c2.Assigned() == 3 })
		testenv.Produce(t, addr, messages(topic, 600, 60)...)
		<-tried
		// The first member gets partitions that it never had while it is retrying.
		stop2()
		poll(t, "one has all", func() bool { return c1.Assigned() == 6 })
		testenv.Produce(t, addr, messages(topic, 300, 60)...)
		for len(tried) > 0 {
			<-tried
		}
		// Between two more attempts, a consumer that is not paused would read more.
		<-tried
		<-tried
		broken.Store(false)
		one.await(t, "all records", func() bool { return shared.count() == 1500 })
		stop1()
		shared.sameAs(t, addr, topic)
	})
}

// librdkafka remembers a pause beyond the assignment in which it was made.
func TestConsumerReadsPartitionsThatLeftPausedAndCameBack(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 6)
		shared := newStore()
		one, two := newMember(shared), newMember(shared)
		var broken atomic.Bool
		broken.Store(true)
		tried := make(chan struct{}, 1000)
		one.apply = func(context.Context, Batch) error {
			if broken.Load() {
				tried <- struct{}{}
				return errors.New("disk full")
			}
			return nil
		}
		cc := group(topic)
		c1, stop1 := start(t, addr, cc, one)
		testenv.Produce(t, addr, messages(topic, 60, 60)...)
		<-tried
		c2, stop2 := start(t, addr, cc, two)
		poll(t, "the partitions are shared", func() bool { return c1.Assigned() == 3 && c2.Assigned() == 3 })
		broken.Store(false)
		shared.await(t, "all records", func() bool { return shared.count() == 60 })
		stop2()
		testenv.Produce(t, addr, messages(topic, 60, 60)...)
		shared.await(t, "what came after the return", func() bool { return shared.count() == 120 })
		stop1()
		shared.sameAs(t, addr, topic)
	})
}

func TestConsumerJoinsAgainWhenFenced(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		topic := testenv.NewTopic(t, addr, 2)
		m := newMember(newStore())
		c, stop := start(t, addr, group(topic), m)
		testenv.Produce(t, addr, messages(topic, 10, 5)...)
		m.await(t, "first records", func() bool { return m.count() == 10 })
		// Another member wrote: the store is ahead of what this member left.
		m.change(func() {
			for p := range m.expected {
				m.expected[p]--
			}
		})
		testenv.Produce(t, addr, messages(topic, 10, 5)...)
		m.await(t, "records after the fence", func() bool { return m.count() == 20 })
		m.change(func() {
			if len(m.assigned) < 2 || m.revoked < 2 {
				t.Errorf("assigned %d times, revoked %d partitions: the session went on", len(m.assigned), m.revoked)
			}
		})
		poll(t, "no trouble is left", func() bool { return c.Err() == nil && c.Assigned() == 2 })
		stop()
		m.sameAs(t, addr, topic)
	})
}

func TestAConsumerWithoutPartitionsIsNotFailing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 1)
		one, two := newMember(newStore()), newMember(newStore())
		cc := group(topic)
		cc.TopicCheck = 100 * time.Millisecond
		one.load = func() error { return errors.New("the store is broken") }
		c1, stop1 := start(t, addr, cc, one)
		poll(t, "the first one fails", func() bool { return c1.Err() != nil })
		// Whenever the first one leaves the group, the second one gets the partition.
		c2, stop2 := start(t, addr, cc, two)
		poll(t, "the second one has the partition", func() bool { return c2.Assigned() == 1 })
		poll(t, "the first one has nothing to do", func() bool { return c1.Err() == nil && c1.Assigned() == 0 })
		stop1()
		stop2()
	})
}

func TestConsumerTriesAgainWhenTheStoreCannotBeRead(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 2)
		testenv.Produce(t, addr, messages(topic, 10, 5)...)
		m := newMember(newStore())
		tries := 0
		m.load = func() error {
			if tries++; tries < 4 {
				return errors.New("database is locked")
			}
			return nil
		}
		_, stop := start(t, addr, group(topic), m)
		m.await(t, "all records", func() bool { return m.count() == 10 })
		stop()
		m.sameAs(t, addr, topic)
	})
}

// An order has its creation and its updates in partitions of the same number. So it has one writer.
func TestMembersHaveTheSamePartitionsOfAllTopics(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		cc := group(testenv.NewTopic(t, addr, 7), testenv.NewTopic(t, addr, 7))
		var all []*Consumer
		for _, partitions := range [][]int{{14}, {6, 8}, {4, 4, 6}} {
			c, _ := start(t, addr, cc, newMember(newStore()))
			all = append(all, c)
			poll(t, fmt.Sprint("the members have ", partitions), func() bool {
				var got []int
				for _, c := range all {
					got = append(got, c.Assigned())
				}
				slices.Sort(got)
				return slices.Equal(partitions, got)
			})
			for i, c := range all {
				numbers := make(map[string][]int32)
				for at := range c.holds() {
					numbers[at.topic] = append(numbers[at.topic], at.number)
				}
				for _, of := range numbers {
					slices.Sort(of)
				}
				if diff := cmp.Diff(numbers[cc.Topics[0]], numbers[cc.Topics[1]]); diff != "" {
					t.Errorf("%d members, number %d (-first topic +second topic):\n%s", len(all), i, diff)
				}
			}
		}
	})
}

func TestConsumersShareAndTakeOver(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 6)
		shared := newStore()
		one, two := newMember(shared), newMember(shared)
		cc := group(topic)
		c1, stop1 := start(t, addr, cc, one)
		c2, stop2 := start(t, addr, cc, two)
		stopped := make(chan struct{})
		feed := make(chan struct{})
		go func() {
			defer close(feed)
			for i := 0; ; i++ {
				select {
				case <-stopped:
					return
				default:
					testenv.Produce(t, addr, messages(topic, 50, 60)...)
				}
			}
		}()
		poll(t, "the partitions are shared", func() bool { return c1.Assigned() == 3 && c2.Assigned() == 3 })
		one.await(t, "both work", func() bool { return one.batches > 5 && two.batches > 5 })
		stop1()
		poll(t, "the other has all", func() bool { return c2.Assigned() == 6 })
		close(stopped)
		<-feed
		all := len(testenv.ReadAll(t, addr, topic))
		two.await(t, "all records", func() bool { return shared.count() == all })
		stop2()
		shared.sameAs(t, addr, topic)
	})
}

// The next batch is collected while one is applied, and has all that has come until then.
func TestConsumerCollectsWhileItApplies(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 2)
		m := newMember(newStore())
		began := make(chan time.Time)
		var hold atomic.Pointer[chan struct{}]
		// sizes are those of the batches behind the one that was held.
		var sizes []int
		m.apply = func(_ context.Context, b Batch) error {
			if len(b.Records) == 0 {
				return nil
			}
			sizes = append(sizes, len(b.Records))
			if release := hold.Swap(nil); release != nil {
				sizes = nil
				began <- time.Now()
				<-*release
			}
			return nil
		}
		c, stop := start(t, addr, group(topic), m)
		var release chan struct{}
		sent := 0
		for polled := false; !polled; {
			held := make(chan struct{})
			hold.Store(&held)
			release = held
			testenv.Produce(t, addr, messages(topic, 1, 1)...)
			sent++
			at := <-began
			for time.Since(at) < 2*longApply && !polled {
				time.Sleep(time.Millisecond)
				polled = c.LastPoll().After(at)
			}
			// It polls for longApply at most. On a slow machine that may be over before it has begun.
			if !polled {
				close(release)
			}
			if !polled && sent == 10 {
				t.Fatal("it does not poll while it applies")
			}
		}
		for range 10 {
			testenv.Produce(t, addr, messages(topic, 5, 5)...)
		}
		close(release)
		m.await(t, "all records", func() bool { return m.count() == sent+50 })
		stop()
		if len(sizes) > 3 {
			t.Errorf("what has come while a batch was applied took batches of %v records", sizes)
		}
		m.sameAs(t, addr, topic)
	})
}

// What is revoked takes no room any more: a session without room does not poll.
func TestWhatIsRevokedTakesNoRoom(t *testing.T) {
	t.Parallel()
	kept, gone := Partition{Topic: "t", Number: 1}, Partition{Topic: "t", Number: 2}
	s := &session{fill: Batch{Next: map[Partition]int64{kept: 1, gone: 1}, Records: []Record{
		{Topic: "t", Partition: 1, Key: []byte("k"), Value: []byte("four")},
		{Topic: "t", Partition: 2, Key: []byte("k"), Value: make([]byte, 1<<20)},
	}}}
	for i := range s.fill.Records {
		s.bytes += s.fill.Records[i].size()
	}
	s.drop([]Partition{gone})
	if s.bytes != 5 || len(s.fill.Records) != 1 {
		t.Errorf("%d bytes in %d records, want 5 in 1", s.bytes, len(s.fill.Records))
	}
	s.drop([]Partition{kept})
	if s.bytes != 0 || len(s.fill.Next) != 0 {
		t.Errorf("%d bytes are left", s.bytes)
	}
}

// A member gives a partition up when it has stored what it was about to store.
func TestConsumerKeepsAPartitionUntilItsBatchIsApplied(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 2)
		shared := newStore()
		one, two := newMember(shared), newMember(shared)
		began, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		one.apply = func(_ context.Context, b Batch) error {
			if len(b.Records) > 0 {
				once.Do(func() { close(began); <-release })
			}
			return nil
		}
		cc := group(topic)
		c1, stop1 := start(t, addr, cc, one)
		poll(t, "one has all", func() bool { return c1.Assigned() == 2 })
		// It hears of the other one, and polls, while it applies.
		c2, stop2 := start(t, addr, cc, two)
		testenv.Produce(t, addr, messages(topic, 10, 5)...)
		<-began
		// On a slow machine it may have given one up before.
		had := c1.Assigned()
		time.Sleep(longApply * 3 / 2)
		if has, other := c1.Assigned(), c2.Assigned(); has != had || has+other > 2 {
			t.Errorf("it has %d partitions meanwhile, and had %d; the other one has %d", has, had, other)
		}
		close(release)
		poll(t, "the partitions are shared", func() bool { return c1.Assigned() == 1 && c2.Assigned() == 1 })
		one.await(t, "all records", func() bool { return shared.count() == 10 })
		stop1()
		stop2()
		shared.sameAs(t, addr, topic)
	})
}

func TestConsumerThatWasSilentTooLongCannotWrite(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 2)
		shared := newStore()
		slow, other := newMember(shared), newMember(shared)
		blocked, release := make(chan struct{}), make(chan struct{})
		var once atomic.Bool
		slow.apply = func(context.Context, Batch) error {
			if once.CompareAndSwap(false, true) {
				close(blocked)
				<-release
			}
			return nil
		}
		cc := group(topic)
		cc.MaxSilence = 2 * time.Second
		_, stopSlow := start(t, addr, cc, slow)
		testenv.Produce(t, addr, messages(topic, 100, 10)...)
		<-blocked
		c, stopOther := start(t, addr, cc, other)
		poll(t, "the other takes all", func() bool { return c.Assigned() == 2 })
		other.await(t, "the other has applied all", func() bool { return shared.count() == 100 })
		close(release)
		testenv.Produce(t, addr, messages(topic, 100, 10)...)
		other.await(t, "what came later", func() bool { return shared.count() == 200 })
		poll(t, "the silent one is back", func() bool { return c.Assigned() == 1 })
		stopSlow()
		stopOther()
		shared.sameAs(t, addr, topic)
	})
}

func TestConsumerNoticesARecreatedTopic(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic, other := testenv.NewTopic(t, addr, 2), testenv.NewTopic(t, addr, 2)
		m := newMember(newStore())
		_, stop := start(t, addr, group(topic, other), m)
		testenv.Produce(t, addr, append(messages(topic, 50, 10), messages(other, 50, 10)...)...)
		m.await(t, "the old topic's records", func() bool { return m.count() == 100 })
		if err := localkafka.DeleteTopic(t.Context(), addr, topic); err != nil {
			t.Fatal(err)
		}
		declared := contract.Topics()[0]
		declared.Name, declared.Partitions = topic, 2
		poll(t, "the topic is created again", func() bool {
			return localkafka.CreateTopics(t.Context(), addr, []contract.Topic{declared}, 1) == nil
		})
		// kfake would give the consumer records of the new topic under the old one's ID.
		m.await(t, "the new topic's partitions", func() bool {
			ids := make(map[string]bool)
			for _, p := range slices.Concat(m.assigned...) {
				if p.Topic == topic {
					ids[p.TopicID] = true
				}
			}
			return len(ids) == 2
		})
		poll(t, "it can be written", func() bool {
			return !t.Failed() && produced(t, addr, message(topic, "key", "new"))
		})
		m.await(t, "the new topic's record", func() bool { return m.count() == 101 })
		stop()
		if m.faults > 0 {
			t.Errorf("%d faults", m.faults)
		}
	})
}

// In most cases the broker revokes the partitions of the old topic and assigns those of the new
// one. The watch is for the other cases.
func TestConsumerWatchesTopicIDs(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 1)
		c := NewConsumer(config(addr), group(topic, "missing"), admin(t, addr), logger(t))
		s := &session{
			membership: c.membership,
			assignment: &assignment{ids: map[string]string{topic: "another"}},
			changed:    make(chan error, 1),
		}
		s.watch(t.Context())
		if s.look(); s.end == nil || !strings.Contains(s.end.Error(), "was recreated") {
			t.Errorf("the session ends with %v", s.end)
		}
	})
}

// produced tries to write one message.
func produced(t testing.TB, addr string, m contract.Message) bool {
	_, err := producer(t, addr).Publish(inTime(t), []contract.Message{m})
	return err == nil
}

func TestConsumerFindsTopicsThatComeLater(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		declared := contract.Topics()[0]
		declared.Name, declared.Partitions = "late-"+uuid.NewString(), 2
		m := newMember(newStore())
		log := &lines{t: t}
		c := NewConsumer(config(addr), group(declared.Name), admin(t, addr), slog.New(slog.NewTextHandler(log, nil)))
		_, stop := startWith(t, c, m)
		log.await(t, "topics to consume do not exist", 1)
		if err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{declared}, 1); err != nil {
			t.Fatal(err)
		}
		testenv.Produce(t, addr, messages(declared.Name, 10, 3)...)
		m.await(t, "its records", func() bool { return m.count() == 10 })
		stop()
		m.sameAs(t, addr, declared.Name)
	})
}

func TestConsumerPositionReachesTheEndOverGaps(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 2)
		// These take the offsets 0 and 1, and 2 for the marker.
		transaction(t, addr, topic, 0, true, "a", "b")
		// This takes 3 and 4, with nothing to read. The end is 5.
		transaction(t, addr, topic, 0, false, "x")
		transaction(t, addr, topic, 1, false, "y", "z")
		a := patientAdmin(t, config(addr))
		_, end, err := a.Bounds(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		m := newMember(newStore())
		cc := group(topic)
		_, stop := start(t, addr, cc, m)
		m.await(t, fmt.Sprint("the end ", end), func() bool { return cmp.Equal(end, m.next) })
		want := map[topicPartition][]string{{topic, 0}: {"a", "b"}}
		if diff := cmp.Diff(want, m.values, cmp.AllowUnexported(topicPartition{})); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		poll(t, "commits at the ends", func() bool {
			return cmp.Equal(map[int32]int64{0: 5, 1: 3}, testenv.CommittedOffsets(t, addr, cc.Group)[topic])
		})
		stop()
	})
}

// The log does not have the position, because its start was deleted or its end was lost. The consumer
// does not choose another one: it takes the partition over again, for the handler to decide.
func TestConsumerLeavesAPositionThatIsGoneToItsHandler(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ position, corrected int64 }{
		"the start was deleted": {0, 6},
		"the end was lost":      {1000, 7},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, addr string) {
				topic := newTopic(t, addr, 1)
				testenv.Produce(t, addr, messages(topic, 10, 1)...)
				testenv.DeleteRecords(t, addr, topic, map[int32]int64{0: 6})
				infos, err := patientAdmin(t, config(addr)).Topics(t.Context(), topic)
				if err != nil {
					t.Fatal(err)
				}
				p := Partition{topic, infos[topic].ID, 0}
				m := newMember(newStore())
				m.next[p] = tt.position
				assigned := 0
				m.load = func() error {
					if assigned++; assigned == 2 {
						m.change(func() { m.next[p] = tt.corrected })
					}
					return nil
				}
				_, stop := start(t, addr, group(topic), m)
				m.await(t, "what is left", func() bool { return int64(m.count()) == 10-tt.corrected })
				stop()
			})
		})
	}
}

// truncating returns a fake Kafka of two brokers with 10 records in the topic, which broker 0 leads. Once
// broker 1 leads, it says that the log had lost its end from offset 7 on before, and closes told. Yet
// the log has all offsets.
func truncating(t *testing.T, topic string) (cluster *kfake.Cluster, told chan struct{}) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(1, topic),
		kfake.BrokerConfigs(map[string]string{"group.consumer.heartbeat.interval.ms": "500"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	if err := cluster.MoveTopicPartition(topic, 0, 0); err != nil {
		t.Fatal(err)
	}
	testenv.Produce(t, cluster.ListenAddrs()[0], messages(topic, 10, 1)...)

	// librdkafka asks in version 2, which real brokers have and the fake has not.
	client, err := newFranz(config(cluster.ListenAddrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	versions, err := kmsg.NewPtrApiVersionsRequest().RequestWith(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	for i := range versions.ApiKeys {
		if k := &versions.ApiKeys[i]; k.ApiKey == kmsg.OffsetForLeaderEpoch.Int16() {
			k.MinVersion = 2
		}
	}
	cluster.ControlKey(kmsg.ApiVersions.Int16(), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		response := *versions
		response.Version = request.GetVersion()
		return &response, nil, true
	})
	told = make(chan struct{})
	cluster.ControlKey(kmsg.OffsetForLeaderEpoch.Int16(), func(request kmsg.Request) (kmsg.Response, error, bool) {
		asked := request.(*kmsg.OffsetForLeaderEpochRequest)
		response := asked.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
		of := kmsg.NewOffsetForLeaderEpochResponseTopic()
		partition := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
		of.Topic = topic
		partition.LeaderEpoch, partition.EndOffset = asked.Topics[0].Partitions[0].LeaderEpoch, 7
		of.Partitions = append(of.Partitions, partition)
		response.Topics = append(response.Topics, of)
		close(told)
		return response, nil, true
	})
	return cluster, told
}

// The records that came after the loss must not be passed. So the handler compares the logs again.
func TestConsumerLeavesALogThatLostItsEndAndGrewAgainToItsHandler(t *testing.T) {
	t.Parallel()
	cluster, _ := truncating(t, "topic")
	addr := cluster.ListenAddrs()[0]
	m := newMember(newStore())
	_, stop := start(t, addr, group("topic"), m)
	m.await(t, "all records", func() bool { return m.count() == 10 })
	if err := cluster.MoveTopicPartition("topic", 0, 1); err != nil {
		t.Fatal(err)
	}
	m.await(t, "the partition is taken over again", func() bool { return len(m.assigned) == 2 })
	stop()
}

func TestConsumerFinishesTheBatchInHand(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		topic := testenv.NewTopic(t, addr, 1)
		testenv.Produce(t, addr, messages(topic, 10, 1)...)
		m := newMember(newStore())
		inHand, stopping := make(chan struct{}), make(chan struct{})
		var once atomic.Bool
		m.apply = func(ctx context.Context, _ Batch) error {
			if once.CompareAndSwap(false, true) {
				close(inHand)
				<-stopping
				// Run's context has ended. One that ends because of it may need a moment.
				select {
				case <-ctx.Done():
					t.Error("the context of the batch in hand ended with Run's")
				case <-time.After(200 * time.Millisecond):
				}
			}
			return nil
		}
		cc := group(topic)
		c := NewConsumer(config(addr), cc, admin(t, addr), logger(t))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { c.Run(ctx, m) })
		<-inHand
		cancel()
		close(stopping)
		running.Wait()
		if m.count() == 0 {
			t.Error("the batch in hand was dropped")
		}
		n := int64(m.count())
		if diff := cmp.Diff(map[int32]int64{0: n}, testenv.CommittedOffsets(t, addr, cc.Group)[topic]); diff != "" {
			t.Errorf("committed (-want +got):\n%s", diff)
		}
	})
}

func TestConsumerWithoutKafkaStopsInTime(t *testing.T) {
	leaks(t)
	m := newMember(newStore())
	c, stop := start(t, deadAddr(t), group("topic"), m)
	poll(t, "the trouble shows", func() bool { return c.Err() != nil })
	began := time.Now()
	stop()
	// The limit is what Run promises, and some time for a busy machine.
	if took := time.Since(began); took > closeTimeout+10*time.Second {
		t.Errorf("Run ended after %s", took)
	}
}

func TestConsumerOutlivesTheBroker(t *testing.T) {
	leaks(t)
	k := testenv.StartKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 4)
	m := newMember(newStore())
	c, stop := start(t, k.Addr, group(topic), m)
	for round := range 2 {
		testenv.Produce(t, k.Addr, messages(topic, 100, 10)...)
		m.await(t, "records", func() bool { return m.count() == 100*(round+1) })
		k.Kill()
		poll(t, "the trouble shows", func() bool { return c.Err() != nil })
		if err := k.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Produce(t, k.Addr, messages(topic, 100, 10)...)
	m.await(t, "records after the last restart", func() bool { return m.count() == 300 })
	poll(t, "the trouble is over", func() bool { return c.Err() == nil })
	stop()
	m.sameAs(t, k.Addr, topic)
}

func TestConsumerLeavesADeadBrokerInTime(t *testing.T) {
	t.Parallel()
	k := testenv.StartKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 2)
	m := newMember(newStore())
	_, stop := start(t, k.Addr, group(topic), m)
	testenv.Produce(t, k.Addr, messages(topic, 10, 10)...)
	m.await(t, "records", func() bool { return m.count() == 10 })
	k.Kill()
	began := time.Now()
	stop()
	// The limit is what Run promises, and some time for the last poll on a busy machine.
	if took := time.Since(began); took > closeTimeout+10*time.Second {
		t.Errorf("Run ended after %s", took)
	}
}
