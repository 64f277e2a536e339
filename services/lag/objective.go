package lag

import (
	"slices"
	"time"
)

// Objective is how old the unread records of a group may be.
type Objective struct {
	// Age is the largest age of an unread record. 0 sets no limit.
	Age time.Duration
	// Topics are those that the objective is about. They are read even if the group has no commits
	// and no subscription there. If empty, the objective is about all topics of the group.
	Topics []string
}

// includes reports whether the objective is about a topic.
func (o Objective) includes(topic string) bool {
	return len(o.Topics) == 0 || slices.Contains(o.Topics, topic)
}

// breached reports whether any unread record is older than o.Age. If none is, known is false when a
// partition or an age could not be read, or when the group has committed nothing.
func (o Objective) breached(g *Group) (yes, known bool) {
	committed, complete := false, true
	for name, t := range g.Topics {
		if !o.includes(name) {
			continue
		}
		complete = complete && t.Complete()
		for _, p := range t.Partitions {
			if p.Age > o.Age {
				return true, true
			}
			committed = committed || p.Committed >= 0
		}
	}
	if slices.ContainsFunc(g.missing, o.includes) || g.TopicsHidden && len(o.Topics) == 0 {
		complete = false
	}
	return false, committed && complete
}
