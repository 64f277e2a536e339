package operator

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// newStatus computes the status of a ConsumerGroup. It continues the previous status: it keeps the
// times of transitions, and what is known only after a while of watching. The bareSince that it
// returns is for the inputs of the next status.
func newStatus(in inputs) (status v1alpha1.ConsumerGroupStatus, bareSince time.Time) {
	if in.bareSince.IsZero() {
		in.bareSince = in.now
	}
	status = v1alpha1.ConsumerGroupStatus{
		ObservedGeneration: in.cg.Generation,
		LastPollTime:       in.cg.Status.LastPollTime,
		Conditions:         slices.Clone(in.cg.Status.Conditions),
	}
	if in.snapshot != nil && in.unreachable == "" {
		// The API stores whole seconds.
		status.LastPollTime = new(metav1.NewTime(in.snapshot.Time.Truncate(time.Second)))
	}
	if g := in.described(); g != nil {
		status.State, status.Protocol = g.State, g.Protocol
		if g.Members >= 0 {
			status.Members = new(int32(g.Members))
		}
	}

	a := assess(&in)
	setNumbers(&status, a.totals)
	topics := topicStatuses(&in, a.found, a.names)
	status.Topics = listed(topics)

	status.Standing = a.totals.standing[:min(len(a.totals.standing), maxListed)]
	switch g := in.described(); {
	case g == nil || g.OffsetsUnknown:
		// The group could not be read. The next leader compares them with what it reads.
		status.Standing, status.RhythmSeconds = in.cg.Status.Standing, in.cg.Status.RhythmSeconds
	case 2*g.Rhythm > lag.Patience:
		status.RhythmSeconds = seconds(g.Rhythm)
	}

	set := func(condition string, v verdict) {
		// meta keeps the time of the last transition unless the status changes.
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: condition, Status: v.status, Reason: v.reason, Message: v.message,
			ObservedGeneration: in.cg.Generation, LastTransitionTime: metav1.NewTime(in.now),
		})
	}
	set(v1alpha1.Consuming, a.consuming())
	set(v1alpha1.WithinObjective, a.withinObjective())
	set(v1alpha1.TopicsReady, a.topicsReady(topics))
	if !a.totals.bare() {
		return status, time.Time{}
	}
	return status, in.bareSince
}

// resumed returns the partitions of a status as the collector takes them.
func resumed(standing []v1alpha1.StandingPartition) (former []lag.Standing) {
	for _, s := range standing {
		former = append(former, lag.Standing{
			Topic: s.Topic, Partition: s.Partition, Committed: s.Offset, Since: s.Since.Time,
		})
	}
	return former
}

// setNumbers sets the worst partition, and the sums if all partitions could be read.
func setNumbers(status *v1alpha1.ConsumerGroupStatus, t *totals) {
	if t.worst != nil {
		status.WorstPartition = &v1alpha1.PartitionStatus{
			Topic: t.worst.topic, Partition: t.worst.Number, Status: string(t.worst.Status),
		}
		if t.worst.Committed >= 0 {
			status.WorstPartition.Lag = new(t.worst.Records)
			if !t.worst.AgeUnknown {
				status.WorstPartition.LagSeconds = new(seconds(t.worst.Age))
			}
		}
	}
	if t.known() {
		status.Lag, status.LagSeconds = new(t.records), new(seconds(t.oldest.Age))
		status.TimeToCloseSeconds = t.timeToClose()
	}
}

// due reports whether a status is worth a write, since after the last one. What a person acts on is
// written at once. Numbers change with each poll: they are written every 10 s, or less often if
// there are more than 200 groups, to spare the API server. If only lastPollTime has changed, it is
// written about once a minute, so that a status that is no longer kept can be recognised.
func due(old, status *v1alpha1.ConsumerGroupStatus, since time.Duration, groups int) bool {
	if !equality.Semantic.DeepEqual(outline(old), outline(status)) {
		return true
	}
	every := max(10*time.Second, time.Duration(groups)*50*time.Millisecond)
	same := *status
	same.LastPollTime = old.LastPollTime
	switch {
	case !equality.Semantic.DeepEqual(old, &same):
		return since >= every
	case !old.LastPollTime.Equal(status.LastPollTime):
		// The next poll may be ten seconds away.
		return since >= max(50*time.Second, every)
	}
	return false
}

// outline returns a status without its numbers, and without the texts that contain numbers.
func outline(s *v1alpha1.ConsumerGroupStatus) v1alpha1.ConsumerGroupStatus {
	out := v1alpha1.ConsumerGroupStatus{
		ObservedGeneration: s.ObservedGeneration, State: s.State, Protocol: s.Protocol, Members: s.Members,
	}
	if s.WorstPartition != nil {
		out.WorstPartition = &v1alpha1.PartitionStatus{Status: s.WorstPartition.Status}
	}
	for _, t := range s.Topics {
		out.Topics = append(out.Topics, v1alpha1.TopicStatus{
			Name: t.Name, Ready: t.Ready, Source: t.Source, Reason: t.Reason,
		})
	}
	for _, c := range s.Conditions {
		c.Message = ""
		out.Conditions = append(out.Conditions, c)
	}
	return out
}
