package lag

import (
	"maps"
	"regexp"
	"slices"
)

// selection is which groups and topics are watched without being named in an objective. An exclusion
// is stronger than what includes. The zero value selects no group, and every topic of those that are
// wanted.
type selection struct {
	groups, excludeGroups *regexp.Regexp
	topics, excludeTopics *regexp.Regexp
}

// group reports whether a group is watched.
func (s selection) group(name string) bool {
	return matches(s.groups, name) && !matches(s.excludeGroups, name)
}

// topic reports whether a topic of a watched group is watched.
func (s selection) topic(name string) bool {
	return (s.topics == nil || matches(s.topics, name)) && !matches(s.excludeTopics, name)
}

// matches reports whether a pattern matches a name. A nil pattern matches none.
func matches(pattern *regexp.Regexp, name string) bool {
	return pattern != nil && pattern.MatchString(name)
}

// restrict removes the topics of a group that neither the selection nor an objective names.
func (s selection) restrict(g *kafkaGroup, objectives []Objective) {
	excluded := func(topic string) bool {
		named := func(o Objective) bool { return slices.Contains(o.Topics, topic) }
		return !s.topic(topic) && !slices.ContainsFunc(objectives, named)
	}
	maps.DeleteFunc(g.commits, func(topic string, _ map[int32]int64) bool { return excluded(topic) })
	maps.DeleteFunc(g.reads.topics, func(topic string, _ bool) bool { return excluded(topic) })
}
