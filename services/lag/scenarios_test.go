package lag_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/lag"
)

// In every scenario the collector shows the truth, beside all the others and until the end. Records
// are exact, ages are off by no more than the interval between polls, and every group is in every
// snapshot and every scrape. What is away is unknown for as long as it is away, and nothing else is.
func TestScenarios(t *testing.T) {
	settings := map[string]string{
		// By default compaction waits for 15 s.
		"log.cleaner.backoff.ms": "100",
		// A busy machine must not fence the broker.
		"broker.session.timeout.ms": "",
		// Nor may it expel a member: all members leave by themselves. Kafka's default is 45 s.
		"group.consumer.session.timeout.ms": "",
	}
	k, err := localkafka.Start(t.Context(), localkafka.Options{Dir: t.TempDir(), Settings: settings})
	testenv.Require(t, err)
	one := newLab(t, kafkaconfig.Client{Brokers: []string{k.Addr}}, k)
	brokers, err := localkafka.StartCluster(t.Context(), 3, localkafka.Options{Dir: t.TempDir(), Settings: settings})
	testenv.Require(t, err)
	var addrs []string
	for _, b := range brokers {
		addrs = append(addrs, b.Addr)
	}
	three := newLab(t, kafkaconfig.Client{Brokers: addrs}, brokers...)
	secure := testenv.StartSecureKafka(t)
	limited := newLab(t, secure.NewUser(t, "lag").Client(), secure.Broker)

	var playing sync.WaitGroup
	for name, play := range scenarios() {
		// Scenarios mostly wait, so more of them may run than there are processors.
		playing.Go(func() { one.play(t, name, play) })
	}
	playing.Go(func() {
		// These stop brokers, so one of them runs after the other.
		for name, play := range clusterScenarios() {
			three.play(t, name, play)
		}
	})
	playing.Go(func() {
		limited.play(t, "hidden topic", func(s *scenario) { hiddenTopic(s, secure) })
	})
	playing.Wait()
	t.Log(table(one, three, limited))
}

// restart starts another collector, which knows nothing of the past, and waits for its first
// snapshot.
func (s *scenario) restart() *recorder {
	s.Helper()
	r := s.startRecorder(s.T, s.config(pollInterval, s.name+"-"))
	r.searched = true
	r.await(s.T, "its first poll", func(*lag.Snapshot) bool { return true })
	s.recorders = append(s.recorders, r)
	return r
}

func scenarios() map[string]func(*scenario) {
	return map[string]func(*scenario){
		"steady flow":           steadyFlow,
		"slow":                  slow,
		"stopped":               stopped,
		"own rhythm":            ownRhythm,
		"stalled, new protocol": func(s *scenario) { stalled(s, true) },
		"stalled, classic":      func(s *scenario) { stalled(s, false) },
		"idle producer":         idleProducer,
		"empty topic":           emptyTopic,
		"compacted":             compacted,
		"transactions":          transactions,
		"hanging transaction":   hangingTransaction,
		"read uncommitted":      uncommitted,
		"recreated topic":       recreated,
		"recreated unseen":      recreatedUnseen,
		"no commit":             noCommit,
		"commit beyond the end": beyondTheEnd,
		"retention":             retention,
		"dead, new protocol":    func(s *scenario) { dead(s, true) },
		"dead, classic":         func(s *scenario) { dead(s, false) },
		"replay":                replay,
		"restart":               restarted,
		"rebalance, new":        func(s *scenario) { rebalance(s, true) },
		"rebalance, classic":    func(s *scenario) { rebalance(s, false) },
		"partition growth":      growth,
		"clock skew":            clockSkew,
		"no timestamps":         noTimestamps,
		"share group":           shareGroup,
	}
}

// A group that keeps up is ok all the time, and no older than it lets records wait. It always
// leaves some records unread. A collector that read the ends of logs before the commits would
// sometimes show none.
func steadyFlow(s *scenario) {
	topic := s.newTopic("t", 2)
	for p := range int32(2) {
		topic.produce(p, 1)
		topic.commit(s.name+"-g", p, 0)
	}
	member := topic.join(s.name+"-g", true)
	s.awaitMembers(s.name+"-g", 1)
	var pause time.Duration
	for begin := time.Now(); time.Since(begin) < 6*time.Second; {
		step := time.Now()
		for p := range int32(2) {
			produced := topic.partitions[p].end.last()
			topic.produce(p, 1+rand.IntN(5))
			topic.commitAs(member, s.name+"-g", p, produced)
		}
		pause = max(pause, time.Since(step))
	}
	for _, w := range s.watches {
		s.never(w, lag.StatusRewound, lag.StatusLost)
		if pause < time.Second {
			// Otherwise the machine was too busy to keep the pace.
			s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusStopped)
		}
		for _, o := range s.always.all() {
			if p := w.in(o.Snapshot); p != nil && p.Committed >= 0 && p.Records == 0 {
				s.Errorf("%v: no unread records at %s", w, o.Time.Format("15:04:05.000"))
			}
		}
	}
}

// A group that reads less than is written is slow, and its age grows.
func slow(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.commit(s.name+"-g", 0, 0)
	member := topic.join(s.name+"-g", true)
	s.awaitMembers(s.name+"-g", 1)
	var w *watch
	committed := int64(0)
	for begin := time.Now(); time.Since(begin) < 8*time.Second; time.Sleep(10 * time.Millisecond) {
		topic.produce(0, 3)
		committed++
		w = topic.commitAs(member, s.name+"-g", 0, committed)
		if time.Since(begin) > 6*time.Second {
			if p := w.in(s.always.Snapshot()); p != nil && p.Status == lag.StatusSlow {
				break
			}
		}
	}
	s.awaitStatus(w, lag.StatusSlow)
}

// The age of a group without consumers grows, both while the producer goes on and while it is idle.
func stopped(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 20)
	w := topic.commit(s.name+"-g", 0, 10)
	for range 20 {
		topic.produce(0, 5)
		// The producer goes on over several polls.
		time.Sleep(50 * time.Millisecond)
	}
	s.awaitStatus(w, lag.StatusStopped)
	s.pass(3 * time.Second)
	s.grows(w)
	s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusRewound, lag.StatusLost)
}

// A consumer without members commits rarely, as Flink and Spark do. It is not stopped while it keeps
// its rhythm, and it is when it breaks it.
func ownRhythm(s *scenario) {
	// This is the patience of the test's collectors, and more than a half of the pause.
	const pause = 2500 * time.Millisecond
	topic := s.newTopic("t", 1)
	topic.produce(0, 1)
	w := topic.commit(s.name+"-g", 0, 0)
	var known, longest time.Duration
	var since time.Time
	for n := range 6 {
		begin := time.Now()
		for time.Since(begin) < pause {
			topic.produce(0, 1)
			// The producer goes on over many polls.
			time.Sleep(50 * time.Millisecond)
		}
		topic.commit(s.name+"-g", 0, topic.partitions[0].end.last())
		s.polls(1)
		if known = time.Since(begin); n == 2 {
			since = time.Now()
		} else if n > 2 {
			longest = max(longest, known)
		}
	}
	for _, o := range s.always.all() {
		if longest >= 2*pause {
			// On a busy machine the test itself has broken the rhythm.
			break
		}
		if p := w.in(o.Snapshot); o.Time.After(since) && p != nil && p.Status == lag.StatusStopped {
			s.Errorf("the group is stopped at %s, with a patience of %v", o.Time.Format("15:04:05.000"), p.Patience)
			break
		}
	}
	topic.produce(0, 1)
	s.awaitStatus(w, lag.StatusStopped)
}

// A group whose consumer does nothing is stalled.
func stalled(s *scenario, next bool) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 20)
	w := topic.commit(s.name+"-g", 0, 10)
	member := topic.join(s.name+"-g", next)
	s.awaitMembers(s.name+"-g", 1)
	topic.commitAs(member, s.name+"-g", 0, 11)
	s.awaitStatus(w, lag.StatusStalled)
	s.grows(w)
	topic.commitAs(member, s.name+"-g", 0, 20)
	s.awaitStatus(w, lag.StatusOK)
}

// While all is read and nothing comes, the age is 0. The next record counts from its own time.
func idleProducer(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 20)
	w := topic.commit(s.name+"-g", 0, 20)
	s.pass(6 * time.Second)
	s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusStopped, lag.StatusRewound, lag.StatusLost,
		lag.StatusNoCommit)
	topic.produce(0, 1)
	s.pass(time.Second)
}

// A group in an empty topic is ok.
func emptyTopic(s *scenario) {
	topic := s.newTopic("t", 2)
	topic.commit(s.name+"-g", 0, 0)
	w := topic.commit(s.name+"-g", 1, 0)
	s.pass(4 * time.Second)
	s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusStopped, lag.StatusRewound, lag.StatusLost,
		lag.StatusNoCommit)
}

// Compaction removed the first unread record, so a consumer would continue with the next one. A
// collector that saw the record come shows its age. One that has to search cannot tell a missing
// record from one in the middle of a batch. It shows the age of the record before, if that is left:
// too much, never too little. If none is left before it, the age is not known.
func compacted(s *scenario) {
	topic := s.newTopic("t", 2, "cleanup.policy", "compact", "segment.ms", "500", "min.cleanable.dirty.ratio", "0.001")
	topic.commit(s.name+"-g", 0, 0)
	topic.commit(s.name+"-g", 1, 0)
	// After this poll the collector has seen the topic.
	s.polls(1)
	// Compaction keeps this record: no other has its key.
	topic.produceAs(1, "only one", 1, 0)
	for range 10 {
		topic.produce(0, 10)
		topic.produce(1, 10)
		// The records get different ages.
		time.Sleep(100 * time.Millisecond)
	}
	for p := range int32(2) {
		topic.commit(s.name+"-g", p, 35).vague = p == 0
	}
	gone := func(p int) bool { return topic.partitions[p].records[35].gone }
	for topic.compact(); !gone(0) || !gone(1); topic.compact() {
		// The record rolls the segment.
		topic.produce(0, 1)
		topic.produce(1, 1)
		time.Sleep(200 * time.Millisecond)
	}
	s.polls(4)
	for left := topic.compact(); ; {
		s.restart()
		s.polls(4)
		before := left
		if left = topic.compact(); left == before {
			break
		}
		// Compaction went on while that collector searched, so it does not count.
		s.recorders = s.recorders[:1]
	}
}

// compact notes what compaction has removed, and returns how many records are left.
func (l *topicLog) compact() int {
	l.Helper()
	type position struct {
		partition int32
		offset    int64
	}
	left := make(map[position]bool)
	for _, r := range testenv.ReadAll(l.T, l.addr, l.name) {
		left[position{r.Partition, r.Offset}] = true
	}
	for p, log := range l.partitions {
		for i, r := range log.records {
			log.records[i].gone = !left[position{int32(p), r.offset}]
		}
	}
	return len(left)
}

// Consumers of committed transactions read up to the first open one. Records from there on are no
// lag and have a series of their own. The marker that ends a transaction has an offset, as a record
// has.
func transactions(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 5)
	topic.commit(s.name+"-g", 0, 5)
	open := func(want int64) func() {
		return func() {
			s.await("open records", func(snapshot *lag.Snapshot) bool {
				t := snapshot.Topics[topic.name]
				return t != nil && t.Partitions[0].End-t.Partitions[0].Stable == want
			})
			s.polls(3)
		}
	}
	topic.transact(0, 10, kgo.TryCommit, open(10))
	s.polls(3)
	// Only the marker is left.
	topic.commit(s.name+"-g", 0, 15)
	s.polls(3)
	topic.commit(s.name+"-g", 0, 16)
	s.polls(3)
	topic.transact(0, 5, kgo.TryAbort, open(5))
	s.polls(3)
	w := topic.commit(s.name+"-g", 0, 22)
	s.polls(3)
	s.never(w, lag.StatusRewound, lag.StatusLost)
}

// A transaction that does not end withholds what comes behind it. A reader of committed records has
// read all that it can get, so it is not behind. The age of the transaction shows, also to a
// collector that starts while it is open, and it ends with the transaction.
func hangingTransaction(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 10)
	w := topic.commit(s.name+"-g", 0, 10)
	s.polls(2)
	topic.transact(0, 3, kgo.TryAbort, func() {
		topic.produceBehind(0, 20)
		s.pass(3 * time.Second)
		s.restart()
		s.pass(time.Second)
	})
	s.polls(3)
	s.never(w, lag.StatusRewound, lag.StatusLost)
	// Only now can the group read the records. It has not let them lie for as long as they are old.
	for _, o := range s.always.all() {
		if p := w.in(o.Snapshot); p != nil && o.Time.After(w.since) && p.Records > 0 {
			if p.Status != lag.StatusOK {
				s.Errorf("%v: status %s as soon as the records can be read", w, p.Status)
			}
			break
		}
	}
}

// A group that does not wait for transactions has to read up to the high watermark. The collector
// knows that from its first commit behind an open transaction's first record on.
func uncommitted(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 5)
	topic.transact(0, 10, kgo.TryCommit, func() {
		topic.commit(s.name+"-g", 0, 8).uncommitted = true
		s.polls(4)
		topic.commit(s.name+"-g", 0, 15)
		s.polls(4)
	})
	topic.commit(s.name+"-g", 0, 16)
	topic.produce(0, 5)
	topic.transact(0, 10, kgo.TryAbort, func() {
		// The group is behind the last stable offset, and all is lag.
		s.polls(4)
		topic.commit(s.name+"-g", 0, 25)
		s.polls(4)
	})
	w := topic.commit(s.name+"-g", 0, topic.partitions[0].end.last())
	s.polls(4)
	s.never(w, lag.StatusRewound, lag.StatusLost)
}

// A recreated topic inherits nothing: the former offsets mean nothing, and a smaller commit is no
// rewind.
func recreated(s *scenario) {
	old, beside := s.newTopic("t", 1), s.newTopic("other", 1)
	old.produce(0, 100)
	beside.produce(0, 10)
	stays := beside.commit(s.name+"-g", 0, 5)
	w := old.commit(s.name+"-g", 0, 50)
	s.pass(2 * time.Second)
	fresh := s.recreate(old, w)
	s.polls(2)
	fresh.produce(0, 60)
	again := fresh.commit(s.name+"-g", 0, 20)
	s.polls(4)
	fresh.commit(s.name+"-g", 0, 50)
	s.polls(4)
	if p := s.now(again); p.Rewinds != 0 || p.Lost != 0 {
		s.Errorf("the new topic has %d rewinds, %d lost records; want none", p.Rewinds, p.Lost)
	}
	s.never(again, lag.StatusRewound, lag.StatusLost)
	s.never(stays, lag.StatusRewound, lag.StatusLost)
}

// The topic may also be recreated between two polls, with another record at the same offset.
func recreatedUnseen(s *scenario) {
	old, beside := s.newTopic("t", 1), s.newTopic("other", 1)
	old.produce(0, 30)
	beside.produce(0, 10)
	beside.commit(s.name+"-g", 0, 5)
	w := old.commit(s.name+"-g", 0, 10)
	s.pass(2 * time.Second)
	// This collector polls so rarely that it has to search.
	r := s.startRecorder(s.T, s.config(3*time.Second, s.name+"-"))
	r.await(s.T, "first poll", after(1))
	s.recorders = append(s.recorders, r)
	fresh := s.recreate(old, w)
	fresh.produce(0, 30)
	again := fresh.commit(s.name+"-g", 0, 10)
	r.await(s.T, "two polls", after(2))
	s.never(again, lag.StatusRewound, lag.StatusLost)
}

// recreate deletes a topic and creates another of the same name.
func (s *scenario) recreate(old *topicLog, w *watch) *topicLog {
	s.Helper()
	w.until = time.Now()
	defer s.away.begin()()
	if err := localkafka.DeleteTopic(s.Context(), s.addr, old.name); err != nil {
		s.Fatal(err)
	}
	return s.newTopic(strings.TrimPrefix(old.name, s.name+"-"), len(old.partitions))
}

// Where a group has not committed it has no lag: neither -1 nor NaN. The partition is still
// counted.
func noCommit(s *scenario) {
	topic := s.newTopic("t", 2)
	topic.produce(0, 20)
	topic.produce(1, 20)
	group := s.name + "-g"
	member := topic.join(group, true)
	s.awaitMembers(group, 1)
	none := func(want int) {
		s.Helper()
		s.await("partitions without commit", func(snapshot *lag.Snapshot) bool {
			return topic.noCommits(snapshot, group) == want
		})
		s.polls(2)
		seen := s.always.all()
		shown := seen[len(seen)-1].series
		uncommitted := fmt.Sprintf(
			`kafka_consumergroup_uncommitted_partitions{consumergroup=%q,kafka_cluster="lab",topic=%q}`,
			group, topic.name)
		if got := shown[uncommitted]; got != float64(want) {
			s.Errorf("the series counts %v partitions without a commit, want %d", got, want)
		}
		lags := 0
		for name := range shown {
			if strings.HasPrefix(name, `kafka_consumergroup_lag{consumergroup="`+group+`"`) {
				lags++
			}
		}
		if lags != 2-want {
			s.Errorf("%d partitions have a lag, want %d", lags, 2-want)
		}
	}
	none(2)
	topic.commitAs(member, group, 0, 5)
	none(1)
	topic.commitAs(member, group, 1, 20)
	none(0)
}

// noCommits counts the partitions that are shown as having no commit.
func (l *topicLog) noCommits(snapshot *lag.Snapshot, group string) int {
	n := 0
	if g := snapshot.Groups[group]; g != nil && g.Topics[l.name] != nil {
		for _, p := range g.Topics[l.name].Partitions {
			if p.Status == lag.StatusNoCommit && p.Committed == -1 {
				n++
			}
		}
	}
	return n
}

// A commit beyond the end makes no negative lag, and the status shows it.
func beyondTheEnd(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 10)
	w := topic.commit(s.name+"-g", 0, 60)
	s.awaitStatus(w, lag.StatusLost)
	topic.produce(0, 10)
	s.polls(4)
	if p := s.now(w); p.Lost != 0 {
		s.Errorf("%d records are lost, but none was deleted", p.Lost)
	}
	topic.commit(s.name+"-g", 0, 20)
	s.polls(4)
}

// Records that retention deletes unread are counted once, and the lag is what is left.
func retention(s *scenario) {
	topic := s.newTopic("t", 1)
	for range 10 {
		topic.produce(0, 10)
		// The records get different ages.
		time.Sleep(50 * time.Millisecond)
	}
	w := topic.commit(s.name+"-g", 0, 20)
	s.polls(3)
	lost := func(want int64) {
		s.Helper()
		s.polls(3)
		if p := s.now(w); p.Lost != want {
			s.Errorf("%d records are lost, want %d", p.Lost, want)
		}
	}
	topic.deleteBefore(0, 10)
	lost(0)
	topic.deleteBefore(0, 60)
	s.awaitStatus(w, lag.StatusLost)
	lost(40)
	topic.deleteBefore(0, 80)
	lost(60)
	// This deletes all records.
	topic.deleteBefore(0, 100)
	lost(80)
	topic.commit(s.name+"-g", 0, 100)
	topic.produce(0, 10)
	lost(80)
	if p := s.now(w); p.Status == lag.StatusLost {
		s.Error("the status is still lost")
	}
}

// A group is still shown after its last member has left.
func dead(s *scenario, next bool) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 20)
	group := s.name + "-g"
	member := topic.join(group, next)
	s.awaitMembers(group, 1)
	w := topic.commitAs(member, group, 0, 10)
	s.polls(3)
	member.Close()
	s.awaitMembers(group, 0)
	s.awaitStatus(w, lag.StatusStopped)
	s.grows(w)
	if g := s.always.Snapshot().Groups[group]; g == nil || g.State != "Empty" {
		s.Errorf("the group is %+v, want it to be Empty", g)
	}
}

// A group that goes back and a new one at the start both have the age of what they have to read at
// once. Only the first was rewound.
func replay(s *scenario) {
	topic := s.newTopic("t", 1)
	for range 10 {
		topic.produce(0, 5)
		// The records get different ages.
		time.Sleep(100 * time.Millisecond)
	}
	old := topic.commit(s.name+"-old", 0, 50)
	s.pass(3 * time.Second)
	topic.commit(s.name+"-old", 0, 0)
	fresh := topic.commit(s.name+"-new", 0, 0)
	// If the group stays there for long it is stopped, which is worse than rewound.
	rewound := func(snapshot *lag.Snapshot) bool {
		p := old.in(snapshot)
		return p != nil && p.Rewinds == 1 && (p.Status == lag.StatusRewound || p.Status == lag.StatusStopped)
	}
	s.await("status rewound", rewound)
	for _, w := range []*watch{old, fresh} {
		topic.commit(w.group, 0, 25)
		s.polls(3)
	}
	s.await("status rewound half way", rewound)
	for _, w := range []*watch{old, fresh} {
		topic.commit(w.group, 0, 50)
	}
	s.awaitStatus(old, lag.StatusOK)
	topic.commit(s.name+"-old", 0, 49)
	s.polls(3)
	if got := s.now(old).Rewinds; got != 2 {
		s.Errorf("the group that went back twice has %d rewinds", got)
	}
	if got := s.now(fresh).Rewinds; got != 0 {
		s.Errorf("the new group has %d rewinds", got)
	}
	s.never(fresh, lag.StatusRewound, lag.StatusLost)
}

// A collector that has just started finds the age of any record exactly.
func restarted(s *scenario) {
	topic := s.newTopic("t", 3)
	for range 60 {
		for p := range int32(3) {
			topic.produce(p, 1+rand.IntN(40))
		}
		// The records get different ages.
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
	}
	for g := range 20 {
		for p := range int32(3) {
			topic.commit(s.name+"-"+string(rune('a'+g)), p, rand.Int64N(topic.partitions[p].end.last()+1))
		}
	}
	s.restart()
	s.pass(2 * time.Second)
	s.restart()
	s.polls(2)
}

// While members come and go, the group and its lag are always shown.
func rebalance(s *scenario, next bool) {
	topic := s.newTopic("t", 4)
	group := s.name + "-g"
	for p := range int32(4) {
		topic.commit(group, p, 0)
	}
	first := topic.join(group, next)
	flow := func() {
		for p := range int32(4) {
			topic.produce(p, 5)
			topic.commitAs(first, group, p, topic.partitions[p].end.last()-2)
		}
	}
	s.awaitMembers(group, 1)
	flow()
	second, third := topic.join(group, next), topic.join(group, next)
	flow()
	s.awaitMembers(group, 3)
	flow()
	second.Close()
	flow()
	third.Close()
	s.awaitMembers(group, 1)
	flow()
	s.polls(3)
	first.Close()
	s.awaitMembers(group, 0)
	s.polls(3)
}

// Added partitions are shown, also for groups that have not committed in them.
func growth(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 10)
	group := s.name + "-g"
	topic.commit(group, 0, 5)
	s.polls(3)
	// A broker lists a new partition a moment before it leads it.
	led := s.away.begin()
	if grown, err := s.admin.UpdatePartitions(s.Context(), 3, topic.name); err != nil || grown.Error() != nil {
		s.Fatal(err, grown.Error())
	}
	topic.grow(3)
	s.await("the new partitions", func(snapshot *lag.Snapshot) bool {
		g := snapshot.Groups[group]
		return g != nil && g.Topics[topic.name] != nil && len(g.Topics[topic.name].Partitions) == 3
	})
	led()
	for p := range int32(3) {
		topic.produce(p, 10)
	}
	s.await("partitions without commit", func(snapshot *lag.Snapshot) bool {
		return topic.noCommits(snapshot, group) == 2
	})
	for p := range int32(3) {
		topic.commit(group, p, 3)
	}
	s.pass(2 * time.Second)
}

// If a topic keeps the producers' timestamps and their clocks are wrong, the collector still shows
// the right age of records that it saw come. A collector that starts later has to use the
// timestamps. It is wrong by as much as the clocks are, and never negative.
func clockSkew(s *scenario) {
	const skew = 10 * time.Minute
	topic := s.newTopic("t", 3, "message.timestamp.type", "CreateTime")
	for p := range int32(3) {
		topic.commit(s.name+"-g", p, 0).skew = skew
	}
	// After this poll the collector has seen the topic.
	s.polls(1)
	for range 10 {
		topic.produceAs(0, "key", 5, skew)
		topic.produceAs(1, "key", 5, -skew)
		topic.produceAs(2, "key", 5, time.Duration(rand.Int64N(int64(2*skew)))-skew)
		// The records get different ages.
		time.Sleep(50 * time.Millisecond)
	}
	for p := range int32(3) {
		topic.commit(s.name+"-g", p, 20)
	}
	s.pass(2 * time.Second)
	s.restart()
	s.pass(2 * time.Second)
}

// Records may have no timestamp. A collector that saw them come knows their ages. One that starts
// later does not: it shows none, and at least that of the next record that has a timestamp.
func noTimestamps(s *scenario) {
	topic := s.newTopic("t", 1, "message.timestamp.type", "CreateTime")
	w := topic.commit(s.name+"-g", 0, 0)
	w.vague = true
	// After this poll the collector has seen the topic.
	s.polls(1)
	topic.produceAs(0, "key", 10, noTimestamp)
	topic.commit(s.name+"-g", 0, 4)
	s.pass(2 * time.Second)
	topic.produce(0, 5)
	next := topic.partitions[0].records[10]
	s.pass(time.Second)
	r := s.restart()
	s.pass(time.Second)
	for _, o := range r.all() {
		p := w.in(o.Snapshot)
		if p == nil {
			continue
		}
		if least := o.Time.Sub(next.to) - searchAllowance; !p.AgeUnknown || p.Age < least {
			s.Errorf("to a collector that did not see the record come it is %v old (unknown: %v), want at least %v",
				p.Age, p.AgeUnknown, least)
		}
	}
}

// A share group's lag begins at its first record that is not acknowledged, and its age is that of
// this record, also after its last member has left. Kafka writes the position down one acknowledgement
// later; when nothing was left the collector knows better.
func shareGroup(s *scenario) {
	topic := s.newTopic("t", 1)
	group := s.name + "-g"
	testenv.ReadShareGroupFromTheStart(s, s.addr, group)
	topic.produce(0, 10)
	left := func(position, records int64) func(*lag.Snapshot) bool {
		return func(snapshot *lag.Snapshot) bool {
			g := snapshot.Groups[group]
			if g == nil || g.Topics[topic.name] == nil {
				return false
			}
			p := g.Topics[topic.name].Partitions[0]
			return p.Committed == position && p.Records == records
		}
	}
	s.acknowledge(topic, group, 10, 10)
	s.await("all is acknowledged", left(10, 0))
	at := func(position int64) *watch {
		now := time.Now()
		w := &watch{group: group, topic: topic, since: now, commits: timeline{{now, now, position}}}
		s.watches = append(s.watches, w)
		return w
	}
	w := at(10)
	topic.produce(0, 6)
	s.await("six more records", left(10, 6))
	s.pass(time.Second)
	// Until both acknowledgements are written down the position and the number do not go together.
	w.until = time.Now()
	s.acknowledge(topic, group, 16, 12)
	s.await("four records that are not acknowledged", left(12, 4))
	w = at(12)
	s.awaitStatus(w, lag.StatusStopped)
	s.restart()
	s.pass(time.Second)
}

// acknowledge reads the records up to an offset as a member of a share group. It accepts those before
// another offset, then gives the others back, and leaves the group.
func (s *scenario) acknowledge(topic *topicLog, group string, to, before int64) {
	s.Helper()
	member := s.client(kgo.ShareGroup(group), kgo.ConsumeTopics(topic.name))
	flush := func() {
		// An acknowledgement that comes later than 30 s does not count.
		if err := member.FlushAcks(s.Context()); err != nil {
			s.Fatalf("acknowledge: %v", err)
		}
	}
	for next := int64(0); next < to && s.Context().Err() == nil; {
		var others []*kgo.Record
		member.PollFetches(s.Context()).EachRecord(func(r *kgo.Record) {
			next = max(next, r.Offset+1)
			if r.Offset < before {
				r.Ack(kgo.AckAccept)
			} else {
				others = append(others, r)
			}
		})
		flush()
		for _, r := range others {
			r.Ack(kgo.AckRelease)
		}
		flush()
	}
	s.awaitMembers(group, 1)
	member.Close()
}

// A collector that may not see one of a group's topics shows the lag in the others. Kafka hides all
// members of such a group, so their number is unknown.
func hiddenTopic(s *scenario, k *testenv.SecureKafka) {
	open, secret := s.newTopic("t", 2), s.newTopic("secret", 1)
	group := s.name + "-g"
	k.Allow(s.T, "lag", "topic "+open.name+" Describe", "group "+group+" Describe")
	s.away.begin()
	member := s.client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(open.name, secret.name), kgo.DisableAutoCommit(),
		kgo.Balancers(kgo.RangeBalancer()), kgo.ServerSideBalancer())
	for p := range int32(2) {
		open.produce(p, 10)
		open.commitAs(member, group, p, 4).steady = true
	}
	secret.produce(0, 10)
	s.pass(3 * time.Second)
	for p := range int32(2) {
		open.commitAs(member, group, p, 10)
	}
	s.pass(time.Second)
	for _, o := range s.always.all() {
		for name := range o.series {
			if strings.Contains(name, secret.name) && !strings.HasPrefix(name, "lag_collector_unauthorized") {
				s.Fatalf("the hidden topic has the series %s", name)
			}
		}
	}
	if g := s.always.Snapshot().Groups[group]; g == nil || g.Members != -1 || !g.TopicsHidden {
		s.Errorf("the group is %+v, want its members to be unknown", g)
	}
}

// after returns a condition that is met by the snapshot after n others.
func after(n int) func(*lag.Snapshot) bool {
	return func(*lag.Snapshot) bool { n--; return n < 0 }
}

// never checks that a partition had none of some statuses.
func (s *scenario) never(w *watch, statuses ...lag.Status) {
	s.Helper()
	for _, o := range s.always.all() {
		if o.Time.Before(w.since) || !w.until.IsZero() && o.Time.Add(o.Took).After(w.until) {
			continue
		}
		if p := w.in(o.Snapshot); p != nil {
			for _, status := range statuses {
				if p.Status == status {
					s.Errorf("%v: status %s at %s", w, status, o.Time.Format("15:04:05.000"))
					return
				}
			}
		}
	}
}

// now returns the partition in the last snapshot.
func (s *scenario) now(w *watch) *lag.Partition {
	s.Helper()
	p := w.in(s.always.Snapshot())
	if p == nil {
		s.Fatalf("%v: the partition is absent", w)
	}
	return p
}

// grows checks that the age grew from poll to poll since the last commit.
func (s *scenario) grows(w *watch) {
	s.Helper()
	var before time.Duration
	for _, o := range s.always.all() {
		if p := w.in(o.Snapshot); p != nil && o.Time.After(w.commits[len(w.commits)-1].to) {
			if p.Age <= before {
				s.Errorf("%v: the age was %v and is %v", w, before, p.Age)
			}
			before = p.Age
		}
	}
}
