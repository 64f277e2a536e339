package broker

import (
	"maps"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
)

// Config holds how to connect to Kafka, and what the clients of one service share. Its copies share
// the TLS files in use and the statistics. Its texts mask the password, as those of its Client do.
type Config struct {
	kafkaconfig.Client

	// Stats makes metrics of the clients. It is nil where they are not wanted.
	Stats *Stats

	// files follows the TLS files. It is nil without files, and in a Config that ConfigFromEnv has
	// not made: the clients of that one keep the files that they have read at first.
	files *tlsFiles
}

// variables are the names of the settings in the environment.
var variables = kafkaconfig.Names{
	kafkaconfig.FieldBrokers:   "KAFKA_BROKERS",
	kafkaconfig.FieldProtocol:  "KAFKA_SECURITY_PROTOCOL",
	kafkaconfig.FieldCA:        "KAFKA_TLS_CA",
	kafkaconfig.FieldCert:      "KAFKA_TLS_CERT",
	kafkaconfig.FieldKey:       "KAFKA_TLS_KEY",
	kafkaconfig.FieldMechanism: "KAFKA_SASL_MECHANISM",
	kafkaconfig.FieldUsername:  "KAFKA_SASL_USERNAME",
	kafkaconfig.FieldPassword:  "KAFKA_SASL_PASSWORD",
}

// examples show what would be right for a setting that is required and not set.
var examples = map[kafkaconfig.Field]string{
	kafkaconfig.FieldBrokers:  "kafka:9092",
	kafkaconfig.FieldUsername: "cart",
	kafkaconfig.FieldPassword: "...",
}

// ConfigFromEnv reads KAFKA_*. Every mistake is reported to e.
func ConfigFromEnv(e *env.Env) Config {
	setting := func(f kafkaconfig.Field) string { return e.String(variables.Of(f), "") }
	c := kafkaconfig.Client{
		Brokers:   kafkaconfig.SplitBrokers(setting(kafkaconfig.FieldBrokers)),
		Protocol:  setting(kafkaconfig.FieldProtocol),
		CA:        setting(kafkaconfig.FieldCA),
		Cert:      setting(kafkaconfig.FieldCert),
		Key:       setting(kafkaconfig.FieldKey),
		Mechanism: setting(kafkaconfig.FieldMechanism),
		Username:  setting(kafkaconfig.FieldUsername),
		Password:  setting(kafkaconfig.FieldPassword),
	}.Normal()
	for _, mistake := range c.Validate(variables) {
		name := variables.Of(mistake.Field)
		if example := examples[mistake.Field]; mistake.Value == "" && example != "" {
			e.Required(name, example)
			continue
		}
		e.Invalid(name, mistake.Value, mistake.Want)
	}
	return Config{Client: c, files: newTLSFiles(c)}
}

// client is what every client has in common; more goes on top. The channel is closed when the client is to be made anew, with other
// TLS files.
func (c Config) client(more kafka.ConfigMap) (*kafka.ConfigMap, <-chan struct{}, error) {
	files, err := c.currentFiles()
	if err != nil {
		return nil, nil, err
	}
	return c.clientWith(files, more), files.replaced, nil
}

func (c Config) clientWith(files *pems, more kafka.ConfigMap) *kafka.ConfigMap {
	m := kafka.ConfigMap{
		"bootstrap.servers":                  c.BrokerList(),
		"client.id":                          c.ClientID,
		"allow.auto.create.topics":           false, // topics are declared
		"socket.keepalive.enable":            true,
		"reconnect.backoff.max.ms":           2000,  // back soon after an outage; the default is 10 s
		"socket.connection.setup.timeout.ms": 5000,  // the address of a pod that has gone does not even refuse; the default is 30 s
		"log.connection.close":               false, // a broker closing an idle connection is no news
		"enable.metrics.push":                false,
	}
	for key, value := range map[string]string{
		"security.protocol": c.Protocol, "ssl.ca.pem": files.CA, "ssl.certificate.pem": files.Cert, "ssl.key.pem": files.Key,
		"sasl.mechanism": c.Mechanism, "sasl.username": c.Username, "sasl.password": c.Password,
	} {
		if value != "" {
			m[key] = value
		}
	}
	maps.Copy(m, more)
	return &m
}
