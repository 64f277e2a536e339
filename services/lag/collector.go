package lag

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Config says which cluster, and which of its groups.
type Config struct {
	Name      string         // of the cluster, the label kafka_cluster
	Kafka     Kafka          // how to get there
	Interval  time.Duration  // between polls
	Groups    *regexp.Regexp // groups that are watched because their name matches; nil: only the wanted ones
	MaxSeries int            // at most this many series of groups and topics; 0: no cap
}

// Collector polls one cluster. It is a prometheus.Collector. All its methods are safe for concurrent use.
type Collector struct {
	cfg      Config
	log      *slog.Logger
	patience time.Duration // how long a group has not moved when it is stalled
	now      func() time.Time
	began    time.Time
	opts     []kgo.Opt
	timeout  time.Duration // of a poll
	reader   *reader       // while it runs
	polled   chan struct{}
	metrics  *metrics

	mu         sync.Mutex
	objectives map[string][]Objective

	last atomic.Pointer[result]

	// What is remembered from poll to poll. Only the poll that runs has to do with it.
	groups    map[string]*groupState
	histories map[place]*history
	searches  searches
	failures  map[string]bool // what was logged and goes on, by API and code
}

// result is what there is to show after a poll. It is not changed.
type result struct {
	snapshot   *Snapshot // nil before a poll has succeeded
	objectives map[string][]Objective
	shown      shown
	err        error // of the last poll
}

// groupState is what is remembered of a group.
type groupState struct {
	last   group // without its commits
	tracks map[place]*track
}

// New checks the configuration and reads the files that it names; it does not yet connect. An error says all that cannot be used.
func New(cfg Config, log *slog.Logger) (*Collector, error) {
	var errs []error
	if cfg.Name == "" {
		errs = append(errs, errors.New("the cluster has no name"))
	}
	if cfg.Interval <= 0 {
		errs = append(errs, fmt.Errorf("interval %v is not positive", cfg.Interval))
	}
	c := &Collector{
		cfg: cfg, log: log.With("kafka_cluster", cfg.Name), patience: time.Minute, now: time.Now, began: time.Now(),
		timeout: max(cfg.Interval, 15*time.Second), polled: make(chan struct{}, 1), metrics: newMetrics(cfg.Name),
		groups: make(map[string]*groupState), histories: make(map[place]*history), failures: make(map[string]bool),
	}
	var err error
	c.opts, err = cfg.Kafka.options(c.step())
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	return c, nil
}

// step is how long one request may take: a broker that does not answer must leave time to ask the others.
func (c *Collector) step() time.Duration { return min(c.timeout/6, time.Minute) }

// Objective is how old a group's unread records may be.
type Objective struct {
	Age    time.Duration // 0: as old as they like
	Topics []string      // that it is about, read also where the group has nothing to do with them; empty: all of the group
}

// breached says whether an unread record is older. That one is, is known as soon as one is seen; that none is, when all could be seen, and
// the group has committed anything at all: who never consumed does not keep an objective.
func (o Objective) breached(g *Group) (yes, known bool) {
	committed, all := false, true
	for name, t := range g.Topics {
		if len(o.Topics) > 0 && !slices.Contains(o.Topics, name) {
			continue
		}
		all = all && !t.Partial
		for _, p := range t.Partitions {
			if p.Age > o.Age {
				return true, true
			}
			committed = committed || p.Committed >= 0
			all = all && !p.AgeUnknown
		}
	}
	for _, name := range g.missing {
		all = all && len(o.Topics) > 0 && !slices.Contains(o.Topics, name)
	}
	return false, committed && all
}

// Want says which groups are watched whatever Config.Groups says, with their objectives. It replaces what was wanted before, from the
// next poll on.
func (c *Collector) Want(objectives map[string][]Objective) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.objectives = maps.Clone(objectives)
}

// Snapshot is what the last poll that succeeded found, nil before the first. It may be old: look at its Time, or at Err.
func (c *Collector) Snapshot() *Snapshot {
	if r := c.last.Load(); r != nil {
		return r.snapshot
	}
	return nil
}

// Err is why the last poll failed as a whole, nil if it did not or none has ended yet.
func (c *Collector) Err() error {
	if r := c.last.Load(); r != nil {
		return r.err
	}
	return nil
}

// Polled receives after each poll, whether it succeeded or not; of several that nobody has waited for, once.
func (c *Collector) Polled() <-chan struct{} { return c.polled }

// Run polls at once and then each interval until ctx is done, and returns nil then. It does not end because of Kafka: Err says what is
// wrong. It must not be called again before it has returned.
func (c *Collector) Run(ctx context.Context) error {
	cl, err := kgo.NewClient(c.opts...)
	if err != nil {
		return fmt.Errorf("client of cluster %s: %w", c.cfg.Name, err)
	}
	defer cl.Close()
	c.reader = &reader{cl, c.step()}
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
	start := c.now() // what is wanted by now is in the snapshot
	c.mu.Lock()
	objectives := c.objectives
	c.mu.Unlock()
	pollCtx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	snapshot, err := c.read(pollCtx, start, objectives)
	if ctx.Err() != nil {
		return // it was the end that stopped it
	}
	former := c.last.Load()
	if former == nil {
		former = &result{}
	}
	next := &result{snapshot: snapshot, objectives: objectives, err: err}
	if err != nil {
		err = fmt.Errorf("read cluster %s: %w", c.cfg.Name, err)
		next = &result{snapshot: former.snapshot, objectives: former.objectives, shown: former.shown, err: err}
	} else {
		snapshot.Took = c.now().Sub(start)
		next.shown = c.metrics.choose(snapshot, objectives, c.cfg.MaxSeries)
	}
	c.metrics.observe(next, c.now().Sub(start))
	c.report(former.err, next)
	c.last.Store(next)
	select {
	case c.polled <- struct{}{}:
	default:
	}
}

// report logs what fails, and that it does no more, once each.
func (c *Collector) report(former error, r *result) {
	switch {
	case r.err != nil && (former == nil || whole(former).key() != whole(r.err).key()): // the text may be another each time
		c.log.Error("kafka cannot be read: lag is not known", "err", r.err)
	case r.err == nil && former != nil:
		c.log.Info("kafka can be read again")
	}
	if r.err != nil {
		return
	}
	failures := make(map[string]bool)
	for _, e := range r.snapshot.Errors {
		key := e.key()
		if !failures[key] && !c.failures[key] {
			c.log.Warn("some of kafka cannot be read: what it concerns is left out", "api", e.API, "code", e.Code(), "err", e)
		}
		failures[key] = true
	}
	for key := range c.failures {
		if !failures[key] {
			c.log.Info("kafka answers again", "api", strings.Fields(key)[0], "code", strings.Fields(key)[1])
		}
	}
	c.failures = failures
}

// read is one poll: groups and their commits, then the bounds of their topics, then the times of what is unread.
func (c *Collector) read(ctx context.Context, at time.Time, objectives map[string][]Objective) (*Snapshot, error) {
	wanted := slices.Sorted(maps.Keys(objectives))
	watched := func(name string) bool {
		_, found := objectives[name]
		return found || c.cfg.Groups != nil && c.cfg.Groups.MatchString(name)
	}
	former := make([]group, 0, len(c.groups))
	for _, s := range c.groups {
		former = append(former, s.last)
	}
	groups, errs, err := c.reader.groups(ctx, watched, wanted, former)
	if err != nil {
		return nil, err
	}
	c.keep(groups, errs)

	names := make(map[string]bool)
	for _, of := range objectives {
		for _, o := range of {
			for _, t := range o.Topics {
				names[t] = true
			}
		}
	}
	for name, s := range c.groups { // what was known of a group that could not be read goes on when it can
		for p := range s.tracks {
			names[p.topic] = names[p.topic] || groups[name] == nil
		}
	}
	for _, g := range groups {
		for t := range g.commits {
			names[t] = true
		}
		for t := range g.reads.topics {
			names[t] = names[t] || !strings.HasPrefix(t, "__") // internal ones only where there is a commit
		}
	}
	maps.DeleteFunc(names, func(_ string, read bool) bool { return !read })
	sent := c.now().Sub(c.began)
	logs, brokers, more, err := c.reader.topics(ctx, slices.Sorted(maps.Keys(names)))
	if err != nil {
		return nil, err
	}
	received := c.now().Sub(c.began)
	errs = append(errs, more...)
	for _, g := range groups {
		for _, name := range g.topics() {
			if t := logs[name]; t != nil {
				g.reads.name(t.id, name)
			}
		}
	}
	c.observe(logs, errs, sent, received)
	errs = append(errs, c.findAges(ctx, groups, logs)...)

	s := &Snapshot{
		Time: at, Brokers: brokers, Groups: make(map[string]*Group, len(groups)), Topics: make(map[string]*Topic, len(logs)), Errors: errs,
	}
	for name, t := range logs {
		s.Topics[name] = t.snapshot(name)
	}
	for name, g := range groups {
		s.Groups[name] = c.group(at, g, logs, errs)
	}
	return s, nil
}

// keep remembers who the groups are, and forgets those that are gone.
func (c *Collector) keep(groups map[string]*group, errs []*ReadError) {
	untold := make(map[string]bool) // these are not gone
	for _, e := range errs {
		untold[e.Group] = true
	}
	maps.DeleteFunc(c.groups, func(name string, _ *groupState) bool { return groups[name] == nil && !untold[name] })
	for name, g := range groups {
		s := c.groups[name]
		if s == nil {
			s = &groupState{tracks: make(map[place]*track)}
			c.groups[name] = s
		} else if g.reads.untold && s.last.members > 0 { // what it read before the rebalance it will read after it
			g.reads = s.last.reads
		}
		s.last = *g
		s.last.commits = nil
	}
}

// observe adds the ends of logs to their histories, and forgets topics that are gone.
func (c *Collector) observe(logs map[string]*topic, errs []*ReadError, sent, received time.Duration) {
	untold := make(map[string]bool)
	for _, e := range errs {
		untold[e.Topic] = true
	}
	gone := func(p place) bool {
		t := logs[p.topic]
		return t == nil && !untold[p.topic] || t != nil && t.id != p.id
	}
	maps.DeleteFunc(c.histories, func(p place, _ *history) bool { return gone(p) })
	for _, s := range c.groups {
		maps.DeleteFunc(s.tracks, func(p place, _ *track) bool { return gone(p) })
	}
	for name, t := range logs {
		for number, log := range t.logs {
			if log.err != nil {
				continue
			}
			p := place{name, t.id, number}
			h := c.histories[p]
			if h == nil {
				h = &history{}
				c.histories[p] = h
			}
			if h.observe(log.end, sent, received) {
				c.searches.forget(p)
				for _, s := range c.groups {
					if tr := s.tracks[p]; tr != nil {
						tr.known = false
					}
				}
			}
		}
	}
}

// topics are those that a group has to do with.
func (g *group) topics() []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(g.commits)), maps.Keys(g.reads.topics))
	slices.Sort(names)
	return slices.Compact(names)
}

// committed is -1 when there is no commit.
func (g *group) committed(topic string, partition int32) int64 {
	if at, ok := g.commits[topic][partition]; ok {
		return at
	}
	return -1
}

// track is what is remembered of a partition; the group has to be one that is kept.
func (c *Collector) track(group string, p place) *track {
	s := c.groups[group]
	if s.tracks[p] == nil {
		s.tracks[p] = &track{}
	}
	return s.tracks[p]
}

// findAges finds out when each group's first unread records were appended, as far as that is not known: by the histories, and where these
// do not reach back or have a gap by asking Kafka, for all groups together.
func (c *Collector) findAges(ctx context.Context, groups map[string]*group, logs map[string]*topic) []*ReadError {
	type unknown struct {
		*track
		span
	}
	unknowns := make(map[target][]unknown)
	var all []wanted
	for _, g := range groups {
		for _, name := range g.topics() {
			t := logs[name]
			if t == nil {
				continue
			}
			for number, log := range t.logs {
				f := facts{committed: g.committed(name, number), start: log.start, stable: log.stable}
				if log.err != nil {
					continue
				}
				p := place{name, t.id, number}
				first := firstUnread(f.committed, f.start)
				tr := c.track(g.name, p)
				if !f.unread() {
					tr.known = false // another record may come to be there
					continue
				}
				if tr.known && tr.knownFor == first {
					continue
				}
				span := c.histories[p].appended(first)
				tr.known, tr.knownFor, tr.appended = !span.older && span.hi-span.lo <= 2*c.cfg.Interval, first, c.began.Add(span.guess)
				if tr.known {
					continue
				}
				tr.appended = c.began.Add(span.hi) // no later, for all that is known without the search
				w := wanted{target{p, first}, log.end, c.began.Add(span.hi).UnixMilli()}
				if unknowns[w.target] == nil {
					all = append(all, w)
				}
				unknowns[w.target] = append(unknowns[w.target], unknown{tr, span})
			}
		}
	}
	failed := make(map[string]error)
	// What is not found in this time is sought on from there in the next poll.
	ctx, cancel := context.WithTimeout(ctx, 2*c.reader.step)
	defer cancel()
	times := c.searches.find(all, func(queries []query) []answer {
		answers := c.reader.offsets(ctx, readUncommitted, queries)
		for i, a := range answers {
			if a.err != nil {
				failed[queries[i].topic] = a.err
			}
		}
		return answers
	})
	for t, ms := range times {
		for _, u := range unknowns[t] {
			// Another clock does not move it out of the time that this one has seen.
			at := time.UnixMilli(ms)
			if lo := c.began.Add(u.lo); !u.older && at.Before(lo) {
				at = lo
			}
			if hi := c.began.Add(u.hi); at.After(hi) {
				at = hi
			}
			u.known, u.appended = true, at
		}
	}
	var errs []*ReadError
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		errs = append(errs, &ReadError{API: "ListOffsets", Topic: name, Err: failed[name]})
	}
	return errs
}

// group is what there is to say about one, after findAges.
func (c *Collector) group(at time.Time, g *group, logs map[string]*topic, errs []*ReadError) *Group {
	out := &Group{
		Name: g.name, State: g.state, Protocol: g.kind, Members: g.members, Topics: make(map[string]*GroupTopic),
	}
	for _, name := range g.topics() {
		t := logs[name]
		if t == nil {
			if slices.ContainsFunc(errs, func(e *ReadError) bool { return e.Topic == name }) {
				out.missing = append(out.missing, name)
			}
			continue
		}
		gt := &GroupTopic{Topic: name, Subscribed: g.members != 0 && g.reads.to(name), Partitions: make([]Partition, 0, len(t.logs))}
		for _, number := range slices.Sorted(maps.Keys(t.logs)) {
			if gt.Subscribed && !g.reads.untold && !g.reads.assigned[name][number] {
				gt.Unassigned++
			}
			log := t.logs[number]
			if log.err != nil {
				gt.Partial = true
				continue
			}
			tr := c.track(g.name, place{name, t.id, number})
			gt.Partitions = append(gt.Partitions, tr.next(number, facts{
				at: at, committed: g.committed(name, number), start: log.start, stable: log.stable, end: log.end,
				reader: gt.Subscribed, appended: tr.appended, vague: !tr.known,
			}, c.patience, c.cfg.Interval))
		}
		out.Topics[name] = gt
	}
	return out
}

func (t *topic) snapshot(name string) *Topic {
	out := &Topic{Name: name, Ready: len(t.logs) > 0, Count: len(t.logs), Partitions: make([]TopicPartition, 0, len(t.logs))}
	for _, number := range slices.Sorted(maps.Keys(t.logs)) {
		if log := t.logs[number]; log.err == nil {
			out.Partitions = append(out.Partitions, TopicPartition{Number: number, Start: log.start, Stable: log.stable, End: log.end, Replication: log.Replication})
		} else {
			out.Ready = false
		}
	}
	return out
}
