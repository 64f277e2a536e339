package sqldb

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collector exposes what a database uses of its disk. It reads that for each scrape.
type collector struct {
	db         *sqlite
	used, left *prometheus.Desc
}

// collector is part of engine. The names of the metrics start with prefix.
func (db *sqlite) collector(prefix string) prometheus.Collector {
	return &collector{
		db: db,
		used: prometheus.NewDesc(prefix+"_store_bytes",
			"Size in bytes of what the store holds.", nil, nil),
		left: prometheus.NewDesc(prefix+"_store_left_bytes",
			"How many bytes more the store can hold; at 0 it takes nothing more. Not shown when it cannot be read.",
			nil, nil),
	}
}

// Describe is part of prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.used
	ch <- c.left
}

// Collect is part of prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	// Prometheus passes no context to a collector.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := c.db.Space(ctx)
	if err != nil {
		c.db.log.Warn("the space of the database is unknown", "path", c.db.path, "err", err)
		return
	}
	ch <- prometheus.MustNewConstMetric(c.used, prometheus.GaugeValue, float64(s.Used))
	ch <- prometheus.MustNewConstMetric(c.left, prometheus.GaugeValue, float64(max(0, s.Left)))
}
