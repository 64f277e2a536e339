package lag

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// seriesWriter counts series, and sends them if send is set.
type seriesWriter struct {
	send  func(prometheus.Metric)
	pairs []*dto.LabelPair
	count int
}

// labels sets the label values of the series that follow. They are made once and shared by all
// descriptions with the same label names, because there are many series.
func (w *seriesWriter) labels(desc *prometheus.Desc, values ...string) {
	if w.send != nil {
		w.pairs = prometheus.MakeLabelPairs(desc, values)
	}
}

// gauge writes a gauge with the labels set last.
func (w *seriesWriter) gauge(desc *prometheus.Desc, value float64) { w.write(desc, value, false) }

// counter writes a counter with the labels set last.
func (w *seriesWriter) counter(desc *prometheus.Desc, value float64) { w.write(desc, value, true) }

func (w *seriesWriter) write(desc *prometheus.Desc, value float64, counter bool) {
	w.count++
	if w.send != nil {
		w.send(&series{desc, w.pairs, value, counter})
	}
}

// series is a prometheus.Metric that shares its labels with others.
type series struct {
	desc    *prometheus.Desc
	pairs   []*dto.LabelPair
	value   float64
	counter bool
}

// Desc is part of prometheus.Metric.
func (s *series) Desc() *prometheus.Desc { return s.desc }

// Write is part of prometheus.Metric.
func (s *series) Write(out *dto.Metric) error {
	out.Label = s.pairs
	if s.counter {
		out.Counter = &dto.Counter{Value: &s.value}
	} else {
		out.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}
