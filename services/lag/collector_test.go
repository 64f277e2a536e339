package lag

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Ages come from what this process has seen and, where it has not looked, from Kafka's timestamps.
// Timestamps count only as far as they fit what was seen.
func TestAges(t *testing.T) {
	t.Parallel()
	const minute = time.Minute
	for _, tt := range []struct {
		name string
		// stamped is the record's timestamp, counted from the first poll.
		stamped time.Duration
		// seen means that a poll saw the log before the record came.
		seen bool
		// gap is the time between the two polls. The record comes in it if seen is set.
		gap time.Duration
		// want is the age at the second poll.
		want   time.Duration
		within time.Duration
		// silent means that Kafka returns no timestamps. The age is then the least that it can be.
		silent bool
	}{
		{
			"between two polls",
			3 * time.Second, true, 5 * time.Second, 2500 * time.Millisecond, 2500 * time.Millisecond, false,
		},
		{
			"between two polls, with a wrong producer clock",
			-24 * time.Hour, true, 5 * time.Second, 2500 * time.Millisecond, 2500 * time.Millisecond, true,
		},
		{"during a gap between polls", 9 * minute, true, 10 * minute, minute, 0, false},
		{"during a gap, without timestamps", 9 * minute, true, 10 * minute, 0, 0, true},
		{"during a gap, with a clock that is behind", -24 * time.Hour, true, 10 * minute, 10 * minute, 0, false},
		{"during a gap, with a clock that is ahead", 24 * time.Hour, true, 10 * minute, 0, 0, false},
		{"before the first poll", -24 * time.Hour, false, 5 * time.Second, 24*time.Hour + 5*time.Second, 0, false},
		{
			"before the first poll, without timestamps",
			-24 * time.Hour, false, 5 * time.Second, 5 * time.Second, 0, true,
		},
		{
			"before the first poll, with a clock that is ahead: it existed at the first poll",
			24 * time.Hour, false, 5 * time.Second, 5 * time.Second, 0, false,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "t"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			addr := cluster.ListenAddrs()[0]
			c := connect(t, watching(addr))
			now := time.Now().Truncate(time.Millisecond)
			c.setClock(func() time.Time { return now })
			first := now
			produceAt := func(at time.Time) {
				t.Helper()
				record := &kgo.Record{Topic: "t", Value: []byte("v"), Timestamp: at}
				if err := newClient(t, addr).ProduceSync(t.Context(), record).FirstErr(); err != nil {
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
				// The client does not retry after this error.
				p.ErrorCode = kerr.TopicAuthorizationFailed.Code
				resp.Topics = []kmsg.ListOffsetsResponseTopic{
					{Topic: "t", Partitions: []kmsg.ListOffsetsResponseTopicPartition{p}},
				}
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
				t.Errorf("%d records of age %v (unknown %v), want 1 of %v ± %v (%v)", p.Records, p.Age,
					p.AgeUnknown, tt.want, tt.within, unknown)
			}
			ages := scrape(t, c, "kafka_consumergroup_lag_seconds", "kafka_consumergroup_topic_max_lag_seconds")
			if shown := len(ages); (shown == 0) != unknown {
				t.Errorf("%d series of ages, but the age being unknown is %v", shown, unknown)
			}
			// The record stays unread: its age grows with time alone.
			now = now.Add(7 * time.Second)
			if q := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]; q.Age != p.Age+7*time.Second {
				t.Errorf("the age is %v seven seconds after it was %v", q.Age, p.Age)
			}
			silent.Store(false)
			if q := c.mustPoll(t).Groups["g"].Topics["t"].Partitions[0]; q.AgeUnknown {
				t.Error("the age is still unknown when Kafka returns timestamps")
			}
		})
	}
}

// A log that was cut has other records at the same offsets, so nothing known of the former ones
// counts. The same holds for a partition in which everything was read.
func TestAgesOfACutLog(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 0, 1)
	commit(t, cluster.ListenAddrs()[0], "g", "t", 0, 5)
	c := connect(t, watching(cluster.ListenAddrs()...))
	now := time.Now().Truncate(time.Millisecond)
	c.setClock(func() time.Time { return now })
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
		resp.Topics = []kmsg.ListOffsetsResponseTopic{
			{Topic: "t", Partitions: []kmsg.ListOffsetsResponseTopicPartition{p}},
		}
		return resp, nil, true
	})
	for _, tt := range []struct {
		when string
		end  int
		// age is the age of the records from offset 5 on.
		age time.Duration
	}{
		{"before the cut", 10, time.Hour},
		{"cut to 8, with other records from 5 on", 8, time.Minute},
		{"cut to 5", 5, 0},
		{"grown again", 9, 2500 * time.Millisecond},
	} {
		records := make(fakeLog, tt.end)
		for i := range records {
			records[i] = offsetResult{int64(i), now.Add(-2 * time.Hour).UnixMilli(), nil}
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

	// Once all was read, another record may get the offset, even if no poll saw a cut.
	first := &c.poller.partition("g", topicPartition{"t", c.topicID("t"), 0}).appended
	g := map[string]*kafkaGroup{"g": {name: "g", commits: map[string]map[int32]int64{"t": {0: 5}}}}
	for _, stable := range []int64{9, 5} {
		logs := map[int32]logBounds{0: {stable: stable, end: 9}}
		c.poller.findAges(t.Context(), g, map[string]*topicLogs{"t": {c.topicID("t"), logs}})
		if want := stable > 5; first.known != want {
			t.Errorf("with %d as last stable offset, the append time is known: %v, want %v", stable, first.known, want)
		}
	}
}

// topicID returns the ID of a topic that was polled.
func (c *Collector) topicID(name string) [16]byte {
	for p := range c.poller.ages.histories {
		if p.topic == name {
			return p.id
		}
	}
	return [16]byte{}
}

// In a rebalance of the classic protocol the coordinator does not know what members read. The group
// is taken to read what it read before.
func TestReadsInRebalance(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	poll := func(g kafkaGroup, errs ...*ReadError) *kafkaGroup {
		c.poller.rememberGroups(map[string]*kafkaGroup{g.name: &g}, errs)
		return &g
	}
	stable := kafkaGroup{name: "g", members: 1}
	stable.reads.assign("t", []int32{0, 1})
	if poll(stable); len(c.poller.groups) != 1 {
		t.Fatalf("%d groups are remembered, want 1", len(c.poller.groups))
	}
	again := poll(kafkaGroup{name: "g", members: 2, reads: subscription{unknown: true}})
	if !again.reads.includes("t") || again.reads.includes("u") || again.reads.unknown {
		t.Errorf("in the rebalance the group reads %+v", again.reads)
	}
	if empty := poll(kafkaGroup{name: "g"}); empty.reads.includes("t") {
		t.Error("a group without members reads a topic")
	}
	first := poll(kafkaGroup{name: "g", members: 1, reads: subscription{unknown: true}})
	if !first.reads.includes("t") {
		t.Error("the first members of a group are taken to read nothing")
	}

	// A group that could not be read in one poll is not a new group in the next.
	known := c.poller.groups["g"]
	c.poller.rememberGroups(nil, []*ReadError{{API: "OffsetFetch", Group: "g", Err: kerr.CoordinatorNotAvailable}})
	if poll(stable); c.poller.groups["g"] != known {
		t.Error("a group was forgotten because of an error")
	}
	if c.poller.rememberGroups(nil, nil); len(c.poller.groups) != 0 {
		t.Error("a group that no longer exists is still remembered")
	}
}

// A topic that was deleted or recreated is forgotten. One that cannot be read is not.
func TestForgetsTopics(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	c.poller.rememberGroups(map[string]*kafkaGroup{"g": {name: "g"}}, nil)
	now := time.Now()
	remember := func(want int, logs map[string]*topicLogs, errs ...*ReadError) {
		t.Helper()
		c.poller.rememberTopics(logs, errs, now, now)
		for name, topic := range logs {
			c.poller.partition("g", topicPartition{name, topic.id, 0})
		}
		if len(c.poller.ages.histories) != want || len(c.poller.groups["g"].partitions) != want {
			t.Errorf("%d histories and %d partitions are remembered, want %d of each", len(c.poller.ages.histories),
				len(c.poller.groups["g"].partitions), want)
		}
	}
	logs := map[int32]logBounds{0: {end: 3, stable: 3}}
	remember(2, map[string]*topicLogs{"t": {[16]byte{1}, logs}, "u": {[16]byte{2}, logs}})
	remember(2, map[string]*topicLogs{"t": {[16]byte{3}, logs}, "u": {[16]byte{2}, logs}})
	remember(2, map[string]*topicLogs{"t": {[16]byte{3}, logs}},
		&ReadError{API: "Metadata", Topic: "u", Err: kerr.TopicAuthorizationFailed})
	remember(1, map[string]*topicLogs{"t": {[16]byte{3}, logs}})
	remember(0, nil)
}

// Kafka 4 describes members in ways that the fake cluster does not.
func TestDescriptions(t *testing.T) {
	t.Parallel()
	var consumer, connect, rebalancing kafkaGroup
	metadata := kmsg.ConsumerMemberMetadata{Topics: []string{"t", "u"}}
	assignment := kmsg.ConsumerMemberAssignment{
		Topics: []kmsg.ConsumerMemberAssignmentTopic{{Topic: "t", Partitions: []int32{1}}},
	}
	member := kmsg.DescribeGroupsResponseGroupMember{
		ProtocolMetadata: metadata.AppendTo(nil),
		MemberAssignment: assignment.AppendTo(nil),
	}
	describe := func(g *kafkaGroup, protocol, state string) {
		g.describeClassic(
			kmsg.DescribeGroupsResponseGroup{
				State:        state,
				ProtocolType: protocol,
				Members:      []kmsg.DescribeGroupsResponseGroupMember{member},
			},
		)
	}
	describe(&consumer, "consumer", "Stable")
	if r := consumer.reads; consumer.members != 1 || !r.includes("t") || !r.includes("u") || r.includes("v") ||
		!r.assigned["t"][1] ||
		r.assigned["t"][0] {
		t.Errorf("a consumer is %+v", consumer)
	}
	describe(&connect, "connect", "Stable")
	if connect.members != 1 || len(connect.reads.topics) != 0 {
		t.Errorf("a worker of Kafka Connect is %+v", connect)
	}
	describe(&rebalancing, "consumer", "CompletingRebalance")
	if !rebalancing.reads.unknown {
		t.Errorf("a member in a rebalance is %+v", rebalancing)
	}

	// franz-go's fake broker names assigned topics by ID only.
	var byID kafkaGroup
	assigned := kmsg.AssignmentTopicPartition{TopicID: [16]byte{1}, Partitions: []int32{2}}
	byID.describeConsumer(kmsg.ConsumerGroupDescribeResponseGroup{
		Members: []kmsg.ConsumerGroupDescribeResponseGroupMember{{
			Assignment: kmsg.Assignment{TopicPartitions: []kmsg.AssignmentTopicPartition{assigned}},
		}},
	})
	byID.reads.resolve([16]byte{2}, "u")
	byID.reads.resolve([16]byte{1}, "t")
	if r := byID.reads; !r.assigned["t"][2] || r.includes("u") {
		t.Errorf("a member with topic IDs is %+v", byID)
	}

	var byPattern kafkaGroup
	byPattern.describeConsumer(
		kmsg.ConsumerGroupDescribeResponseGroup{
			Members: []kmsg.ConsumerGroupDescribeResponseGroupMember{{SubscribedTopicRegex: new("t.*|x")}},
		},
	)
	for topic, want := range map[string]bool{"t": true, "tea": true, "x": true, "at": false, "xx": false} {
		if got := byPattern.reads.includes(topic); got != want {
			t.Errorf("the pattern includes %s: %v, want %v", topic, got, want)
		}
	}
}

// The members of a kind of group that this program does not know are unknown, which is not none.
func TestGroupOfAnUnknownKind(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 1, 1)
	c := connect(t, watching(cluster.ListenAddrs()...))
	var state atomic.Value
	var failing atomic.Bool
	cluster.ControlKey(int16(kmsg.ListGroups), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
		if failing.Load() {
			resp.ErrorCode = kerr.ClusterAuthorizationFailed.Code
		} else if cluster.CurrentNode() == cluster.CoordinatorFor("g00") {
			g := kmsg.ListGroupsResponseGroup{Group: "g00", GroupType: "novel", GroupState: state.Load().(string)}
			resp.Groups = []kmsg.ListGroupsResponseGroup{g}
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
				t.Errorf("%s: the group is %q, want %q", list, got, tt.want)
			}
			got := strings.Join(scrape(t, c, "kafka_consumergroup_members"), "")
			if !strings.HasSuffix(got, tt.members) || (got == "") != (tt.members == "") {
				t.Errorf("%s, %s: the series of members is %q", tt.state, list, got)
			}
		}
	}
}

// A failure of whole polls is logged once, even if its text differs each time.
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
			t.Errorf("after %v the log has %d errors, want %d", err, got, tt.want)
		}
		former = err
	}
}

// The stable text of an error has the code, so it does not change with a connection's port.
func TestStableErrorText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  ReadError
		want string
	}{
		{ReadError{API: "Metadata", Err: errors.New("read 127.0.0.1:50001->127.0.0.1:9092: reset")},
			"Metadata: CONNECTION"},
		{ReadError{API: "OffsetFetch", Group: "g", Err: context.DeadlineExceeded}, "OffsetFetch of group g: TIMEOUT"},
		{ReadError{API: "Metadata", Topic: "t", Err: kerr.TopicAuthorizationFailed},
			"Metadata of topic t: TOPIC_AUTHORIZATION_FAILED"},
	} {
		if got := tt.err.Stable(); got != tt.want {
			t.Errorf("the stable text of %v is %q, want %q", &tt.err, got, tt.want)
		}
	}
}
