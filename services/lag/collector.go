// Package lag finds out how far consumer groups are behind, in records and in seconds, and whether
// that is about to get worse. It uses what brokers know and needs only Describe rights. It never
// reads a record.
//
// A Collector polls one cluster. Each poll reads the groups (groups.go) and the bounds of their logs
// (offsets.go), finds the ages of unread records (age.go), and computes the status of each partition
// (status.go). Prometheus scrapes the result (metrics.go).
package lag

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/internal/kafkaconfig"
)

// Config is which cluster a Collector polls, and which groups it watches.
type Config struct {
	// Name of the cluster. It is the label kafka_cluster of every series.
	Name string
	// Kafka is how to connect.
	Kafka kafkaconfig.Client
	// Interval is the time between two polls. It must be positive.
	Interval time.Duration
	// Groups matches the names of groups to watch beside the wanted ones, and ExcludeGroups those of
	// them that are not. nil matches none.
	Groups, ExcludeGroups *regexp.Regexp
	// Topics matches the names of topics to watch, and ExcludeTopics those of them that are not. A nil
	// Topics matches all, a nil ExcludeTopics none. Topics that an objective of the group names are
	// watched in any case.
	Topics, ExcludeTopics *regexp.Regexp
	// MaxSeries limits the series of groups and topics. 0 sets no limit.
	MaxSeries int
}

// selection returns which groups and topics are watched.
func (c Config) selection() selection {
	return selection{c.Groups, c.ExcludeGroups, c.Topics, c.ExcludeTopics}
}

// Collector polls one cluster. It is a prometheus.Collector. All its methods are safe for
// concurrent use.
type Collector struct {
	cfg  Config
	log  *slog.Logger
	now  func() time.Time
	opts []kgo.Opt
	// timeout is how long one poll may take.
	timeout time.Duration
	// polled has room for one signal.
	polled  chan struct{}
	metrics *metrics

	mu         sync.Mutex
	objectives map[string][]Objective

	last atomic.Pointer[result]

	// Only the running poll uses the fields below.
	poller *poller
	// failing holds the keys of failures that were logged and go on.
	failing map[string]bool
}

// New checks the configuration and the files that it names. It does not connect. An error names
// everything that is wrong.
func New(cfg Config, log *slog.Logger) (*Collector, error) {
	var errs []error
	if cfg.Name == "" {
		errs = append(errs, errors.New("the cluster has no name"))
	}
	if cfg.Interval <= 0 {
		errs = append(errs, fmt.Errorf("interval %v is not positive", cfg.Interval))
	}
	c := &Collector{
		cfg: cfg, log: log.With("kafka_cluster", cfg.Name), now: time.Now,
		timeout: max(cfg.Interval, 15*time.Second), polled: make(chan struct{}, 1), metrics: newMetrics(cfg.Name),
		poller: newPoller(cfg.selection(), cfg.Interval), failing: make(map[string]bool),
	}
	var err error
	c.opts, err = clientOptions(cfg.Kafka, c.requestTimeout())
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	return c, nil
}

// requestTimeout returns how long one request may take. A silent broker must leave time to ask the
// others.
func (c *Collector) requestTimeout() time.Duration { return min(c.timeout/6, time.Minute) }

// Want sets the objectives of groups, by group. These groups are watched even if Config.Groups does
// not match them. It replaces the former objectives from the next poll on.
func (c *Collector) Want(objectives map[string][]Objective) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.objectives = maps.Clone(objectives)
}

// Resume tells what an earlier process knew of a group: its Rhythm, or 0, and the partitions in which
// it stood still. Where the commit is the same in the first poll, the group has not moved since then.
// Call it before Run.
func (c *Collector) Resume(group string, rhythm time.Duration, standing []Standing) {
	c.poller.resume(group, rhythm, standing)
}

// Snapshot returns the result of the last poll that succeeded, nil before the first. It may be old:
// look at its Time, or at Err.
func (c *Collector) Snapshot() *Snapshot {
	if r := c.last.Load(); r != nil {
		return r.snapshot
	}
	return nil
}

// Err returns why the last poll failed as a whole. It is nil if that poll succeeded or none has
// finished.
func (c *Collector) Err() error {
	if r := c.last.Load(); r != nil {
		return r.err
	}
	return nil
}

// Polled receives after each poll, whether it succeeded or failed. Several polls without a receiver
// count as one.
func (c *Collector) Polled() <-chan struct{} { return c.polled }

// Run polls at once and then at each interval until ctx is done. It then returns nil. A failure of
// Kafka does not end it; Err returns the failure. Run may be called again after it has returned.
func (c *Collector) Run(ctx context.Context) error {
	kafka, err := kgo.NewClient(c.opts...)
	if err != nil {
		return fmt.Errorf("client of cluster %s: %w", c.cfg.Name, err)
	}
	defer kafka.Close()
	c.poller.client = &client{kafka, c.requestTimeout()}
	ticker := time.NewTicker(c.cfg.Interval)
	defer ticker.Stop()
	for {
		c.poll(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// poll reads the cluster and publishes the result.
func (c *Collector) poll(ctx context.Context) {
	// The start is taken before the objectives: a caller of Want that then finds a later Time in a
	// snapshot knows that the snapshot has them.
	start := c.now()
	c.mu.Lock()
	objectives := c.objectives
	c.mu.Unlock()
	pollCtx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	snapshot, err := c.poller.read(pollCtx, start, objectives)
	if ctx.Err() != nil {
		// Run ends. The poll was interrupted, so its result means nothing.
		return
	}
	former := c.last.Load()
	if former == nil {
		former = &result{}
	}
	next := &result{snapshot: snapshot, objectives: objectives, err: err}
	if err != nil {
		next = &result{
			snapshot: former.snapshot, objectives: former.objectives, shown: former.shown,
			err: fmt.Errorf("read cluster %s: %w", c.cfg.Name, err),
		}
	} else {
		snapshot.Took = c.now().Sub(start)
		next.shown = choose(c.metrics, snapshot, objectives, c.cfg.MaxSeries)
	}
	c.metrics.count(next, c.now().Sub(start))
	c.report(former.err, next)
	c.last.Store(next)
	select {
	case c.polled <- struct{}{}:
	default:
	}
}

// report logs each failure once when it begins and once when it ends.
func (c *Collector) report(former error, r *result) {
	switch {
	case r.err != nil && (former == nil || asReadError(former).key() != asReadError(r.err).key()):
		c.log.Error("kafka cannot be read: lag is not known", "err", r.err)
	case r.err == nil && former != nil:
		c.log.Info("kafka can be read again")
	}
	if r.err != nil {
		return
	}
	failing := make(map[string]bool)
	for _, e := range r.snapshot.Errors {
		key := e.key()
		if !failing[key] && !c.failing[key] {
			c.log.Warn("some of kafka cannot be read: what it concerns is left out",
				"api", e.API, "code", e.Code(), "err", e)
		}
		failing[key] = true
	}
	for key := range c.failing {
		if !failing[key] {
			api, code, _ := strings.Cut(key, " ")
			c.log.Info("kafka responds again", "api", api, "code", code)
		}
	}
	c.failing = failing
}

// Describe sends nothing: the series depend on the cluster.
func (c *Collector) Describe(chan<- *prometheus.Desc) {}

// staleAfter is the number of intervals after which a failing poll hides the last result. An old
// value looks like a new one.
const staleAfter = 3

// Collect sends the result of the last poll. It never waits for Kafka. It leaves out groups and
// topics if the result is too old, because polls fail, hang or have ended.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	r := c.last.Load()
	fresh := false
	if r != nil && r.snapshot != nil {
		limit := staleAfter * c.cfg.Interval
		if r.err == nil {
			// The next poll may be under way and may take its time.
			limit += c.timeout
		}
		fresh = c.now().Sub(r.snapshot.Time) <= limit
	}
	c.metrics.collect(ch, r, fresh)
}
