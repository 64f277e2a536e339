// Package fakekafka is a Kafka inside the process, for the demo and for tests: franz-go's kfake
// with the declared topics and with group timings like those of every broker that we declare. It is
// no broker to trust data to; `make kafka` starts a real one.
package fakekafka

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"

	"ordersystem.dev/services/contract"
)

// settings repeats those of localkafka/broker.properties that kfake knows; a test there holds the
// two together.
var settings = map[string]string{
	"group.consumer.heartbeat.interval.ms": "500",
	"group.consumer.session.timeout.ms":    "6000",
}

// New starts the fake on 127.0.0.1 with the topics declared. With a dir it keeps topics, records
// and committed offsets there, and goes on from them at the next start, after a kill too; without
// one everything is lost at the end. Port 0 takes a free one. Nothing guards dir against a second
// process.
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
