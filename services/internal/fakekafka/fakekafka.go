// Package fakekafka runs a fake Kafka inside the process, for the demo and for tests.
//
// It is franz-go's kfake with the declared topics, and with the group timings of this project's
// brokers. Do not trust it with data; `make kafka` starts a real broker.
package fakekafka

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"

	"ordersystem.dev/services/contract"
)

// settings repeats those settings of localkafka/broker.properties that kfake knows. A test of
// localkafka checks that the values are equal.
var settings = map[string]string{
	"group.consumer.heartbeat.interval.ms": "500",
	"group.consumer.session.timeout.ms":    "6000",
}

// New starts the fake on 127.0.0.1 with the declared topics. Port 0 takes a free port.
//
// If dir is not empty, the fake keeps topics, records and committed offsets there, also when it is
// killed. Nothing guards dir against a second process.
func New(dir string, port int) (*kfake.Cluster, error) {
	options := []kfake.Opt{kfake.NumBrokers(1), kfake.Ports(port), kfake.BrokerConfigs(settings)}
	if dir != "" {
		options = append(options, kfake.DataDir(dir))
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		return nil, fmt.Errorf("start the fake kafka: %w", err)
	}
	for _, topic := range contract.Topics() {
		if err := declare(cluster, topic); err != nil {
			cluster.Close()
			return nil, fmt.Errorf("declare topic %s in the fake kafka: %w", topic.Name, err)
		}
	}
	return cluster, nil
}

// declare makes a topic. It returns an error if the data directory holds it with other settings.
func declare(cluster *kfake.Cluster, topic contract.Topic) error {
	err := cluster.CreateTopic(topic.Name, int32(topic.Partitions), topic.Config)
	if !errors.Is(err, kerr.TopicAlreadyExists) {
		return err
	}
	if n := len(cluster.PartitionInfos(topic.Name)); n != topic.Partitions {
		return fmt.Errorf("its data directory has it with %d partitions, declared are %d", n, topic.Partitions)
	}
	config := cluster.TopicInfo(topic.Name).Configs
	for name, want := range topic.Config {
		if got := config[name]; got == nil || *got != want {
			return fmt.Errorf("its data directory has it with another %s than %q", name, want)
		}
	}
	return nil
}
