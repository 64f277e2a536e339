package contract

import "slices"

// The topics. They are created by declaration (strimzi/, make kafka, the demo), never by a client.
const (
	TopicCreated    = "order-created-topic"
	TopicUpdated    = "order-updated-topic"
	TopicDeadLetter = "order-dead-letter-topic"
)

// The consumer groups. The last two only name readers that assign partitions by themselves; they commit nothing.
const (
	GroupOrder   = "order-service"
	GroupRebuild = "cart-rebuild"
	GroupAudit   = "order-audit"
)

// Topic declares one topic. Replication is the environment's business, everything else is the contract's.
type Topic struct {
	Name       string
	Partitions int
	Config     map[string]string // Kafka's topic settings
}

// Topics is the one declaration that the demo, the tests, `make kafka` and the manifests are held against.
// The order topics must keep the same number of partitions, for ever: growth would move keys.
func Topics() []Topic {
	order := map[string]string{
		"cleanup.policy":         "compact",
		"message.timestamp.type": "LogAppendTime",
		"max.message.bytes":      "1048576",
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

// IsOrderTopic says whether a topic holds orders.
func IsOrderTopic(name string) bool {
	return slices.Contains([]string{TopicCreated, TopicUpdated}, name)
}
