package lag

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/testenv"
)

// watching returns the configuration of a collector that watches all groups.
func watching(brokers ...string) Config {
	return Config{Kafka: kafkaconfig.Client{Brokers: brokers}, Groups: regexp.MustCompile("")}
}

// connect returns a collector whose polls the test makes itself, so that it waits for none. A request
// may take a minute: a machine that stands still for some seconds must not leave errors in a snapshot.
func connect(t *testing.T, cfg Config) *Collector {
	t.Helper()
	c := newTestCollector(t, cfg)
	c.connectWithin(t, 6*time.Minute)
	return c
}

// connectBriefly is connect with the configured time for a poll. It is for tests in which a poll fails:
// the client repeats some requests until their time has passed.
func connectBriefly(t *testing.T, cfg Config) *Collector {
	t.Helper()
	c := newTestCollector(t, cfg)
	c.connect(t)
	return c
}

func (c *Collector) connect(t *testing.T) {
	t.Helper()
	cl, err := kgo.NewClient(c.opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	c.poller.client = &client{cl, c.requestTimeout()}
}

// connectWithin connects with another time for a poll than the configured one.
func (c *Collector) connectWithin(t *testing.T, timeout time.Duration) {
	t.Helper()
	c.timeout = timeout
	var err error
	if c.opts, err = clientOptions(c.cfg.Kafka, c.requestTimeout()); err != nil {
		t.Fatal(err)
	}
	c.connect(t)
}

// mustPoll polls and returns the snapshot. It tries again if a broker on a busy machine is too
// slow.
func (c *Collector) mustPoll(t *testing.T) *Snapshot {
	t.Helper()
	for range 5 {
		if c.poll(t.Context()); c.Err() == nil {
			return c.Snapshot()
		}
	}
	t.Fatal(c.Err())
	return nil
}

// until polls until the snapshot is as wanted.
func (c *Collector) until(t *testing.T, what string, ok func(s *Snapshot) bool) *Snapshot {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s := c.mustPoll(t)
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s not seen within a minute; errors %v, groups %+v", what, s.Errors, s.Groups)
		}
	}
}

func newClient(t *testing.T, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addr)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.CloseAllowingRebalance)
	return cl
}

func newAdmin(t *testing.T, addr string) *kadm.Client { return kadm.NewClient(newClient(t, addr)) }

func produce(t *testing.T, addr, topic string, partition int32, n int) {
	t.Helper()
	cl := newClient(t, addr, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for range n {
		record := &kgo.Record{Topic: topic, Partition: partition, Key: []byte("k"), Value: []byte("v")}
		if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func commit(t *testing.T, addr, group, topic string, partition int32, offset int64) {
	t.Helper()
	offsets := make(kadm.Offsets)
	offsets.AddOffset(topic, partition, offset, -1)
	if err := newAdmin(t, addr).CommitAllOffsets(t.Context(), group, offsets); err != nil {
		t.Fatal(err)
	}
}

// summary returns the state of a group in one line.
func summary(s *Snapshot, name string) string {
	g := s.Groups[name]
	if g == nil {
		return "none"
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s %s %d members", g.Protocol, g.State, g.Members)
	for _, t := range g.Topics {
		committed := 0
		for _, p := range t.Partitions {
			if p.Committed >= 0 {
				committed++
			}
		}
		fmt.Fprintf(&out, ", %d of %d committed, subscribed %v, unassigned %d", committed, len(t.Partitions),
			t.Subscribed, t.Unassigned)
	}
	return out.String()
}

// Each kind of group is described with what its members read.
func TestGroupsOfEachKind(t *testing.T) {
	t.Parallel()
	addr := testenv.SharedKafka(t).Addr
	topic := testenv.NewTopic(t, addr, 3)
	consumer := func(group string, opts ...kgo.Opt) *kgo.Client {
		cl := newClient(
			t,
			addr,
			append(opts, kgo.ConsumerGroup(group), kgo.AutoCommitInterval(100*time.Millisecond))...)
		go func() {
			for !cl.PollFetches(t.Context()).IsClientClosed() && t.Context().Err() == nil {
			}
		}()
		return cl
	}
	for p := range int32(2) {
		produce(t, addr, topic, p, 1)
	}
	c := connect(t, Config{Kafka: kafkaconfig.Client{Brokers: []string{addr}}, Groups: regexp.MustCompile("^" + topic)})
	c.Want(map[string][]Objective{topic + "-missing": {{Age: time.Second}}})
	byRange := kgo.Balancers(kgo.RangeBalancer())
	for _, tt := range []struct {
		group string
		opts  []kgo.Opt
		kind  string
	}{
		{"-classic", []kgo.Opt{kgo.ConsumeTopics(topic), byRange}, "classic"},
		{"-new", []kgo.Opt{kgo.ConsumeTopics(topic), byRange, kgo.ServerSideBalancer()}, "consumer"},
		{"-pattern", []kgo.Opt{
			kgo.ConsumeRegex(), kgo.ConsumeTopics("^" + topic + "$"), byRange, kgo.ServerSideBalancer(),
		}, "consumer"},
	} {
		group := topic + tt.group
		cl := consumer(group, tt.opts...)
		with := func(want string) {
			t.Helper()
			c.until(t, group+": "+want, func(s *Snapshot) bool { return strings.HasPrefix(summary(s, group), want) })
		}
		with(tt.kind + " Stable 1 members, 2 of 3 committed, subscribed true, unassigned 0")
		other := consumer(group, tt.opts...)
		with(tt.kind + " Stable 2 members, 2 of 3 committed, subscribed true, unassigned 0")
		other.CloseAllowingRebalance()
		cl.CloseAllowingRebalance()
		with(tt.kind + " Empty 0 members, 2 of 3 committed, subscribed false, unassigned 0")
	}
	commit(t, addr, topic+"-simple", topic, 2, 0)
	s := c.mustPoll(t)
	want := "classic Empty 0 members, 1 of 3 committed, subscribed false, unassigned 0"
	if got := summary(s, topic+"-simple"); got != want {
		t.Errorf("a group that has only commits is %q, want %q", got, want)
	}
	if got, want := summary(s, topic+"-missing"), " Dead 0 members"; got != want || len(s.Errors) > 0 {
		t.Errorf("a group that does not exist is %q, want %q; errors %v", got, want, s.Errors)
	}
	if len(s.Groups) != 5 {
		t.Errorf("%d groups are watched, want 5", len(s.Groups))
	}
	only := TopicPartition{
		Number: 1, Stable: 1, End: 1,
		Replication: Replication{Leader: s.Brokers[0], Preferred: true, Replicas: 1, InSync: 1},
	}
	if s := s.Topics[topic]; s == nil || !s.Ready || s.Count != 3 || len(s.Partitions) != 3 || s.Partitions[1] != only {
		t.Errorf("the topic is %+v", s)
	}
}

// A group of Kafka Streams (KIP-1071) has a topology. Its members have tasks, and a task is the
// same partition of each source.
func TestStreamsGroup(t *testing.T) {
	t.Parallel()
	addr := testenv.SharedKafka(t).Addr
	topic := testenv.NewTopic(t, addr, 3)
	c := connect(t, Config{Kafka: kafkaconfig.Client{Brokers: []string{addr}}, Groups: regexp.MustCompile("^" + topic)})
	member := newStreamsMember(t, addr, topic+"-streams", topic)
	c.until(t, "the group with its task", func(s *Snapshot) bool {
		member.beat()
		want := "streams Stable 1 members, 0 of 3 committed, subscribed true, unassigned 0"
		return summary(s, topic+"-streams") == want
	})
}

// A share group has no commits. Its lag begins at its first record that is not acknowledged, and
// leaves out those that were acknowledged behind it.
func TestShareGroup(t *testing.T) {
	t.Parallel()
	addr := testenv.SharedKafka(t).Addr
	topic := testenv.NewTopic(t, addr, 2)
	group := topic + "-share"
	testenv.ReadShareGroupFromTheStart(t, addr, group)
	c := connect(t, Config{Kafka: kafkaconfig.Client{Brokers: []string{addr}}})
	c.Want(map[string][]Objective{group: {{Age: time.Nanosecond}}})
	c.until(t, "no group", func(s *Snapshot) bool { return summary(s, group) == " Dead 0 members" })
	produce(t, addr, topic, 0, 5)
	member := newClient(t, addr, kgo.ShareGroup(group), kgo.ConsumeTopics(topic))
	fetches := member.PollFetches(t.Context())
	records := fetches.Records()
	if err := fetches.Err(); err != nil || len(records) != 5 {
		t.Fatalf("a poll returned %d records (%v), want 5", len(records), err)
	}
	// Kafka writes the position down with the acknowledgement after it.
	for _, some := range [][]*kgo.Record{records[:2], records[3:4]} {
		member.MarkAcks(kgo.AckAccept, some...)
		if err := member.FlushAcks(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s := c.until(t, "the acknowledgements", func(s *Snapshot) bool {
		g := s.Groups[group]
		return g != nil && g.Topics[topic] != nil && g.Topics[topic].Partitions[0].Committed == 2
	})
	g := s.Groups[group]
	p := g.Topics[topic].Partitions[0]
	if g.Protocol != "share" || g.State != "Stable" || g.Members != 1 || !g.Topics[topic].Subscribed ||
		p.Records != 2 || p.Age <= 0 || p.AgeUnknown || !p.Uncommitted || p.Status != StatusOK {
		t.Errorf("the group is %+v, with %+v in its topic", g, p)
	}
	breached := scrape(t, c, "kafka_consumergroup_objective_breached")
	if len(breached) != 1 || !strings.HasSuffix(breached[0], " 1") {
		t.Errorf("the objective is %v, want it to be missed", breached)
	}
	member.CloseAllowingRebalance()
	c.until(t, "the empty group", func(s *Snapshot) bool {
		g := s.Groups[group]
		return g.Protocol == "share" && g.State == "Empty" && g.Members == 0 &&
			g.Topics[topic].Partitions[0].Committed == 2
	})
}

// A broker that does not return a share group's offsets leaves its members and its name.
func TestShareGroupWithoutOffsets(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 0, 1)
	newClient(t, cluster.ListenAddrs()[0], kgo.ShareGroup("s"), kgo.ConsumeTopics("t"))
	cluster.ControlKey(int16(kmsg.DescribeShareGroupOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.DescribeShareGroupOffsetsResponse)
		resp.Groups = []kmsg.DescribeShareGroupOffsetsResponseGroup{
			{GroupID: "s", ErrorCode: kerr.UnsupportedVersion.Code},
		}
		return resp, nil, true
	})
	c := connectWanting(t, cluster, "s")
	s := c.until(t, "the member", func(s *Snapshot) bool { return s.Groups["s"] != nil && s.Groups["s"].Members == 1 })
	if got, want := summary(s, "s"), "share Stable 1 members"; got != want || !s.Groups["s"].OffsetsUnknown {
		t.Errorf("the group is %q, want %q without offsets", got, want)
	}
}

// streamsMember is a member of a group of Kafka Streams. It lives while it beats.
type streamsMember struct {
	t         *testing.T
	client    *kgo.Client
	heartbeat *kmsg.StreamsGroupHeartbeatRequest
}

// newStreamsMember joins a group that reads topics.
func newStreamsMember(t *testing.T, addr, group string, topics ...string) *streamsMember {
	t.Helper()
	beat := kmsg.NewPtrStreamsGroupHeartbeatRequest()
	beat.Group, beat.MemberID, beat.RebalanceTimeoutMillis, beat.ProcessID = group, "one", 1000, new("p")
	beat.ActiveTasks, beat.StandbyTasks, beat.WarmupTasks = []kmsg.TaskIDs{}, []kmsg.TaskIDs{}, []kmsg.TaskIDs{}
	part := kmsg.NewStreamsGroupHeartbeatRequestTopologySubtopology()
	part.SubtopologyID, part.SourceTopics = "s", topics
	beat.Topology = &kmsg.StreamsGroupHeartbeatRequestTopology{
		Subtopologies: []kmsg.StreamsGroupHeartbeatRequestTopologySubtopology{part},
	}
	m := &streamsMember{t: t, client: newClient(t, addr), heartbeat: beat}
	m.beat()
	return m
}

func (m *streamsMember) beat() {
	m.t.Helper()
	for {
		// A broker that has just started does not coordinate groups yet. Asking for the coordinator
		// makes it become one.
		found := kadm.NewClient(m.client).FindGroupCoordinators(m.t.Context(), m.heartbeat.Group)
		coordinator := found[m.heartbeat.Group]
		response, err := m.client.Broker(int(coordinator.NodeID)).Request(m.t.Context(), m.heartbeat)
		if coordinator.Err == nil && err != nil {
			m.t.Fatal(err)
		}
		if coordinator.Err == nil {
			resp := response.(*kmsg.StreamsGroupHeartbeatResponse)
			err = kerr.ErrorForCode(resp.ErrorCode)
			if err == nil {
				m.heartbeat.MemberEpoch, m.heartbeat.Topology = resp.MemberEpoch, nil
				if resp.ActiveTasks != nil {
					m.heartbeat.ActiveTasks = resp.ActiveTasks
				}
				return
			}
			if !kerr.IsRetriable(err) {
				m.t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Describe rights are enough. What the user may not see is an error of its own and does not affect
// the rest. A renewed certificate is used at the next connection.
func TestDescribeRightsAndRenewal(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	k := testenv.StartSecureKafka(t)
	open, secret := testenv.NewTopic(t, k.Addr, 2), testenv.NewTopic(t, k.Addr, 1)
	produce(t, k.Addr, open, 0, 7)
	commit(t, k.Addr, "seen", open, 0, 2)
	commit(t, k.Addr, "seen", secret, 0, 0)
	commit(t, k.Addr, "hidden", open, 0, 2)
	k.Allow(t, "lag", "topic "+open+" Describe", "group seen Describe", "group away Describe")
	user := k.NewUser(t, "lag")
	c := connectBriefly(t, Config{Kafka: user.Client(), Groups: regexp.MustCompile("")})
	c.Want(map[string][]Objective{"hidden": nil, "away": {{Topics: []string{secret}}}})
	s := c.mustPoll(t)
	wantSeen := "classic Empty 0 members, 1 of 2 committed, subscribed false, unassigned 0"
	if got := summary(s, "seen"); got != wantSeen {
		t.Errorf("the group is %q, want %q", got, wantSeen)
	}
	// The age comes from a search by timestamp.
	if p := s.Groups["seen"].Topics[open].Partitions[0]; p.Records != 5 || p.Age <= 0 || p.Age > time.Since(begun) {
		t.Errorf("its partition is %+v, want 5 records of some seconds", p)
	}
	if got, want := summary(s, "away"), " Dead 0 members"; got != want {
		t.Errorf("a group that does not exist is %q, want %q", got, want)
	}
	var failed []string
	for _, e := range s.Errors {
		failed = append(failed, e.API+" "+e.Group+e.Topic+" "+e.Code())
	}
	slices.Sort(failed)
	want := []string{
		"FindCoordinator hidden GROUP_AUTHORIZATION_FAILED",
		"Metadata " + secret + " TOPIC_AUTHORIZATION_FAILED",
	}
	if diff := cmp.Diff(want, failed); diff != "" || s.Groups["hidden"] != nil || s.Topics[secret] != nil {
		t.Errorf("errors (-want +got):\n%s", diff)
	}

	// Strimzi renews both CAs, and with them every certificate.
	k.Clients, k.Cluster = testenv.NewAuthority(t, "clients-ca-2"), testenv.NewAuthority(t, "cluster-ca-2")
	k.Certify(t, k.Clients)
	k.Restart(t)
	c.poll(t.Context())
	if c.Err() == nil {
		t.Error("the former certificates are still accepted, so the test proves nothing")
	}
	user.Renew(t)
	user.CA.Change(t, map[string][]byte{"ca.crt": k.Cluster.PEM})
	c.until(t, "the group",
		func(s *Snapshot) bool { return s.Groups["seen"] != nil && len(s.Groups["seen"].Topics) == 1 })
}

// A user who may see only one of a group's topics sees the lag there. Kafka then hides the members
// of groups of the newer protocols, but nothing else. What may not be read has a series.
func TestGroupWithAHiddenTopic(t *testing.T) {
	t.Parallel()
	k := testenv.StartSecureKafka(t)
	open, secret := testenv.NewTopic(t, k.Addr, 1), testenv.NewTopic(t, k.Addr, 1)
	produce(t, k.Addr, open, 0, 7)
	byRange := []kgo.Opt{kgo.Balancers(kgo.RangeBalancer()), kgo.ConsumeTopics(open, secret), kgo.DisableAutoCommit()}
	join := func(group string, opts ...kgo.Opt) {
		cl := newClient(t, k.Addr, append(append(opts, byRange...), kgo.ConsumerGroup(group))...)
		go func() {
			for !cl.PollFetches(t.Context()).IsClientClosed() && t.Context().Err() == nil {
			}
		}()
	}
	acls := []string{"topic " + open + " Describe"}
	groups := []string{"classic", "consumer", "streams"}
	for _, group := range groups {
		commit(t, k.Addr, group, open, 0, 2)
		commit(t, k.Addr, group, secret, 0, 0)
		acls = append(acls, "group "+group+" Describe")
	}
	k.Allow(t, "lag", acls...)
	join("classic")
	join("consumer", kgo.ServerSideBalancer())
	streams := newStreamsMember(t, k.Addr, "streams", open, secret)
	c := connect(t, Config{Kafka: k.NewUser(t, "lag").Client(), Groups: regexp.MustCompile("")})
	about := func(topics ...string) []Objective { return []Objective{{Age: time.Hour, Topics: topics}} }
	c.Want(map[string][]Objective{"consumer": about(open), "streams": about(), "classic": about(open, secret)})
	s := c.until(t, "the groups with members", func(s *Snapshot) bool {
		streams.beat()
		return !slices.ContainsFunc(groups, func(group string) bool {
			g := s.Groups[group]
			return g == nil || g.State != "Stable" || g.Topics[open] == nil
		})
	})
	for group, members := range map[string]int{"classic": 1, "consumer": -1, "streams": -1} {
		g := s.Groups[group]
		p := g.Topics[open].Partitions[0]
		if g.Protocol != group || g.Members != members || g.TopicsHidden != (members < 0) || len(g.Topics) != 1 ||
			p.Records != 5 || p.AgeUnknown || !g.Topics[open].Subscribed {
			t.Errorf("the group is %+v, with %+v in the topic that may be seen", g, p)
		}
	}
	const consumer = `consumergroup="consumer",kafka_cluster="lab"`
	want := []string{
		`kafka_consumergroup_objective_breached{` + consumer + `} 0`,
		`lag_collector_unauthorized{api="ConsumerGroupDescribe",` + consumer + `,topic=""} 1`,
		`lag_collector_unauthorized{api="Metadata",consumergroup="",kafka_cluster="lab",topic="` + secret + `"} 1`,
		`lag_collector_unauthorized{api="StreamsGroupDescribe",consumergroup="streams",kafka_cluster="lab",topic=""} 1`,
	}
	got := scrape(t, c, "lag_collector_unauthorized", "kafka_consumergroup_objective_breached")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
}

// A describe request that times out takes only the members away.
func TestDescribeThatTimesOut(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 0, 1)
	addr := cluster.ListenAddrs()[0]
	newClient(t, addr, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.Balancers(kgo.RangeBalancer()),
		kgo.DisableAutoCommit(), kgo.ServerSideBalancer())
	c := newTestCollector(t, watching(cluster.ListenAddrs()...))
	c.connectWithin(t, 12*time.Second)
	c.until(t, "the member", func(s *Snapshot) bool {
		return summary(s, "g") == "consumer Stable 1 members, 0 of 1 committed, subscribed true, unassigned 0"
	})
	cluster.ControlKey(int16(kmsg.ConsumerGroupDescribe), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, nil, true
	})
	for range 2 {
		s := c.mustPoll(t)
		want := "consumer Stable -1 members, 0 of 1 committed, subscribed true, unassigned 0"
		if got := summary(s, "g"); got != want || len(s.Errors) != 1 || s.Errors[0].Code() != "TIMEOUT" {
			t.Errorf("the group is %q, want %q; errors %v", got, want, s.Errors)
		}
	}
}

// While Kafka is away there is an error, logged once, and the last snapshot stays. When Kafka is
// back, what was known still counts.
func TestKafkaAway(t *testing.T) {
	t.Parallel()
	k := testenv.StartKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 1)
	produce(t, k.Addr, topic, 0, 3)
	commit(t, k.Addr, "g", topic, 0, 1)
	cfg := watching(k.Addr)
	cfg.Interval = 100 * time.Millisecond
	c := connectBriefly(t, cfg)
	var log bytes.Buffer
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	before := c.mustPoll(t)
	k.Kill()
	for range 2 {
		c.poll(t.Context())
		if c.Err() == nil || c.Snapshot() != before {
			t.Fatalf("error is %v, or the snapshot changed", c.Err())
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors are logged, want 1:\n%s", n, log.String())
	}
	if up := scrape(t, c, "lag_collector_up", "kafka_"); len(up) != 1 || !strings.HasSuffix(up[0], " 0") {
		t.Errorf("series are %v, want lag_collector_up 0 alone", up)
	}
	if err := k.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for c.Err() != nil {
		c.poll(t.Context())
	}
	s := c.until(t, "the group", func(s *Snapshot) bool { return s.Groups["g"] != nil })
	p, former := s.Groups["g"].Topics[topic].Partitions[0], before.Groups["g"].Topics[topic].Partitions[0]
	if grown, passed := p.Age-former.Age, s.Time.Sub(before.Time); p.Records != 2 ||
		(grown-passed).Abs() > time.Millisecond {
		t.Errorf("after %v the partition is %+v, before it was %+v", passed, p, former)
	}
	if n := strings.Count(log.String(), "can be read again"); n != 1 {
		t.Errorf("the recovery is logged %d times, want once:\n%s", n, log.String())
	}
}

// A deleted topic is no error. A recreated topic inherits nothing from the former one.
func TestRecreatedTopic(t *testing.T) {
	t.Parallel()
	addr := testenv.SharedKafka(t).Addr
	topic := testenv.NewTopic(t, addr, 1)
	produce(t, addr, topic, 0, 9)
	commit(t, addr, topic, topic, 0, 9)
	c := connect(t, Config{Kafka: kafkaconfig.Client{Brokers: []string{addr}}})
	c.Want(map[string][]Objective{topic: {{Topics: []string{topic}}}})
	c.mustPoll(t)
	admin := newAdmin(t, addr)
	if _, err := admin.DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	s := c.until(t, "no topic", func(s *Snapshot) bool { return s.Topics[topic] == nil })
	if len(s.Errors) > 0 || len(s.Groups[topic].Topics) > 0 {
		t.Errorf("the deleted topic has left errors %v or topics in %+v", s.Errors, s.Groups[topic])
	}
	recreated := time.Now()
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the topic", func(s *Snapshot) bool { return s.Topics[topic] != nil && s.Topics[topic].Ready })
	produce(t, addr, topic, 0, 2)
	commit(t, addr, topic, topic, 0, 1)
	s = c.mustPoll(t)
	p := s.Groups[topic].Topics[topic].Partitions[0]
	if p.Status != StatusOK || p.Records != 1 || p.Rewinds != 0 || p.Lost != 0 || p.Age > time.Since(recreated) {
		t.Errorf("the partition of the recreated topic is %+v", p)
	}
}

// fake starts a fake cluster of three brokers and a topic t, with groups g00, g01 and so on that
// have committed 0 in each of its partitions.
func fake(t *testing.T, groups, partitions int) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(int32(partitions), "t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	admin := newAdmin(t, cluster.ListenAddrs()[0])
	offsets := make(kadm.Offsets)
	for p := range partitions {
		if err := cluster.MoveTopicPartition("t", int32(p), int32(p%3)); err != nil {
			t.Fatal(err)
		}
		offsets.AddOffset("t", int32(p), 0, -1)
		produce(t, cluster.ListenAddrs()[0], "t", int32(p), 1)
	}
	for n := range groups {
		if err := admin.CommitAllOffsets(t.Context(), fmt.Sprintf("g%02d", n), offsets); err != nil {
			t.Fatal(err)
		}
	}
	return cluster
}

// The number of requests does not depend on the number of groups. A poll sends each request once to
// each broker that it concerns, and reads each topic's offsets once.
func TestRequestsOfAPoll(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 60, 7)
	c := connect(t, watching(cluster.ListenAddrs()...))
	c.mustPoll(t)
	var mu sync.Mutex
	sent := make(map[string]int)
	cluster.Control(func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		sent[kmsg.NameForKey(req.Key())]++
		return nil, nil, false
	})
	if s := c.mustPoll(t); len(s.Groups) != 60 || len(s.Errors) > 0 {
		t.Fatalf("%d groups, errors %v", len(s.Groups), s.Errors)
	}
	// Metadata is read twice: for the brokers, and for the topics.
	want := map[string]int{"ListGroups": 3, "OffsetFetch": 3, "Metadata": 2, "ListOffsets": 9}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// Unread records end at the first open transaction. Records that come during a poll do not look
// like those of an open transaction.
func TestBounds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		start, stable, end int64
		want               TopicPartition
		records            int64
	}{
		{0, 1, 1, TopicPartition{Start: 0, Stable: 1, End: 1}, 1},
		{0, 5, 9, TopicPartition{Start: 0, Stable: 5, End: 9}, 5},
		{3, 5, 4, TopicPartition{Start: 3, Stable: 5, End: 5}, 2},
		{3, 3, 9, TopicPartition{Start: 3, Stable: 3, End: 9}, 0},
	} {
		cluster := fake(t, 1, 1)
		c := connect(t, watching(cluster.ListenAddrs()...))
		cluster.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			r := req.(*kmsg.ListOffsetsRequest)
			p := kmsg.NewListOffsetsResponseTopicPartition()
			switch at := r.Topics[0].Partitions[0].Timestamp; {
			case at == timeStart:
				p.Offset = tt.start
			case at == timeEnd && r.IsolationLevel == readCommitted:
				p.Offset = tt.stable
			case at == timeEnd:
				p.Offset = tt.end
			}
			resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
			resp.Topics = []kmsg.ListOffsetsResponseTopic{
				{Topic: "t", Partitions: []kmsg.ListOffsetsResponseTopicPartition{p}},
			}
			return resp, nil, true
		})
		s := c.mustPoll(t)
		got, records := s.Topics["t"].Partitions[0], s.Groups["g00"].Topics["t"].Partitions[0].Records
		got.Replication, got.Open, got.OpenUnknown = Replication{}, 0, false
		if got != tt.want || records != tt.records {
			t.Errorf("%+v: %+v and %d records, want %+v and %d", tt, got, records, tt.want, tt.records)
		}
	}
}

// A collector that starts again is told the rhythm of a group that it cannot have seen yet.
func TestResumedRhythm(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 2, 1)
	c := connect(t, watching(cluster.ListenAddrs()...))
	c.Resume("g00", 90*time.Second, nil)
	for range 2 {
		s := c.mustPoll(t)
		for group, want := range map[string]time.Duration{"g00": 3 * time.Minute, "g01": time.Minute} {
			if got := s.Groups[group].Topics["t"].Partitions[0].Patience; got != want {
				t.Errorf("the patience with group %s is %v, want %v", group, got, want)
			}
		}
	}
}

// Patterns select groups and topics. An exclusion is stronger, and an objective is the strongest.
func TestSelection(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 3, 1)
	addr := cluster.ListenAddrs()[0]
	for _, topic := range []string{"t-retry", "other"} {
		if _, err := newAdmin(t, addr).CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
			t.Fatal(err)
		}
		for n := range 3 {
			commit(t, addr, fmt.Sprintf("g%02d", n), topic, 0, 0)
		}
	}
	newClient(t, addr, kgo.ConsumerGroup("g00"), kgo.ConsumeTopics("t", "t-retry", "other"),
		kgo.Balancers(kgo.RangeBalancer()), kgo.DisableAutoCommit())
	cfg := watching(cluster.ListenAddrs()...)
	cfg.ExcludeGroups = regexp.MustCompile("^g0[12]$")
	cfg.Topics, cfg.ExcludeTopics = regexp.MustCompile("^t.*$"), regexp.MustCompile("^.*-retry$")
	c := connect(t, cfg)
	c.Want(map[string][]Objective{"g02": {{Topics: []string{"other"}}}})
	s := c.until(t, "the member", func(s *Snapshot) bool { return s.Groups["g00"].State == "Stable" })
	got := make(map[string][]string)
	for name, g := range s.Groups {
		got[name] = slices.Sorted(maps.Keys(g.Topics))
	}
	if diff := cmp.Diff(map[string][]string{"g00": {"t"}, "g02": {"other", "t"}}, got); diff != "" {
		t.Errorf("groups with topics (-want +got):\n%s", diff)
	}
	if topics := slices.Sorted(maps.Keys(s.Topics)); !slices.Equal(topics, []string{"other", "t"}) {
		t.Errorf("topics are %v", topics)
	}
}

// commitsExcept returns a broker's response in which all groups of the fake cluster but one have
// committed 0 everywhere. That one has the error code, or is absent if the code is 0.
func commitsExcept(except string, code int16) func(*kfake.Cluster, kmsg.Request) kmsg.Response {
	return func(_ *kfake.Cluster, req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		for _, g := range req.(*kmsg.OffsetFetchRequest).Groups {
			topic := kmsg.OffsetFetchResponseGroupTopic{Topic: "t"}
			for p := range int32(3) {
				committed := kmsg.OffsetFetchResponseGroupTopicPartition{Partition: p}
				topic.Partitions = append(topic.Partitions, committed)
			}
			rg := kmsg.OffsetFetchResponseGroup{
				Group: g.Group, Topics: []kmsg.OffsetFetchResponseGroupTopic{topic},
			}
			switch {
			case g.Group == except && code == 0:
				continue
			case g.Group == except:
				rg.ErrorCode, rg.Topics = code, nil
			case !strings.HasPrefix(g.Group, "g"):
				rg.Topics = nil
			}
			resp.Groups = append(resp.Groups, rg)
		}
		return resp
	}
}

// A group, topic or broker that cannot be read is left out alone, with an error that names it and
// is logged once. The rest is there. What was remembered of it still counts when it can be read
// again.
func TestPartialFailures(t *testing.T) {
	t.Parallel()
	without := func(s *Snapshot) bool {
		g := s.Groups["g01"]
		return len(s.Groups) == 3 && g.State == "Empty" && g.OffsetsUnknown && len(g.Topics) == 0
	}
	for _, tt := range []struct {
		name    string
		key     kmsg.Key
		respond func(c *kfake.Cluster, req kmsg.Request) kmsg.Response
		ok      func(*Snapshot) bool
		want    string
	}{
		{"a group whose coordinator is not ready", kmsg.OffsetFetch,
			commitsExcept("g01", kerr.CoordinatorLoadInProgress.Code), without,
			"OffsetFetch g01 COORDINATOR_LOAD_IN_PROGRESS"},
		{"a group whose coordinator has moved since it was listed", kmsg.OffsetFetch,
			commitsExcept("g01", kerr.NotCoordinator.Code),
			func(s *Snapshot) bool { return s.Groups["g01"] == nil && len(s.Groups) == 2 },
			"OffsetFetch g01 NOT_COORDINATOR"},
		{"a group that the response leaves out", kmsg.OffsetFetch,
			commitsExcept("g01", 0), without,
			"OffsetFetch g01 CONNECTION"},
		{"a group that was deleted after it was listed", kmsg.OffsetFetch,
			commitsExcept("g01", kerr.GroupIDNotFound.Code),
			func(s *Snapshot) bool { return len(s.Groups) == 3 && len(s.Groups["g01"].Topics) == 0 },
			""},
		{"a partition", kmsg.ListOffsets, func(_ *kfake.Cluster, req kmsg.Request) kmsg.Response {
			resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
			for _, t := range req.(*kmsg.ListOffsetsRequest).Topics {
				rt := kmsg.ListOffsetsResponseTopic{Topic: t.Topic}
				for _, p := range t.Partitions {
					rp := kmsg.ListOffsetsResponseTopicPartition{Partition: p.Partition, Offset: p.Timestamp + 2}
					if p.Partition == 1 {
						// The client does not retry after this error.
						rp.ErrorCode = kerr.TopicAuthorizationFailed.Code
					}
					rt.Partitions = append(rt.Partitions, rp)
				}
				resp.Topics = append(resp.Topics, rt)
			}
			return resp
		}, func(s *Snapshot) bool {
			topic := s.Topics["t"]
			of := s.Groups["g01"].Topics["t"]
			return !topic.Ready && topic.Count == 3 && len(topic.Partitions) == 2 &&
				len(of.Partitions) == 2 && of.Partial
		}, "ListOffsets t TOPIC_AUTHORIZATION_FAILED"},
		{"a broker's groups", kmsg.ListGroups, func(c *kfake.Cluster, req kmsg.Request) kmsg.Response {
			if c.CurrentNode() == 2 {
				return nil
			}
			resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
			resp.ErrorCode = kerr.ClusterAuthorizationFailed.Code
			return resp
		}, func(s *Snapshot) bool { return len(s.Groups) == 3 && len(s.Groups["g01"].Topics["t"].Partitions) == 3 },
			"ListGroups  CLUSTER_AUTHORIZATION_FAILED; ListGroups never CLUSTER_AUTHORIZATION_FAILED; " +
				"ListGroups new CLUSTER_AUTHORIZATION_FAILED"},
		{"a topic", kmsg.Metadata, func(c *kfake.Cluster, req kmsg.Request) kmsg.Response {
			if len(req.(*kmsg.MetadataRequest).Topics) == 0 {
				return nil
			}
			resp := req.ResponseKind().(*kmsg.MetadataResponse)
			for i, addr := range c.ListenAddrs() {
				host, port, _ := strings.Cut(addr, ":")
				n, _ := strconv.Atoi(port)
				broker := kmsg.MetadataResponseBroker{NodeID: int32(i), Host: host, Port: int32(n)}
				resp.Brokers = append(resp.Brokers, broker)
			}
			resp.Topics = []kmsg.MetadataResponseTopic{{Topic: new("t"), ErrorCode: kerr.TopicAuthorizationFailed.Code}}
			return resp
		}, func(s *Snapshot) bool {
			return s.Topics["t"] == nil && len(s.Groups["g01"].Topics) == 0 && len(s.Groups["g01"].missing) == 1
		}, "Metadata t TOPIC_AUTHORIZATION_FAILED"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cluster := fake(t, 3, 3)
			c := connect(t, watching(cluster.ListenAddrs()...))
			var log bytes.Buffer
			c.log = slog.New(slog.NewTextHandler(&log, nil))
			// This group does not exist.
			c.Want(map[string][]Objective{"never": nil})
			since := c.mustPoll(t).Groups["g01"].Topics["t"].Partitions[0].Since
			c.Want(map[string][]Objective{"new": nil, "never": nil})
			var failing atomic.Bool
			failing.Store(true)
			cluster.ControlKey(int16(tt.key), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				if !failing.Load() {
					return nil, nil, false
				}
				resp := tt.respond(cluster, req)
				return resp, nil, resp != nil
			})
			for range 2 {
				s := c.mustPoll(t)
				delete(s.Groups, "new")
				delete(s.Groups, "never")
				var failed []string
				for _, e := range s.Errors {
					failed = append(failed, e.API+" "+e.Group+e.Topic+" "+e.Code())
				}
				if got := strings.Join(slices.Compact(failed), "; "); got != tt.want || !tt.ok(s) {
					t.Errorf("errors are %q, want %q; groups %v, topics %v", got, tt.want, s.Groups, s.Topics)
				}
			}
			failing.Store(false)
			s := c.mustPoll(t)
			if len(s.Errors) > 0 || s.Groups["g01"] == nil || len(s.Groups["g01"].Topics["t"].Partitions) != 3 ||
				s.Groups["g01"].Topics["t"].Partitions[0].Since != since {
				t.Errorf("after the recovery, errors are %v and the group is %+v", s.Errors, s.Groups["g01"])
			}
			if got, want := summary(s, "new"), " Dead 0 members"; got != want {
				t.Errorf("a new group is %q, want %q", got, want)
			}
			once := min(1, len(tt.want))
			text := log.String()
			failures, recoveries := strings.Count(text, "level=WARN"), strings.Count(text, "responds again")
			if failures != once || recoveries != once {
				t.Errorf("%d failures and %d recoveries are logged, want %d each:\n%s",
					failures, recoveries, once, text)
			}
		})
	}
}

// What is remembered of a group survives a poll that could not read it, even if no other group uses
// the topic.
func TestGroupThatCannotBeReadIsRemembered(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 1, 1)
	addr := cluster.ListenAddrs()[0]
	produce(t, addr, "t", 0, 3)
	commit(t, addr, "g00", "t", 0, 2)
	c := connect(t, watching(cluster.ListenAddrs()...))
	partition := func() *Partition { return &c.mustPoll(t).Groups["g00"].Topics["t"].Partitions[0] }
	partition()
	commit(t, addr, "g00", "t", 0, 1)
	before := partition()
	var failing atomic.Bool
	failing.Store(true)
	cluster.ControlKey(int16(kmsg.OffsetFetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		resp.Groups = []kmsg.OffsetFetchResponseGroup{{Group: "g00", ErrorCode: kerr.CoordinatorLoadInProgress.Code}}
		return resp, nil, failing.Load()
	})
	if s := c.mustPoll(t); len(s.Groups["g00"].Topics) != 0 || len(s.Errors) != 1 {
		t.Fatalf("the group is %+v, want one without topics, and one error", s.Groups["g00"])
	}
	failing.Store(false)
	after := partition()
	if before.Rewinds != 1 || after.Rewinds != 1 || after.Status != StatusRewound || !after.Since.Equal(before.Since) ||
		!after.LastProgress.Equal(before.LastProgress) {
		t.Errorf("the partition is %+v, before the failure it was %+v", after, before)
	}
}

// A coordinator may move while the brokers are asked for their lists, so that the group is in none
// of them. Its present coordinator still knows it. A group that is gone is gone at once.
func TestGroupWhoseCoordinatorMoves(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		// member joins a group of the classic or of the new protocol, or none.
		member func(t *testing.T, addr string) string
	}{
		{"without members", func(*testing.T, string) string { return "g00" }},
		{"classic", func(t *testing.T, addr string) string {
			newClient(t, addr, kgo.ConsumerGroup("c"), kgo.ConsumeTopics("t"), kgo.Balancers(kgo.RangeBalancer()))
			return "c"
		}},
		{"consumer", func(t *testing.T, addr string) string {
			newClient(t, addr, kgo.ConsumerGroup("n"), kgo.ConsumeTopics("t"), kgo.Balancers(kgo.RangeBalancer()),
				kgo.ServerSideBalancer())
			return "n"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cluster := fake(t, 1, 1)
			addr := cluster.ListenAddrs()[0]
			group := tt.member(t, addr)
			c := connect(t, watching(cluster.ListenAddrs()...))
			before := c.until(t, "the group", func(s *Snapshot) bool {
				g := s.Groups[group]
				return g != nil && (group == "g00" || g.State == "Stable") && g.Topics["t"] != nil
			})
			want := summary(before, group)
			var lists atomic.Int32
			const never = 1000
			hide := func(n int32) { lists.Store(n) }
			cluster.ControlKey(int16(kmsg.ListGroups), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				return req.ResponseKind(), nil, lists.Add(-1) >= 0
			})
			// Each of the three brokers lists its groups before it has loaded this one.
			hide(3)
			s := c.mustPoll(t)
			if got := summary(s, group); got != want || len(s.Errors) > 0 {
				t.Errorf("the group is %q, want %q; errors %v", got, want, s.Errors)
			} else if p := s.Groups[group].Topics["t"].Partitions[0]; p.Since.After(before.Time) {
				t.Errorf("what was remembered of the partition is lost: it was first seen at %v", p.Since)
			}
			// A collector that starts in this moment knows nothing of the group but its name.
			hide(3)
			if got := summary(connectWanting(t, cluster, group).mustPoll(t), group); got != want {
				t.Errorf("to a fresh collector the group is %q, want %q", got, want)
			}
			// The coordinator cannot be asked for its list, so nothing is known of the group.
			hide(never)
			if s := connectWanting(t, cluster, group).mustPoll(t); group == "g00" && (s.Groups[group] != nil ||
				len(s.Errors) != 1) {
				t.Errorf("a group with commits that nobody lists is %q, errors %v", summary(s, group), s.Errors)
			}
			hide(0)
			if group != "g00" {
				return
			}
			if _, err := newAdmin(t, addr).DeleteGroup(t.Context(), group); err != nil {
				t.Fatal(err)
			}
			if s := c.mustPoll(t); s.Groups[group] != nil || len(s.Errors) > 0 || c.poller.groups[group] != nil {
				t.Errorf("the deleted group is %q, errors %v", summary(s, group), s.Errors)
			}
		})
	}
}

// A broker may list a group that another one coordinates: while the coordinator moves, or for good if
// the broker has kept what is over. Only the coordinator's list counts.
func TestGroupThatTwoBrokersList(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 0, 1)
	addr := cluster.ListenAddrs()[0]
	newClient(t, addr, kgo.ConsumerGroup("c"), kgo.ConsumeTopics("t"), kgo.Balancers(kgo.RangeBalancer()))
	known := connect(t, watching(cluster.ListenAddrs()...))
	known.until(t, "the group", func(s *Snapshot) bool {
		return s.Groups["c"] != nil && s.Groups["c"].State == "Stable"
	})
	coordinator := newAdmin(t, addr).FindGroupCoordinators(t.Context(), "c")["c"].NodeID
	cluster.ControlKey(int16(kmsg.ListGroups), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
		resp.Groups = []kmsg.ListGroupsResponseGroup{{Group: "c", ProtocolType: "consumer", GroupState: "Empty"}}
		return resp, nil, cluster.CurrentNode() != coordinator
	})
	want := "classic Stable 1 members, 0 of 1 committed, subscribed true, unassigned 0"
	// The brokers respond in any order.
	for range 10 {
		fresh := connect(t, watching(cluster.ListenAddrs()...))
		for name, c := range map[string]*Collector{"known": known, "new": fresh} {
			if s := c.mustPoll(t); summary(s, "c") != want || len(s.Errors) > 0 {
				t.Errorf("the group, which is %s, is %q, want %q; errors %v", name, summary(s, "c"), want, s.Errors)
			}
		}
	}
}

// connectWanting returns a collector that watches one group of a fake cluster.
func connectWanting(t *testing.T, cluster *kfake.Cluster, group string) *Collector {
	t.Helper()
	c := connect(t, Config{Kafka: kafkaconfig.Client{Brokers: cluster.ListenAddrs()}})
	c.Want(map[string][]Objective{group: nil})
	return c
}

// A broker that accepts connections and never responds takes only a part of a poll's time. The
// others are still asked.
func TestSilentBroker(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 12, 3)
	c := newTestCollector(t, watching(cluster.ListenAddrs()...))
	c.connectWithin(t, 3*time.Second)
	c.mustPoll(t)
	cluster.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, nil, cluster.CurrentNode() == 1
	})
	for succeeded := false; !succeeded; {
		began := time.Now()
		c.poll(t.Context())
		// A poll ends at its own time limit. The rest is for a busy machine.
		if took := time.Since(began); took > c.timeout+10*time.Second {
			t.Fatalf("the poll took %v", took)
		}
		if c.Err() != nil {
			// What any broker may respond to was asked of the silent one twice.
			continue
		}
		succeeded = true
		s := c.Snapshot()
		if len(s.Groups) == 0 || len(s.Groups) == 12 || len(s.Topics["t"].Partitions) != 2 {
			t.Errorf("%d groups and %d partitions are read, want some of 12, and 2", len(s.Groups),
				len(s.Topics["t"].Partitions))
		}
		apis := make(map[string]bool)
		for _, e := range s.Errors {
			apis[e.API] = e.Code() == "TIMEOUT" || e.Code() == "CONNECTION"
		}
		want := map[string]bool{"ListGroups": true, "OffsetFetch": true, "ListOffsets": true}
		if !cmp.Equal(want, apis) {
			t.Errorf("errors are %v", s.Errors)
		}
	}
}

// Run polls at once and then at each interval. It ends without an error when its context does. It
// signals each poll and does not wait for a receiver.
func TestRun(t *testing.T) {
	t.Parallel()
	cluster := fake(t, 1, 1)
	c := newTestCollector(t, Config{
		Kafka: kafkaconfig.Client{Brokers: cluster.ListenAddrs()}, Interval: 20 * time.Millisecond,
	})
	// Run connects again, with the same limits: see connect.
	c.connectWithin(t, 6*time.Minute)
	c.Want(map[string][]Objective{"g00": nil})
	for range 2 {
		// Run may be called again after it has returned.
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		var last time.Time
		for polls := 0; polls < 3; {
			<-c.Polled()
			s := c.Snapshot()
			if s == nil || s.Groups["g00"] == nil || s.Time.Before(last) {
				t.Fatalf("after a poll there is %+v, %v", s, c.Err())
			}
			// The snapshot may be that of a later poll, whose signal then brings nothing new.
			if s.Time.After(last) {
				polls, last = polls+1, s.Time
			}
		}
		for polls := 0; polls < 3; time.Sleep(time.Millisecond) {
			// These polls go on although nothing receives their signals.
			if s := c.Snapshot(); s.Time.After(last) {
				polls, last = polls+1, s.Time
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(c.Polled()) != 1 {
			t.Error("polls without a receiver leave no signal")
		}
		<-c.Polled()
	}
}

// New reports everything that is wrong at once.
func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	user, pass, junk := file("user", "me\n"), file("pass", "secret\n"), file("junk.crt", "junk")
	ok := []string{"kafka:9092"}
	login := func(protocol, mechanism, passwordFile string) kafkaconfig.Client {
		return kafkaconfig.Client{
			Brokers: ok, Protocol: protocol, Mechanism: mechanism, UsernameFile: user, PasswordFile: passwordFile,
		}
	}
	for _, tt := range []struct {
		kafka kafkaconfig.Client
		want  []string
	}{
		{kafkaconfig.Client{Brokers: ok}, nil},
		{kafkaconfig.Client{Brokers: ok, Protocol: "ssl"}, nil},
		{login("sasl_plaintext", "PLAIN", pass), nil},
		{login("sasl_ssl", "SCRAM-SHA-512", pass), nil},
		{kafkaconfig.Client{}, []string{`brokers "": must be host:port`}},
		{kafkaconfig.Client{Brokers: []string{"kafka", ":9092"}, Protocol: "tls"},
			[]string{`brokers "kafka,:9092": must be host:port`, `security protocol "tls": must be one of`}},
		{kafkaconfig.Client{Brokers: []string{"kafka:99999"}}, []string{`brokers "kafka:99999": must be host:port`}},
		{kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: dir + "/none"}, []string{"read CA"}},
		{kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: junk}, []string{junk + " is not whole PEM text"}},
		{kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: t.TempDir()}, []string{"no *.crt"}},
		{kafkaconfig.Client{Brokers: ok, Protocol: "ssl", Cert: junk, Key: junk},
			[]string{"must be the PEM certificate of key"}},
		{kafkaconfig.Client{Brokers: ok, CA: junk, Mechanism: "PLAIN"},
			[]string{"must be ssl or sasl_ssl when CA is set", "when SASL mechanism is set"}},
		{login("sasl_ssl", "GSSAPI", pass), []string{`SASL mechanism "GSSAPI": must be one of`}},
		{login("sasl_ssl", "PLAIN", ""), []string{`password "": must be set with sasl_ssl`}},
		{login("sasl_ssl", "PLAIN", dir+"/none"), []string{`password file "` + dir + `/none": must be a file`}},
	} {
		_, err := New(Config{Name: "lab", Kafka: tt.kafka, Interval: time.Second}, slog.New(slog.DiscardHandler))
		if (err == nil) != (tt.want == nil) {
			t.Errorf("%+v: error is %v, want %q", tt.kafka, err, tt.want)
		}
		for _, want := range tt.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: error is %v, want one with %q", tt.kafka, err, want)
			}
		}
	}
	if _, err := kgo.NewClient(newTestCollector(t, Config{Interval: 1000 * time.Hour}).opts...); err != nil {
		t.Errorf("with a long interval: %v", err)
	}
	_, err := New(Config{Kafka: kafkaconfig.Client{Brokers: ok}}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "no name") || !strings.Contains(err.Error(), "interval") {
		t.Errorf("error is %v, want one of name and interval", err)
	}
}

func TestClientHasTheConfiguredID(t *testing.T) {
	t.Parallel()
	c := connect(t, Config{Kafka: kafkaconfig.Client{Brokers: []string{"127.0.0.1:1"}, ClientID: "watcher"}})
	if got := c.poller.client.kafka.OptValue(kgo.ClientID); got != "watcher" {
		t.Errorf("the client's ID is %v, want watcher", got)
	}
}

// The user's name and password are read at each connection.
func TestPasswordRenewal(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(),
		kfake.Superuser("SCRAM-SHA-512", "me", "second"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	dir := t.TempDir()
	write := func(pass string) {
		for name, text := range map[string]string{"user": "me\n", "pass": pass + "\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("first")
	c := connectBriefly(t, Config{Kafka: kafkaconfig.Client{
		Brokers: cluster.ListenAddrs(), Protocol: "sasl_plaintext", Mechanism: "SCRAM-SHA-512",
		UsernameFile: filepath.Join(dir, "user"), PasswordFile: filepath.Join(dir, "pass"),
	}})
	c.poll(t.Context())
	if c.Err() == nil {
		t.Error("with a wrong password there is no error")
	}
	write("second")
	c.mustPoll(t)
}
