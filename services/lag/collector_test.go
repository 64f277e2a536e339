package lag

import (
	"regexp"
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
	}{
		{"between two polls", 3 * time.Second, true, 5 * time.Second, 2500 * time.Millisecond, 2500 * time.Millisecond},
		{"between two polls, by a producer whose clock is wrong", -24 * time.Hour, true, 5 * time.Second, 2500 * time.Millisecond, 2500 * time.Millisecond},
		{"while nothing could be read", 9 * minute, true, 10 * minute, minute, 0},
		{"while nothing could be read, by a clock that is behind", -24 * time.Hour, true, 10 * minute, 10 * minute, 0},
		{"while nothing could be read, by a clock that is ahead", 24 * time.Hour, true, 10 * minute, 0, 0},
		{"before the first poll", -24 * time.Hour, false, 5 * time.Second, 24*time.Hour + 5*time.Second, 0},
		{"before the first poll, by a clock that is ahead: it was there at the first", 24 * time.Hour, false, 5 * time.Second, 5 * time.Second, 0},
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
			if !tt.seen {
				produceAt(now.Add(tt.stamped))
			}
			c.mustPoll(t)
			if tt.seen {
				produceAt(first.Add(tt.stamped))
			}
			now = first.Add(tt.gap)
			p := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]
			if p.Records != 1 || (p.Age-tt.want).Abs() > tt.within {
				t.Errorf("%d records of %v, want 1 of %v ± %v", p.Records, p.Age, tt.want, tt.within)
			}
			// Nothing moves: it grows with time alone.
			now = now.Add(7 * time.Second)
			if q := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]; q.Age != p.Age+7*time.Second {
				t.Errorf("seven seconds later it is of %v, before of %v", q.Age, p.Age)
			}
		})
	}
}

// In a rebalance of the classic protocol the coordinator does not say what members read: what they read before counts.
func TestReadsInRebalance(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	poll := func(g group, errs ...*ReadError) *group {
		c.keep(map[string]*group{g.name: &g}, errs, someday)
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
	since := c.groups["g"].since
	c.keep(nil, []*ReadError{{API: "OffsetFetch", Group: "g", Err: kerr.CoordinatorNotAvailable}}, someday.Add(time.Minute))
	if poll(stable); c.groups["g"].since != since {
		t.Error("a group is forgotten because of an error")
	}
	if c.keep(nil, nil, someday); len(c.groups) != 0 {
		t.Error("a group that is gone is not forgotten")
	}
}

// What was remembered of a topic goes with it, and with the one that it was before it was made anew; not because it cannot be read.
func TestForgetsTopics(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	c.keep(map[string]*group{"g": {name: "g"}}, nil, someday)
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
