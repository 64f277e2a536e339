package operator

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// Reasons why something is not known.
const (
	unknownCluster     = "UnknownCluster"
	clusterUnreachable = "ClusterUnreachable"
	unreadable         = "Unreadable"
	notKnownYet        = "NotKnownYet"
	noTopics           = "NoTopics"
	noCommit           = "NoCommit"
)

// Reasons why a group that consumes deserves a look all the same.
const (
	rewound       = "Rewound"
	fallingBehind = "FallingBehind"
)

// set gives a condition its value. The time of its transition is kept by meta unless the status changes.
func (o *observation) set(condition string, status metav1.ConditionStatus, reason, format string, args ...any) {
	meta.SetStatusCondition(&o.status.Conditions, metav1.Condition{
		Type: condition, Status: status, Reason: reason, Message: fmt.Sprintf(format, args...),
		ObservedGeneration: o.cg.Generation, LastTransitionTime: metav1.NewTime(o.now),
	})
}

// unknown sets a condition that cannot be told.
func (o *observation) unknown(condition string) {
	reason, message := o.why()
	o.set(condition, metav1.ConditionUnknown, reason, "%s", message)
}

// why says why nothing can be told, in words that stay the same until that changes.
func (o *observation) why() (reason, message string) {
	switch {
	case o.unknownCluster():
		return unknownCluster, fmt.Sprintf("the operator knows no cluster %q, only %s: correct spec.cluster, or add it to the operator's configuration",
			o.cg.Spec.Cluster, strings.Join(o.configured, ", "))
	case o.unreachable != "":
		return clusterUnreachable, o.unreachable
	case o.unreadable(o.cg.Spec.Group, "") != "":
		return unreadable, o.unreadable(o.cg.Spec.Group, "")
	case o.group == nil:
		return notFound, o.absent()
	case len(o.names) == 0:
		return noTopics, "the group has to do with no topic: no member subscribes to one, and there is no commit"
	}
	return noCommit, "the group has not committed anything in its topics"
}

func (o *observation) unknownCluster() bool { return !slices.Contains(o.configured, o.cg.Spec.Cluster) }

func (o *observation) absent() string {
	return fmt.Sprintf("Kafka knows no group %q: start its consumer, or correct the name (delete this ConsumerGroup and create another); "+
		"a group without members is forgotten offsets.retention.minutes after its last commit", o.cg.Spec.Group)
}

// consuming says whether what is there to read is being read.
//
// A rewound group does consume, and somebody may have meant it; so does one that falls behind. Both keep the condition True, with a
// reason of their own. So does a group without members that has left nothing unread: it was shut down in order.
//
// What has to be watched for a minute to be told is left as it was until then: an operator that has just begun to look would otherwise
// announce the recovery of each group that is stuck. The same minute is given to commits: a consumer makes the first one in a partition
// a while after the first record is there.
func (o *observation) consuming() {
	is := func(status metav1.ConditionStatus, reason, format string, args ...any) {
		o.set(v1alpha1.Consuming, status, reason, format, args...)
	}
	if o.group == nil && !o.unknownCluster() && o.unreachable == "" && o.unreadable(o.cg.Spec.Group, "") == "" {
		is(metav1.ConditionFalse, notFound, "%s", o.absent())
		return
	}
	if o.group == nil || len(o.names) == 0 {
		o.unknown(v1alpha1.Consuming)
		return
	}
	members, has := "", "" // empty: Kafka does not tell
	if o.group.Members >= 0 {
		members = plural(o.group.Members, "member", "members")
		has = fmt.Sprintf(" (the group has %s)", members)
		members += "; "
	}
	switch {
	case o.count[lag.StatusLost] > 0:
		what := "its commit lies beyond the log's end"
		if worst := o.first[lag.StatusLost]; worst.Committed < o.log(worst).Start {
			what = "retention took records before they were read"
			if o.lost > 0 { // since this process began
				what = fmt.Sprintf("retention took %s before they were read", plural64(o.lost, "record", "records"))
			}
		}
		is(metav1.ConditionFalse, "RecordsLost", "%s: %s. The consumer goes on where its auto.offset.reset says; what it missed has to come from elsewhere",
			o.places(lag.StatusLost), what)
	case o.count[lag.StatusStopped] > 0:
		is(metav1.ConditionFalse, "Stopped", "no member reads %s: start the consumer%s; if the topic is given up, delete the group's commits in it",
			o.places(lag.StatusStopped), has)
	case o.count[lag.StatusStalled] > 0:
		is(metav1.ConditionFalse, "Stalled", "a member has %s and does not move on: look in the consumer's log for a record that it cannot get past%s",
			o.places(lag.StatusStalled), has)
	case o.cut:
		is(metav1.ConditionUnknown, unreadable, partly)
	case o.undetermined, o.bare && o.now.Sub(o.bareSince) < lag.Patience:
		before := meta.FindStatusCondition(o.status.Conditions, v1alpha1.Consuming)
		if before != nil && before.Status != metav1.ConditionUnknown && before.Reason != notFound {
			is(before.Status, before.Reason, "%s", before.Message)
			return
		}
		is(metav1.ConditionUnknown, notKnownYet, "%s; whether the group moves and commits has to be watched for a minute", o.unread())
	case o.count[lag.StatusNoCommit] > 0:
		is(metav1.ConditionFalse, noCommit, "there are records, and no commit, in %s: either the consumer does not commit, or it began at the end (auto.offset.reset=latest) and nothing new has come",
			o.places(lag.StatusNoCommit))
	case o.unsubscribed != nil:
		is(metav1.ConditionFalse, "NotSubscribed", "the group has nothing to do with %s, where there are records: correct what the consumer subscribes to, or spec.topics",
			strings.Join(o.unsubscribed[:min(len(o.unsubscribed), 3)], ", "))
	case o.count[lag.StatusRewound] > 0:
		is(metav1.ConditionTrue, rewound, "the commit went back in %s, and what was read is read again; if nobody has reset the offsets, look for a second consumer that commits",
			o.places(lag.StatusRewound))
	case o.count[lag.StatusSlow] > 0:
		is(metav1.ConditionTrue, fallingBehind, "records come faster than %s: make the consumer faster, or add members, at most one for each partition%s",
			o.places(lag.StatusSlow), has)
	case o.group.Members == 0:
		is(metav1.ConditionTrue, "NoMembers", "the group has no members; %s", o.unread())
	default:
		is(metav1.ConditionTrue, "Reading", "%s%s", members, o.unread())
	}
}

// withinObjective says whether the oldest unread record is younger than the objective, in all partitions that have a commit.
func (o *observation) withinObjective() {
	objective := time.Duration(o.cg.Spec.Objective.MaxLagSeconds) * time.Second
	switch {
	case o.group == nil || len(o.names) == 0:
		o.unknown(v1alpha1.WithinObjective)
	case o.oldest != nil && o.oldest.Age > objective:
		next := ""
		if o.status.TimeToCloseSeconds == nil {
			next = "; the condition Consuming says why"
		}
		o.set(v1alpha1.WithinObjective, metav1.ConditionFalse, "ObjectiveMissed", "%s; the objective is %s%s", o.unread(), objective, next)
	case o.cut:
		o.set(v1alpha1.WithinObjective, metav1.ConditionUnknown, unreadable, partly)
	case o.committed == 0 && o.bare:
		o.unknown(v1alpha1.WithinObjective)
	default:
		o.set(v1alpha1.WithinObjective, metav1.ConditionTrue, "WithinObjective", "%s; the objective is %s", o.unread(), objective)
	}
}

const partly = "a part of the topics, or how old what is unread there is, could not be read; the condition TopicsReady or the operator's log says why"

// unread says how much is unread, how old it is, and how long that will last.
func (o *observation) unread() string {
	switch {
	case o.committed == 0 && o.bare:
		return "there is no commit"
	case o.committed == 0:
		return "there is nothing to read"
	case o.records == 0:
		return "all is read"
	}
	text := fmt.Sprintf("%s unread, the oldest for %s (%s/%d)", plural64(o.records, "record", "records"), span(o.oldest.Age), o.oldest.topic, o.oldest.Number)
	if o.cut {
		text = "at least " + text
	}
	if o.status.TimeToCloseSeconds != nil {
		text += fmt.Sprintf(", at this pace for another %s", time.Duration(*o.status.TimeToCloseSeconds)*time.Second)
	}
	return text
}

// places names the partitions of a status by their worst one.
func (o *observation) places(s lag.Status) string {
	worst := o.first[s]
	text := fmt.Sprintf("%s/%d", worst.topic, worst.Number)
	if n := o.count[s] - 1; n > 0 {
		text += fmt.Sprintf(" and %s", plural(n, "other partition", "other partitions"))
	}
	if worst.Committed >= 0 {
		least := ""
		if worst.AgeUnknown {
			least = "at least "
		}
		text += fmt.Sprintf(" (%s unread, the oldest for %s%s)", plural64(worst.Records, "record", "records"), least, span(worst.Age))
	}
	return text
}

// span rounds to what a reader needs, and up, so that it is over the objective if the time is.
func span(d time.Duration) time.Duration {
	unit := 100 * time.Millisecond
	if d >= 10*time.Second {
		unit = time.Second
	}
	return (d + unit - 1).Truncate(unit)
}

func plural(n int, one, many string) string { return plural64(int64(n), one, many) }

func plural64(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// word is what the API server takes as a reason.
var word = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

// reasonOf takes another program's reason if it can be one here.
func reasonOf(text, otherwise string) string {
	if word.MatchString(text) {
		return text
	}
	return otherwise
}
