package order

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// metrics are the service's own. None has a client, host or order as a label.
type metrics struct {
	deadLetters   *prometheus.CounterVec
	duplicates    prometheus.Counter
	stale         prometheus.Counter
	recreated     prometheus.Counter
	applyFailures prometheus.Counter
	batchRecords  prometheus.Histogram
	applySeconds  prometheus.Histogram
	age           prometheus.Histogram
	visible       prometheus.Histogram
	auditReads    prometheus.Counter
	auditRecords  prometheus.Counter
	auditUnusable prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string, first float64, buckets int) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(first, 2, buckets), NativeHistogramBucketFactor: 1.1,
		})
		reg.MustRegister(h)
		return h
	}
	m := &metrics{
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "order_dead_letters_total", Help: "Records handed over to the dead-letter topic, by reason.",
		}, []string{"reason"}),
		duplicates:    counter("order_duplicates_total", "Events that were applied before; a producer that starts again repeats some."),
		stale:         counter("order_stale_events_total", "Events older than what was known of their order, as the topics are read side by side."),
		recreated:     counter("order_topics_recreated_total", "Assignments that found a topic deleted and made anew."),
		applyFailures: counter("order_apply_failures_total", "Batches that could not be brought into the store; each is tried again."),
		batchRecords:  histogram("order_apply_batch_records", "Records per applied batch.", 1, 13),
		applySeconds:  histogram("order_apply_seconds", "Time in seconds to bring one batch into the store, its commit included.", 0.0005, 16),
		age: histogram("order_event_age_seconds", "Age in seconds of a record, from Kafka's append time, once what it tells is committed to the store. "+
			"A store that is rebuilt reads old records again, and counts them with their age.", 0.001, 24),
		visible: histogram("order_visible_seconds", "Time in seconds from accepting an order or an update until a look-up shows it. "+
			"A store that is rebuilt counts each order again.", 0.001, 24),
		auditReads:    counter("order_audit_reads_total", "Reads of a topic for audits; callers share one."),
		auditRecords:  counter("order_audit_records_total", "Records read for audits."),
		auditUnusable: counter("order_audit_unusable_records_total", "Records read for audits that hold no order."),
	}
	for _, r := range contract.Reasons() {
		m.deadLetters.WithLabelValues(string(r))
	}
	reg.MustRegister(m.deadLetters)
	return m
}

// applied counts a batch once its transaction is committed, so that a batch that is tried again counts once.
func (m *metrics) applied(out outcome, records []broker.Record, start, end time.Time) {
	m.applySeconds.Observe(end.Sub(start).Seconds())
	if len(records) == 0 {
		return
	}
	m.batchRecords.Observe(float64(len(records)))
	m.duplicates.Add(float64(out.duplicates))
	m.stale.Add(float64(out.stale))
	for _, l := range out.letters {
		m.deadLetters.WithLabelValues(string(l.reason)).Inc()
	}
	age := slowest{h: m.age, end: end}
	for i := range records {
		age.observe(records[i].Time, &records[i])
	}
	age.last()
	visible := slowest{h: m.visible, end: end}
	for _, d := range out.winners {
		visible.observe(d.event.Time, d.record)
	}
	visible.last()
}

// slowest observes how long things took that end at the same time. The slowest of them comes last, with its record as an exemplar: one
// a batch costs nothing, one each would.
type slowest struct {
	h      prometheus.Histogram
	end    time.Time
	since  time.Time // of the slowest, which is not observed yet
	record *broker.Record
}

// observe takes one; what has no time is left out.
func (s *slowest) observe(since time.Time, r *broker.Record) {
	switch {
	case since.IsZero():
		return
	case s.record == nil:
		s.since, s.record = since, r
		return
	case since.Before(s.since):
		s.since, since, s.record = since, s.since, r
	}
	s.h.Observe(s.seconds(since))
}

func (s *slowest) last() {
	if s.record != nil {
		s.h.(prometheus.ExemplarObserver).ObserveWithExemplar(s.seconds(s.since), exemplar(s.record))
	}
}

// seconds is never negative: the clocks of two machines differ.
func (s *slowest) seconds(since time.Time) float64 { return max(0, s.end.Sub(since).Seconds()) }

// exemplar leads to a record. It has no more than prometheus.ExemplarMaxRunes, and never an order's ID.
func exemplar(r *broker.Record) prometheus.Labels {
	return prometheus.Labels{"topic": r.Topic, "partition": strconv.Itoa(int(r.Partition)), "offset": strconv.FormatInt(r.Offset, 10)}
}

// memberMetrics are what the consumer is asked for at a scrape.
type memberMetrics struct{ *broker.Consumer }

var (
	descRebalances = prometheus.NewDesc("order_rebalances_total", "Changes of this member's partitions.", nil, nil)
	descAssigned   = prometheus.NewDesc("order_assigned_partitions", "Partitions that this member has.", nil, nil)
	descFailing    = prometheus.NewDesc("order_consumer_failing",
		"1 while something keeps the consumer from its work; the log and, before the first catch-up, /readyz say what.", nil, nil)
	descLastPoll = prometheus.NewDesc("order_last_poll_timestamp_seconds", "When the consumer last asked for records, in Unix time. It asks ten times a second, also when there is nothing, "+
		"while it retries and without Kafka; it does not while a batch is being applied.", nil, nil)
	descLag = prometheus.NewDesc("order_consumer_lag", "Records between the last one applied and the partition's end as this client knows it, every five seconds. "+
		"Nothing is shown of partitions that this member does not have, or cannot fetch at present: what the brokers say is kafka_consumergroup_lag.",
		[]string{"topic", "partition"}, nil)
)

func (m memberMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRebalances, descAssigned, descFailing, descLastPoll, descLag} {
		ch <- d
	}
}

func (m memberMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ch <- prometheus.MustNewConstMetric(descRebalances, prometheus.CounterValue, float64(m.Rebalances()))
	gauge(descAssigned, float64(m.Assigned()))
	failing := 0.0
	if m.Err() != nil {
		failing = 1
	}
	gauge(descFailing, failing)
	if at := m.LastPoll(); !at.IsZero() {
		gauge(descLastPoll, float64(at.UnixMilli())/1e3)
	}
	for p, records := range m.Lag() {
		gauge(descLag, float64(records), p.Topic, strconv.Itoa(int(p.Number)))
	}
}
