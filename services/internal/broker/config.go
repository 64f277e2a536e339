package broker

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/internal/env"
)

// Config says where Kafka is and how to get in. Every client reads the TLS files anew when it is made, since librdkafka never reloads them.
type Config struct {
	Brokers   string // host:port, several separated by commas
	ClientID  string // set by the service, shows in the brokers' logs and quotas
	Protocol  string // plaintext, ssl, sasl_plaintext, sasl_ssl; empty is plaintext
	CA        string // a file, or a directory all of whose *.crt are trusted; empty trusts what the system does
	Cert, Key string // files of the client's certificate
	Mechanism string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
	Username  string
	Password  string
}

// ConfigFromEnv reads KAFKA_*. What does not fit together is an error too: a password meant for a connection that does not use it
// is a mistake that would otherwise show as plain text on the wire.
func ConfigFromEnv(e *env.Env) Config {
	c := Config{
		Brokers:   e.Required("KAFKA_BROKERS", "kafka:9092"),
		Protocol:  e.OneOf("KAFKA_SECURITY_PROTOCOL", "plaintext", "ssl", "sasl_plaintext", "sasl_ssl"),
		CA:        e.String("KAFKA_TLS_CA", ""),
		Cert:      e.String("KAFKA_TLS_CERT", ""),
		Key:       e.String("KAFKA_TLS_KEY", ""),
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

	tls := strings.HasSuffix(c.Protocol, "ssl")
	if _, err := trusted(c.CA); err != nil {
		e.Invalid("KAFKA_TLS_CA", c.CA, "a file that can be read, or a directory with *.crt files")
	}
	for name, file := range map[string]string{"KAFKA_TLS_CERT": c.Cert, "KAFKA_TLS_KEY": c.Key} {
		if _, err := os.Stat(file); file != "" && err != nil {
			e.Invalid(name, file, "a file that can be read")
		}
	}
	if (c.Cert == "") != (c.Key == "") {
		e.Invalid("KAFKA_TLS_CERT", c.Cert, "set together with KAFKA_TLS_KEY")
	}
	if files := c.CA + c.Cert + c.Key; files != "" && !tls {
		e.Invalid("KAFKA_SECURITY_PROTOCOL", c.Protocol, "ssl or sasl_ssl when KAFKA_TLS_* is set")
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
	for _, a := range []slog.Attr{
		slog.String("client_id", c.ClientID), slog.String("ca", c.CA), slog.String("cert", c.Cert), slog.String("key", c.Key),
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

// client is what every client has in common; more goes on top.
func (c Config) client(more kafka.ConfigMap) (*kafka.ConfigMap, error) {
	m := kafka.ConfigMap{
		"bootstrap.servers":        c.Brokers,
		"client.id":                c.ClientID,
		"allow.auto.create.topics": false, // topics are declared
		"socket.keepalive.enable":  true,
		"reconnect.backoff.max.ms": 2000,  // back soon after an outage; the default is 10 s
		"log.connection.close":     false, // a broker closing an idle connection is no news
		"enable.metrics.push":      false,
	}
	if c.Protocol != "" {
		m["security.protocol"] = c.Protocol
	}
	ca, err := trusted(c.CA)
	if err != nil {
		return nil, err
	}
	for key, value := range map[string]string{
		"ssl.ca.pem": ca, "ssl.certificate.location": c.Cert, "ssl.key.location": c.Key,
		"sasl.mechanism": c.Mechanism, "sasl.username": c.Username, "sasl.password": c.Password,
	} {
		if value != "" {
			m[key] = value
		}
	}
	maps.Copy(m, more)
	return &m, nil
}

// trusted is the PEM text of a CA file, or of every *.crt in a directory: while Strimzi renews its CA, two are valid.
func trusted(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	files := []string{path}
	if info, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("read CA: %w", err)
	} else if info.IsDir() {
		if files, _ = filepath.Glob(filepath.Join(path, "*.crt")); len(files) == 0 {
			return "", fmt.Errorf("read CA: no *.crt in %s", path)
		}
	}
	var all strings.Builder
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read CA: %w", err)
		}
		all.Write(pem)
		all.WriteByte('\n')
	}
	return all.String(), nil
}
