package lag

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/twmb/franz-go/pkg/kerr"
)

var someday = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// newTestCollector returns a collector that has not polled and has no client.
func newTestCollector(t *testing.T, cfg Config) *Collector {
	t.Helper()
	cfg.Name = "lab"
	if cfg.Kafka.Brokers == nil {
		cfg.Kafka.Brokers = []string{"127.0.0.1:1"}
	}
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Second
	}
	c, err := New(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// setClock replaces the clock. The collector counts as made at its present time.
func (c *Collector) setClock(now func() time.Time) {
	c.now, c.poller.now, c.poller.ages.began = now, now, now()
}

// newShowing returns a collector to which testSnapshot is fresh.
func newShowing(t *testing.T, cfg Config) *Collector {
	t.Helper()
	c := newTestCollector(t, cfg)
	c.now = func() time.Time { return someday }
	return c
}

// publish stores a result as a poll does: a snapshot, or the error of a failed poll.
func (c *Collector) publish(s *Snapshot, err error) {
	r := &result{snapshot: s, err: err}
	r.objectives = c.objectives
	if s != nil {
		r.shown = choose(c.metrics, s, c.objectives, c.cfg.MaxSeries)
	}
	c.metrics.count(r, 10*time.Millisecond)
	c.last.Store(r)
}

// scrape returns the series that begin with one of the prefixes.
func scrape(t *testing.T, c *Collector, prefixes ...string) []string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).
		ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != 200 {
		t.Fatalf("a scrape got %d: %s", rec.Code, rec.Body)
	}
	var lines []string
	for line := range strings.Lines(rec.Body.String()) {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func testSnapshot() *Snapshot {
	nan := math.NaN()
	return &Snapshot{
		Time: someday, Took: 20 * time.Millisecond, Brokers: []int32{0, 2},
		Groups: map[string]*Group{
			"readers": {
				Name:     "readers",
				State:    "Stable",
				Protocol: "consumer",
				Members:  2,
				Topics: map[string]*GroupTopic{
					"orders": {Topic: "orders", Subscribed: true, Unassigned: 1, Partitions: []Partition{
						{
							Number:       0,
							Committed:    90,
							Records:      10,
							Age:          2500 * time.Millisecond,
							Status:       StatusStalled,
							Headroom:     0.5,
							Lost:         3,
							Rewinds:      2,
							LastProgress: someday.Add(-time.Minute),
						},
						{Number: 1, Committed: 5, Status: StatusOK, Headroom: 1},
						{Number: 2, Committed: 0, Status: StatusOK, Headroom: nan},
						{Number: 3, Committed: -1, Status: StatusNoCommit, Headroom: nan, Close: -1},
					}},
					"fresh": {
						Topic:      "fresh",
						Subscribed: true,
						Partitions: []Partition{
							{Number: 0, Committed: -1, Status: StatusNoCommit, Headroom: nan, Close: -1},
						},
					},
				},
			},
			"away": {Name: "away", State: "Dead", Topics: map[string]*GroupTopic{}},
			"odd":  {Name: "odd", State: "Wondering", Members: -1, Topics: map[string]*GroupTopic{}},
		},
		Topics: map[string]*Topic{
			"orders": {Name: "orders", Count: 4, Partitions: []TopicPartition{
				{
					Start: 80, Stable: 100, End: 107, Open: 90 * time.Second,
					Replication: Replication{Leader: 2, Preferred: true, Replicas: 3, InSync: 3},
				},
				{Number: 1, Stable: 5, End: 5, Replication: Replication{Replicas: 3, InSync: 2}},
				{
					Number: 2, Stable: 5, End: 6, Open: time.Second, OpenUnknown: true,
					Replication: Replication{Replicas: 3, InSync: 3},
				},
			}},
		},
		Errors: []*ReadError{{API: "OffsetFetch", Group: "other", Err: kerr.GroupAuthorizationFailed}},
	}
}

// A scrape has these series and labels. What has no value has no series.
func TestSeries(t *testing.T) {
	t.Parallel()
	c := newShowing(t, Config{})
	c.Want(map[string][]Objective{"readers": {{Age: time.Hour}, {Age: 2 * time.Second}, {}}, "away": nil})
	c.publish(testSnapshot(), nil)
	readers := strings.NewReplacer("READERS", `consumergroup="readers",kafka_cluster="lab"`)
	want := strings.Split(strings.TrimSpace(readers.Replace(`
kafka_broker_info{id="0",kafka_cluster="lab"} 1
kafka_broker_info{id="2",kafka_cluster="lab"} 1
kafka_consumergroup_current_offset{READERS,partition="0",topic="orders"} 90
kafka_consumergroup_current_offset{READERS,partition="1",topic="orders"} 5
kafka_consumergroup_current_offset{READERS,partition="2",topic="orders"} 0
kafka_consumergroup_lag{READERS,partition="0",topic="orders"} 10
kafka_consumergroup_lag{READERS,partition="1",topic="orders"} 0
kafka_consumergroup_lag{READERS,partition="2",topic="orders"} 0
kafka_consumergroup_lag_seconds{READERS,partition="0",topic="orders"} 2.5
kafka_consumergroup_lag_seconds{READERS,partition="1",topic="orders"} 0
kafka_consumergroup_lag_seconds{READERS,partition="2",topic="orders"} 0
kafka_consumergroup_last_progress_timestamp_seconds{READERS,partition="0",topic="orders"} 1.767322985e+09
kafka_consumergroup_members{consumergroup="away",kafka_cluster="lab"} 0
kafka_consumergroup_members{READERS} 2
kafka_consumergroup_objective_breached{READERS} 1
kafka_consumergroup_objective_seconds{READERS} 2
kafka_consumergroup_offset_rewinds_total{READERS,partition="0",topic="orders"} 2
kafka_consumergroup_offset_rewinds_total{READERS,partition="1",topic="orders"} 0
kafka_consumergroup_offset_rewinds_total{READERS,partition="2",topic="orders"} 0
kafka_consumergroup_partition_status{READERS,status="lost",topic="fresh"} 0
kafka_consumergroup_partition_status{READERS,status="lost",topic="orders"} 0
kafka_consumergroup_partition_status{READERS,status="no_commit",topic="fresh"} 1
kafka_consumergroup_partition_status{READERS,status="no_commit",topic="orders"} 1
kafka_consumergroup_partition_status{READERS,status="ok",topic="fresh"} 0
kafka_consumergroup_partition_status{READERS,status="ok",topic="orders"} 2
kafka_consumergroup_partition_status{READERS,status="rewound",topic="fresh"} 0
kafka_consumergroup_partition_status{READERS,status="rewound",topic="orders"} 0
kafka_consumergroup_partition_status{READERS,status="slow",topic="fresh"} 0
kafka_consumergroup_partition_status{READERS,status="slow",topic="orders"} 0
kafka_consumergroup_partition_status{READERS,status="stalled",topic="fresh"} 0
kafka_consumergroup_partition_status{READERS,status="stalled",topic="orders"} 1
kafka_consumergroup_partition_status{READERS,status="stopped",topic="fresh"} 0
kafka_consumergroup_partition_status{READERS,status="stopped",topic="orders"} 0
kafka_consumergroup_records_lost_total{READERS,partition="0",topic="orders"} 3
kafka_consumergroup_records_lost_total{READERS,partition="1",topic="orders"} 0
kafka_consumergroup_records_lost_total{READERS,partition="2",topic="orders"} 0
kafka_consumergroup_retention_headroom_ratio{READERS,partition="0",topic="orders"} 0.5
kafka_consumergroup_retention_headroom_ratio{READERS,partition="1",topic="orders"} 1
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="Assigning"} 0
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="CompletingRebalance"} 0
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="Dead"} 1
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="Empty"} 0
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="NotReady"} 0
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="PreparingRebalance"} 0
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="Reconciling"} 0
kafka_consumergroup_state{consumergroup="away",kafka_cluster="lab",state="Stable"} 0
kafka_consumergroup_topic_lag{READERS,topic="orders"} 10
kafka_consumergroup_topic_max_lag_seconds{READERS,topic="orders"} 2.5
kafka_consumergroup_unassigned_partitions{READERS,topic="fresh"} 0
kafka_consumergroup_unassigned_partitions{READERS,topic="orders"} 1
kafka_consumergroup_uncommitted_partitions{READERS,topic="fresh"} 1
kafka_consumergroup_uncommitted_partitions{READERS,topic="orders"} 1
kafka_topic_partition_current_offset{kafka_cluster="lab",partition="0",topic="orders"} 107
kafka_topic_partition_current_offset{kafka_cluster="lab",partition="1",topic="orders"} 5
kafka_topic_partition_current_offset{kafka_cluster="lab",partition="2",topic="orders"} 6
kafka_topic_partition_in_sync_replica{kafka_cluster="lab",partition="0",topic="orders"} 3
kafka_topic_partition_in_sync_replica{kafka_cluster="lab",partition="1",topic="orders"} 2
kafka_topic_partition_in_sync_replica{kafka_cluster="lab",partition="2",topic="orders"} 3
kafka_topic_partition_leader{kafka_cluster="lab",partition="0",topic="orders"} 2
kafka_topic_partition_leader{kafka_cluster="lab",partition="1",topic="orders"} 0
kafka_topic_partition_leader{kafka_cluster="lab",partition="2",topic="orders"} 0
kafka_topic_partition_leader_is_preferred{kafka_cluster="lab",partition="0",topic="orders"} 1
kafka_topic_partition_leader_is_preferred{kafka_cluster="lab",partition="1",topic="orders"} 0
kafka_topic_partition_leader_is_preferred{kafka_cluster="lab",partition="2",topic="orders"} 0
kafka_topic_partition_oldest_offset{kafka_cluster="lab",partition="0",topic="orders"} 80
kafka_topic_partition_oldest_offset{kafka_cluster="lab",partition="1",topic="orders"} 0
kafka_topic_partition_oldest_offset{kafka_cluster="lab",partition="2",topic="orders"} 0
kafka_topic_partition_open_txn_records{kafka_cluster="lab",partition="0",topic="orders"} 7
kafka_topic_partition_open_txn_records{kafka_cluster="lab",partition="1",topic="orders"} 0
kafka_topic_partition_open_txn_records{kafka_cluster="lab",partition="2",topic="orders"} 1
kafka_topic_partition_open_txn_seconds{kafka_cluster="lab",partition="0",topic="orders"} 90
kafka_topic_partition_open_txn_seconds{kafka_cluster="lab",partition="1",topic="orders"} 0
kafka_topic_partition_replicas{kafka_cluster="lab",partition="0",topic="orders"} 3
kafka_topic_partition_replicas{kafka_cluster="lab",partition="1",topic="orders"} 3
kafka_topic_partition_replicas{kafka_cluster="lab",partition="2",topic="orders"} 3
kafka_topic_partition_under_replicated_partition{kafka_cluster="lab",partition="0",topic="orders"} 0
kafka_topic_partition_under_replicated_partition{kafka_cluster="lab",partition="1",topic="orders"} 1
kafka_topic_partition_under_replicated_partition{kafka_cluster="lab",partition="2",topic="orders"} 0
kafka_topic_partitions{kafka_cluster="lab",topic="orders"} 4
lag_collector_errors_total{api="OffsetFetch",code="GROUP_AUTHORIZATION_FAILED",kafka_cluster="lab"} 1
lag_collector_last_success_timestamp_seconds{kafka_cluster="lab"} 1.767323045e+09
lag_collector_series_dropped_total{kafka_cluster="lab"} 0
lag_collector_unauthorized{api="OffsetFetch",consumergroup="other",kafka_cluster="lab",topic=""} 1
lag_collector_up{kafka_cluster="lab"} 1
`)), "\n")
	got := slices.DeleteFunc(scrape(t, c, "kafka_", "lag_"), func(line string) bool {
		return strings.HasPrefix(line, "lag_collector_duration") || strings.HasPrefix(line, "lag_collector_series{") ||
			strings.HasPrefix(line, "kafka_consumergroup_state") && !strings.Contains(line, "away")
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
	odd := scrape(t, c, `kafka_consumergroup_state{consumergroup="odd",kafka_cluster="lab",state="Wondering"}`)
	if len(odd) != 1 {
		t.Error("a state that this program does not know has no series")
	}
	shown := len(scrape(t, c, "kafka_consumergroup_", "kafka_topic_", "lag_collector_unauthorized"))
	wantSeries := fmt.Sprintf(`lag_collector_series{kafka_cluster="lab"} %d`, shown)
	if got := scrape(t, c, "lag_collector_series{"); got[0] != wantSeries {
		t.Errorf("the number of series is %s, want %s", got[0], wantSeries)
	}
}

// There are no values before the first poll, and old values are not shown as if they were new.
func TestSeriesWithoutKafka(t *testing.T) {
	t.Parallel()
	c := newTestCollector(t, Config{})
	now := someday
	c.now = func() time.Time { return now }
	names := func() (names []string) {
		const prefix = "lag_collector_"
		lines := scrape(t, c, "kafka_", prefix+"up", prefix+"series{", prefix+"last", prefix+"errors")
		for _, line := range lines {
			name, _, _ := strings.Cut(line, "{")
			if strings.HasPrefix(name, "kafka_") {
				name = "kafka_"
			} else if !strings.HasPrefix(name, "lag_collector_last") {
				name = line
			}
			names = append(names, strings.ReplaceAll(name, `kafka_cluster="lab"`, ""))
		}
		return slices.Compact(names)
	}
	check := func(when string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, names()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	check("before the first poll")
	down := &ReadError{API: "Metadata", Err: errors.New("connection refused")}
	c.publish(nil, fmt.Errorf("read: %w", down))
	check("the first poll failed", `lag_collector_errors_total{api="Metadata",code="CONNECTION",} 1`,
		"lag_collector_up{} 0")

	s := testSnapshot()
	s.Errors = nil
	c.publish(s, nil)
	// The next poll may take its time.
	now = now.Add(15*time.Second + c.timeout)
	check("a poll succeeded", "kafka_", `lag_collector_errors_total{api="Metadata",code="CONNECTION",} 1`,
		"lag_collector_last_success_timestamp_seconds", "lag_collector_series{} 92", "lag_collector_up{} 1")
	now = now.Add(time.Millisecond)
	check("the next poll hangs", `lag_collector_errors_total{api="Metadata",code="CONNECTION",} 1`,
		"lag_collector_last_success_timestamp_seconds", "lag_collector_series{} 0", "lag_collector_up{} 1")

	now = someday.Add(15 * time.Second)
	c.publish(s, down)
	check("the next poll failed", "kafka_", `lag_collector_errors_total{api="Metadata",code="CONNECTION",} 2`,
		"lag_collector_last_success_timestamp_seconds", "lag_collector_series{} 92", "lag_collector_up{} 0")
	now = someday.Add(15*time.Second + time.Millisecond)
	check("three intervals later", `lag_collector_errors_total{api="Metadata",code="CONNECTION",} 2`,
		"lag_collector_last_success_timestamp_seconds", "lag_collector_series{} 0", "lag_collector_up{} 0")
}

// An objective is met while no record is older. If an older record may be where nothing could be
// read, it is unknown whether it is met.
func TestObjective(t *testing.T) {
	t.Parallel()
	const late, met = 2499 * time.Millisecond, 2500 * time.Millisecond
	hidden := func(_ *GroupTopic, g *Group) { g.TopicsHidden = true }
	freshPartial := func(_ *GroupTopic, g *Group) { g.Topics["fresh"].Partial = true }
	anotherMissing := func(_ *GroupTopic, g *Group) { g.missing = []string{"another"} }
	ageUnknown := func(orders *GroupTopic, _ *Group) { orders.Partitions[0].AgeUnknown = true }
	for _, tt := range []struct {
		objectives []Objective
		change     func(orders *GroupTopic, g *Group)
		want       string
	}{
		{[]Objective{{Age: late}}, nil, "1"},
		{[]Objective{{Age: met}}, nil, "0"},
		{[]Objective{{Age: late, Topics: []string{"orders"}}}, nil, "1"},
		{[]Objective{{Age: met}, {Age: late}, {}}, nil, "1"},
		{[]Objective{{Age: met, Topics: []string{"orders", "fresh"}}}, nil, "0"},
		// An objective about another topic says nothing of this one.
		{[]Objective{{Age: late, Topics: []string{"another"}}}, nil, "none"},
		// A topic that was never consumed keeps no objective.
		{[]Objective{{Age: late, Topics: []string{"fresh"}}}, nil, "none"},
		{[]Objective{{Age: time.Second, Topics: []string{"another"}}, {Age: met}}, nil, "none"},
		{[]Objective{{Age: time.Second, Topics: []string{"another"}}, {Age: late}}, nil, "1"},
		{[]Objective{{Age: met}}, func(orders *GroupTopic, _ *Group) { orders.Partial = true }, "none"},
		{[]Objective{{Age: late}}, func(orders *GroupTopic, _ *Group) { orders.Partial = true }, "1"},
		{[]Objective{{Age: met, Topics: []string{"orders"}}}, freshPartial, "0"},
		{[]Objective{{Age: met}}, anotherMissing, "none"},
		{[]Objective{{Age: met, Topics: []string{"orders"}}}, anotherMissing, "0"},
		{[]Objective{{Age: met, Topics: []string{"orders", "another"}}}, anotherMissing, "none"},
		// The group reads topics that the collector may not see.
		{[]Objective{{Age: met}}, hidden, "none"},
		{[]Objective{{Age: late}}, hidden, "1"},
		{[]Objective{{Age: met, Topics: []string{"orders"}}}, hidden, "0"},
		{[]Objective{{Age: met}}, ageUnknown, "none"},
		{[]Objective{{Age: late}}, ageUnknown, "1"},
		{[]Objective{{Age: met}}, func(_ *GroupTopic, g *Group) { g.State = "Dead" }, "none"},
	} {
		c := newShowing(t, Config{})
		c.Want(map[string][]Objective{"readers": tt.objectives})
		s := testSnapshot()
		if g := s.Groups["readers"]; tt.change != nil {
			tt.change(g.Topics["orders"], g)
		}
		c.publish(s, nil)
		got := "none"
		if lines := scrape(t, c, "kafka_consumergroup_objective_breached"); len(lines) > 0 {
			got = lines[0][strings.LastIndex(lines[0], " ")+1:]
		}
		if got != tt.want || len(scrape(t, c, "kafka_consumergroup_objective_seconds")) != 1 {
			t.Errorf("objectives %+v, group %+v: %s, want %s", tt.objectives, s.Groups["readers"], got, tt.want)
		}
	}
}

// A sum needs every partition, and a maximum of ages needs every age.
func TestPartialSumsAreLeftOut(t *testing.T) {
	t.Parallel()
	const lags = "lag 0, lag 1, lag 2"
	for _, tt := range []struct {
		name   string
		change func(*GroupTopic)
		want   string
	}{
		{"everything is known", func(*GroupTopic) {},
			lags + ", lag_seconds 0, lag_seconds 1, lag_seconds 2, topic_lag, topic_max_lag_seconds"},
		{"a partition is missing", func(t *GroupTopic) { t.Partial = true },
			lags + ", lag_seconds 0, lag_seconds 1, lag_seconds 2"},
		{"an age is not known", func(t *GroupTopic) { t.Partitions[0].AgeUnknown = true },
			lags + ", lag_seconds 1, lag_seconds 2, topic_lag"},
	} {
		c := newShowing(t, Config{})
		s := testSnapshot()
		tt.change(s.Groups["readers"].Topics["orders"])
		c.publish(s, nil)
		var got []string
		for _, line := range scrape(t, c, "kafka_consumergroup_lag", "kafka_consumergroup_topic_") {
			name, labels, _ := strings.Cut(strings.TrimPrefix(line, "kafka_consumergroup_"), "{")
			if _, partition, found := strings.Cut(labels, `partition="`); found {
				name += " " + partition[:1]
			}
			got = append(got, name)
		}
		if got := strings.Join(got, ", "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A limit first drops partitions of groups without an objective, then topics, then the sums of such
// groups, then partitions of groups with one. It drops whole groups, the same ones each time, and
// counts what it drops.
func TestSeriesCap(t *testing.T) {
	t.Parallel()
	s := &Snapshot{Time: someday, Groups: make(map[string]*Group), Topics: make(map[string]*Topic)}
	for _, name := range []string{"a", "b", "z"} {
		topics := make(map[string]*GroupTopic)
		for _, topic := range []string{"t", "u"} {
			topics[topic] = &GroupTopic{Topic: topic, Partitions: []Partition{
				{
					Number:    0,
					Committed: 1,
					Headroom:  1,
					Status:    StatusOK,
				}, {Number: 1, Committed: 1, Headroom: 1, Status: StatusOK},
			}}
			s.Topics[topic] = &Topic{Name: topic, Count: 2, Partitions: []TopicPartition{{Number: 0}, {Number: 1}}}
		}
		s.Groups[name] = &Group{Name: name, State: "Stable", Members: 1, Topics: topics}
	}
	const sums, partitions, topic = 1 + 8 + 2*(4+7), 4 * 6, 1 + 2*9
	// The two more are the objective of the wanted group.
	everything := 3*sums + 2 + 3*partitions + 2*topic
	for _, tt := range []struct {
		limit                      int
		groups, partitions, topics string
		series                     int
	}{
		{0, "abz", "abz", "tu", everything},
		{everything, "abz", "abz", "tu", everything},
		{everything - 1, "abz", "az", "tu", everything - partitions},
		{everything - partitions - 1, "abz", "z", "tu", everything - 2*partitions},
		{everything - 2*partitions - 1, "abz", "z", "t", everything - 2*partitions - topic},
		{everything - 2*partitions - 2*topic - 1, "az", "z", "t", everything - 2*partitions - sums - topic},
		{sums + 2 + partitions, "z", "z", "", sums + 2 + partitions},
		{sums + 2 + partitions - 1, "z", "", "t", sums + 2 + topic},
		{sums + 2, "z", "", "", sums + 2},
		// A group without its sums shows no partitions.
		{sums - 1, "", "", "t", topic},
		{6, "", "", "", 0},
	} {
		c := newShowing(t, Config{MaxSeries: tt.limit})
		c.Want(map[string][]Objective{"z": {{Age: time.Second}}})
		for range 2 {
			// The second poll drops the same series and counts them again.
			c.publish(s, nil)
		}
		join := func(names map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(names)), "") }
		got := c.last.Load().shown
		if join(got.groups) != tt.groups || join(got.partitions) != tt.partitions || join(got.topics) != tt.topics ||
			got.series != tt.series || got.dropped != everything-tt.series {
			t.Errorf("limit %d: %+v, want %+v and %d dropped", tt.limit, got, tt, everything-tt.series)
		}
		if n := len(scrape(t, c, "kafka_consumergroup_", "kafka_topic_")); n != tt.series {
			t.Errorf("limit %d: %d series, want %d", tt.limit, n, tt.series)
		}
		want := fmt.Sprintf(`lag_collector_series_dropped_total{kafka_cluster="lab"} %d`, 2*(everything-tt.series))
		if got := scrape(t, c, "lag_collector_series_dropped_total"); got[0] != want {
			t.Errorf("limit %d: %s, want %s", tt.limit, got[0], want)
		}
	}
}
