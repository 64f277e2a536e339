package broker

import (
	"maps"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// closeTimeout bounds the Close of every client.
const closeTimeout = 5 * time.Second

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
