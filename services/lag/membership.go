package lag

import (
	"regexp"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

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
