// Package v1alpha1 is the Kubernetes API of the lag operator: consumer groups, each with what is expected of it.
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

// GroupVersion is the one of this package's types.
var GroupVersion = schema.GroupVersion{Group: "ordersystem.dev", Version: "v1alpha1"}

// AddToScheme makes the types known to a client.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &ConsumerGroup{}, &ConsumerGroupList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// ConsumerGroup declares how far a Kafka consumer group may be behind, and shows how far it is. It changes nothing in Kafka: groups
// come and go with their consumers.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=cg
// +kubebuilder:printcolumn:name="Group",type=string,JSONPath=`.spec.group`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Members",type=integer,JSONPath=`.status.members`
// +kubebuilder:printcolumn:name="Lag",type=integer,JSONPath=`.status.lag`,description="Records that can be read and were not"
// +kubebuilder:printcolumn:name="Seconds",type=integer,JSONPath=`.status.lagSeconds`,description="Age of the oldest of them"
// +kubebuilder:printcolumn:name="Objective",type=integer,JSONPath=`.spec.objective.maxLagSeconds`,description="Seconds that it may be behind"
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

// ConsumerGroupSpec says which group, and what is expected of it.
type ConsumerGroupSpec struct {
	// The group's name in Kafka (group.id). It cannot be changed.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="it cannot be changed: delete this ConsumerGroup, and create one for the other group"
	Group string `json:"group"`

	// The Kafka cluster: the name of one in the operator's configuration, which has the addresses and credentials. It cannot be changed.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a cluster's name, as in the operator's configuration, has only lower case letters, digits and '-', and begins and ends with a letter or digit"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="it cannot be changed: delete this ConsumerGroup, and create one in the other cluster"
	Cluster string `json:"cluster"`

	// The topics that the group is expected to read, and that the objective is about. Without them: all that it has to do with.
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

// Objective says how far a group may be behind.
type Objective struct {
	// The age in seconds that the oldest unread record may have: of each partition of the topics, whenever one looks.
	// Seven days at most: as long as Kafka, by default, keeps the commits of a group without members.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=604800
	MaxLagSeconds int32 `json:"maxLagSeconds"`
}

// ConsumerGroupStatus is what the operator saw. What is not known is absent, never 0 or -1.
type ConsumerGroupStatus struct {
	// The spec that this is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// The group's state in Kafka's words: Stable, Empty, Assigning, Reconciling, PreparingRebalance, CompletingRebalance, Dead.
	// +optional
	State string `json:"state,omitempty"`

	// The group's protocol: classic, consumer (KIP-848) or streams (KIP-1071).
	// +optional
	Protocol string `json:"protocol,omitempty"`

	// How many members the group has.
	// +optional
	Members *int32 `json:"members,omitempty"`

	// Records that can be read and were not, in all the topics' partitions that have a commit.
	// +optional
	Lag *int64 `json:"lag,omitempty"`

	// The age of the oldest of them, in whole seconds, rounded up.
	// +optional
	LagSeconds *int64 `json:"lagSeconds,omitempty"`

	// The partition that needs attention first: by its status, then by the age of what is unread.
	// +optional
	WorstPartition *PartitionStatus `json:"worstPartition,omitempty"`

	// Seconds until all is read, at the pace of the last minute; absent while there is nothing to catch up, or while it is not catching up.
	// +optional
	TimeToCloseSeconds *int64 `json:"timeToCloseSeconds,omitempty"`

	// The topics of the spec, or else those that the group has to do with; the first hundred, those that are not ready before the others.
	// +optional
	// +listType=map
	// +listMapKey=name
	Topics []TopicStatus `json:"topics,omitempty"`

	// When the operator last read the cluster, as of this status, which is written at least each minute (with over 1,000 ConsumerGroups
	// less often) while the cluster can be read: an older one says nothing about now.
	// +optional
	LastPollTime *metav1.Time `json:"lastPollTime,omitempty"`

	// TopicsReady, Consuming and WithinObjective.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PartitionStatus is the group's place in one partition.
type PartitionStatus struct {
	// +required
	Topic string `json:"topic"`
	// +required
	Partition int32 `json:"partition"`
	// Records that can be read and were not; absent without a commit.
	// +optional
	Lag *int64 `json:"lag,omitempty"`
	// The age of the oldest of them, in whole seconds, rounded up; absent without a commit.
	// +optional
	LagSeconds *int64 `json:"lagSeconds,omitempty"`
	// One of ok, slow, rewound, no_commit, stalled, stopped, lost.
	// +required
	Status string `json:"status"`
}

// TopicStatus is a topic, and the group's place in it.
type TopicStatus struct {
	// +required
	Name string `json:"name"`
	// Whether the topic can be used: True, False or Unknown.
	// +required
	Ready metav1.ConditionStatus `json:"ready"`
	// Who says so: KafkaTopic (Strimzi's), or Kafka itself.
	// +optional
	Source string `json:"source,omitempty"`
	// Why it is not ready, in one word.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Why it is not ready.
	// +optional
	Message string `json:"message,omitempty"`
	// Records that can be read and were not; absent where the group has no commit, or where a part could not be read.
	// +optional
	Lag *int64 `json:"lag,omitempty"`
	// The age of the oldest of them, in whole seconds, rounded up; absent where lag is.
	// +optional
	LagSeconds *int64 `json:"lagSeconds,omitempty"`
}

// The conditions of a ConsumerGroup.
const (
	TopicsReady     = "TopicsReady"     // each topic exists and can be used
	Consuming       = "Consuming"       // what is there to read is being read
	WithinObjective = "WithinObjective" // no unread record is older than the objective
)

// ConsumerGroupList is a list of them.
//
// +kubebuilder:object:root=true
type ConsumerGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []ConsumerGroup `json:"items"`
}
