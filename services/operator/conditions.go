package operator

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// assessment decides the conditions of a ConsumerGroup.
type assessment struct {
	*inputs
	// found is the group, or nil if it could not be read or does not exist.
	found *lag.Group
	// names are the topics that count.
	names  []string
	totals *totals
}

// assess finds the group and adds up its partitions in the topics that count.
func assess(in *inputs) *assessment {
	a := &assessment{inputs: in, found: in.group(), names: in.topics()}
	a.totals = addUp(in, a.found, a.names)
	return a
}

// verdict is the value of a condition.
type verdict struct {
	status          metav1.ConditionStatus
	reason, message string
}

// isTrue returns a verdict with the status True.
func isTrue(reason, format string, args ...any) verdict {
	return verdict{metav1.ConditionTrue, reason, fmt.Sprintf(format, args...)}
}

// isFalse returns a verdict with the status False.
func isFalse(reason, format string, args ...any) verdict {
	return verdict{metav1.ConditionFalse, reason, fmt.Sprintf(format, args...)}
}

// isUnknown returns a verdict with the status Unknown.
func isUnknown(reason, format string, args ...any) verdict {
	return verdict{metav1.ConditionUnknown, reason, fmt.Sprintf(format, args...)}
}

// incompleteMessage explains a condition that is unknown because a part could not be read.
const incompleteMessage = "a part of the topics, or the age of their unread records, could not be read; see the " +
	"condition TopicsReady or the operator's log"

// consuming decides whether the records that can be read are being read.
//
// A rewound group consumes, and somebody may have reset it on purpose. A group that falls behind
// consumes too. Both keep the condition True, with a reason of their own. So does a group without
// members that has left nothing unread: it was shut down in order.
//
// Some facts are known only after a minute of watching. Until then the condition stays as it was:
// otherwise an operator that has just started would announce the recovery of each group that is
// stuck. Commits get the same minute, because a consumer commits for the first time in a partition
// some time after the first record is there.
func (a *assessment) consuming() verdict {
	if reason, _ := a.clusterError(); reason == "" && a.found == nil && a.groupError() == "" {
		return isFalse(notFound, "%s", a.absent())
	}
	if a.found == nil || len(a.names) == 0 {
		return a.unknown()
	}
	// Both stay empty if Kafka did not return the members.
	members, has := "", ""
	if a.found.Members >= 0 {
		members = plural(a.found.Members, "member", "members")
		has = fmt.Sprintf(" (the %s has %s)", a.kind(), members)
		members += "; "
	}
	t := a.totals
	switch {
	case t.count[lag.StatusLost] > 0:
		return isFalse(recordsLost, "%s: %s. The consumer continues as its auto.offset.reset says; the records "+
			"that it missed have to come from elsewhere", t.partitionsIn(lag.StatusLost), a.loss())
	case t.count[lag.StatusStopped] > 0:
		return isFalse(stopped, "no member reads %s, and its committed offset does not move: start the "+
			"consumer%s; if it runs without being a member (Flink, Spark, assign), look at its own log",
			t.partitionsIn(lag.StatusStopped), has)
	case t.count[lag.StatusStalled] > 0:
		return isFalse(stalled, "a member is assigned %s and makes no progress: look in the consumer's log for "+
			"a record that it cannot process%s", t.partitionsIn(lag.StatusStalled), has)
	case t.withheld != nil:
		return isFalse(recordsWithheld, "%s", a.withheld())
	case t.incomplete:
		return isUnknown(unreadable, incompleteMessage)
	case t.undetermined, t.bare() && a.now.Sub(a.bareSince) < lag.Patience:
		before := meta.FindStatusCondition(a.cg.Status.Conditions, v1alpha1.Consuming)
		if before != nil && before.Status != metav1.ConditionUnknown && before.Reason != notFound {
			return verdict{before.Status, before.Reason, before.Message}
		}
		return isUnknown(notKnownYet, "%s; whether the group makes progress is known after a minute", t.unread())
	case t.count[lag.StatusNoCommit] > 0 && a.shares():
		return isFalse(noCommit, "the share group has not begun to read %s, where there are records: start a "+
			"member; with share.auto.offset.reset=latest, the default, it begins behind them",
			t.partitionsIn(lag.StatusNoCommit))
	case t.count[lag.StatusNoCommit] > 0:
		return isFalse(noCommit, "there are records but no committed offset in %s: the consumer does not "+
			"commit, or it began at the end (auto.offset.reset=latest) and no new record has come",
			t.partitionsIn(lag.StatusNoCommit))
	case t.unsubscribed != nil:
		return isFalse(notSubscribed, "the group does not subscribe to %s, where there are records: correct the "+
			"consumer's subscription, or spec.topics", strings.Join(t.unsubscribed[:min(len(t.unsubscribed), 3)], ", "))
	case t.count[lag.StatusRewound] > 0:
		return isTrue(rewound, "the committed offset went back in %s, and records are read again; if nobody has "+
			"reset the offsets, look for a second consumer that commits", t.partitionsIn(lag.StatusRewound))
	case t.count[lag.StatusSlow] > 0:
		return isTrue(fallingBehind, "records arrive faster than they are read in %s: make the consumer faster, "+
			"or add members, at most one for each partition%s", t.partitionsIn(lag.StatusSlow), has)
	case a.found.Members == 0:
		return isTrue(noMembers, "the group has no members; %s", t.unread())
	}
	return isTrue(reading, "%s%s", members, t.unread())
}

// loss describes how the records of the worst lost partition were lost.
func (a *assessment) loss() string {
	worst := a.totals.worstIn[lag.StatusLost]
	switch {
	case worst.Committed >= a.log(worst.topic, worst.Number).Start:
		return "the committed offset is beyond the end of the log"
	case a.totals.lost > 0:
		return fmt.Sprintf("retention deleted %s before they were read", plural(a.totals.lost, "record", "records"))
	}
	// They were lost before this process began, so it did not count them.
	return "retention deleted records before they were read"
}

// withheld describes the oldest transaction that the group waits for.
func (a *assessment) withheld() string {
	log := a.totals.withheld
	// Only a lower bound of the age may be known.
	earlier := ""
	if log.OpenUnknown {
		earlier = " or earlier"
	}
	return fmt.Sprintf("a transaction has been open in %s/%d since %s%s, and withholds %s from readers of "+
		"committed records: find its producer (kafka-transactions.sh describe-producers), or end it "+
		"(find-hanging, abort)", log.topic, log.Number,
		a.snapshot.Time.Add(-log.Open).UTC().Format(time.RFC3339), earlier,
		plural(log.End-log.Stable, "record", "records"))
}

// withinObjective decides whether the oldest unread record is younger than the objective, in all
// partitions with a committed offset.
func (a *assessment) withinObjective() verdict {
	objective, t := a.objective(), a.totals
	switch {
	case a.found == nil || len(a.names) == 0:
		return a.unknown()
	case t.oldest != nil && t.oldest.Age > objective:
		next := ""
		if t.timeToClose() == nil {
			next = "; see the condition Consuming"
		}
		return isFalse(objectiveMissed, "%s; the objective is %s%s", t.unread(), objective, next)
	case t.incomplete:
		return isUnknown(unreadable, incompleteMessage)
	case t.committed == 0 && t.bare():
		return a.unknown()
	}
	return isTrue(withinObjective, "%s; the objective is %s", t.unread(), objective)
}

// topicsReady decides whether all topics can be used.
func (a *assessment) topicsReady(topics []v1alpha1.TopicStatus) verdict {
	with := func(ready metav1.ConditionStatus) (list []v1alpha1.TopicStatus) {
		for _, t := range topics {
			if t.Ready == ready {
				list = append(list, t)
			}
		}
		return list
	}
	bad, unknown := with(metav1.ConditionFalse), with(metav1.ConditionUnknown)
	switch {
	case !a.clusterConfigured() || len(topics) == 0:
		return a.unknown()
	case len(bad) > 0:
		reason := bad[0].Reason
		if slices.ContainsFunc(bad, func(t v1alpha1.TopicStatus) bool { return t.Reason != reason }) {
			reason = notReady
		}
		return isFalse(reason, "%s: %s", summary(bad, len(topics), "not ready"), bad[0].Message)
	case len(unknown) > 0:
		list := summary(unknown, len(topics), "not known")
		return isUnknown(unknown[0].Reason, "%s: %s", list, unknown[0].Message)
	}
	return isTrue(allReady, "%s", plural(len(topics), "topic is ready", "topics are ready"))
}

// summary names the first of some topics, how many others there are, and what they have in common.
func summary(topics []v1alpha1.TopicStatus, of int, what string) string {
	more := ""
	if n := len(topics) - 1; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("of %s, %s%s %s", plural(of, "topic", "topics"), topics[0].Name, more, what)
}

// unknown is the verdict if nothing is known of the group. Its message stays the same from poll to
// poll until the reason changes.
func (a *assessment) unknown() verdict {
	if reason, message := a.clusterError(); reason != "" {
		return isUnknown(reason, "%s", message)
	}
	switch {
	case a.groupError() != "" && a.shares():
		return isUnknown(unreadable, "this is a share group, which has no committed offsets, and its own offsets "+
			"could not be read: %s", a.groupError())
	case a.groupError() != "":
		return isUnknown(unreadable, "%s", a.groupError())
	case a.found == nil:
		return isUnknown(notFound, "%s", a.absent())
	case len(a.names) == 0:
		return isUnknown(noTopics, "the group subscribes to no topic and has no committed offset")
	}
	return isUnknown(noCommit, "the group has no committed offset in its topics")
}

// shares reports whether Kafka describes a share group.
func (a *assessment) shares() bool { g := a.described(); return g != nil && g.Protocol == "share" }

// kind returns what to call the group.
func (a *assessment) kind() string {
	if a.shares() {
		return "share group"
	}
	return "group"
}

// absent explains that Kafka has no such group.
func (a *assessment) absent() string {
	return fmt.Sprintf("Kafka has no group %q: start its consumer, or delete this ConsumerGroup and create one "+
		"with the right name; Kafka deletes a group without members offsets.retention.minutes after its last "+
		"commit",
		a.cg.Spec.Group)
}
