package order

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
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
		applySeconds:  histogram("order_apply_seconds", "Time to bring one batch into the store.", 0.0005, 16),
		age:           histogram("order_event_age_seconds", "Age of the oldest record of a batch, by Kafka's time, when the batch is applied.", 0.001, 24),
		visible:       histogram("order_visible_seconds", "From accepting an order or an update until a look-up shows it.", 0.001, 24),
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
func (m *metrics) applied(out outcome, records int, start, end time.Time) {
	m.applySeconds.Observe(end.Sub(start).Seconds())
	if records == 0 {
		return
	}
	m.batchRecords.Observe(float64(records))
	m.duplicates.Add(float64(out.duplicates))
	m.stale.Add(float64(out.stale))
	for _, l := range out.letters {
		m.deadLetters.WithLabelValues(string(l.reason)).Inc()
	}
	oldest := start
	for _, d := range out.winners {
		if d.record.Time.Before(oldest) {
			oldest = d.record.Time
		}
		if !d.event.Time.IsZero() {
			m.visible.Observe(max(0, end.Sub(d.event.Time).Seconds()))
		}
	}
	if len(out.winners) > 0 {
		m.age.Observe(start.Sub(oldest).Seconds())
	}
}
