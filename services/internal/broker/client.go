package broker

import (
	"cmp"
	"fmt"
	"maps"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// closeTimeout bounds the Close of every client.
const closeTimeout = 5 * time.Second

// fetchBytes is the size in bytes of a response with records. It is larger only if the first batch is.
const fetchBytes = 1 << 20

// clientSettings returns the settings of a new client: those that all clients have in common, and
// more. The channel is closed when the TLS files have changed, so that the client has to be
// recreated.
func clientSettings(cfg Config, more kafka.ConfigMap) (*kafka.ConfigMap, <-chan struct{}, error) {
	files, err := currentFiles(cfg)
	if err != nil {
		return nil, nil, err
	}
	return settingsWith(cfg, files, more), files.replaced, nil
}

// fetchSettings adds the settings of a client that reads. They bound what one fetch can become when
// it is decompressed: see decompress_linux.go.
func fetchSettings(more kafka.ConfigMap) kafka.ConfigMap {
	more["check.crcs"] = true
	more["fetch.message.max.bytes"] = fetchBytes
	more["fetch.max.bytes"] = fetchBytes
	return more
}

// seek makes a client go on at other offsets.
func seek(client *kafka.Consumer, to []kafka.TopicPartition) error {
	results, err := client.SeekPartitions(to)
	for _, r := range results {
		err = cmp.Or(err, r.Error)
	}
	if err != nil {
		return fmt.Errorf("seek: %w", explain(err))
	}
	return nil
}

// currentFiles returns the TLS files with which clients are made. Without files they are empty.
func currentFiles(cfg Config) (*pems, error) {
	if cfg.files == nil {
		return readFiles(cfg.Client)
	}
	return cfg.files.current()
}

// settingsWith returns the settings of a client that uses the given TLS files.
func settingsWith(cfg Config, files *pems, more kafka.ConfigMap) *kafka.ConfigMap {
	m := kafka.ConfigMap{
		"bootstrap.servers": cfg.BrokerList(),
		"client.id":         cfg.ClientID,
		// Topics are created by declaration only.
		"allow.auto.create.topics": false,
		"socket.keepalive.enable":  true,
		// A client is back soon after an outage. The default is 10 s.
		"reconnect.backoff.max.ms": 2000,
		// The address of a pod that is gone does not even refuse connections. The default is 30 s.
		"socket.connection.setup.timeout.ms": 5000,
		// Brokers close idle connections, which is not worth a line.
		"log.connection.close": false,
		"enable.metrics.push":  false,
	}
	for key, value := range map[string]string{
		"security.protocol":   cfg.Protocol,
		"ssl.ca.pem":          files.CA,
		"ssl.certificate.pem": files.Cert,
		"ssl.key.pem":         files.Key,
		"sasl.mechanism":      cfg.Mechanism,
		"sasl.username":       cfg.Username,
		"sasl.password":       cfg.Password,
	} {
		if value != "" {
			m[key] = value
		}
	}
	maps.Copy(m, more)
	return &m
}
