package operator

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// view is what a status is made of, besides the ConsumerGroup itself.
type view struct {
	now         time.Time
	configured  []string              // the clusters that there are
	snapshot    *lag.Snapshot         // of the group's cluster; nil: nothing is known of it
	unreachable string                // why it cannot be read; empty: it can, or has not been given the time
	interval    time.Duration         // between its polls
	bareSince   time.Time             // since when the group has records without a commit; zero: this is the first time, if it has any
	strimzi     map[string]kafkaTopic // its topics as Strimzi sees them, by their name in Kafka
}

// observe makes the status of a ConsumerGroup. It goes on from the status that there is: times of transitions, and what has to be watched
// for a while to be known again. bareSince is for the next time.
func (v view) observe(cg *v1alpha1.ConsumerGroup) (status v1alpha1.ConsumerGroupStatus, bareSince time.Time) {
	if v.bareSince.IsZero() {
		v.bareSince = v.now
	}
	o := observation{view: v, cg: cg, status: v1alpha1.ConsumerGroupStatus{
		ObservedGeneration: cg.Generation,
		LastPollTime:       cg.Status.LastPollTime,
		Conditions:         slices.Clone(cg.Status.Conditions),
	}}
	if v.snapshot != nil && v.unreachable == "" {
		// In whole seconds, as it is stored.
		o.status.LastPollTime = new(metav1.NewTime(v.snapshot.Time.Truncate(time.Second)))
		if g := v.snapshot.Groups[cg.Spec.Group]; g != nil {
			o.status.State, o.status.Protocol = g.State, g.Protocol
			if g.Members >= 0 {
				o.status.Members = new(int32(g.Members))
			}
			if g.State != "Dead" || g.Members > 0 || len(g.Topics) > 0 { // else Kafka does not know it
				o.group = g
			}
		}
	}
	o.names = v.scope(cg)
	o.sum()
	o.consuming()
	o.withinObjective()
	o.topics()
	if !o.bare {
		return o.status, time.Time{}
	}
	return o.status, o.bareSince
}

// observation is a status in the making.
type observation struct {
	view
	cg     *v1alpha1.ConsumerGroup
	group  *lag.Group // nil: not known
	names  []string   // of the topics that count
	status v1alpha1.ConsumerGroupStatus

	committed    int                       // partitions with a commit
	count        map[lag.Status]int        // partitions by status
	first        map[lag.Status]*partition // the worst of each
	records      int64                     // unread
	oldest       *partition                // that with the oldest unread record
	lost         int64                     // records that retention took where it took some
	unsubscribed []string                  // topics with records that the group has nothing to do with
	bare         bool                      // there are records and no commit
	cut          bool                      // a part could not be read: sums and the largest are of the rest
	undetermined bool                      // something old is unread or may be lost, and whether it moves or is lost is not known yet
}

type partition struct {
	topic string
	lag.Partition
}

// worse orders partitions by who needs attention first.
func (p *partition) worse(q *partition) bool {
	if q == nil {
		return true
	}
	rank := lag.Statuses()
	return cmp.Or(cmp.Compare(slices.Index(rank, p.Status), slices.Index(rank, q.Status)),
		cmp.Compare(p.Age, q.Age), cmp.Compare(p.Records, q.Records)) > 0
}

// scope decides which topics count: those of the spec, or all that the group has to do with.
func (v view) scope(cg *v1alpha1.ConsumerGroup) (names []string) {
	for _, topic := range cg.Spec.Topics {
		names = append(names, string(topic))
	}
	if names != nil || v.snapshot == nil {
		return names
	}
	if group := v.snapshot.Groups[cg.Spec.Group]; group != nil {
		names = slices.Collect(maps.Keys(group.Topics))
	}
	for _, err := range v.snapshot.Errors { // what it had to do with before may be what cannot be read now
		if slices.ContainsFunc(cg.Status.Topics, func(t v1alpha1.TopicStatus) bool { return t.Name == err.Topic }) {
			names = append(names, err.Topic)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// unreadable is why a group or a topic could not be read though its cluster could; empty: it could.
func (v view) unreadable(group, topic string) string {
	for _, err := range v.snapshot.Errors {
		if err.Group == group && err.Topic == topic {
			return cause(err)
		}
	}
	return ""
}

// cause is why something could not be read, in words that stay the same until that changes: a connection's error may name its local port,
// and would be a write for each poll. The collector logs it.
func cause(err error) string {
	e, ok := errors.AsType[*lag.ReadError](err)
	if !ok {
		return err.Error()
	}
	text := e.Stable()
	if strings.HasSuffix(e.Code(), "_AUTHORIZATION_FAILED") {
		text += ": see whether the operator's user may Describe it"
	}
	return text
}

// partial says that a part of a topic, or of a group's way through it, could not be read. An error of a topic that is there does not say
// so by itself: it may be about the age of what another group has not read.
func (v view) partial(group, topic string) bool {
	t := v.snapshot.Topics[topic]
	if t == nil {
		return v.unreadable("", topic) != ""
	}
	if g := v.snapshot.Groups[group]; g != nil && g.Topics[topic] != nil {
		if !g.Topics[topic].Complete() {
			return true
		}
	}
	return !t.Ready
}

// complete says whether all that a status is about could be read.
func (v view) complete(cg *v1alpha1.ConsumerGroup) bool {
	return v.unreadable(cg.Spec.Group, "") == "" &&
		!slices.ContainsFunc(v.scope(cg), func(topic string) bool { return v.partial(cg.Spec.Group, topic) })
}

// sum adds the partitions up.
func (o *observation) sum() {
	if o.group == nil {
		return
	}
	o.count, o.first = map[lag.Status]int{}, map[lag.Status]*partition{}
	var worst *partition
	var toClose time.Duration
	for _, name := range o.names {
		o.cut = o.cut || o.partial(o.cg.Spec.Group, name)
		topic := o.group.Topics[name]
		if topic == nil {
			if o.readable(name) {
				o.unsubscribed = append(o.unsubscribed, name)
			}
			continue
		}
		for _, p := range topic.Partitions {
			at := &partition{name, p}
			o.count[at.Status]++
			if at.worse(o.first[at.Status]) {
				o.first[at.Status] = at
			}
			if at.worse(worst) {
				worst = at
			}
			if p.Status == lag.StatusLost {
				o.lost += p.Lost
			}
			if p.Committed < 0 {
				continue
			}
			o.committed++
			o.records += p.Records
			if o.oldest == nil || p.Age > o.oldest.Age || p.Records > 0 && o.oldest.Records == 0 {
				o.oldest = at
			}
			if p.Close < 0 || toClose < 0 {
				toClose = -1
			} else {
				toClose = max(toClose, p.Close)
			}
			if p.Status == lag.StatusOK && (p.Records > 0 && p.Age >= lag.Patience && p.LastProgress.IsZero() && o.young(p) || o.outside(at)) {
				o.undetermined = true
			}
		}
	}
	o.bare = o.count[lag.StatusNoCommit] > 0 || o.unsubscribed != nil
	if worst != nil {
		o.status.WorstPartition = &v1alpha1.PartitionStatus{Topic: worst.topic, Partition: worst.Number, Status: string(worst.Status)}
		if worst.Committed >= 0 {
			o.status.WorstPartition.Lag = new(worst.Records)
			if !worst.AgeUnknown {
				o.status.WorstPartition.LagSeconds = new(seconds(worst.Age))
			}
		}
	}
	if o.committed > 0 && !o.cut { // else it may be more
		o.status.Lag, o.status.LagSeconds = new(o.records), new(seconds(o.oldest.Age))
		if toClose > 0 {
			o.status.TimeToCloseSeconds = new(seconds(toClose))
		}
	}
}

// readable says whether a topic holds a record that can be read.
func (o *observation) readable(topic string) bool {
	t := o.snapshot.Topics[topic]
	return t != nil && slices.ContainsFunc(t.Partitions, func(p lag.TopicPartition) bool { return p.Stable > p.Start })
}

// log is a partition's, as its leader tells it.
func (o *observation) log(p *partition) lag.TopicPartition {
	t := o.snapshot.Topics[p.topic]
	return t.Partitions[slices.IndexFunc(t.Partitions, func(log lag.TopicPartition) bool { return log.Number == p.Number })]
}

// outside says that a partition's commit is not in its log, in the first poll that read it: lost is what stays so.
func (o *observation) outside(p *partition) bool {
	return p.Since.Equal(o.snapshot.Time) && (p.Committed < o.log(p).Start || p.Committed > o.log(p).End)
}

// young says that a partition has not been watched for long enough, whether it, its group or this process is what is new. That a poll may
// come late counts in favour of waiting.
func (o *observation) young(p lag.Partition) bool {
	return o.snapshot.Time.Sub(p.Since) < lag.Patience+o.interval
}

// seconds are whole ones, rounded up: so they exceed the objective, which is whole too, exactly when the time does.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// due says whether a status is worth a write. What a person acts on is written at once. Numbers change with each poll, and are written
// as often as the API server should bear; lastPollTime alone, so that a reader can tell a status that nobody keeps any more.
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
		return since >= max(50*time.Second, every) // the next poll may be ten seconds away
	}
	return false
}

// outline is a status without its numbers, and the texts that have numbers in them.
func outline(s *v1alpha1.ConsumerGroupStatus) v1alpha1.ConsumerGroupStatus {
	out := v1alpha1.ConsumerGroupStatus{ObservedGeneration: s.ObservedGeneration, State: s.State, Protocol: s.Protocol, Members: s.Members}
	if s.WorstPartition != nil {
		out.WorstPartition = &v1alpha1.PartitionStatus{Status: s.WorstPartition.Status}
	}
	for _, t := range s.Topics {
		out.Topics = append(out.Topics, v1alpha1.TopicStatus{Name: t.Name, Ready: t.Ready, Source: t.Source, Reason: t.Reason})
	}
	for _, c := range s.Conditions {
		c.Message = ""
		out.Conditions = append(out.Conditions, c)
	}
	return out
}
