package lag

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// states are those that are shown as 0 when a group is in another: all that its group coordinator knows.
var states = []string{"Stable", "Empty", "Assigning", "Reconciling", "PreparingRebalance", "CompletingRebalance", "NotReady", "Dead"}

// staleAfter is after how many intervals lag is shown no more, if the last poll failed: an old value looks like a new one. One that is under
// way may take its time.
const staleAfter = 3

// metrics are the series of one cluster. Names and labels are those of kafka_exporter, where it has them.
type metrics struct {
	lag, age, committed, progress, headroom, lost, rewinds *prometheus.Desc // by group, topic, partition
	topicLag, topicAge, uncommitted, unassigned, status    *prometheus.Desc // by group, topic
	members, state, objective, breached                    *prometheus.Desc // by group
	topicPartitions                                        *prometheus.Desc // by topic
	brokerInfo                                             *prometheus.Desc // by id
	end, start, openTxn                                    *prometheus.Desc // by topic, partition
	leader, preferred, replicas, inSync, under             *prometheus.Desc // by topic, partition
	up, lastSuccess, series                                *prometheus.Desc
	took                                                   prometheus.Histogram
	errors                                                 *prometheus.CounterVec
	dropped                                                prometheus.Counter
}

func newMetrics(cluster string) *metrics {
	constant := prometheus.Labels{"kafka_cluster": cluster}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, constant)
	}
	partition := []string{"consumergroup", "topic", "partition"}
	topic := partition[:2]
	group := partition[:1]
	with := func(labels []string, more string) []string { return append(slices.Clone(labels), more) }
	m := &metrics{
		lag:       desc("kafka_consumergroup_lag", "Records that the group can read and has not.", partition...),
		age:       desc("kafka_consumergroup_lag_seconds", "Time since the group's first unread record was appended; 0 when all is read.", partition...),
		committed: desc("kafka_consumergroup_current_offset", "The group's committed offset.", partition...),
		progress: desc("kafka_consumergroup_last_progress_timestamp_seconds", "When the commit was last seen to move; none as long as it was not.",
			partition...),
		headroom: desc("kafka_consumergroup_retention_headroom_ratio",
			"Part of the log that retention can take before it takes what is unread: 1 when all is read, below 0 when records were lost.", partition...),
		lost:    desc("kafka_consumergroup_records_lost_total", "Records that retention took before the group read them.", partition...),
		rewinds: desc("kafka_consumergroup_offset_rewinds_total", "Times that the commit went back.", partition...),

		topicLag: desc("kafka_consumergroup_topic_lag", "Records of the topic that the group can read and has not.", topic...),
		topicAge: desc("kafka_consumergroup_topic_max_lag_seconds", "The largest kafka_consumergroup_lag_seconds of the topic's partitions.", topic...),
		uncommitted: desc("kafka_consumergroup_uncommitted_partitions", "Partitions of the topic without a commit of the group: these have no lag.",
			topic...),
		unassigned: desc("kafka_consumergroup_unassigned_partitions", "Partitions of a topic that the group reads, which no member has.", topic...),
		status:     desc("kafka_consumergroup_partition_status", "Partitions of the topic by what the group does with them.", with(topic, "status")...),

		members:   desc("kafka_consumergroup_members", "Members of the group.", group...),
		state:     desc("kafka_consumergroup_state", "1 for the state that the group is in.", with(group, "state")...),
		objective: desc("kafka_consumergroup_objective_seconds", "Age that the group's unread records may have; of several objectives the strictest.", group...),
		breached:  desc("kafka_consumergroup_objective_breached", "1 when an unread record is older than the group's objective, or than one of several.", group...),

		end:     desc("kafka_topic_partition_current_offset", "The log's end: the offset of the next record.", "topic", "partition"),
		start:   desc("kafka_topic_partition_oldest_offset", "The log's first offset.", "topic", "partition"),
		openTxn: desc("kafka_topic_partition_open_txn_records", "Records behind the first open transaction, which readers wait for.", "topic", "partition"),

		leader:    desc("kafka_topic_partition_leader", "The leader's broker ID.", "topic", "partition"),
		preferred: desc("kafka_topic_partition_leader_is_preferred", "1 when the leader is the preferred one.", "topic", "partition"),
		replicas:  desc("kafka_topic_partition_replicas", "Replicas of the partition.", "topic", "partition"),
		inSync:    desc("kafka_topic_partition_in_sync_replica", "Replicas that are in sync.", "topic", "partition"),
		under:     desc("kafka_topic_partition_under_replicated_partition", "1 when not all replicas are in sync.", "topic", "partition"),

		topicPartitions: desc("kafka_topic_partitions", "Partitions of the topic.", "topic"),
		brokerInfo:      desc("kafka_broker_info", "1 for each broker.", "id"),

		up:          desc("lag_collector_up", "1 when the last poll of the cluster succeeded."),
		lastSuccess: desc("lag_collector_last_success_timestamp_seconds", "When the last poll that succeeded began."),
		series:      desc("lag_collector_series", "Series of groups and topics that are shown."),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lag_collector_duration_seconds", Help: "Time that a poll took.", ConstLabels: constant,
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13), NativeHistogramBucketFactor: 1.1,
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lag_collector_errors_total", Help: "What could not be read, by request and Kafka's error.", ConstLabels: constant,
		}, []string{"api", "code"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lag_collector_series_dropped_total", Help: "Series that a poll had to leave out to keep to the cap.", ConstLabels: constant,
		}),
	}
	return m
}

// observe counts a poll.
func (m *metrics) observe(r *result, took time.Duration) {
	m.took.Observe(took.Seconds())
	if r.err != nil {
		e := whole(r.err)
		m.errors.WithLabelValues(e.API, e.Code()).Inc()
		return
	}
	for _, e := range r.snapshot.Errors {
		m.errors.WithLabelValues(e.API, e.Code()).Inc()
	}
	m.dropped.Add(float64(r.shown.dropped))
}

// Describe sends nothing: which series there are depends on the cluster.
func (c *Collector) Describe(chan<- *prometheus.Desc) {}

// Collect shows what the last poll found. It never waits for Kafka. It leaves groups and topics out once what is known of them is too old:
// when polls fail, when one hangs, and when there are no more.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	m := c.metrics
	m.took.Collect(ch)
	m.errors.Collect(ch)
	m.dropped.Collect(ch)
	r := c.last.Load()
	if r == nil {
		return
	}
	w := &writer{send: func(s prometheus.Metric) { ch <- s }}
	up := 0.0
	if r.err == nil {
		up = 1
	}
	w.labels(m.up)
	w.gauge(m.up, up)
	if r.snapshot == nil {
		return
	}
	w.gauge(m.lastSuccess, float64(r.snapshot.Time.UnixMilli())/1000)
	limit := staleAfter * c.cfg.Interval
	if r.err == nil {
		limit += c.timeout
	}
	if c.now().Sub(r.snapshot.Time) > limit {
		w.gauge(m.series, 0)
		return
	}
	w.gauge(m.series, float64(r.shown.series))
	for _, id := range r.snapshot.Brokers {
		w.labels(m.brokerInfo, numberLabel(id))
		w.gauge(m.brokerInfo, 1)
	}
	for name, g := range r.snapshot.Groups {
		if r.shown.groups[name] {
			m.group(w, g, r.objectives[name])
		}
		if r.shown.partitions[name] {
			m.partitions(w, g)
		}
	}
	for name, t := range r.snapshot.Topics {
		if r.shown.topics[name] {
			m.topic(w, t)
		}
	}
}

// shown says what a cap leaves.
type shown struct {
	groups, partitions, topics map[string]bool
	series, dropped            int
}

// choose decides what is shown: the wanted groups before the others, and of these the sums before the partitions. What does not fit is left
// out as a whole, so that no sum is of a part.
func (m *metrics) choose(s *Snapshot, objectives map[string][]Objective, limit int) shown {
	out := shown{groups: make(map[string]bool), partitions: make(map[string]bool), topics: make(map[string]bool)}
	fit := func(names map[string]bool, name string, sensible bool, write func(*writer)) {
		w := &writer{}
		write(w)
		if !sensible || limit > 0 && out.series+w.count > limit {
			out.dropped += w.count
			return
		}
		out.series += w.count
		names[name] = true
	}
	groups := slices.SortedFunc(maps.Values(s.Groups), func(a, b *Group) int {
		_, aWanted := objectives[a.Name]
		_, bWanted := objectives[b.Name]
		if aWanted != bWanted {
			if aWanted {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	wantedOnes := slices.IndexFunc(groups, func(g *Group) bool { _, wanted := objectives[g.Name]; return !wanted })
	if wantedOnes < 0 {
		wantedOnes = len(groups)
	}
	sums := func(groups []*Group) {
		for _, g := range groups {
			fit(out.groups, g.Name, true, func(w *writer) { m.group(w, g, objectives[g.Name]) })
		}
	}
	partitions := func(groups []*Group) {
		for _, g := range groups {
			fit(out.partitions, g.Name, out.groups[g.Name], func(w *writer) { m.partitions(w, g) })
		}
	}
	sums(groups[:wantedOnes])
	partitions(groups[:wantedOnes])
	sums(groups[wantedOnes:])
	for _, name := range slices.Sorted(maps.Keys(s.Topics)) {
		fit(out.topics, name, true, func(w *writer) { m.topic(w, s.Topics[name]) })
	}
	partitions(groups[wantedOnes:])
	return out
}

// group writes a group and its topics.
func (m *metrics) group(w *writer, g *Group, objectives []Objective) {
	if g.Members >= 0 {
		w.labels(m.members, g.Name)
		w.gauge(m.members, float64(g.Members))
	}
	for _, t := range g.Topics {
		m.groupTopic(w, g.Name, t)
	}
	var strictest time.Duration
	breached, kept := false, g.State != "Dead"
	for _, o := range objectives {
		if o.Age == 0 {
			continue
		}
		if strictest == 0 || o.Age < strictest {
			strictest = o.Age
		}
		yes, known := o.breached(g)
		breached, kept = breached || yes, kept && known
	}
	if strictest > 0 {
		w.labels(m.objective, g.Name)
		w.gauge(m.objective, strictest.Seconds())
		if breached || kept {
			w.gauge(m.breached, truth(breached))
		}
	}
	known := false
	for _, state := range states {
		known = known || g.State == state
		w.labels(m.state, g.Name, state)
		w.gauge(m.state, truth(g.State == state))
	}
	if !known && g.State != "" {
		w.labels(m.state, g.Name, g.State)
		w.gauge(m.state, 1)
	}
}

func (m *metrics) groupTopic(w *writer, group string, t *GroupTopic) {
	var records int64
	var worst time.Duration
	committed, vague := 0, t.Partial
	count := make(map[Status]int, 7)
	for _, p := range t.Partitions {
		count[p.Status]++
		if p.Committed >= 0 {
			committed++
			records += p.Records
			worst = max(worst, p.Age)
			vague = vague || p.AgeUnknown
		}
	}
	w.labels(m.topicLag, group, t.Topic) // a sum of a part is none, and neither is a maximum
	if committed > 0 && !t.Partial {
		w.gauge(m.topicLag, float64(records))
	}
	if committed > 0 && !vague {
		w.gauge(m.topicAge, worst.Seconds())
	}
	w.gauge(m.uncommitted, float64(len(t.Partitions)-committed))
	w.gauge(m.unassigned, float64(t.Unassigned))
	for _, status := range Statuses() {
		w.labels(m.status, group, t.Topic, string(status))
		w.gauge(m.status, float64(count[status]))
	}
}

// partitions writes those of a group's partitions that have a commit.
func (m *metrics) partitions(w *writer, g *Group) {
	for _, t := range g.Topics {
		for _, p := range t.Partitions {
			if p.Committed < 0 {
				continue
			}
			w.labels(m.lag, g.Name, t.Topic, numberLabel(p.Number))
			w.gauge(m.lag, float64(p.Records))
			if !p.AgeUnknown {
				w.gauge(m.age, p.Age.Seconds())
			}
			w.gauge(m.committed, float64(p.Committed))
			if !p.LastProgress.IsZero() {
				w.gauge(m.progress, float64(p.LastProgress.UnixMilli())/1000)
			}
			if !math.IsNaN(p.Headroom) {
				w.gauge(m.headroom, p.Headroom)
			}
			w.counter(m.lost, float64(p.Lost))
			w.counter(m.rewinds, float64(p.Rewinds))
		}
	}
}

func (m *metrics) topic(w *writer, t *Topic) {
	w.labels(m.topicPartitions, t.Name)
	w.gauge(m.topicPartitions, float64(t.Count))
	for _, p := range t.Partitions {
		w.labels(m.end, t.Name, numberLabel(p.Number))
		w.gauge(m.end, float64(p.End))
		w.gauge(m.start, float64(p.Start))
		w.gauge(m.openTxn, float64(p.End-p.Stable))
		w.gauge(m.leader, float64(p.Leader))
		w.gauge(m.preferred, truth(p.Preferred))
		w.gauge(m.replicas, float64(p.Replicas))
		w.gauge(m.inSync, float64(p.InSync))
		w.gauge(m.under, truth(p.InSync < p.Replicas))
	}
}

func numberLabel(n int32) string { return strconv.Itoa(int(n)) }

func truth(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// writer counts series, and sends them if there is where to.
type writer struct {
	send  func(prometheus.Metric)
	pairs []*dto.LabelPair
	count int
}

// labels sets those of the series that follow. They are made once for all that have the names of desc: there are many series.
func (w *writer) labels(desc *prometheus.Desc, values ...string) {
	if w.send != nil {
		w.pairs = prometheus.MakeLabelPairs(desc, values)
	}
}

func (w *writer) gauge(desc *prometheus.Desc, value float64)   { w.write(desc, value, false) }
func (w *writer) counter(desc *prometheus.Desc, value float64) { w.write(desc, value, true) }

func (w *writer) write(desc *prometheus.Desc, value float64, counter bool) {
	w.count++
	if w.send != nil {
		w.send(&sample{desc, w.pairs, value, counter})
	}
}

// sample is a prometheus.Metric that shares its labels with others.
type sample struct {
	desc    *prometheus.Desc
	pairs   []*dto.LabelPair
	value   float64
	counter bool
}

// Desc is part of prometheus.Metric.
func (s *sample) Desc() *prometheus.Desc { return s.desc }

// Write is part of prometheus.Metric.
func (s *sample) Write(out *dto.Metric) error {
	out.Label = s.pairs
	if s.counter {
		out.Counter = &dto.Counter{Value: &s.value}
	} else {
		out.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}
