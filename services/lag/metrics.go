package lag

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// states are the states of which a group shows a series each, 0 for all but its own. They are all
// states that a group coordinator knows.
var states = []string{
	"Stable", "Empty", "Assigning", "Reconciling", "PreparingRebalance", "CompletingRebalance", "NotReady", "Dead",
}

// result is what a scrape shows of the polls so far. It does not change after it is stored.
type result struct {
	// snapshot is nil before a poll has succeeded.
	snapshot   *Snapshot
	objectives map[string][]Objective
	shown      shown
	// err is the error of the last poll.
	err error
}

// shown is which series a limit leaves.
type shown struct {
	// groups, partitions and topics are names: of groups with the series of their topics, of groups
	// with the series of their partitions, and of topics. refusals are stable texts of errors.
	groups, partitions, topics, refusals map[string]bool
	// series and dropped are numbers of series.
	series, dropped int
}

// metrics are the series of one cluster. Names and labels are those of kafka_exporter where it has
// them.
type metrics struct {
	// By group, topic and partition.
	lag, age, committed, progress, headroom, lost, rewinds *prometheus.Desc
	// By group and topic.
	topicLag, topicAge, uncommitted, unassigned, status *prometheus.Desc
	// By group.
	members, state, objective, breached *prometheus.Desc
	// By topic.
	topicPartitions *prometheus.Desc
	// By broker ID.
	brokerInfo *prometheus.Desc
	// By topic and partition.
	end, start, openTxn, openFor                   *prometheus.Desc
	leader, preferred, replicas, inSync, underSync *prometheus.Desc
	// Of the collector itself.
	up, lastSuccess, series *prometheus.Desc
	// By request, group and topic.
	unauthorized *prometheus.Desc
	took         prometheus.Histogram
	errors       *prometheus.CounterVec
	dropped      prometheus.Counter
}

// newMetrics returns the metrics of a cluster.
func newMetrics(cluster string) *metrics {
	constant := prometheus.Labels{"kafka_cluster": cluster}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, constant)
	}
	partition := []string{"consumergroup", "topic", "partition"}
	topic := partition[:2]
	group := partition[:1]
	with := func(labels []string, more string) []string { return append(slices.Clone(labels), more) }
	log := partition[1:]
	return &metrics{
		lag: desc("kafka_consumergroup_lag",
			"Records that the group can read and has not read.", partition...),
		age: desc("kafka_consumergroup_lag_seconds",
			"Time since the group's first unread record was appended; 0 if all is read.", partition...),
		committed: desc("kafka_consumergroup_current_offset",
			"The group's committed offset.", partition...),
		progress: desc("kafka_consumergroup_last_progress_timestamp_seconds",
			"When the commit was last seen to move; absent until it has moved.", partition...),
		headroom: desc("kafka_consumergroup_retention_headroom_ratio",
			"Part of the log that retention can delete before it deletes an unread record: 1 if all is read, "+
				"negative if records were lost.", partition...),
		lost: desc("kafka_consumergroup_records_lost_total",
			"Records that retention deleted before the group read them.", partition...),
		rewinds: desc("kafka_consumergroup_offset_rewinds_total",
			"How often the commit went back.", partition...),

		topicLag: desc("kafka_consumergroup_topic_lag",
			"Records of the topic that the group can read and has not read.", topic...),
		topicAge: desc("kafka_consumergroup_topic_max_lag_seconds",
			"The largest kafka_consumergroup_lag_seconds of the topic's partitions.", topic...),
		uncommitted: desc("kafka_consumergroup_uncommitted_partitions",
			"Partitions of the topic without a commit of the group. They have no lag.", topic...),
		unassigned: desc("kafka_consumergroup_unassigned_partitions",
			"Partitions of a topic that the group reads and that no member has.", topic...),
		status: desc("kafka_consumergroup_partition_status",
			"Partitions of the topic by what the group does with them.", with(topic, "status")...),

		members: desc("kafka_consumergroup_members",
			"Members of the group.", group...),
		state: desc("kafka_consumergroup_state",
			"1 for the state that the group is in.", with(group, "state")...),
		objective: desc("kafka_consumergroup_objective_seconds",
			"Largest age allowed for the group's unread records; the strictest of several objectives.", group...),
		breached: desc("kafka_consumergroup_objective_breached",
			"1 if an unread record is older than one of the group's objectives allows.", group...),

		end: desc("kafka_topic_partition_current_offset",
			"The log's end: the offset of the next record.", log...),
		start: desc("kafka_topic_partition_oldest_offset",
			"The log's first offset.", log...),
		openTxn: desc("kafka_topic_partition_open_txn_records",
			"Records from the first open transaction on, which consumers have to wait for.", log...),
		openFor: desc("kafka_topic_partition_open_txn_seconds",
			"How long the first open transaction has been open; 0 if there is none.", log...),

		leader: desc("kafka_topic_partition_leader",
			"The leader's broker ID.", log...),
		preferred: desc("kafka_topic_partition_leader_is_preferred",
			"1 if the leader is the preferred one.", log...),
		replicas: desc("kafka_topic_partition_replicas",
			"Replicas of the partition.", log...),
		inSync: desc("kafka_topic_partition_in_sync_replica",
			"Replicas that are in sync.", log...),
		underSync: desc("kafka_topic_partition_under_replicated_partition",
			"1 if not all replicas are in sync.", log...),

		topicPartitions: desc("kafka_topic_partitions", "Partitions of the topic.", "topic"),
		brokerInfo:      desc("kafka_broker_info", "1 for each broker.", "id"),

		up:          desc("lag_collector_up", "1 if the last poll of the cluster succeeded."),
		lastSuccess: desc("lag_collector_last_success_timestamp_seconds", "When the last successful poll began."),
		series:      desc("lag_collector_series", "Series of groups and topics that are shown."),
		unauthorized: desc("lag_collector_unauthorized",
			"1 for each request that Kafka refuses because the collector's user lacks rights.",
			"api", "consumergroup", "topic"),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lag_collector_duration_seconds", Help: "How long a poll took.", ConstLabels: constant,
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13), NativeHistogramBucketFactor: 1.1,
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lag_collector_errors_total", Help: "What could not be read, by request and Kafka's error.",
			ConstLabels: constant,
		}, []string{"api", "code"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lag_collector_series_dropped_total", Help: "Series that polls left out to stay within the limit.",
			ConstLabels: constant,
		}),
	}
}

// count adds a poll to the histogram and the counters.
func (m *metrics) count(r *result, took time.Duration) {
	m.took.Observe(took.Seconds())
	if r.err != nil {
		e := asReadError(r.err)
		m.errors.WithLabelValues(e.API, e.Code()).Inc()
		return
	}
	for _, e := range r.snapshot.Errors {
		m.errors.WithLabelValues(e.API, e.Code()).Inc()
	}
	m.dropped.Add(float64(r.shown.dropped))
}

// collect sends the collector's own series and, if the result is fresh, those of groups and topics.
// The result is nil before the first poll has finished.
func (m *metrics) collect(ch chan<- prometheus.Metric, r *result, fresh bool) {
	m.took.Collect(ch)
	m.errors.Collect(ch)
	m.dropped.Collect(ch)
	if r == nil {
		return
	}
	w := &seriesWriter{send: func(s prometheus.Metric) { ch <- s }}
	w.labels(m.up)
	w.gauge(m.up, boolValue(r.err == nil))
	if r.snapshot == nil {
		return
	}
	w.gauge(m.lastSuccess, float64(r.snapshot.Time.UnixMilli())/1000)
	if !fresh {
		w.gauge(m.series, 0)
		return
	}
	w.gauge(m.series, float64(r.shown.series))
	for _, id := range r.snapshot.Brokers {
		w.labels(m.brokerInfo, numberLabel(id))
		w.gauge(m.brokerInfo, 1)
	}
	for text, e := range r.snapshot.refusals() {
		if r.shown.refusals[text] {
			m.writeRefusal(w, e)
		}
	}
	for name, g := range r.snapshot.Groups {
		if r.shown.groups[name] {
			m.writeGroup(w, g, r.objectives[name])
		}
		if r.shown.partitions[name] {
			m.writePartitions(w, g)
		}
	}
	for name, t := range r.snapshot.Topics {
		if r.shown.topics[name] {
			m.writeTopic(w, t)
		}
	}
}

// writeRefusal writes the series of a request that the collector's user may not send.
func (m *metrics) writeRefusal(w *seriesWriter, e *ReadError) {
	w.labels(m.unauthorized, e.API, e.Group, e.Topic)
	w.gauge(m.unauthorized, 1)
}

// writeGroup writes the series of a group and of its topics, but none of partitions.
func (m *metrics) writeGroup(w *seriesWriter, g *Group, objectives []Objective) {
	if g.Members >= 0 {
		w.labels(m.members, g.Name)
		w.gauge(m.members, float64(g.Members))
	}
	for _, t := range g.Topics {
		m.writeGroupTopic(w, g.Name, t)
	}
	m.writeObjectives(w, g, objectives)
	known := false
	for _, state := range states {
		known = known || g.State == state
		w.labels(m.state, g.Name, state)
		w.gauge(m.state, boolValue(g.State == state))
	}
	if !known && g.State != "" {
		w.labels(m.state, g.Name, g.State)
		w.gauge(m.state, 1)
	}
}

// writeObjectives writes a group's strictest objective and whether any objective is breached, if
// that is known.
func (m *metrics) writeObjectives(w *seriesWriter, g *Group, objectives []Objective) {
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
	if strictest == 0 {
		return
	}
	w.labels(m.objective, g.Name)
	w.gauge(m.objective, strictest.Seconds())
	if breached || kept {
		w.gauge(m.breached, boolValue(breached))
	}
}

// writeGroupTopic writes the series of a group's topic. A sum or a maximum of only a part of the
// partitions is left out.
func (m *metrics) writeGroupTopic(w *seriesWriter, group string, t *GroupTopic) {
	var records int64
	var oldest time.Duration
	committed := 0
	count := make(map[Status]int, 7)
	for _, p := range t.Partitions {
		count[p.Status]++
		if p.Committed >= 0 {
			committed++
			records += p.Records
			oldest = max(oldest, p.Age)
		}
	}
	w.labels(m.topicLag, group, t.Topic)
	if committed > 0 && !t.Partial {
		w.gauge(m.topicLag, float64(records))
	}
	if committed > 0 && t.Complete() {
		w.gauge(m.topicAge, oldest.Seconds())
	}
	w.gauge(m.uncommitted, float64(len(t.Partitions)-committed))
	w.gauge(m.unassigned, float64(t.Unassigned))
	for _, status := range Statuses() {
		w.labels(m.status, group, t.Topic, string(status))
		w.gauge(m.status, float64(count[status]))
	}
}

// writePartitions writes the series of those of a group's partitions that have a commit.
func (m *metrics) writePartitions(w *seriesWriter, g *Group) {
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

// writeTopic writes the series of a topic and its partitions.
func (m *metrics) writeTopic(w *seriesWriter, t *Topic) {
	w.labels(m.topicPartitions, t.Name)
	w.gauge(m.topicPartitions, float64(t.Count))
	for _, p := range t.Partitions {
		w.labels(m.end, t.Name, numberLabel(p.Number))
		w.gauge(m.end, float64(p.End))
		w.gauge(m.start, float64(p.Start))
		w.gauge(m.openTxn, float64(p.End-p.Stable))
		if !p.OpenUnknown {
			w.gauge(m.openFor, p.Open.Seconds())
		}
		w.gauge(m.leader, float64(p.Leader))
		w.gauge(m.preferred, boolValue(p.Preferred))
		w.gauge(m.replicas, float64(p.Replicas))
		w.gauge(m.inSync, float64(p.InSync))
		w.gauge(m.underSync, boolValue(p.InSync < p.Replicas))
	}
}

// numberLabel returns a partition or a broker ID as a label value.
func numberLabel(n int32) string { return strconv.Itoa(int(n)) }

// boolValue returns 1 for true and 0 for false.
func boolValue(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
