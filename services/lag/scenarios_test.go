package lag_test

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/lag"
)

// The collector tells the truth, in every scenario here, beside all the others and to the end: records are exact, ages are off by no
// more than a poll's interval, and every group is in every snapshot and every scrape.
func TestScenarios(t *testing.T) {
	k, err := localkafka.Start(t.Context(), localkafka.Options{Dir: t.TempDir(), Settings: map[string]string{
		"log.cleaner.backoff.ms":    "100", // or compaction waits for 15 s
		"broker.session.timeout.ms": "",    // a busy machine must not fence the broker
	}})
	testenv.Require(t, err)
	t.Cleanup(k.Kill)
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(k.Addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	awaitGroups(t, admin)
	l := &lab{addr: k.Addr, admin: admin}
	l.beside = startExporters(t, k.Addr)
	for _, e := range l.beside {
		e.watch(t)
	}
	l.always = startRecorder(t, l.config(pollInterval, ".*"))
	var playing sync.WaitGroup
	for name, play := range scenarios() {
		playing.Go(func() { // they wait for the most part: no need to be as few as there are processors
			t.Run(name, func(t *testing.T) {
				s := &scenario{T: t, lab: l, name: strings.NewReplacer(" ", "-", ",", "").Replace(name), recorders: []*recorder{l.always}}
				play(s)
				s.check()
			})
		})
	}
	playing.Wait()
	t.Log(l.table())
}

// awaitGroups has the broker make the topics behind groups and transactions.
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
	return lag.Config{Name: "lab", Kafka: lag.Kafka{Brokers: []string{l.addr}}, Interval: interval, Groups: regexp.MustCompile("^" + groups)}
}

// restart starts another collector, which knows nothing of what was, and waits for its first snapshot.
func (s *scenario) restart() *recorder {
	s.Helper()
	r := startRecorder(s.T, s.config(pollInterval, s.name+"-"))
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
		"stalled, new protocol": func(s *scenario) { stalled(s, true) },
		"stalled, classic":      func(s *scenario) { stalled(s, false) },
		"idle producer":         idleProducer,
		"empty topic":           emptyTopic,
		"compacted":             compacted,
		"transactions":          transactions,
		"topic made anew":       madeAnew,
		"made anew unseen":      madeAnewUnseen,
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
	}
}

// A group that keeps up is ok all the time, and never older than it lets records wait. It always leaves some unread, so it never has
// nothing to read: a collector that read the ends of logs before the commits would say so now and then.
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
		if pause < time.Second { // or the machine was too busy to keep it up
			s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusStopped)
		}
		for _, o := range s.always.observations() {
			if p := w.in(o.Snapshot); p != nil && p.Committed >= 0 && p.Records == 0 {
				s.Errorf("%v: nothing is unread at %s", w, o.Time.Format("15:04:05.000"))
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

// A group whose consumers are gone: the age grows while the producer goes on, and when it is idle.
func stopped(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 20)
	w := topic.commit(s.name+"-g", 0, 10)
	for range 20 {
		topic.produce(0, 5)
		time.Sleep(50 * time.Millisecond)
	}
	s.awaitStatus(w, lag.StatusStopped)
	s.pass(3 * time.Second)
	s.grows(w)
	s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusRewound, lag.StatusLost)
}

// A group that has a consumer which does nothing.
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

// All is read and nothing comes: 0, however long. The first record after that counts from its own time.
func idleProducer(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 20)
	w := topic.commit(s.name+"-g", 0, 20)
	s.pass(6 * time.Second)
	s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusStopped, lag.StatusRewound, lag.StatusLost, lag.StatusNoCommit)
	topic.produce(0, 1)
	s.pass(time.Second)
}

func emptyTopic(s *scenario) {
	topic := s.newTopic("t", 2)
	topic.commit(s.name+"-g", 0, 0)
	w := topic.commit(s.name+"-g", 1, 0)
	s.pass(4 * time.Second)
	s.never(w, lag.StatusSlow, lag.StatusStalled, lag.StatusStopped, lag.StatusRewound, lag.StatusLost, lag.StatusNoCommit)
}

// The first unread record was compacted away: a consumer would begin with the next one that is left. A collector that saw the first one
// come says that one's age. One that has to search cannot tell a record that is missing from one in the middle of a batch: it says the
// age of the one before, if that is left. It is too much then, and never too little.
func compacted(s *scenario) {
	topic := s.newTopic("t", 2, "cleanup.policy", "compact", "segment.ms", "500", "min.cleanable.dirty.ratio", "0.001")
	topic.commit(s.name+"-g", 0, 0)
	topic.commit(s.name+"-g", 1, 0)
	s.polls(1)                           // now it has the topic in view
	topic.produceAs(1, "only one", 1, 0) // stays
	for range 10 {
		topic.produce(0, 10)
		topic.produce(1, 10)
		time.Sleep(100 * time.Millisecond)
	}
	for p := range int32(2) {
		topic.commit(s.name+"-g", p, 35)
	}
	for topic.compact(); !topic.partitions[0].records[35].gone || !topic.partitions[1].records[35].gone; topic.compact() {
		topic.produce(0, 1) // rolls the segment
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
		s.recorders = s.recorders[:1] // compaction went on while that one searched
	}
}

// compact notes what compaction has taken, and returns how many records are left.
func (l *topicLog) compact() int {
	l.Helper()
	type place struct {
		partition int32
		offset    int64
	}
	left := make(map[place]bool)
	for _, r := range testenv.ReadAll(l.T, l.addr, l.name) {
		left[place{r.Partition, r.Offset}] = true
	}
	for p, log := range l.partitions {
		for i, r := range log.records {
			log.records[i].gone = !left[place{int32(p), r.offset}]
		}
	}
	return len(left)
}

// Readers of committed transactions come up to the first open one: what is behind it is no lag, and is shown by itself. What a
// transaction ends with takes an offset as a record does.
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
	topic.commit(s.name+"-g", 0, 15) // only the marker is left
	s.polls(3)
	topic.commit(s.name+"-g", 0, 16)
	s.polls(3)
	topic.transact(0, 5, kgo.TryAbort, open(5))
	s.polls(3)
	w := topic.commit(s.name+"-g", 0, 22)
	s.polls(3)
	s.never(w, lag.StatusRewound, lag.StatusLost)
}

// A topic made anew begins anew: what was known of the old one's offsets is worth nothing, and an offset that is less is no rewind.
func madeAnew(s *scenario) {
	old, beside := s.newTopic("t", 1), s.newTopic("other", 1)
	old.produce(0, 100)
	beside.produce(0, 10)
	stays := beside.commit(s.name+"-g", 0, 5)
	w := old.commit(s.name+"-g", 0, 50)
	s.pass(2 * time.Second)
	fresh := s.makeAnew(old, w)
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

// The same between two polls: same name, same offset, another record.
func madeAnewUnseen(s *scenario) {
	old, beside := s.newTopic("t", 1), s.newTopic("other", 1)
	old.produce(0, 30)
	beside.produce(0, 10)
	beside.commit(s.name+"-g", 0, 5)
	w := old.commit(s.name+"-g", 0, 10)
	s.pass(2 * time.Second)
	r := startRecorder(s.T, s.config(3*time.Second, s.name+"-")) // it has to search
	r.await(s.T, "first poll", after(1))
	s.recorders = append(s.recorders, r)
	fresh := s.makeAnew(old, w)
	fresh.produce(0, 30)
	again := fresh.commit(s.name+"-g", 0, 10)
	r.await(s.T, "two polls", after(2))
	s.never(again, lag.StatusRewound, lag.StatusLost)
}

// makeAnew deletes a topic and makes another of the same name.
func (s *scenario) makeAnew(old *topicLog, w *watch) *topicLog {
	s.Helper()
	w.until = time.Now()
	if err := localkafka.DeleteTopic(s.Context(), s.addr, old.name); err != nil {
		s.Fatal(err)
	}
	return s.newTopic(strings.TrimPrefix(old.name, s.name+"-"), len(old.partitions))
}

// Where a group has not committed there is no lag: no -1, no NaN, and no silence either.
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
		seen := s.always.observations()
		shown := seen[len(seen)-1].series
		if got := shown[`kafka_consumergroup_uncommitted_partitions{consumergroup="`+group+`",kafka_cluster="lab",topic="`+topic.name+`"}`]; got != float64(want) {
			s.Errorf("%v partitions without commit are shown, want %d", got, want)
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

// noCommits counts the partitions that are told to be without a commit.
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

// A commit beyond the end is no negative lag, and is told.
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

// Retention takes records that were not read: they are counted, once, and the lag is what is left.
func retention(s *scenario) {
	topic := s.newTopic("t", 1)
	for range 10 {
		topic.produce(0, 10)
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
	topic.deleteBefore(0, 100) // all of them
	lost(80)
	topic.commit(s.name+"-g", 0, 100)
	topic.produce(0, 10)
	lost(80)
	if p := s.now(w); p.Status == lag.StatusLost {
		s.Error("it is still lost")
	}
}

// A group whose last member has left is told on.
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

// A group that goes back, and one that begins at the start, are as old at once as what they have to read. Only the first was rewound.
func replay(s *scenario) {
	topic := s.newTopic("t", 1)
	for range 10 {
		topic.produce(0, 5)
		time.Sleep(100 * time.Millisecond)
	}
	old := topic.commit(s.name+"-old", 0, 50)
	s.pass(3 * time.Second)
	topic.commit(s.name+"-old", 0, 0)
	fresh := topic.commit(s.name+"-new", 0, 0)
	// It is stopped, which is worse, when it stays there for long.
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

// A collector that has just been started finds the age of any record exactly.
func restarted(s *scenario) {
	topic := s.newTopic("t", 3)
	for range 60 {
		for p := range int32(3) {
			topic.produce(p, 1+rand.IntN(40))
		}
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

// While members come and go, the group and its lag are told all the time.
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

// Partitions that are added are seen, by groups that have not committed in them too.
func growth(s *scenario) {
	topic := s.newTopic("t", 1)
	topic.produce(0, 10)
	group := s.name + "-g"
	topic.commit(group, 0, 5)
	s.polls(3)
	if grown, err := s.admin.UpdatePartitions(s.Context(), 3, topic.name); err != nil || grown.Error() != nil {
		s.Fatal(err, grown.Error())
	}
	topic.grow(3)
	s.await("the new partitions", func(snapshot *lag.Snapshot) bool {
		g := snapshot.Groups[group]
		return g != nil && g.Topics[topic.name] != nil && len(g.Topics[topic.name].Partitions) == 3
	})
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

// Where the topic keeps the producers' time and their clocks are wrong, the collector's own observation still gives the right age: it
// goes by when it saw the record. Only one that did not see the record come, being started later, has to believe the timestamps: what
// it says is wrong by as much as the clocks, and never negative.
func clockSkew(s *scenario) {
	const skew = 10 * time.Minute
	topic := s.newTopic("t", 3, "message.timestamp.type", "CreateTime")
	for p := range int32(3) {
		topic.commit(s.name+"-g", p, 0).skew = skew
	}
	s.polls(1) // now it has the topic in view
	for range 10 {
		topic.produceAs(0, "key", 5, skew)
		topic.produceAs(1, "key", 5, -skew)
		topic.produceAs(2, "key", 5, time.Duration(rand.Int64N(int64(2*skew)))-skew)
		time.Sleep(50 * time.Millisecond)
	}
	for p := range int32(3) {
		topic.commit(s.name+"-g", p, 20)
	}
	s.pass(2 * time.Second)
	s.restart()
	s.pass(2 * time.Second)
}

// after returns a condition that is met at the nth snapshot.
func after(n int) func(*lag.Snapshot) bool {
	return func(*lag.Snapshot) bool { n--; return n < 0 }
}

// never says that a partition had none of some statuses.
func (s *scenario) never(w *watch, statuses ...lag.Status) {
	s.Helper()
	for _, o := range s.always.observations() {
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

// now is what the last snapshot says.
func (s *scenario) now(w *watch) *lag.Partition {
	s.Helper()
	p := w.in(s.always.Snapshot())
	if p == nil {
		s.Fatalf("%v: the snapshot is silent", w)
	}
	return p
}

// grows says that the age did not once become less while there was no commit.
func (s *scenario) grows(w *watch) {
	s.Helper()
	var before time.Duration
	for _, o := range s.always.observations() {
		if p := w.in(o.Snapshot); p != nil && o.Time.After(w.commits[len(w.commits)-1].to) {
			if p.Age <= before {
				s.Errorf("%v: the age was %v and is %v", w, before, p.Age)
			}
			before = p.Age
		}
	}
}
