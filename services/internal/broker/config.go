package broker

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strings"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/internal/env"
)

// Config says where Kafka is and how to get in.
type Config struct {
	Brokers   string // host:port, several separated by commas
	ClientID  string // set by the service, shows in the brokers' logs and quotas
	Protocol  string // plaintext, ssl, sasl_plaintext, sasl_ssl; empty is plaintext
	TLS       *TLS   // nil when there are no files
	Mechanism string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
	Username  string
	Password  string
	Stats     *Stats // nil when nobody wants them
}

// ConfigFromEnv reads KAFKA_*. What does not fit together is an error too: a password meant for a connection that does not use it
// is a mistake that would otherwise show as plain text on the wire.
func ConfigFromEnv(e *env.Env) Config {
	c := Config{
		Brokers:   e.Required("KAFKA_BROKERS", "kafka:9092"),
		Protocol:  e.OneOf("KAFKA_SECURITY_PROTOCOL", "plaintext", "ssl", "sasl_plaintext", "sasl_ssl"),
		Mechanism: strings.ToUpper(e.String("KAFKA_SASL_MECHANISM", "")),
		Username:  e.String("KAFKA_SASL_USERNAME", ""),
		Password:  e.String("KAFKA_SASL_PASSWORD", ""),
	}
	for b := range strings.SplitSeq(c.Brokers, ",") {
		if host, port, err := net.SplitHostPort(strings.TrimSpace(b)); c.Brokers != "" && (err != nil || host == "" || port == "") {
			e.Invalid("KAFKA_BROKERS", c.Brokers, "host:port, several separated by commas")
			break
		}
	}

	files := &TLS{CA: e.String("KAFKA_TLS_CA", ""), Cert: e.String("KAFKA_TLS_CERT", ""), Key: e.String("KAFKA_TLS_KEY", "")}
	if files.CA+files.Cert+files.Key != "" {
		c.TLS = files
		files.check(e)
		if !strings.HasSuffix(c.Protocol, "ssl") {
			e.Invalid("KAFKA_SECURITY_PROTOCOL", c.Protocol, "ssl or sasl_ssl when KAFKA_TLS_* is set")
		}
	}

	switch sasl := strings.HasPrefix(c.Protocol, "sasl"); {
	case sasl:
		switch c.Mechanism {
		case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		default:
			e.Invalid("KAFKA_SASL_MECHANISM", c.Mechanism, "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 with "+c.Protocol)
		}
		e.Required("KAFKA_SASL_USERNAME", "cart")
		e.Required("KAFKA_SASL_PASSWORD", "...")
	case c.Mechanism+c.Username+c.Password != "":
		e.Invalid("KAFKA_SECURITY_PROTOCOL", c.Protocol, "sasl_plaintext or sasl_ssl when KAFKA_SASL_* is set")
	}
	return c
}

// String masks the password, also for the %+v of a struct that holds a Config.
func (c Config) String() string { return fmt.Sprint(c.LogValue()) }

// GoString masks the password for %#v.
func (c Config) GoString() string { return c.String() }

// MarshalText masks the password in the JSON log of a struct that holds a Config.
func (c Config) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// LogValue masks the password.
func (c Config) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("brokers", c.Brokers), slog.String("protocol", c.Protocol)}
	files := c.TLS
	if files == nil {
		files = &TLS{}
	}
	for _, a := range []slog.Attr{
		slog.String("client_id", c.ClientID), slog.String("ca", files.CA), slog.String("cert", files.Cert), slog.String("key", files.Key),
		slog.String("mechanism", c.Mechanism), slog.String("username", c.Username),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	if c.Password != "" {
		attrs = append(attrs, slog.String("password", "***"))
	}
	return slog.GroupValue(attrs...)
}

// client is what every client has in common; more goes on top. The channel is closed when the client is to be made anew, with other
// TLS files.
func (c Config) client(more kafka.ConfigMap) (*kafka.ConfigMap, <-chan struct{}, error) {
	files, err := c.TLS.current()
	if err != nil {
		return nil, nil, err
	}
	return c.clientWith(files, more), files.replaced, nil
}

func (c Config) clientWith(files *pems, more kafka.ConfigMap) *kafka.ConfigMap {
	m := kafka.ConfigMap{
		"bootstrap.servers":                  c.Brokers,
		"client.id":                          c.ClientID,
		"allow.auto.create.topics":           false, // topics are declared
		"socket.keepalive.enable":            true,
		"reconnect.backoff.max.ms":           2000,  // back soon after an outage; the default is 10 s
		"socket.connection.setup.timeout.ms": 5000,  // the address of a pod that has gone does not even refuse; the default is 30 s
		"log.connection.close":               false, // a broker closing an idle connection is no news
		"enable.metrics.push":                false,
	}
	for key, value := range map[string]string{
		"security.protocol": c.Protocol, "ssl.ca.pem": files.ca, "ssl.certificate.pem": files.cert, "ssl.key.pem": files.key,
		"sasl.mechanism": c.Mechanism, "sasl.username": c.Username, "sasl.password": c.Password,
	} {
		if value != "" {
			m[key] = value
		}
	}
	maps.Copy(m, more)
	return &m
}
