package lag

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
)

// poller reads a cluster once per poll and remembers what the next poll needs. Polls must not run
// concurrently.
type poller struct {
	// client is set while the collector runs.
	client *client
	// selection is what is watched without being wanted.
	selection selection
	// interval is the time between two polls.
	interval time.Duration
	// patience is Patience, and shorter in tests.
	patience time.Duration
	now      func() time.Time

	groups map[string]*groupState
	ages   ages
	// open is when the first open transaction of each partition that has one began: its first record is
	// the one at the last stable offset.
	open map[topicPartition]*appendTime
	// former is what an earlier process knew of partitions that this one has not read yet, by group.
	former map[string]map[partitionKey]Standing
	// rhythms are those that an earlier process knew, by group.
	rhythms map[string]time.Duration
}

// groupState is what is remembered of a group.
type groupState struct {
	// last is the group at the last poll, without its commits.
	last kafkaGroup
	// moved is when its coordinator was last seen to change, zero if it has not.
	moved time.Time
	// rhythm is the longest rhythm of its partitions at the last poll.
	rhythm     time.Duration
	partitions map[topicPartition]*partitionState
}

// partitionState is what is remembered of a group's partition.
type partitionState struct {
	track track
	// appended is the append time of the first unread record.
	appended appendTime
}

// newPoller returns a poller that remembers nothing and has no client.
func newPoller(selection selection, interval time.Duration) *poller {
	return &poller{
		selection: selection, interval: interval, patience: Patience, now: time.Now,
		groups: make(map[string]*groupState),
		ages:   ages{began: time.Now(), interval: interval, histories: make(map[topicPartition]*history)},
		open:   make(map[topicPartition]*appendTime), former: make(map[string]map[partitionKey]Standing),
		rhythms: make(map[string]time.Duration),
	}
}

// resume takes in what an earlier process knew of a group.
func (p *poller) resume(group string, rhythm time.Duration, standing []Standing) {
	p.rhythms[group] = max(p.rhythms[group], rhythm)
	if p.former[group] == nil {
		p.former[group] = make(map[partitionKey]Standing, len(standing))
	}
	for _, s := range standing {
		p.former[group][partitionKey{s.Topic, s.Partition}] = s
	}
}

// read is one poll. It reads the groups and their commits, then the bounds of their topics, then
// the ages of what is unread. The order matters: a record that arrives in between can only make lag
// too large, never negative. start is when the poll began.
func (p *poller) read(ctx context.Context, start time.Time, objectives map[string][]Objective) (*Snapshot, error) {
	watched := func(name string) bool {
		_, wanted := objectives[name]
		return wanted || p.selection.group(name)
	}
	former := make([]kafkaGroup, 0, len(p.groups))
	for _, s := range p.groups {
		former = append(former, s.last)
	}
	groups, errs, err := readGroups(ctx, p.client, watched, slices.Sorted(maps.Keys(objectives)), former)
	if err != nil {
		return nil, err
	}
	for name, g := range groups {
		p.selection.restrict(g, objectives[name])
	}
	p.rememberGroups(groups, errs)

	sent := p.now()
	logs, brokers, more, err := readTopics(ctx, p.client, p.topicNames(groups, objectives))
	if err != nil {
		return nil, err
	}
	received := p.now()
	errs = append(errs, more...)
	for _, g := range groups {
		for _, name := range g.topics() {
			if t := logs[name]; t != nil {
				g.reads.resolve(t.id, name)
			}
		}
	}
	p.rememberTopics(logs, errs, sent, received)
	errs = append(errs, p.findAges(ctx, groups, logs)...)

	s := &Snapshot{
		Time: start, Brokers: brokers, Errors: errs,
		Groups: make(map[string]*Group, len(groups)), Topics: make(map[string]*Topic, len(logs)),
	}
	for name, t := range logs {
		s.Topics[name] = t.published(name, start, p.open)
	}
	for name, g := range groups {
		s.Groups[name] = p.published(start, g, objectives[name], logs, errs)
	}
	return s, nil
}

// rememberGroups remembers the groups and forgets those that no longer exist. A group that could
// not be read still exists.
func (p *poller) rememberGroups(groups map[string]*kafkaGroup, errs []*ReadError) {
	unread := make(map[string]bool)
	for _, e := range errs {
		unread[e.Group] = true
	}
	maps.DeleteFunc(p.groups, func(name string, _ *groupState) bool { return groups[name] == nil && !unread[name] })
	for name, g := range groups {
		s := p.groups[name]
		if s == nil {
			s = &groupState{rhythm: p.rhythms[name], partitions: make(map[topicPartition]*partitionState)}
			p.groups[name] = s
		} else {
			if g.reads.unknown && s.last.members != 0 {
				// During a rebalance, and while its members cannot be read, the group is taken to read
				// what it read before.
				g.reads = s.last.reads
			}
			if g.coordinator != s.last.coordinator {
				s.moved = p.now()
			}
		}
		s.last = *g
		s.last.commits = nil
	}
}

// topicNames returns the topics to read, sorted: those of objectives, and those of groups.
func (p *poller) topicNames(groups map[string]*kafkaGroup, objectives map[string][]Objective) []string {
	names := make(map[string]bool)
	for _, all := range objectives {
		for _, o := range all {
			for _, t := range o.Topics {
				names[t] = true
			}
		}
	}
	for name, s := range p.groups {
		if g := groups[name]; g != nil && !g.offsetsUnknown {
			continue
		}
		// The group could not be read. Its topics are read so that they are not forgotten.
		for at := range s.partitions {
			names[at.topic] = true
		}
	}
	for _, g := range groups {
		for t := range g.commits {
			names[t] = true
		}
		for t := range g.reads.topics {
			// Kafka's internal topics count only if the group has a commit there.
			if !strings.HasPrefix(t, "__") {
				names[t] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// rememberTopics adds the ends of logs to the histories and forgets topics that no longer exist. A
// topic that could not be read still exists; one of the same name with another ID is another topic.
func (p *poller) rememberTopics(logs map[string]*topicLogs, errs []*ReadError, sent, received time.Time) {
	unread := make(map[string]bool)
	for _, e := range errs {
		unread[e.Topic] = true
	}
	gone := func(at topicPartition) bool {
		t := logs[at.topic]
		return t == nil && !unread[at.topic] || t != nil && t.id != at.id
	}
	maps.DeleteFunc(p.ages.histories, func(at topicPartition, _ *history) bool { return gone(at) })
	maps.DeleteFunc(p.open, func(at topicPartition, _ *appendTime) bool { return gone(at) })
	for _, s := range p.groups {
		maps.DeleteFunc(s.partitions, func(at topicPartition, _ *partitionState) bool { return gone(at) })
	}
	for _, at := range p.ages.sample(logs, sent, received) {
		delete(p.open, at)
		for _, s := range p.groups {
			if partition := s.partitions[at]; partition != nil {
				partition.appended.known = false
			}
		}
	}
}

// findAges finds out when each group's first unread records were appended, and those of open
// transactions, as far as that is unknown.
func (p *poller) findAges(ctx context.Context, groups map[string]*kafkaGroup, logs map[string]*topicLogs) []*ReadError {
	unread := p.openTransactions(logs)
	for _, g := range groups {
		if g.offsetsUnknown {
			continue
		}
		for _, name := range g.topics() {
			t := logs[name]
			if t == nil {
				continue
			}
			for number, log := range t.logs {
				if log.err != nil {
					continue
				}
				at := topicPartition{name, t.id, number}
				s := p.partition(g.name, at)
				appended := &s.appended
				f := s.track.isolation(p.facts(g, s, at, log))
				if !f.unread() {
					// Another record may get this offset if the log is cut.
					appended.known = false
					continue
				}
				first := target{at, firstUnread(f.committed, f.start)}
				unread = append(unread, unreadRecord{first, log.end, appended})
			}
		}
	}
	return p.ages.find(ctx, p.client, unread)
}

// openTransactions returns the first record of each partition's first open transaction. Readers of
// committed records get nothing from it on.
func (p *poller) openTransactions(logs map[string]*topicLogs) (first []unreadRecord) {
	for name, t := range logs {
		for number, log := range t.logs {
			at := topicPartition{name, t.id, number}
			switch {
			case log.err != nil:
				continue
			case log.stable >= log.end:
				delete(p.open, at)
				continue
			case p.open[at] == nil:
				p.open[at] = &appendTime{}
			}
			record := target{at, max(log.stable, log.start)}
			first = append(first, unreadRecord{record, log.end, p.open[at]})
		}
	}
	return first
}

// partition returns what is remembered of a partition of a remembered group.
func (p *poller) partition(group string, at topicPartition) *partitionState {
	s := p.groups[group]
	if s.partitions[at] == nil {
		key := partitionKey{at.topic, at.partition}
		former := p.former[group][key]
		s.partitions[at] = &partitionState{track: track{former: former, acknowledged: former.Committed}}
		// A topic of the same name that is created later has nothing to do with it.
		delete(p.former[group], key)
	}
	return s.partitions[at]
}

// catchingUp is how long a new coordinator may return former commits. It learns from its followers how
// far its log is committed, which takes them half a second by default.
const catchingUp = 10 * time.Second

// facts returns what this poll read of a group's partition. A commit that goes back just after the
// coordinator has moved is not believed yet.
func (p *poller) facts(g *kafkaGroup, s *partitionState, at topicPartition, log logBounds) facts {
	f := g.facts(at.topic, at.partition, log)
	if f.share && f.committed >= 0 {
		f = s.track.sharePosition(f)
	}
	if !s.track.since.IsZero() && f.committed < s.track.committed && p.now().Sub(p.groups[g.name].moved) < catchingUp {
		f.committed = s.track.committed
	}
	return f
}

// published returns a group as a snapshot shows it. It counts as one poll for its partitions. No
// topic is shown of a group whose commits could not be read.
func (p *poller) published(
	start time.Time, g *kafkaGroup, objectives []Objective, logs map[string]*topicLogs, errs []*ReadError,
) *Group {
	out := &Group{
		Name: g.name, State: g.state, Protocol: g.kind, Members: g.members, Topics: make(map[string]*GroupTopic),
		OffsetsUnknown: g.offsetsUnknown, TopicsHidden: g.topicsHidden,
	}
	state := p.groups[g.name]
	names := g.topics()
	for _, name := range names {
		if t := logs[name]; t != nil && !g.offsetsUnknown {
			out.Topics[name] = p.publishedTopic(start, g, name, t)
		}
	}
	state.rhythm = state.longestRhythm()
	out.Rhythm = state.rhythm
	for _, o := range objectives {
		names = append(names, o.Topics...)
	}
	for _, name := range names {
		if logs[name] == nil && slices.ContainsFunc(errs, func(e *ReadError) bool { return e.Topic == name }) {
			out.missing = append(out.missing, name)
		}
	}
	return out
}

// longestRhythm returns the longest rhythm of the partitions. If no partition has one it is the one
// that was known before.
func (s *groupState) longestRhythm() (longest time.Duration) {
	known := false
	for _, partition := range s.partitions {
		if own := partition.track.rhythm(0); own > 0 {
			known, longest = true, max(longest, own)
		}
	}
	if !known {
		return s.rhythm
	}
	return longest
}

// publishedTopic returns a group's progress in a topic.
func (p *poller) publishedTopic(start time.Time, g *kafkaGroup, name string, t *topicLogs) *GroupTopic {
	out := &GroupTopic{
		Topic: name, Subscribed: g.members != 0 && g.reads.includes(name),
		Partitions: make([]Partition, 0, len(t.logs)),
	}
	for _, number := range slices.Sorted(maps.Keys(t.logs)) {
		if out.Subscribed && !g.reads.unknown && !g.reads.assigned[name][number] {
			out.Unassigned++
		}
		log := t.logs[number]
		if log.err != nil {
			out.Partial = true
			continue
		}
		at := topicPartition{name, t.id, number}
		s := p.partition(g.name, at)
		f := p.facts(g, s, at, log)
		f.at, f.subscribed, f.appended, f.vague = start, out.Subscribed, s.appended.at, !s.appended.known
		f.rhythm = p.groups[g.name].rhythm
		out.Partitions = append(out.Partitions, s.track.next(number, f, p.patience, p.interval))
	}
	return out
}
