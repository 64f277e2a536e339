// Package broker is Kafka as the services use it: a Producer, a Consumer, an Admin and the bounded ReadTo. It alone imports
// confluent-kafka-go.
package broker
