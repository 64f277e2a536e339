package operator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/lag"
)

// Config is what the operator is told from outside.
type Config struct {
	OpsAddr         env.Addr
	Namespace       string        // where its Lease is
	WatchNamespaces []string      // whose ConsumerGroups it sees; none: all
	Interval        time.Duration // between polls of a cluster
	Clusters        []Cluster
}

// Cluster is a Kafka cluster that ConsumerGroups may name.
type Cluster struct {
	lag.Config
	KafkaTopics KafkaTopics
}

// KafkaTopics says which of Strimzi's KafkaTopics declare a cluster's topics. The zero value: none, Kafka alone is asked.
type KafkaTopics struct{ Namespace, Cluster string }

// ConfigFromEnv reads the environment and the file that it names. An error is an *env.Error with every mistake in both.
func ConfigFromEnv(e *env.Env) (Config, error) {
	cfg := Config{
		OpsAddr:   e.Addr("OPS_ADDR", ":8080"),
		Namespace: e.Required("POD_NAMESPACE", "orders"),
	}
	name := e.String("CONFIG_FILE", "/etc/lag-operator/config.yaml")
	text, err := os.ReadFile(name)
	if err != nil {
		e.Invalid("CONFIG_FILE", name, "a file that can be read: "+err.Error())
		return cfg, e.Err()
	}
	r := reader{file: name}
	r.read(text, &cfg)
	if r.mistakes == nil {
		return cfg, e.Err()
	}
	return cfg, errors.Join(e.Err(), &env.Error{Mistakes: r.mistakes})
}

// LogValue is the configuration as the log shows it: the file names secrets, and holds none.
func (c Config) LogValue() slog.Value {
	var clusters []any
	for _, k := range c.Clusters {
		clusters = append(clusters, slog.GroupAttrs(k.Name,
			slog.String("bootstrap_servers", strings.Join(k.Kafka.Brokers, ",")), slog.String("security_protocol", k.Kafka.Protocol),
			slog.String("discover", pattern(k.Groups)),
			slog.String("kafka_topics_namespace", k.KafkaTopics.Namespace), slog.String("kafka_topics_cluster", k.KafkaTopics.Cluster)))
	}
	return slog.GroupValue(
		slog.String("ops_addr", c.OpsAddr.Value), slog.String("namespace", c.Namespace),
		slog.String("watch_namespaces", strings.Join(c.WatchNamespaces, ",")), slog.Duration("interval", c.Interval),
		slog.Group("clusters", clusters...),
	)
}

func pattern(r *regexp.Regexp) string {
	if r == nil {
		return ""
	}
	return r.String()
}

// file is the file of CONFIG_FILE. Docs are in the chart's values.yaml, which writes it.
type file struct {
	Interval        string
	MaxSeries       *int `yaml:"maxSeries"`
	Clusters        []fileCluster
	WatchNamespaces []string `yaml:"watchNamespaces"`
}

type fileCluster struct {
	Name             string
	BootstrapServers string `yaml:"bootstrapServers"`
	SecurityProtocol string `yaml:"securityProtocol"`
	TLS              struct{ CA, Cert, Key string }
	SASL             struct {
		Mechanism    string
		UsernameFile string `yaml:"usernameFile"`
		PasswordFile string `yaml:"passwordFile"`
	}
	Discover    string
	KafkaTopics struct{ Namespace, Cluster string } `yaml:"kafkaTopics"`
}

// reader reads the file and collects what is wrong with it.
type reader struct {
	file     string
	mistakes []error
}

func (r *reader) wrong(where, value, allowed string) {
	r.mistakes = append(r.mistakes, fmt.Errorf("%s: %s: %q: must be %s", r.file, where, value, allowed))
}

func (r *reader) read(text []byte, cfg *Config) {
	var f file
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	err := decoder.Decode(&f)
	if wrong, ok := errors.AsType[*yaml.TypeError](err); ok {
		for _, text := range wrong.Errors {
			if where, _, unknown := strings.Cut(text, " not found in type "); unknown {
				text = strings.Replace(where, "field ", "there is no key ", 1)
			}
			r.mistakes = append(r.mistakes, fmt.Errorf("%s: %s", r.file, text))
		}
	} else if err != nil && !errors.Is(err, io.EOF) { // an empty file lacks what it needs, below
		r.mistakes = append(r.mistakes, fmt.Errorf("%s: %w", r.file, err))
		return
	}

	cfg.Interval = 5 * time.Second
	if f.Interval != "" {
		cfg.Interval, err = time.ParseDuration(f.Interval)
		if err != nil || cfg.Interval < time.Second || cfg.Interval > time.Minute {
			r.wrong("interval", f.Interval, "a duration from 1s to 1m")
		}
	}
	maxSeries := 120_000
	if f.MaxSeries != nil {
		if maxSeries = *f.MaxSeries; maxSeries < 0 {
			r.wrong("maxSeries", strconv.Itoa(maxSeries), "a number of series for each cluster, or 0 for no cap")
		}
	}
	if len(f.Clusters) == 0 {
		r.mistakes = append(r.mistakes, fmt.Errorf("%s: clusters: there is none: for example\nclusters:\n- name: orders\n  bootstrapServers: orders-kafka-bootstrap:9092", r.file))
	}
	seen := map[string]bool{}
	for i, c := range f.Clusters {
		where := fmt.Sprintf("clusters[%d]", i)
		if !label.MatchString(c.Name) || seen[c.Name] {
			r.wrong(where+".name", c.Name, "a name of its own of lower case letters, digits and '-', at most 63")
		}
		seen[c.Name] = true
		cluster := r.cluster(where, c)
		cluster.Interval, cluster.MaxSeries = cfg.Interval, maxSeries
		cfg.Clusters = append(cfg.Clusters, cluster)
	}
	for i, n := range f.WatchNamespaces {
		r.namespace(fmt.Sprintf("watchNamespaces[%d]", i), n)
	}
	cfg.WatchNamespaces = f.WatchNamespaces
}

// label is what Kubernetes allows as a namespace's name; clusters are named alike, as the CRD says too.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (r *reader) namespace(where, name string) {
	if !label.MatchString(name) {
		r.wrong(where, name, "the name of a namespace")
	}
}

var (
	protocols  = map[string]struct{ tls, sasl bool }{"plaintext": {}, "ssl": {tls: true}, "sasl_plaintext": {sasl: true}, "sasl_ssl": {tls: true, sasl: true}}
	mechanisms = []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}
)

func (r *reader) cluster(where string, c fileCluster) Cluster {
	k := kafkaconfig.Client{
		Protocol: strings.ToLower(c.SecurityProtocol), CA: c.TLS.CA, Cert: c.TLS.Cert, Key: c.TLS.Key,
		Mechanism: c.SASL.Mechanism, UsernameFile: c.SASL.UsernameFile, PasswordFile: c.SASL.PasswordFile,
	}
	for broker := range strings.SplitSeq(c.BootstrapServers, ",") {
		broker = strings.TrimSpace(broker)
		host, port, err := net.SplitHostPort(broker)
		if n, perr := strconv.Atoi(port); err != nil || host == "" || perr != nil || n < 1 || n > 65535 {
			r.wrong(where+".bootstrapServers", c.BootstrapServers, "host:port, several with commas between")
			break
		}
		k.Brokers = append(k.Brokers, broker)
	}
	if k.Protocol == "" {
		k.Protocol = "plaintext"
	}
	switch p, known := protocols[k.Protocol]; {
	case !known:
		r.wrong(where+".securityProtocol", c.SecurityProtocol, "one of "+strings.Join(slices.Sorted(maps.Keys(protocols)), ", "))
	case !p.tls && c.TLS != struct{ CA, Cert, Key string }{}:
		r.wrong(where+".securityProtocol", c.SecurityProtocol, "ssl or sasl_ssl, as tls is given")
	case p.sasl && (!slices.Contains(mechanisms, k.Mechanism) || k.UsernameFile == "" || k.PasswordFile == ""):
		r.wrong(where+".sasl", k.Mechanism, "given in full: usernameFile, passwordFile, and mechanism, one of "+strings.Join(mechanisms, ", "))
	case !p.sasl && k.Mechanism+k.UsernameFile+k.PasswordFile != "":
		r.wrong(where+".securityProtocol", c.SecurityProtocol, "sasl_plaintext or sasl_ssl, as sasl is given")
	}
	if (k.Cert == "") != (k.Key == "") {
		r.wrong(where+".tls.cert", k.Cert, "given together with tls.key, or neither")
	}
	cluster := Cluster{Config: lag.Config{Name: c.Name, Kafka: k}, KafkaTopics: KafkaTopics(c.KafkaTopics)}
	if c.Discover != "" {
		var err error
		if cluster.Groups, err = regexp.Compile("^(?:" + c.Discover + ")$"); err != nil {
			r.wrong(where+".discover", c.Discover, "a regular expression for whole names of groups (RE2)")
		}
	}
	if t := c.KafkaTopics; t.Namespace != "" || t.Cluster != "" {
		r.namespace(where+".kafkaTopics.namespace", t.Namespace)
		if t.Cluster == "" {
			r.wrong(where+".kafkaTopics.cluster", t.Cluster, "the name of Strimzi's Kafka, as in the label strimzi.io/cluster")
		}
	}
	return cluster
}
