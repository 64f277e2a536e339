package audit

import "github.com/prometheus/client_golang/prometheus"

// metrics count the reads of topics.
type metrics struct {
	reads    prometheus.Counter
	records  prometheus.Counter
	unusable prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	return &metrics{
		reads:    counter("order_audit_reads_total", "Reads of a topic for audits; audits share one."),
		records:  counter("order_audit_records_total", "Records read for audits."),
		unusable: counter("order_audit_unusable_records_total", "Records read for audits that hold no order."),
	}
}
