package order

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/order/fold"
)

// metrics are about the batches that come into the store. None has a client, host or order as a
// label.
type metrics struct {
	deadLetters   *prometheus.CounterVec // by reason
	duplicates    prometheus.Counter
	stale         prometheus.Counter
	recreated     prometheus.Counter
	replaced      prometheus.Counter
	deleted       prometheus.Counter
	applyFailures prometheus.Counter
	batchRecords  prometheus.Histogram
	applySeconds  prometheus.Histogram
	// age and visible differ in where they begin: when Kafka appended the record, and when Cart
	// accepted the order.
	age     prometheus.Histogram
	visible prometheus.Histogram
}

// newMetrics registers the metrics. Each reason of a dead letter has a series from the start, so
// that its first increase can be seen.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	// The upper bounds of the buckets are first, 2 first, 4 first and so on. Native buckets are
	// exposed as well.
	histogram := func(name, help string, first float64, buckets int) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(first, 2, buckets), NativeHistogramBucketFactor: 1.1,
		})
		reg.MustRegister(h)
		return h
	}
	m := &metrics{
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "order_dead_letters_total", Help: "Records handed over to the dead-letter topic, by reason.",
		}, []string{"reason"}),
		duplicates: counter("order_duplicates_total",
			"Events that were applied before. A producer that starts again repeats some."),
		stale: counter("order_stale_events_total",
			"Events older than what was known of their order, because the topics are read side by side."),
		recreated: counter("order_topics_recreated_total",
			"Assignments that found a topic deleted and created again."),
		replaced: counter("order_logs_replaced_total",
			"Partitions that are read again from their start, because Kafka lost records that Order had read."),
		deleted: counter("order_records_deleted_total",
			"Offsets whose records Kafka deleted before Order had read them, those of transaction markers included."),
		applyFailures: counter("order_apply_failures_total",
			"Batches that could not be brought into the store. Each is tried again."),
		batchRecords: histogram("order_apply_batch_records", "Records per applied batch.", 1, 13),
		applySeconds: histogram("order_apply_seconds",
			"Time in seconds to bring one batch into the store, its commit included.", 0.0005, 16),
		age: histogram("order_event_age_seconds",
			"Age in seconds of a record, from Kafka's append time until its order is committed to the store. "+
				"A store that is rebuilt reads old records again, and counts them with their age.", 0.001, 24),
		visible: histogram("order_visible_seconds",
			"Time in seconds from accepting an order or an update until a look-up shows it. "+
				"A store that is rebuilt counts each order again.", 0.001, 24),
	}
	for _, r := range contract.Reasons() {
		m.deadLetters.WithLabelValues(string(r))
	}
	reg.MustRegister(m.deadLetters)
	return m
}

// applied counts a batch. It is called after the commit, so a batch that is tried again counts
// once.
func (m *metrics) applied(result fold.Result, records []broker.Record, start, end time.Time) {
	m.applySeconds.Observe(end.Sub(start).Seconds())
	if len(records) == 0 {
		return
	}
	m.batchRecords.Observe(float64(len(records)))
	m.duplicates.Add(float64(result.Duplicates))
	m.stale.Add(float64(result.Stale))
	for _, r := range result.Rejected {
		m.deadLetters.WithLabelValues(string(r.Reason)).Inc()
	}
	age := slowest{histogram: m.age, end: end}
	for i := range records {
		age.add(records[i].Time, &records[i])
	}
	age.flush()
	visible := slowest{histogram: m.visible, end: end}
	for _, d := range result.Winners {
		visible.add(d.Event.Time, d.Record)
	}
	visible.flush()
}

// slowest records the durations of the records of a batch, which all end at the same time. Only the
// slowest record of a batch gets an exemplar: one per record is too expensive.
type slowest struct {
	histogram prometheus.Histogram
	end       time.Time
	// since is when the slowest record so far began. It is not in the histogram yet.
	since  time.Time
	record *broker.Record
}

// add takes one record. A record without a time is left out.
func (s *slowest) add(since time.Time, r *broker.Record) {
	switch {
	case since.IsZero():
		return
	case s.record == nil:
		s.since, s.record = since, r
		return
	case since.Before(s.since):
		s.since, since, s.record = since, s.since, r
	}
	s.histogram.Observe(s.seconds(since))
}

// flush adds the slowest record. Nothing is added after it.
func (s *slowest) flush() {
	if s.record != nil {
		h := s.histogram.(prometheus.ExemplarObserver)
		h.ObserveWithExemplar(s.seconds(s.since), exemplar(s.record))
	}
}

// seconds is never negative, although the clocks of two machines differ.
func (s *slowest) seconds(since time.Time) float64 { return max(0, s.end.Sub(since).Seconds()) }

// exemplar returns the labels that lead to a record. They have no more than
// prometheus.ExemplarMaxRunes, and never the ID of an order.
func exemplar(r *broker.Record) prometheus.Labels {
	return prometheus.Labels{
		"topic":     r.Topic,
		"partition": strconv.Itoa(int(r.Partition)),
		"offset":    strconv.FormatInt(r.Offset, 10),
	}
}

// memberMetrics are read from this member of the consumer group at each scrape.
type memberMetrics struct {
	*broker.Consumer
	shares *sharing
}

var (
	descRebalances = prometheus.NewDesc("order_rebalances_total", "Changes of this member's partitions.", nil, nil)
	descAssigned   = prometheus.NewDesc("order_assigned_partitions", "Partitions that this member has.", nil, nil)
	descElsewhere  = prometheus.NewDesc("order_partitions_elsewhere",
		"Partitions of the order topics that other members of the consumer group hold, so that this store lacks "+
			"what they read. 0 with PostgreSQL: all members write there.", nil, nil)
	descFailing = prometheus.NewDesc("order_consumer_failing",
		"1 while something keeps the consumer from its work. "+
			"The log shows the reason. Before the first catch-up, /readyz shows it too.", nil, nil)
	descLastPoll = prometheus.NewDesc("order_last_poll_timestamp_seconds",
		"When the consumer last asked for records, in Unix time. It asks ten times a second, also when there is "+
			"nothing, while it retries and without Kafka. It does not ask while a batch is being applied.", nil, nil)
	descLag = prometheus.NewDesc("order_consumer_lag",
		"Records between the last one applied and the partition's high watermark as this client knows it, every "+
			"five seconds. What an open transaction withholds counts. "+
			"Partitions that this member does not have, or cannot fetch at present, are absent: "+
			"see kafka_consumergroup_lag for what the brokers know.",
		[]string{"topic", "partition"}, nil)
	descWithheld = prometheus.NewDesc("order_withheld_seconds",
		"Time in seconds for which an open transaction has withheld records of a partition from Order, as this "+
			"client knows it, every five seconds. 0 if none does.",
		[]string{"topic", "partition"}, nil)
)

// Describe is part of prometheus.Collector.
func (m memberMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descRebalances, descAssigned, descElsewhere, descFailing, descLastPoll, descLag, descWithheld,
	} {
		ch <- d
	}
}

// Collect is part of prometheus.Collector. A value that is not known yet is absent.
func (m memberMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ch <- prometheus.MustNewConstMetric(descRebalances, prometheus.CounterValue, float64(m.Rebalances()))
	gauge(descAssigned, float64(m.Assigned()))
	gauge(descElsewhere, float64(m.shares.elsewhere.Load()))
	failing := 0.0
	if m.Err() != nil {
		failing = 1
	}
	gauge(descFailing, failing)
	if at := m.LastPoll(); !at.IsZero() {
		gauge(descLastPoll, float64(at.UnixMilli())/1e3)
	}
	for p, lag := range m.Lag() {
		gauge(descLag, float64(lag.Records), p.Topic, strconv.Itoa(int(p.Number)))
		gauge(descWithheld, lag.Withheld.Seconds(), p.Topic, strconv.Itoa(int(p.Number)))
	}
}
