package lag

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ReadError says what could not be read in a poll that succeeded as a whole.
type ReadError struct {
	API          string // the request, such as OffsetFetch
	Group, Topic string // what it concerns: one of them, or none when a broker does not say which groups it has
	Err          error
}

func (e *ReadError) Error() string {
	switch {
	case e.Group != "":
		return fmt.Sprintf("%s of group %s: %v", e.API, e.Group, e.Err)
	case e.Topic != "":
		return fmt.Sprintf("%s of topic %s: %v", e.API, e.Topic, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.API, e.Err)
}

// Unwrap is the broker's or the connection's error.
func (e *ReadError) Unwrap() error { return e.Err }

// whole is why a poll failed as a whole.
func whole(err error) *ReadError {
	if e, ok := errors.AsType[*ReadError](err); ok {
		return e
	}
	return &ReadError{API: "ListGroups", Err: err}
}

// key tells whether two errors are the same one again.
func (e *ReadError) key() string { return e.API + " " + e.Code() }

// Code is Kafka's name of the error, of which there are not many.
func (e *ReadError) Code() string {
	if ke, ok := errors.AsType[*kerr.Error](e.Err); ok {
		return ke.Message
	}
	if errors.Is(e.Err, context.DeadlineExceeded) {
		return "TIMEOUT"
	}
	return "CONNECTION"
}

// errNoAnswer is for what a broker was asked and passed over.
var errNoAnswer = errors.New("the broker left it out of its answer")

// reader asks the brokers. It keeps nothing from one poll to the next but connections.
type reader struct {
	cl   *kgo.Client
	step time.Duration // how long one request may take
}

// group is what the brokers say of one.
type group struct {
	name, kind, protocolType, state string
	coordinator                     int32
	members                         int // -1: not told
	reads                           subscription
	commits                         map[string]map[int32]int64 // by topic and partition
}

// subscription is what the members of a group read.
type subscription struct {
	untold   bool // there are members, and nobody says what they read, as in a rebalance of the classic protocol
	topics   map[string]bool
	patterns []*regexp.Regexp
	assigned map[string]map[int32]bool
	unnamed  map[[16]byte][]int32 // assigned partitions of topics by ID: franz-go's fake broker names them only so
}

func (s *subscription) subscribe(topics ...string) {
	if s.topics == nil {
		s.topics = make(map[string]bool)
	}
	for _, t := range topics {
		s.topics[t] = true
	}
}

func (s *subscription) assign(topic string, partitions []int32) {
	s.subscribe(topic)
	if s.assigned == nil {
		s.assigned = make(map[string]map[int32]bool)
	}
	if s.assigned[topic] == nil {
		s.assigned[topic] = make(map[int32]bool)
	}
	for _, p := range partitions {
		s.assigned[topic][p] = true
	}
}

// name gives a topic that was assigned by its ID its name.
func (s *subscription) name(id [16]byte, topic string) {
	if partitions := s.unnamed[id]; partitions != nil {
		s.assign(topic, partitions)
	}
}

// to says whether a member reads the topic.
func (s *subscription) to(topic string) bool {
	return s.untold || s.topics[topic] || slices.ContainsFunc(s.patterns, func(p *regexp.Regexp) bool { return p.MatchString(topic) })
}

// groups lists the cluster's groups and reads those that are to be watched. The former ones, by what was known of them, are read too when
// a broker does not tell its groups. An error means that no broker answered.
func (r *reader) groups(ctx context.Context, watched func(name string) bool, wanted []string, former []group) (map[string]*group, []*ReadError, error) {
	found, errs, err := r.list(ctx, watched)
	if err != nil {
		return nil, nil, err
	}
	var missing []*group
	if len(errs) > 0 {
		for _, g := range former {
			if found[g.name] != nil || !watched(g.name) || g.kind == "" { // without a kind it did not exist, and is wanted
				continue
			}
			m := &group{name: g.name, kind: g.kind, protocolType: g.protocolType}
			if !slices.Contains(kinds, g.kind) {
				m.state = g.state // nobody but the list tells it
			}
			missing = append(missing, m)
		}
	}
	for _, name := range wanted {
		switch {
		case found[name] != nil || slices.ContainsFunc(missing, func(g *group) bool { return g.name == name }):
		case len(errs) > 0: // it may be one of those that were not told
			errs = append(errs, &ReadError{API: errs[0].API, Group: name, Err: errs[0].Err})
		default:
			missing = append(missing, &group{name: name, state: "Dead"})
		}
	}
	read := make(map[int32][]*group)
	for _, g := range found {
		read[g.coordinator] = append(read[g.coordinator], g)
	}
	coordinated, more := r.coordinators(ctx, missing)
	errs = append(errs, more...)
	for _, g := range coordinated {
		found[g.name] = g
		read[g.coordinator] = append(read[g.coordinator], g)
	}

	var mu sync.Mutex
	var wg sync.WaitGroup
	fail := func(failed []*ReadError) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range failed {
			delete(found, e.Group)
		}
		errs = append(errs, failed...)
	}
	for broker, groups := range read {
		wg.Go(func() { fail(r.commits(ctx, broker, groups)) })
		wg.Go(func() { fail(r.describe(ctx, broker, groups)) })
	}
	wg.Wait()
	return found, errs, nil
}

// list asks each broker for the groups that it coordinates.
func (r *reader) list(ctx context.Context, watched func(name string) bool) (map[string]*group, []*ReadError, error) {
	var errs []*ReadError
	found := make(map[string]*group)
	answered := false
	for _, shard := range r.askAny(ctx, kmsg.NewPtrListGroupsRequest()) {
		if shard.Err != nil {
			errs = append(errs, &ReadError{API: "ListGroups", Err: shard.Err})
			continue
		}
		resp := shard.Resp.(*kmsg.ListGroupsResponse)
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil { // it lists what it has by now
			errs = append(errs, &ReadError{API: "ListGroups", Err: err})
		}
		answered = true
		for _, g := range resp.Groups {
			if g.GroupType != "share" && watched(g.Group) { // share groups have no commits
				found[g.Group] = &group{
					name: g.Group, kind: cmp.Or(g.GroupType, "classic"), protocolType: g.ProtocolType, state: g.GroupState, coordinator: shard.Meta.NodeID,
				}
			}
		}
	}
	if !answered {
		return nil, nil, errs[0] // there is one for each broker, or for their list
	}
	return found, errs, nil
}

// coordinators asks who coordinates groups that nobody has listed: they may not exist, or the user may not see them.
func (r *reader) coordinators(ctx context.Context, groups []*group) (found []*group, errs []*ReadError) {
	if len(groups) == 0 {
		return nil, nil
	}
	byName := make(map[string]*group)
	for _, g := range groups {
		byName[g.name] = g
	}
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorKeys = slices.Sorted(maps.Keys(byName))
	for _, shard := range r.askAny(ctx, req) {
		if shard.Err != nil {
			for _, name := range shard.Req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
				errs = append(errs, &ReadError{API: "FindCoordinator", Group: name, Err: shard.Err})
			}
			continue
		}
		for _, c := range shard.Resp.(*kmsg.FindCoordinatorResponse).Coordinators {
			if err := kerr.ErrorForCode(c.ErrorCode); err != nil {
				errs = append(errs, &ReadError{API: "FindCoordinator", Group: c.Key, Err: err})
			} else if g := byName[c.Key]; g != nil {
				g.coordinator = c.NodeID
				found = append(found, g)
			}
		}
	}
	return found, errs
}

// commits reads the offsets that groups of one coordinator have committed.
func (r *reader) commits(ctx context.Context, broker int32, groups []*group) (errs []*ReadError) {
	const api = "OffsetFetch"
	req := kmsg.NewPtrOffsetFetchRequest()
	left := make(map[string]*group)
	for _, g := range groups {
		left[g.name] = g
		rg := kmsg.NewOffsetFetchRequestGroup() // no topics: all
		rg.Group = g.name
		req.Groups = append(req.Groups, rg)
	}
	var answered []kmsg.OffsetFetchResponseGroup
	resp, err := r.request(ctx, broker, req)
	if err == nil {
		answered = resp.(*kmsg.OffsetFetchResponse).Groups
	}
	for _, rg := range answered {
		g := left[rg.Group]
		if g == nil {
			continue
		}
		delete(left, rg.Group)
		if err := kerr.ErrorForCode(rg.ErrorCode); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			errs = append(errs, &ReadError{API: api, Group: g.name, Err: err})
			continue
		}
		g.commits = make(map[string]map[int32]int64, len(rg.Topics))
		for _, t := range rg.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 || p.Offset < 0 {
					continue // of a topic that is being deleted, or no commit
				}
				if g.commits[t.Topic] == nil {
					g.commits[t.Topic] = make(map[int32]int64, len(t.Partitions))
				}
				g.commits[t.Topic][p.Partition] = p.Offset
			}
		}
	}
	for name := range left {
		errs = append(errs, &ReadError{API: api, Group: name, Err: cmp.Or(err, errNoAnswer)})
	}
	return errs
}

// kinds are those of which members can be read.
var kinds = []string{"classic", "consumer", "streams"}

// describe reads the members of groups of one coordinator, each kind of group by its own request. Of empty groups all is known.
func (r *reader) describe(ctx context.Context, broker int32, groups []*group) (errs []*ReadError) {
	byKind := make(map[string]map[string]*group)
	for _, g := range groups {
		if g.state == "Empty" || g.state == "Dead" {
			continue
		}
		if byKind[g.kind] == nil {
			byKind[g.kind] = make(map[string]*group)
		}
		byKind[g.kind][g.name] = g
	}
	for kind, left := range byKind {
		var req kmsg.Request
		names := slices.Sorted(maps.Keys(left))
		switch kind {
		case "classic":
			req = &kmsg.DescribeGroupsRequest{Groups: names}
		case "consumer":
			req = &kmsg.ConsumerGroupDescribeRequest{Groups: names}
		case "streams":
			req = &kmsg.StreamsGroupDescribeRequest{Groups: names}
		default: // one that this program does not know: its commits are worth something too
			for _, g := range left {
				g.members, g.reads.untold = -1, true
			}
			continue
		}
		api := kmsg.NameForKey(req.Key())
		resp, err := r.request(ctx, broker, req)
		take := func(name, state string, code int16) *group {
			g := left[name]
			if g == nil {
				return nil
			}
			delete(left, name)
			switch err := kerr.ErrorForCode(code); {
			case errors.Is(err, kerr.GroupIDNotFound): // deleted since it was listed
				g.state = "Dead"
				return nil
			case err != nil:
				errs = append(errs, &ReadError{API: api, Group: name, Err: err})
				return nil
			}
			g.state = state
			return g
		}
		switch resp := resp.(type) {
		case *kmsg.DescribeGroupsResponse:
			for _, d := range resp.Groups {
				if g := take(d.Group, d.State, d.ErrorCode); g != nil {
					g.classic(d)
				}
			}
		case *kmsg.ConsumerGroupDescribeResponse:
			for _, d := range resp.Groups {
				if g := take(d.Group, d.State, d.ErrorCode); g != nil {
					g.consumer(d)
				}
			}
		case *kmsg.StreamsGroupDescribeResponse:
			for _, d := range resp.Groups {
				if g := take(d.Group, d.State, d.ErrorCode); g != nil {
					g.streams(d)
				}
			}
		}
		for name := range left {
			errs = append(errs, &ReadError{API: api, Group: name, Err: cmp.Or(err, errNoAnswer)})
		}
	}
	return errs
}

// classic takes in a group of the protocol that leaves assignments to its members.
func (g *group) classic(d kmsg.DescribeGroupsResponseGroup) {
	g.members = len(d.Members)
	// Only a stable group's members are told with what they read. Others than consumers, such as workers of Kafka Connect, read nothing.
	g.reads.untold = g.members > 0 && (d.State != "Stable" || d.ProtocolType != "consumer")
	if g.reads.untold {
		return
	}
	for _, m := range d.Members {
		var metadata kmsg.ConsumerMemberMetadata
		if metadata.ReadFrom(m.ProtocolMetadata) == nil {
			g.reads.subscribe(metadata.Topics...)
		}
		var assignment kmsg.ConsumerMemberAssignment
		if assignment.ReadFrom(m.MemberAssignment) == nil {
			for _, t := range assignment.Topics {
				g.reads.assign(t.Topic, t.Partitions)
			}
		}
	}
}

// consumer takes in a group of KIP-848.
func (g *group) consumer(d kmsg.ConsumerGroupDescribeResponseGroup) {
	g.members = len(d.Members)
	for _, m := range d.Members {
		g.reads.subscribe(m.SubscribedTopics...)
		if m.SubscribedTopicRegex != nil && *m.SubscribedTopicRegex != "" {
			if pattern, err := regexp.Compile(`^(?:` + *m.SubscribedTopicRegex + `)$`); err == nil { // the broker has checked it: RE2 as well
				g.reads.patterns = append(g.reads.patterns, pattern)
			}
		}
		for _, t := range m.Assignment.TopicPartitions {
			if t.Topic != "" {
				g.reads.assign(t.Topic, t.Partitions)
			} else {
				if g.reads.unnamed == nil {
					g.reads.unnamed = make(map[[16]byte][]int32)
				}
				g.reads.unnamed[t.TopicID] = append(g.reads.unnamed[t.TopicID], t.Partitions...)
			}
		}
	}
}

// streams takes in a group of KIP-1071: its members have tasks, and a task is the same partition of each topic that a part of the topology
// reads.
func (g *group) streams(d kmsg.StreamsGroupDescribeResponseGroup) {
	g.members = len(d.Members)
	if g.members == 0 || d.Topology == nil {
		return
	}
	sources := make(map[string][]string)
	for _, s := range d.Topology.Subtopologies {
		topics := slices.Clone(s.SourceTopics)
		for _, t := range s.RepartitionSourceTopics {
			topics = append(topics, t.Topic)
		}
		g.reads.subscribe(topics...)
		sources[s.SubtopologyID] = topics
	}
	for _, m := range d.Members {
		for _, task := range m.Assignment.ActiveTasks {
			for _, topic := range sources[task.SubtopologyID] {
				g.reads.assign(topic, task.Partitions)
			}
		}
	}
}

// topic is what metadata says of one: its partitions, each with its log as far as its leader answers.
type topic struct {
	id   [16]byte
	logs map[int32]logBounds
}

// logBounds are a partition's offsets.
type logBounds struct {
	start, stable, end int64
	Replication
	err error
}

// topics reads the bounds of topics' logs, each once for all groups, and says which brokers there are. A topic that does not exist is
// missing in the result, without an error.
func (r *reader) topics(ctx context.Context, names []string) (found map[string]*topic, brokers []int32, errs []*ReadError, err error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = make([]kmsg.MetadataRequestTopic, 0, len(names)) // not nil, which means all
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &name
		req.Topics = append(req.Topics, t)
	}
	shard := r.askAny(ctx, req)[0]
	if shard.Err != nil {
		return nil, nil, nil, &ReadError{API: "Metadata", Err: shard.Err}
	}
	resp := shard.Resp.(*kmsg.MetadataResponse)
	for _, b := range resp.Brokers {
		brokers = append(brokers, b.NodeID)
	}
	slices.Sort(brokers)
	found = make(map[string]*topic)
	var queries []query
	var replication []Replication // of each
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue // no topic that was asked for
		}
		name := *t.Topic
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil:
			errs = append(errs, &ReadError{API: "Metadata", Topic: name, Err: err})
			continue
		}
		found[name] = &topic{t.TopicID, make(map[int32]logBounds, len(t.Partitions))}
		for _, p := range t.Partitions {
			queries = append(queries, query{place{name, t.TopicID, p.Partition}, timeEnd})
			preferred := len(p.Replicas) > 0 && p.Replicas[0] == p.Leader
			replication = append(replication, Replication{p.Leader, preferred, len(p.Replicas), len(p.ISR)})
		}
	}

	// Start and end go first: an end that was read after the last stable offset would make every new record look like one of an open
	// transaction.
	starts := slices.Clone(queries)
	for i := range starts {
		starts[i].time = timeStart
	}
	var wg sync.WaitGroup
	var start, end []answer
	wg.Go(func() { start = r.offsets(ctx, readUncommitted, starts) })
	wg.Go(func() { end = r.offsets(ctx, readUncommitted, queries) })
	wg.Wait()
	stable := r.offsets(ctx, readCommitted, queries)

	answered := len(queries) == 0
	told := make(map[string]bool)
	for i, q := range queries {
		log := logBounds{
			start: start[i].offset, stable: stable[i].offset, end: max(end[i].offset, stable[i].offset),
			Replication: replication[i], err: cmp.Or(start[i].err, end[i].err, stable[i].err),
		}
		switch {
		case errors.Is(log.err, kerr.UnknownTopicOrPartition): // deleted since
			answered = true
			continue
		case log.err == nil:
			answered = true
		case !told[q.topic]: // once for a topic
			told[q.topic] = true
			errs = append(errs, &ReadError{API: "ListOffsets", Topic: q.topic, Err: log.err})
		}
		found[q.topic].logs[q.partition] = log
	}
	if !answered {
		return nil, nil, nil, errs[len(errs)-1]
	}
	maps.DeleteFunc(found, func(_ string, t *topic) bool { return len(t.logs) == 0 })
	return found, brokers, errs, nil
}

const (
	readUncommitted = int8(0)
	readCommitted   = int8(1)
)

// offsets answers each query. Kafka takes a partition once in a request, so there are as many as one has queries.
func (r *reader) offsets(ctx context.Context, isolation int8, queries []query) []answer {
	answers := make([]answer, len(queries))
	type key struct {
		topic     string
		partition int32
	}
	var lanes []map[key]int
	for i, q := range queries {
		answers[i].err = errNoAnswer
		k := key{q.topic, q.partition}
		lane := slices.IndexFunc(lanes, func(l map[key]int) bool { _, taken := l[k]; return !taken })
		if lane < 0 {
			lane = len(lanes)
			lanes = append(lanes, make(map[key]int, len(queries)))
		}
		lanes[lane][k] = i
	}
	var wg sync.WaitGroup
	for _, lane := range lanes {
		wg.Go(func() {
			byTopic := make(map[string][]kmsg.ListOffsetsRequestTopicPartition)
			for k, i := range lane {
				p := kmsg.NewListOffsetsRequestTopicPartition()
				p.Partition, p.Timestamp = k.partition, queries[i].time
				byTopic[k.topic] = append(byTopic[k.topic], p)
			}
			req := kmsg.NewPtrListOffsetsRequest()
			req.IsolationLevel = isolation
			req.TimeoutMillis = int32(r.step.Milliseconds())
			for name, partitions := range byTopic {
				t := kmsg.NewListOffsetsRequestTopic()
				t.Topic, t.Partitions = name, partitions
				req.Topics = append(req.Topics, t)
			}
			for _, shard := range r.ask(ctx, req) {
				if shard.Err != nil {
					for _, t := range shard.Req.(*kmsg.ListOffsetsRequest).Topics {
						for _, p := range t.Partitions {
							answers[lane[key{t.Topic, p.Partition}]].err = shard.Err
						}
					}
					continue
				}
				for _, t := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics {
					for _, p := range t.Partitions {
						if i, asked := lane[key{t.Topic, p.Partition}]; asked {
							answers[i] = answer{p.Offset, p.Timestamp, kerr.ErrorForCode(p.ErrorCode)}
						}
					}
				}
			}
		})
	}
	wg.Wait()
	return answers
}

// ask sends a request to all brokers that it concerns.
func (r *reader) ask(ctx context.Context, req kmsg.Request) []kgo.ResponseShard {
	ctx, cancel := context.WithTimeout(ctx, r.step)
	defer cancel()
	return r.cl.RequestSharded(ctx, req)
}

// askAny sends a request that any broker can answer, or for which one has to say first which brokers there are: when one does not answer,
// another is asked.
func (r *reader) askAny(ctx context.Context, req kmsg.Request) (shards []kgo.ResponseShard) {
	for range 2 {
		shards = r.ask(ctx, req)
		if slices.ContainsFunc(shards, func(s kgo.ResponseShard) bool { return s.Err == nil }) {
			break
		}
	}
	return shards
}

// request sends a request to one broker.
func (r *reader) request(ctx context.Context, broker int32, req kmsg.Request) (kmsg.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, r.step)
	defer cancel()
	return r.cl.Broker(int(broker)).RetriableRequest(ctx, req)
}
