// Package v1alpha1 is the Kubernetes API of the lag operator. A ConsumerGroup declares what is
// expected of a consumer group in Kafka, and shows how it is.
//
// +kubebuilder:object:generate=true
// +groupName=ordersystem.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0 object crd paths=. output:crd:dir=../../../../charts/lag-operator/files

// GroupVersion is the group and version of this package's types.
var GroupVersion = schema.GroupVersion{Group: "ordersystem.dev", Version: "v1alpha1"}

// AddToScheme adds the types to a client's scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &ConsumerGroup{}, &ConsumerGroupList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// ConsumerGroup declares how far a Kafka consumer group may be behind, and shows how far it is
// behind. It changes nothing in Kafka: groups come and go with their consumers.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=cg
// +kubebuilder:printcolumn:name="Group",type=string,JSONPath=`.spec.group`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Members",type=integer,JSONPath=`.status.members`
// +kubebuilder:printcolumn:name="Lag",type=integer,JSONPath=`.status.lag`,description="Records that can be read and have not been"
// +kubebuilder:printcolumn:name="Seconds",type=integer,JSONPath=`.status.lagSeconds`,description="Age of the oldest unread record"
// +kubebuilder:printcolumn:name="Objective",type=integer,JSONPath=`.spec.objective.maxLagSeconds`,description="Seconds that the group may be behind"
// +kubebuilder:printcolumn:name="Within",type=string,JSONPath=`.status.conditions[?(@.type=="WithinObjective")].status`
// +kubebuilder:printcolumn:name="Consuming",type=string,JSONPath=`.status.conditions[?(@.type=="Consuming")].status`
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.conditions[?(@.type=="Consuming")].reason`,priority=1
// +kubebuilder:printcolumn:name="Worst Topic",type=string,JSONPath=`.status.worstPartition.topic`,priority=1
// +kubebuilder:printcolumn:name="Partition",type=integer,JSONPath=`.status.worstPartition.partition`,priority=1
// +kubebuilder:printcolumn:name="Protocol",type=string,JSONPath=`.status.protocol`,priority=1
// +kubebuilder:printcolumn:name="Cluster",type=string,JSONPath=`.spec.cluster`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ConsumerGroup struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`
	// +required
	Spec ConsumerGroupSpec `json:"spec"`
	// +optional
	Status ConsumerGroupStatus `json:"status,omitzero"`
}

// ConsumerGroupSpec names the group, and declares what is expected of it.
type ConsumerGroupSpec struct {
	// The group's name in Kafka (group.id). It cannot be changed.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="it cannot be changed: delete this ConsumerGroup, and create one for the other group"
	Group string `json:"group"`

	// The name of the Kafka cluster in the operator's configuration, which has its addresses and
	// credentials. It cannot be changed.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a cluster's name, as in the operator's configuration, has only lower case letters, digits and '-', and begins and ends with a letter or digit"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="it cannot be changed: delete this ConsumerGroup, and create one in the other cluster"
	Cluster string `json:"cluster"`

	// The topics that the group is expected to read, and that the objective applies to. Without
	// them, it applies to all topics that the group subscribes to or has committed in.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=100
	Topics []TopicName `json:"topics,omitempty"`

	// How far the group may be behind.
	// +required
	Objective Objective `json:"objective"`
}

// TopicName is the name of a topic in Kafka.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=249
// +kubebuilder:validation:XValidation:rule="self.matches('^[a-zA-Z0-9._-]+$') && self != '.' && self != '..'",message="a topic's name has only letters, digits, '.', '_' and '-', and is neither '.' nor '..'"
type TopicName string

// Objective is how far a group may be behind.
type Objective struct {
	// The age in seconds that the oldest unread record may have, in each partition of the topics
	// and at any time. It is seven days at most, because Kafka keeps the commits of a group without
	// members for that long by default.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=604800
	MaxLagSeconds int32 `json:"maxLagSeconds"`
}

// ConsumerGroupStatus is what the operator has read from Kafka. What is not known is absent, never
// 0 or -1.
type ConsumerGroupStatus struct {
	// The generation of the spec that this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// The group's state, as Kafka names it: Stable, Empty, Assigning, Reconciling,
	// PreparingRebalance, CompletingRebalance or Dead.
	// +optional
	State string `json:"state,omitempty"`

	// The group's protocol: classic, consumer (KIP-848), streams (KIP-1071) or share (KIP-932).
	// +optional
	Protocol string `json:"protocol,omitempty"`

	// The number of members of the group.
	// +optional
	Members *int32 `json:"members,omitempty"`

	// The number of records that can be read and have not been, in all partitions of the topics
	// that have a committed offset.
	// +optional
	Lag *int64 `json:"lag,omitempty"`

	// The age of the oldest unread record, in whole seconds, rounded up.
	// +optional
	LagSeconds *int64 `json:"lagSeconds,omitempty"`

	// The partition that needs attention first: by its status, then by the age of what is unread.
	// +optional
	WorstPartition *PartitionStatus `json:"worstPartition,omitempty"`

	// The seconds until everything is read, at the pace of the last minute. Absent if there is
	// nothing to catch up, or if the group is not catching up.
	// +optional
	TimeToCloseSeconds *int64 `json:"timeToCloseSeconds,omitempty"`

	// The time in seconds that the group regularly takes between two commits, if that is more than
	// half a minute. The group is stopped or stalled only after twice that time. Another leader of the
	// operator continues with it.
	// +optional
	RhythmSeconds int64 `json:"rhythmSeconds,omitempty"`

	// The partitions in which the group stands still although there are unread records. Another leader
	// of the operator continues from here. It lists a hundred at most.
	// +optional
	// +listType=map
	// +listMapKey=topic
	// +listMapKey=partition
	Standing []StandingPartition `json:"standing,omitempty"`

	// The topics of the spec, or else those that the group subscribes to or has committed in. It
	// lists a hundred at most, and prefers those that are not ready.
	// +optional
	// +listType=map
	// +listMapKey=name
	Topics []TopicStatus `json:"topics,omitempty"`

	// When the operator last read the cluster, as of this status. While the cluster can be read,
	// the status is written at least once a minute, or less often with more than 1,000
	// ConsumerGroups. A status that is older says nothing about now.
	// +optional
	LastPollTime *metav1.Time `json:"lastPollTime,omitempty"`

	// The conditions TopicsReady, Consuming and WithinObjective.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PartitionStatus is how far the group is behind in one partition.
type PartitionStatus struct {
	// +required
	Topic string `json:"topic"`
	// +required
	Partition int32 `json:"partition"`
	// The number of records that can be read and have not been. Absent without a committed offset.
	// +optional
	Lag *int64 `json:"lag,omitempty"`
	// The age of the oldest unread record, in whole seconds, rounded up. Absent without a committed
	// offset, or if it could not be read.
	// +optional
	LagSeconds *int64 `json:"lagSeconds,omitempty"`
	// One of ok, slow, rewound, no_commit, stalled, stopped, lost.
	// +required
	Status string `json:"status"`
}

// StandingPartition is where the group stands still.
type StandingPartition struct {
	// +required
	Topic string `json:"topic"`
	// +required
	Partition int32 `json:"partition"`
	// The committed offset.
	// +required
	Offset int64 `json:"offset"`
	// Since when the committed offset has not moved, as far as is known.
	// +required
	Since metav1.Time `json:"since"`
}

// TopicStatus is the state of a topic, and how far the group is behind in it.
type TopicStatus struct {
	// +required
	Name string `json:"name"`
	// Whether the topic can be used: True, False or Unknown.
	// +required
	Ready metav1.ConditionStatus `json:"ready"`
	// Where that is known from: KafkaTopic (the one of Strimzi), or Kafka itself.
	// +optional
	Source string `json:"source,omitempty"`
	// Why it is not ready, in one word.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Why it is not ready.
	// +optional
	Message string `json:"message,omitempty"`
	// The number of records that can be read and have not been. Absent if the group has no
	// committed offset in the topic, or if a part could not be read.
	// +optional
	Lag *int64 `json:"lag,omitempty"`
	// The age of the oldest unread record, in whole seconds, rounded up. Absent if lag is.
	// +optional
	LagSeconds *int64 `json:"lagSeconds,omitempty"`
}

// The conditions of a ConsumerGroup.
const (
	// TopicsReady is True if each topic exists and can be used.
	TopicsReady = "TopicsReady"
	// Consuming is True if the group reads the records that are there.
	Consuming = "Consuming"
	// WithinObjective is True if no unread record is older than the objective.
	WithinObjective = "WithinObjective"
)

// ConsumerGroupList is a list of ConsumerGroups.
//
// +kubebuilder:object:root=true
type ConsumerGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []ConsumerGroup `json:"items"`
}
