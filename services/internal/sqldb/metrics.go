package sqldb

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// NewCollector returns a collector for the metrics of db. Their names or labels have the prefix. err returns why
// the database cannot be used, or nil. It includes db.Err, and whatever else the service knows: db itself only
// looks whether it may write.
func NewCollector(db *DB, prefix string, err func() error) prometheus.Collector {
	return &availability{
		Collector: db.collector(prefix),
		err:       err,
		up: prometheus.NewDesc(prefix+"_database_up",
			"1 if the database could be used when it was last tried, 0 if not.", nil, nil),
	}
}

// availability adds to the metrics of a database whether it can be used.
type availability struct {
	prometheus.Collector
	err func() error
	up  *prometheus.Desc
}

// Describe is part of prometheus.Collector.
func (a *availability) Describe(ch chan<- *prometheus.Desc) {
	ch <- a.up
	a.Collector.Describe(ch)
}

// Collect is part of prometheus.Collector.
func (a *availability) Collect(ch chan<- prometheus.Metric) {
	up := 1.0
	if a.err() != nil {
		up = 0
	}
	ch <- prometheus.MustNewConstMetric(a.up, prometheus.GaugeValue, up)
	a.Collector.Collect(ch)
}

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
