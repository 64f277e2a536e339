package operator

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// inputs is what the status of one ConsumerGroup is computed from.
type inputs struct {
	// cg holds the spec, and the status that was written last.
	cg *v1alpha1.ConsumerGroup
	// now is the time at which the status is computed.
	now time.Time
	// configured are the names of the Kafka clusters in the operator's configuration, sorted.
	configured []string
	// snapshot is the last poll of the group's cluster. It is nil before the first one.
	snapshot *lag.Snapshot
	// unreachable is why the cluster cannot be read. It is empty if it can be read, and also for
	// the first few polls that fail.
	unreachable string
	// interval is the time between two polls of the cluster.
	interval time.Duration
	// bareSince is when records without a committed offset were first seen. The zero time means
	// that the previous status saw none.
	bareSince time.Time
	// strimzi holds the KafkaTopics of the cluster, by the name of the topic in Kafka.
	strimzi map[string]kafkaTopic
}

// objective returns how old an unread record may be.
func (in *inputs) objective() time.Duration {
	return time.Duration(in.cg.Spec.Objective.MaxLagSeconds) * time.Second
}

// described returns what the last poll read of the group. It returns nil if the cluster or the
// group could not be read.
func (in *inputs) described() *lag.Group {
	if in.snapshot == nil || in.unreachable != "" {
		return nil
	}
	return in.snapshot.Groups[in.cg.Spec.Group]
}

// group returns the group, or nil if its commits could not be read or it does not exist. Kafka
// describes a group that does not exist as Dead.
func (in *inputs) group() *lag.Group {
	g := in.described()
	if g == nil || g.OffsetsUnknown || g.State == "Dead" && g.Members <= 0 && len(g.Topics) == 0 {
		return nil
	}
	return g
}

// topics returns the names of the topics that the status is about: those of the spec, or else all
// that the group has subscribed to or committed in, sorted.
func (in *inputs) topics() (names []string) {
	for _, topic := range in.cg.Spec.Topics {
		names = append(names, string(topic))
	}
	if names != nil || in.snapshot == nil {
		return names
	}
	if group := in.snapshot.Groups[in.cg.Spec.Group]; group != nil {
		names = slices.Collect(maps.Keys(group.Topics))
	}
	// A topic of the previous status may be absent only because it could not be read this time.
	for _, err := range in.snapshot.Errors {
		if slices.ContainsFunc(in.cg.Status.Topics, func(t v1alpha1.TopicStatus) bool { return t.Name == err.Topic }) {
			names = append(names, err.Topic)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// complete reports whether everything that the status is about could be read.
func (in *inputs) complete() bool {
	return in.groupError() == "" && !slices.ContainsFunc(in.topics(), in.partial)
}

// partial reports whether a part of a topic, or of the group's lag in it, could not be read. An
// error of the topic does not prove it: it may be about the age of what another group has not read.
func (in *inputs) partial(topic string) bool {
	t := in.snapshot.Topics[topic]
	if t == nil {
		return in.topicError(topic) != ""
	}
	if g := in.snapshot.Groups[in.cg.Spec.Group]; g != nil && g.Topics[topic] != nil {
		if !g.Topics[topic].Complete() {
			return true
		}
	}
	return !t.Ready
}

// clusterError returns the reason and the message if nothing is known of the whole cluster. Both
// are empty otherwise.
func (in *inputs) clusterError() (reason, message string) {
	if !in.clusterConfigured() {
		return unknownCluster, fmt.Sprintf("the operator's configuration has no cluster %q, only %s: correct "+
			"spec.cluster, or add the cluster", in.cg.Spec.Cluster, strings.Join(in.configured, ", "))
	}
	if in.unreachable != "" {
		return clusterUnreachable, in.unreachable
	}
	return "", ""
}

// clusterConfigured reports whether the operator's configuration has the group's cluster.
func (in *inputs) clusterConfigured() bool { return slices.Contains(in.configured, in.cg.Spec.Cluster) }

// groupError returns why the group could not be read although its cluster could. It is empty if the
// group could be read.
func (in *inputs) groupError() string { return in.readError(in.cg.Spec.Group, "") }

// topicError is like groupError, for a topic.
func (in *inputs) topicError(topic string) string { return in.readError("", topic) }

func (in *inputs) readError(group, topic string) string {
	for _, err := range in.snapshot.Errors {
		if err.Group == group && err.Topic == topic {
			return cause(err)
		}
	}
	return ""
}

// hasRecords reports whether a topic holds a record that can be read.
func (in *inputs) hasRecords(topic string) bool {
	t := in.snapshot.Topics[topic]
	return t != nil && slices.ContainsFunc(t.Partitions, func(p lag.TopicPartition) bool { return p.Stable > p.Start })
}

// log returns the log of a partition, as the partition's leader described it.
func (in *inputs) log(topic string, number int32) lag.TopicPartition {
	logs := in.snapshot.Topics[topic].Partitions
	return logs[slices.IndexFunc(logs, func(log lag.TopicPartition) bool { return log.Number == number })]
}

// outside reports whether the committed offset is outside of the partition's log in the first poll
// that read it. Package lag calls it lost only if the next polls find the same.
func (in *inputs) outside(topic string, p lag.Partition) bool {
	log := in.log(topic, p.Number)
	return p.Since.Equal(in.snapshot.Time) && (p.Committed < log.Start || p.Committed > log.End)
}

// young reports whether a partition has not been watched long enough to know whether the group
// moves in it. The partition, the group or this process may be new. One interval is added because a
// poll may be late.
func (in *inputs) young(p lag.Partition) bool {
	return in.snapshot.Time.Sub(p.Since) < max(lag.Patience, p.Patience)+in.interval
}

// cause returns why something could not be read. The text stays the same from poll to poll until
// the reason changes. The error's own text may contain the local port of a connection, and then
// each poll would write the status. The collector logs the whole error.
func cause(err error) string {
	e, ok := errors.AsType[*lag.ReadError](err)
	if !ok {
		return err.Error()
	}
	switch text := e.Stable(); {
	case !e.Unauthorized():
		return text
	case e.Code() == "TOPIC_AUTHORIZATION_FAILED" && e.Group != "":
		return text + ": the operator's user may not Describe one of the group's topics, so Kafka hides its members"
	default:
		return text + ": check that the operator's user may Describe it"
	}
}
