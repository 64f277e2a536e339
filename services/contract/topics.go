package contract

import (
	"slices"
	"strings"
)

// The topics. They are created by declaration (strimzi/, make kafka, the demo), and never by a
// client. An installation may have a prefix: then all its names in Kafka begin with it, those of topics,
// groups and transactional IDs.
const (
	TopicCreated    = "order-created-topic"
	TopicUpdated    = "order-updated-topic"
	TopicDeadLetter = "order-dead-letter-topic"
)

// The consumer groups.
const (
	// GroupOrder is the group of the Order service.
	GroupOrder = "order-service"
	// The other groups only give a name to clients that assign partitions by themselves. They commit no
	// offsets.
	GroupRebuild  = "cart-rebuild"
	GroupAudit    = "order-audit"
	GroupOrderctl = "orderctl"
)

// The transactional IDs. Kafka refuses a producer as soon as another one takes its ID. Each relay has two
// producers, which take turns.
var (
	// TransactionalIDsRelay are the IDs of Cart's relay.
	TransactionalIDsRelay = [2]string{"cart-relay", "cart-relay-2"}
	// TransactionalIDsDeadLetters are the IDs of Order's relay of dead letters.
	TransactionalIDsDeadLetters = [2]string{"order-dead-letters", "order-dead-letters-2"}
)

// TransactionalIDPoison is the ID of the program poison, which has the rights of Cart.
const TransactionalIDPoison = "cart-poison"

// Topic declares one topic. It leaves out the replication factor, which differs between
// environments.
type Topic struct {
	Name       string
	Partitions int
	// Config has the settings of the topic, by Kafka's names.
	Config map[string]string
}

// Topics returns the declaration of all topics. Tests compare the manifests with it. The number of
// partitions of the order topics must never change: orders would move to other partitions.
func Topics() []Topic {
	order := map[string]string{
		"cleanup.policy":         "compact",
		"message.timestamp.type": "LogAppendTime",
		"max.message.bytes":      "1048576",
		// An order that is being published again is not compacted half-way: 6 h.
		"min.compaction.lag.ms": "21600000",
	}
	return []Topic{
		{Name: TopicCreated, Partitions: 12, Config: order},
		{Name: TopicUpdated, Partitions: 12, Config: order},
		{Name: TopicDeadLetter, Partitions: 3, Config: map[string]string{
			"cleanup.policy":    "delete",
			"retention.ms":      "2592000000", // 30 days
			"max.message.bytes": "2097152",
		}},
	}
}

// TopicsOf returns Topics with the names of an installation that has a prefix.
func TopicsOf(prefix string) []Topic {
	topics := Topics()
	for i := range topics {
		topics[i].Name = prefix + topics[i].Name
	}
	return topics
}

// OrderTopics returns the topics that hold orders.
func OrderTopics() []string { return []string{TopicCreated, TopicUpdated} }

// IsOrderTopic reports whether a topic holds orders. The name has no prefix.
func IsOrderTopic(name string) bool { return slices.Contains(OrderTopics(), name) }

// EventType returns the type of the events in a topic, or "" if it holds no orders. The name may have the
// prefix of any installation.
func EventType(topic string) string {
	switch {
	case strings.HasSuffix(topic, TopicCreated):
		return TypeCreated
	case strings.HasSuffix(topic, TopicUpdated):
		return TypeUpdated
	default:
		return ""
	}
}
