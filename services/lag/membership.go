package lag

import (
	"cmp"
	"maps"
	"regexp"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// kafkaGroup is a consumer group as the brokers describe it in one poll.
type kafkaGroup struct {
	// kind is classic, consumer (KIP-848), streams (KIP-1071), share (KIP-932), or a kind that this
	// program does not know. It is empty for a group that does not exist.
	name, kind, protocolType, state string
	// coordinator is a broker ID.
	coordinator int32
	// members is -1 if their number is unknown.
	members int
	reads   subscription
	// commits are the committed offsets by topic and partition. A partition without a commit is
	// absent.
	commits map[string]map[int32]int64
	// left is the number of records that a share group has to read, as Kafka counts it. A partition
	// of which Kafka does not know it is absent.
	left map[string]map[int32]int64
	// offsetsUnknown means that the commits could not be read.
	offsetsUnknown bool
	// topicsHidden means that the group reads a topic that the user may not see.
	topicsHidden bool
}

// list takes in the group as a broker lists it.
func (g *kafkaGroup) list(l kmsg.ListGroupsResponseGroup) {
	g.kind, g.protocolType, g.state = cmp.Or(l.GroupType, "classic"), l.ProtocolType, l.GroupState
}

// shares reports whether the group is a share group.
func (g *kafkaGroup) shares() bool { return g.kind == share }

// takeShareOffsets takes in the offsets of a share group. What is before them is acknowledged.
func (g *kafkaGroup) takeShareOffsets(topics []kmsg.DescribeShareGroupOffsetsResponseGroupTopic) {
	g.commits, g.left = make(map[string]map[int32]int64), make(map[string]map[int32]int64)
	for _, t := range topics {
		offsets, left := make(map[int32]int64), make(map[int32]int64)
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 || p.StartOffset < 0 {
				// The topic is being deleted, or no member has read the partition yet.
				continue
			}
			offsets[p.Partition] = p.StartOffset
			if p.Lag >= 0 {
				left[p.Partition] = p.Lag
			}
		}
		if len(offsets) > 0 {
			g.commits[t.Topic], g.left[t.Topic] = offsets, left
		}
	}
}

// facts returns what is known of a partition: the commit, and the bounds of its log.
func (g *kafkaGroup) facts(topic string, partition int32, log logBounds) facts {
	f := facts{
		committed: g.committed(topic, partition), start: log.start, stable: log.stable, end: log.end,
		share: g.shares(), left: -1,
	}
	if left, known := g.left[topic][partition]; known {
		f.left = left
	}
	return f
}

// undescribed notes that the group has members and that they could not be read.
func (g *kafkaGroup) undescribed() { g.members, g.reads.unknown = -1, true }

// topics returns the topics in which the group has a commit or to which a member subscribes,
// sorted.
func (g *kafkaGroup) topics() []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(g.commits)), maps.Keys(g.reads.topics))
	slices.Sort(names)
	return slices.Compact(names)
}

// committed returns the committed offset of a partition, or -1 if there is none.
func (g *kafkaGroup) committed(topic string, partition int32) int64 {
	if offset, ok := g.commits[topic][partition]; ok {
		return offset
	}
	return -1
}

// describeClassic takes in a group of the protocol that leaves assignments to its members.
func (g *kafkaGroup) describeClassic(d kmsg.DescribeGroupsResponseGroup) {
	g.members = len(d.Members)
	// The coordinator knows what members read only while the group is stable. Members of another
	// protocol type, such as workers of Kafka Connect, read no topics.
	g.reads.unknown = g.members > 0 && (d.State != "Stable" || d.ProtocolType != "consumer")
	if g.reads.unknown {
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

// describeConsumer takes in a group of KIP-848.
func (g *kafkaGroup) describeConsumer(d kmsg.ConsumerGroupDescribeResponseGroup) {
	g.members = len(d.Members)
	for _, m := range d.Members {
		g.reads.subscribe(m.SubscribedTopics...)
		if m.SubscribedTopicRegex != nil && *m.SubscribedTopicRegex != "" {
			// The broker has checked the pattern. It is RE2, as Go's patterns are.
			pattern, err := regexp.Compile(`^(?:` + *m.SubscribedTopicRegex + `)$`)
			if err == nil {
				g.reads.patterns = append(g.reads.patterns, pattern)
			}
		}
		for _, t := range m.Assignment.TopicPartitions {
			if t.Topic != "" {
				g.reads.assign(t.Topic, t.Partitions)
			} else {
				g.reads.assignID(t.TopicID, t.Partitions)
			}
		}
	}
}

// describeStreams takes in a group of KIP-1071. Its members have tasks. A task is the same
// partition of each topic that its part of the topology reads.
func (g *kafkaGroup) describeStreams(d kmsg.StreamsGroupDescribeResponseGroup) {
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

// describeShare takes in a group of KIP-932.
func (g *kafkaGroup) describeShare(d kmsg.ShareGroupDescribeResponseGroup) {
	g.members = len(d.Members)
	for _, m := range d.Members {
		g.reads.subscribe(m.SubscribedTopicNames...)
		for _, t := range m.Assignment.TopicPartitions {
			g.reads.assign(t.Topic, t.Partitions)
		}
	}
}

// subscription is what the members of a group read. The zero value reads nothing.
type subscription struct {
	// unknown means that there are members and that the coordinator does not know what they read,
	// as during a rebalance of the classic protocol. Every topic then counts as read.
	unknown bool
	// topics are subscribed by name, patterns by regular expression.
	topics   map[string]bool
	patterns []*regexp.Regexp
	// assigned are the partitions that a member has, by topic.
	assigned map[string]map[int32]bool
	// unnamed are assigned partitions by topic ID. franz-go's fake broker sends no names.
	unnamed map[[16]byte][]int32
}

// subscribe adds topics.
func (s *subscription) subscribe(topics ...string) {
	if s.topics == nil {
		s.topics = make(map[string]bool)
	}
	for _, t := range topics {
		s.topics[t] = true
	}
}

// assign adds partitions that a member has.
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

// assignID adds partitions of a topic of which only the ID is known; see resolve.
func (s *subscription) assignID(id [16]byte, partitions []int32) {
	if s.unnamed == nil {
		s.unnamed = make(map[[16]byte][]int32)
	}
	s.unnamed[id] = append(s.unnamed[id], partitions...)
}

// resolve assigns by name what was assigned by the topic's ID.
func (s *subscription) resolve(id [16]byte, topic string) {
	if partitions := s.unnamed[id]; partitions != nil {
		s.assign(topic, partitions)
	}
}

// includes reports whether a member reads the topic.
func (s *subscription) includes(topic string) bool {
	matches := func(p *regexp.Regexp) bool { return p.MatchString(topic) }
	return s.unknown || s.topics[topic] || slices.ContainsFunc(s.patterns, matches)
}
