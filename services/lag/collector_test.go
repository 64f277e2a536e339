package lag

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What this process has seen is held against what Kafka's timestamps say: they are asked for where it has not looked, and are believed only
// as far as they fit.
func TestAges(t *testing.T) {
	t.Parallel()
	const minute = time.Minute
	for _, tt := range []struct {
		name    string
		stamped time.Duration // the record's timestamp, after the first poll
		seen    bool          // the poll before the record came saw the log
		gap     time.Duration // from the first poll to the second, in which the record comes, unless it was there at the first
		want    time.Duration // its age at the second
		within  time.Duration
		silent  bool // Kafka does not tell timestamps: the age is the least that it can be
	}{
		{"between two polls", 3 * time.Second, true, 5 * time.Second, 2500 * time.Millisecond, 2500 * time.Millisecond, false},
		{"between two polls, by a producer whose clock is wrong", -24 * time.Hour, true, 5 * time.Second, 2500 * time.Millisecond, 2500 * time.Millisecond, true},
		{"while nothing could be read", 9 * minute, true, 10 * minute, minute, 0, false},
		{"while nothing could be read, and nothing is told", 9 * minute, true, 10 * minute, 0, 0, true},
		{"while nothing could be read, by a clock that is behind", -24 * time.Hour, true, 10 * minute, 10 * minute, 0, false},
		{"while nothing could be read, by a clock that is ahead", 24 * time.Hour, true, 10 * minute, 0, 0, false},
		{"before the first poll", -24 * time.Hour, false, 5 * time.Second, 24*time.Hour + 5*time.Second, 0, false},
		{"before the first poll, and nothing is told", -24 * time.Hour, false, 5 * time.Second, 5 * time.Second, 0, true},
		{"before the first poll, by a clock that is ahead: it was there at the first", 24 * time.Hour, false, 5 * time.Second, 5 * time.Second, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "t"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			addr := cluster.ListenAddrs()[0]
			c := connect(t, Config{Kafka: Kafka{Brokers: []string{addr}}, Groups: regexp.MustCompile("")})
			now := time.Now().Truncate(time.Millisecond)
			c.now, c.began = func() time.Time { return now }, now
			first := now
			produceAt := func(at time.Time) {
				t.Helper()
				if err := newClient(t, addr).ProduceSync(t.Context(), &kgo.Record{Topic: "t", Value: []byte("v"), Timestamp: at}).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			commit(t, addr, "g", "t", 0, 1)
			produceAt(now.Add(-48 * time.Hour))
			var silent atomic.Bool
			silent.Store(tt.silent)
			cluster.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				if !silent.Load() || req.(*kmsg.ListOffsetsRequest).Topics[0].Partitions[0].Timestamp < 0 {
					return nil, nil, false
				}
				resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
				p := kmsg.NewListOffsetsResponseTopicPartition()
				p.ErrorCode = kerr.TopicAuthorizationFailed.Code // one that is not tried again
				resp.Topics = []kmsg.ListOffsetsResponseTopic{{Topic: "t", Partitions: []kmsg.ListOffsetsResponseTopicPartition{p}}}
				return resp, nil, true
			})
			if !tt.seen {
				produceAt(now.Add(tt.stamped))
			}
			c.mustPoll(t)
			if tt.seen {
				produceAt(first.Add(tt.stamped))
			}
			now = first.Add(tt.gap)
			p := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]
			unknown := tt.silent && tt.within == 0
			if p.Records != 1 || (p.Age-tt.want).Abs() > tt.within || p.AgeUnknown != unknown {
				t.Errorf("%d records of %v (unknown %v), want 1 of %v ± %v (%v)", p.Records, p.Age, p.AgeUnknown, tt.want, tt.within, unknown)
			}
			if shown := len(scrape(t, c, "kafka_consumergroup_lag_seconds", "kafka_consumergroup_topic_max_lag_seconds")); (shown == 0) != unknown {
				t.Errorf("%d ages are shown", shown)
			}
			// Nothing moves: it grows with time alone.
			now = now.Add(7 * time.Second)
			if q := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]; q.Age != p.Age+7*time.Second {
				t.Errorf("seven seconds later it is of %v, before of %v", q.Age, p.Age)
			}
			silent.Store(false)
			if q := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]; q.AgeUnknown {
				t.Error("once timestamps are told, the age is not known yet")
			}
		})
	}
}

// A log that was cut has other records at the same offsets: what is known of the former ones is worth nothing. The same after nothing was
// unread.
func TestAgesOfACutLog(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 0, 1)
	commit(t, cluster.ListenAddrs()[0], "g", "t", 0, 5)
	c := connect(t, Config{Kafka: Kafka{Brokers: cluster.ListenAddrs()}, Groups: regexp.MustCompile("")})
	now := time.Now().Truncate(time.Millisecond)
	c.now, c.began = func() time.Time { return now }, now
	var log atomic.Pointer[fakeLog]
	cluster.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		p := kmsg.NewListOffsetsResponseTopicPartition()
		switch at := req.(*kmsg.ListOffsetsRequest).Topics[0].Partitions[0].Timestamp; at {
		case timeStart:
			p.Offset = 0
		case timeEnd:
			p.Offset = int64(len(*log.Load()))
		default:
			a := log.Load().first(at)
			p.Offset, p.Timestamp = a.offset, a.time
		}
		resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
		resp.Topics = []kmsg.ListOffsetsResponseTopic{{Topic: "t", Partitions: []kmsg.ListOffsetsResponseTopicPartition{p}}}
		return resp, nil, true
	})
	for _, tt := range []struct {
		when string
		end  int
		age  time.Duration // of record 5 and those behind it
	}{
		{"at first", 10, time.Hour},
		{"cut to 8, with other records from 5 on", 8, time.Minute},
		{"cut to 5", 5, 0},
		{"grown again", 9, 2500 * time.Millisecond},
	} {
		records := make(fakeLog, tt.end)
		for i := range records {
			records[i] = answer{int64(i), now.Add(-2 * time.Hour).UnixMilli(), nil}
			if i >= 5 {
				records[i].time = now.Add(-tt.age).UnixMilli()
			}
		}
		log.Store(&records)
		p := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]
		if (p.Age-tt.age).Abs() > 2500*time.Millisecond || p.AgeUnknown {
			t.Errorf("%s: the age is %v, want %v", tt.when, p.Age, tt.age)
		}
		now = now.Add(5 * time.Second)
	}

	// Without any sign of a cut.
	tr := c.track("g", place{"t", c.topicID("t"), 0})
	g := map[string]*group{"g": {name: "g", commits: map[string]map[int32]int64{"t": {0: 5}}}}
	for _, stable := range []int64{9, 5} {
		c.findAges(t.Context(), g, map[string]*topic{"t": {c.topicID("t"), map[int32]logBounds{0: {stable: stable, end: 9}}}})
		if want := stable > 5; tr.known != want {
			t.Errorf("up to %d the first unread record's time is known: %v, want %v", stable, tr.known, want)
		}
	}
}

// topicID is that of the only topic.
func (c *Collector) topicID(name string) [16]byte {
	for p := range c.histories {
		if p.topic == name {
			return p.id
		}
	}
	return [16]byte{}
}

// In a rebalance of the classic protocol the coordinator does not say what members read: what they read before counts.
func TestReadsInRebalance(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	poll := func(g group, errs ...*ReadError) *group {
		c.keep(map[string]*group{g.name: &g}, errs)
		return &g
	}
	stable := group{name: "g", members: 1}
	stable.reads.assign("t", []int32{0, 1})
	if poll(stable); len(c.groups) != 1 {
		t.Fatalf("%d groups are kept", len(c.groups))
	}
	again := poll(group{name: "g", members: 2, reads: subscription{untold: true}})
	if !again.reads.to("t") || again.reads.to("u") || again.reads.untold {
		t.Errorf("in the rebalance it reads %+v", again.reads)
	}
	if empty := poll(group{name: "g"}); empty.reads.to("t") {
		t.Error("an empty group reads")
	}
	if unknown := poll(group{name: "g", members: 1, reads: subscription{untold: true}}); !unknown.reads.to("t") {
		t.Error("members that have just come are taken to read nothing")
	}

	// A group that could not be read in one poll is not a new one in the next.
	known := c.groups["g"]
	c.keep(nil, []*ReadError{{API: "OffsetFetch", Group: "g", Err: kerr.CoordinatorNotAvailable}})
	if poll(stable); c.groups["g"] != known {
		t.Error("a group is forgotten because of an error")
	}
	if c.keep(nil, nil); len(c.groups) != 0 {
		t.Error("a group that is gone is not forgotten")
	}
}

// What was remembered of a topic goes with it, and with the one that it was before it was made anew; not because it cannot be read.
func TestForgetsTopics(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	c.keep(map[string]*group{"g": {name: "g"}}, nil)
	observe := func(want int, logs map[string]*topic, errs ...*ReadError) {
		t.Helper()
		c.observe(logs, errs, 0, 0)
		for name, topic := range logs {
			c.track("g", place{name, topic.id, 0})
		}
		if len(c.histories) != want || len(c.groups["g"].tracks) != want {
			t.Errorf("%d histories and %d tracks are kept, want %d of each", len(c.histories), len(c.groups["g"].tracks), want)
		}
	}
	logs := map[int32]logBounds{0: {end: 3, stable: 3}}
	observe(2, map[string]*topic{"t": {[16]byte{1}, logs}, "u": {[16]byte{2}, logs}})
	observe(2, map[string]*topic{"t": {[16]byte{3}, logs}, "u": {[16]byte{2}, logs}})
	observe(2, map[string]*topic{"t": {[16]byte{3}, logs}}, &ReadError{API: "Metadata", Topic: "u", Err: kerr.TopicAuthorizationFailed})
	observe(1, map[string]*topic{"t": {[16]byte{3}, logs}})
	observe(0, nil)
}

// Members that the fake or an old coordinator cannot show are read as Kafka 4 sends them.
func TestDescriptions(t *testing.T) {
	t.Parallel()
	var consumer, connect, share group
	metadata := kmsg.ConsumerMemberMetadata{Topics: []string{"t", "u"}}
	assignment := kmsg.ConsumerMemberAssignment{Topics: []kmsg.ConsumerMemberAssignmentTopic{{Topic: "t", Partitions: []int32{1}}}}
	member := kmsg.DescribeGroupsResponseGroupMember{ProtocolMetadata: metadata.AppendTo(nil), MemberAssignment: assignment.AppendTo(nil)}
	describe := func(g *group, protocol, state string) {
		g.classic(kmsg.DescribeGroupsResponseGroup{State: state, ProtocolType: protocol, Members: []kmsg.DescribeGroupsResponseGroupMember{member}})
	}
	describe(&consumer, "consumer", "Stable")
	if r := consumer.reads; consumer.members != 1 || !r.to("t") || !r.to("u") || r.to("v") || !r.assigned["t"][1] || r.assigned["t"][0] {
		t.Errorf("a consumer is read as %+v", consumer)
	}
	describe(&connect, "connect", "Stable")
	if connect.members != 1 || len(connect.reads.topics) != 0 {
		t.Errorf("a worker of Kafka Connect is read as %+v", connect)
	}
	describe(&share, "consumer", "CompletingRebalance")
	if !share.reads.untold {
		t.Errorf("a member in a rebalance is read as %+v", share)
	}

	var byPattern group
	byPattern.consumer(kmsg.ConsumerGroupDescribeResponseGroup{Members: []kmsg.ConsumerGroupDescribeResponseGroupMember{{SubscribedTopicRegex: new("t.*|x")}}})
	for topic, want := range map[string]bool{"t": true, "tea": true, "x": true, "at": false, "xx": false} {
		if got := byPattern.reads.to(topic); got != want {
			t.Errorf("a pattern reads %s: %v, want %v", topic, got, want)
		}
	}
}

// Share groups commit nothing, so there is no lag to tell.
func TestShareGroupsAreLeftOut(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	c := connect(t, Config{Kafka: Kafka{Brokers: cluster.ListenAddrs()}, Groups: regexp.MustCompile("")})
	cluster.ControlKey(int16(kmsg.ListGroups), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
		for _, kind := range []string{"share", "consumer", "streams", "classic"} {
			resp.Groups = append(resp.Groups, kmsg.ListGroupsResponseGroup{Group: kind, GroupType: kind, GroupState: "Empty"})
		}
		return resp, nil, true
	})
	s := c.mustPoll(t)
	if len(s.Groups) != 3 || s.Groups["share"] != nil || s.Groups["streams"] == nil {
		t.Errorf("watched are %v", s.Groups)
	}
}

// Who the members of a kind of group are that is newer than this program, it cannot tell: it does not say that there are none.
func TestGroupOfAnUnknownKind(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 1, 1)
	c := connect(t, Config{Kafka: Kafka{Brokers: cluster.ListenAddrs()}, Groups: regexp.MustCompile("")})
	var state atomic.Value
	var failing atomic.Bool
	cluster.ControlKey(int16(kmsg.ListGroups), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
		if failing.Load() {
			resp.ErrorCode = kerr.ClusterAuthorizationFailed.Code
		} else if cluster.CurrentNode() == cluster.CoordinatorFor("g00") {
			resp.Groups = []kmsg.ListGroupsResponseGroup{{Group: "g00", GroupType: "novel", GroupState: state.Load().(string)}}
		}
		return resp, nil, true
	})
	for _, tt := range []struct{ state, want, members string }{
		{"Stable", "novel Stable -1 members, 1 of 1 committed, subscribed true, unassigned 0", ""},
		{"Empty", "novel Empty 0 members, 1 of 1 committed, subscribed false, unassigned 0", " 0"},
	} {
		state.Store(tt.state)
		for _, list := range []string{"listed", "not listed"} {
			failing.Store(list == "not listed")
			if got := summary(c.mustPoll(t), "g00"); got != tt.want {
				t.Errorf("%s: it is %q, want %q", list, got, tt.want)
			}
			if got := strings.Join(scrape(t, c, "kafka_consumergroup_members"), ""); !strings.HasSuffix(got, tt.members) || (got == "") != (tt.members == "") {
				t.Errorf("%s, %s: shown is %q", tt.state, list, got)
			}
		}
	}
}

// A whole failure is logged once, however its text changes.
func TestReport(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	var log bytes.Buffer
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	var former error
	for _, tt := range []struct {
		err  error
		want int
	}{
		{&ReadError{API: "Metadata", Err: errors.New("read 127.0.0.1:50001->127.0.0.1:9092: reset")}, 1},
		{&ReadError{API: "Metadata", Err: errors.New("read 127.0.0.1:50002->127.0.0.1:9092: reset")}, 1},
		{&ReadError{API: "Metadata", Err: context.DeadlineExceeded}, 2},
		{&ReadError{API: "ListGroups", Err: context.DeadlineExceeded}, 3},
	} {
		err := fmt.Errorf("read cluster lab: %w", tt.err)
		c.report(former, &result{err: err})
		if got := strings.Count(log.String(), "level=ERROR"); got != tt.want {
			t.Errorf("after %v there are %d lines, want %d", err, got, tt.want)
		}
		former = err
	}
}
