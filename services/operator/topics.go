package operator

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// maxListed is how many topics, and how many partitions, a status lists.
const maxListed = 100

// The sources of a topic's readiness.
const (
	fromStrimzi = "KafkaTopic"
	fromKafka   = "Kafka"
)

// topicStatuses returns the status of each topic: first those that are not ready, then those that
// are not known, then the others.
func topicStatuses(in *inputs, group *lag.Group, names []string) []v1alpha1.TopicStatus {
	by := map[metav1.ConditionStatus][]v1alpha1.TopicStatus{}
	for _, name := range names {
		t := topicStatus(in, name)
		if group != nil && group.Topics[name] != nil && !in.partial(name) {
			addLag(&t, group.Topics[name])
		}
		by[t.Ready] = append(by[t.Ready], t)
	}
	return slices.Concat(by[metav1.ConditionFalse], by[metav1.ConditionUnknown], by[metav1.ConditionTrue])
}

// addLag sets the numbers of a topic, unless the group has committed nothing in it.
func addLag(t *v1alpha1.TopicStatus, read *lag.GroupTopic) {
	for _, p := range read.Partitions {
		if p.Committed < 0 {
			continue
		}
		if t.Lag == nil {
			t.Lag, t.LagSeconds = new(int64), new(int64)
		}
		*t.Lag += p.Records
		*t.LagSeconds = max(*t.LagSeconds, seconds(p.Age))
	}
}

// listed returns the topics that a status lists: the first maxListed, sorted by name.
func listed(topics []v1alpha1.TopicStatus) []v1alpha1.TopicStatus {
	list := slices.Clone(topics[:min(len(topics), maxListed)])
	slices.SortFunc(list, func(a, b v1alpha1.TopicStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// topicStatus decides whether a topic can be used. Strimzi knows why a topic could not be created
// as declared. Kafka knows whether it exists now and has leaders. Both have to agree that it is
// ready.
func topicStatus(in *inputs, name string) v1alpha1.TopicStatus {
	as := func(source string, ready metav1.ConditionStatus, reason, message string) v1alpha1.TopicStatus {
		return v1alpha1.TopicStatus{Name: name, Source: source, Ready: ready, Reason: reason, Message: message}
	}
	object, isDeclared := in.strimzi[name]
	if isDeclared && object.ready == metav1.ConditionFalse {
		return as(fromStrimzi, metav1.ConditionFalse, reasonOr(object.reason, notReady),
			fmt.Sprintf("KafkaTopic %s is not ready: %s", object.object, cmp.Or(object.message, object.reason)))
	}
	declaredReady := isDeclared && object.ready == metav1.ConditionTrue
	if reason, message := in.clusterError(); reason != "" {
		if declaredReady {
			return as(fromStrimzi, metav1.ConditionTrue, "", "")
		}
		return as("", metav1.ConditionUnknown, reason, message)
	}
	inKafka := in.snapshot.Topics[name]
	switch err := in.topicError(name); {
	case inKafka == nil && err != "":
		return as(fromKafka, metav1.ConditionUnknown, unreadable, err)
	case inKafka == nil && isDeclared:
		return as(fromKafka, metav1.ConditionFalse, notFound, fmt.Sprintf("KafkaTopic %s exists and its topic "+
			"does not (yet): if that lasts, check that Strimzi's topic operator runs", object.object))
	case inKafka == nil:
		return as(fromKafka, metav1.ConditionFalse, notFound, "Kafka has no such topic, or the operator may "+
			"not Describe it: create it, or correct spec.topics")
	case !inKafka.Ready:
		return as(fromKafka, metav1.ConditionFalse, notReady, "a partition has no leader that responds: check "+
			"that all brokers run")
	case declaredReady:
		return as(fromStrimzi, metav1.ConditionTrue, "", "")
	}
	return as(fromKafka, metav1.ConditionTrue, "", "")
}
