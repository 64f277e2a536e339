// Package broker is Kafka as the services use it. A Producer sends messages, a Consumer reads as a
// member of a consumer group, ReadTo reads up to given offsets, and an Admin looks up topics.
//
// Only this package imports confluent-kafka-go, and with it librdkafka. It knows nothing of orders:
// what a record means, and where positions are kept, is up to its callers. It creates no topics.
package broker
