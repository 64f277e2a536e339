// Package config reads the configuration file of the lag collector. The lag operator reads the same
// file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/lag"
)

// Config is what the environment and the file set.
type Config struct {
	// OpsAddr is where the operations endpoints listen.
	OpsAddr env.Addr
	// WatchNamespaces are the namespaces whose ConsumerGroups the operator sees. Empty means all.
	WatchNamespaces []string
	// Interval is the time between two polls of a cluster.
	Interval time.Duration
	Clusters []Cluster
}

// Cluster is a Kafka cluster.
type Cluster struct {
	lag.Config
	// KafkaTopics are for the operator.
	KafkaTopics KafkaTopics
}

// KafkaTopics selects the KafkaTopics of Strimzi that declare a cluster's topics. The zero value
// selects none, and then only Kafka knows whether a topic is ready.
type KafkaTopics struct{ Namespace, Cluster string }

// ForOperator reads OPS_ADDR, and the file that CONFIG_FILE names. It reports all mistakes in both
// at once, beside those that e has already.
func ForOperator(e *env.Env) (Config, error) {
	return fromEnv(e, "/etc/lag-operator/config.yaml", parser{})
}

// ForCollector is like ForOperator, for the collector without Kubernetes. Each cluster needs the key
// discover: there are no ConsumerGroups, which could name groups.
func ForCollector(e *env.Env) (Config, error) {
	return fromEnv(e, "/etc/lag-collector/config.yaml", parser{alone: true})
}

func fromEnv(e *env.Env, file string, p parser) (Config, error) {
	cfg := Config{OpsAddr: e.Addr("OPS_ADDR", ":8080")}
	p.file = e.String("CONFIG_FILE", file)
	text, err := os.ReadFile(p.file)
	if err != nil {
		e.Invalid("CONFIG_FILE", p.file, "a file that can be read: "+err.Error())
		return cfg, e.Err()
	}
	p.parse(text, &cfg)
	if p.mistakes == nil {
		return cfg, e.Err()
	}
	return cfg, errors.Join(e.Err(), &env.Error{Mistakes: p.mistakes})
}

// OfOperator returns the keys in the file that only the operator uses.
func (c Config) OfOperator() (keys []string) {
	if len(c.WatchNamespaces) > 0 {
		keys = append(keys, "watchNamespaces")
	}
	for i, k := range c.Clusters {
		if k.KafkaTopics != (KafkaTopics{}) {
			keys = append(keys, fmt.Sprintf("clusters[%d].kafkaTopics", i))
		}
	}
	return keys
}

// LogValue returns the configuration for the log. It contains no secrets: the file only names the
// files that hold them.
func (c Config) LogValue() slog.Value {
	var clusters []any
	for _, k := range c.Clusters {
		clusters = append(clusters, slog.GroupAttrs(k.Name,
			slog.String("bootstrap_servers", strings.Join(k.Kafka.Brokers, ",")),
			slog.String("security_protocol", k.Kafka.Protocol),
			slog.String("discover", pattern(k.Groups)),
			slog.String("exclude_groups", pattern(k.ExcludeGroups)),
			slog.String("topics", pattern(k.Topics)),
			slog.String("exclude_topics", pattern(k.ExcludeTopics)),
			slog.String("kafka_topics_namespace", k.KafkaTopics.Namespace),
			slog.String("kafka_topics_cluster", k.KafkaTopics.Cluster)))
	}
	return slog.GroupValue(
		slog.String("ops_addr", c.OpsAddr.Value),
		slog.String("watch_namespaces", strings.Join(c.WatchNamespaces, ",")),
		slog.Duration("interval", c.Interval),
		slog.Group("clusters", clusters...),
	)
}

// pattern returns the text of a regular expression. It is empty for a nil one.
func pattern(r *regexp.Regexp) string {
	if r == nil {
		return ""
	}
	return r.String()
}

// file is the content of CONFIG_FILE. The chart lag-operator writes it for the operator, and its
// values.yaml explains the keys.
type file struct {
	Interval        string
	MaxSeries       *int `yaml:"maxSeries"`
	Clusters        []fileCluster
	WatchNamespaces []string `yaml:"watchNamespaces"`
}

// fileCluster is a Kafka cluster in the file.
type fileCluster struct {
	Name             string
	BootstrapServers string `yaml:"bootstrapServers"`
	SecurityProtocol string `yaml:"securityProtocol"`
	TLS              struct{ CA, Cert, Key string }
	SASL             struct {
		Mechanism    string
		UsernameFile string `yaml:"usernameFile"`
		PasswordFile string `yaml:"passwordFile"`

		TokenEndpoint string `yaml:"tokenEndpoint"`
		TokenCA       string `yaml:"tokenCA"`
		Scope         string
	}
	Discover      string
	ExcludeGroups string `yaml:"excludeGroups"`
	Topics        string
	ExcludeTopics string                              `yaml:"excludeTopics"`
	KafkaTopics   struct{ Namespace, Cluster string } `yaml:"kafkaTopics"`
}

// parser parses the file and collects the mistakes in it.
type parser struct {
	file string
	// alone is true without Kubernetes.
	alone    bool
	mistakes []error
}

// wrong adds a mistake: where it is, the value there, and what is allowed.
func (p *parser) wrong(where, value, allowed string) {
	p.mistakes = append(p.mistakes, fmt.Errorf("%s: %s: %q: must be %s", p.file, where, value, allowed))
}

// parse reads text into cfg, as far as it has no mistakes.
func (p *parser) parse(text []byte, cfg *Config) {
	f, ok := p.decode(text)
	if !ok {
		return
	}
	cfg.Interval = 5 * time.Second
	if f.Interval != "" {
		var err error
		cfg.Interval, err = time.ParseDuration(f.Interval)
		if err != nil || cfg.Interval < time.Second || cfg.Interval > time.Minute {
			p.wrong("interval", f.Interval, "a duration from 1s to 1m")
		}
	}
	maxSeries := 120_000
	if f.MaxSeries != nil {
		if maxSeries = *f.MaxSeries; maxSeries < 0 {
			p.wrong("maxSeries", strconv.Itoa(maxSeries), "a number of series for each cluster, or 0 for no cap")
		}
	}
	if len(f.Clusters) == 0 {
		p.mistakes = append(p.mistakes, fmt.Errorf("%s: clusters: there is none: for example\nclusters:\n"+
			"- name: orders\n  bootstrapServers: orders-kafka-bootstrap:9092", p.file))
	}
	seen := map[string]bool{}
	for i, c := range f.Clusters {
		where := fmt.Sprintf("clusters[%d]", i)
		if !label.MatchString(c.Name) || seen[c.Name] {
			p.wrong(where+".name", c.Name, "a name of its own of lower case letters, digits and '-', at most 63")
		}
		seen[c.Name] = true
		cluster := p.cluster(where, c)
		cluster.Interval, cluster.MaxSeries = cfg.Interval, maxSeries
		cfg.Clusters = append(cfg.Clusters, cluster)
	}
	for i, n := range f.WatchNamespaces {
		p.namespace(fmt.Sprintf("watchNamespaces[%d]", i), n)
	}
	cfg.WatchNamespaces = f.WatchNamespaces
}

// decode decodes the YAML. It returns false if the text is not YAML. Keys that are unknown and
// values of the wrong shape are mistakes, and the rest is decoded all the same.
func (p *parser) decode(text []byte) (f file, ok bool) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	err := decoder.Decode(&f)
	if shape, ok := errors.AsType[*yaml.TypeError](err); ok {
		for _, text := range shape.Errors {
			if where, _, unknown := strings.Cut(text, " not found in type "); unknown {
				text = strings.Replace(where, "field ", "there is no key ", 1)
			}
			p.mistakes = append(p.mistakes, fmt.Errorf("%s: %s", p.file, text))
		}
		return f, true
	}
	// An empty file is YAML: it lacks the clusters, which parse reports.
	if err != nil && !errors.Is(err, io.EOF) {
		p.mistakes = append(p.mistakes, fmt.Errorf("%s: %w", p.file, err))
		return f, false
	}
	return f, true
}

// label is what Kubernetes accepts as the name of a namespace. The names of clusters follow the
// same rule, also in the CRD.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// namespace checks the name of a namespace.
func (p *parser) namespace(where, name string) {
	if !label.MatchString(name) {
		p.wrong(where, name, "the name of a namespace")
	}
}

// pattern returns a regular expression for whole names of groups or topics. It is nil for an empty
// text.
func (p *parser) pattern(where, text, what string) *regexp.Regexp {
	if text == "" {
		return nil
	}
	// Compiled alone first: "a)|(b" is a pattern only within the anchors.
	_, err := regexp.Compile(text)
	if err != nil {
		p.wrong(where, text, "a regular expression for whole names of "+what+" (RE2)")
		return nil
	}
	return regexp.MustCompile("^(?:" + text + ")$")
}

// cluster returns the configuration of one Kafka cluster. where is its key in the file.
func (p *parser) cluster(where string, c fileCluster) Cluster {
	cluster := Cluster{
		Config:      lag.Config{Name: c.Name, Kafka: p.kafka(where, c)},
		KafkaTopics: KafkaTopics(c.KafkaTopics),
	}
	cluster.Groups = p.pattern(where+".discover", c.Discover, "groups")
	if c.Discover == "" && p.alone {
		p.wrong(where+".discover", "", `a regular expression for names of groups, such as ".*" for all`)
	}
	cluster.ExcludeGroups = p.pattern(where+".excludeGroups", c.ExcludeGroups, "groups")
	cluster.Topics = p.pattern(where+".topics", c.Topics, "topics")
	cluster.ExcludeTopics = p.pattern(where+".excludeTopics", c.ExcludeTopics, "topics")
	if t := c.KafkaTopics; t.Namespace != "" || t.Cluster != "" {
		p.namespace(where+".kafkaTopics.namespace", t.Namespace)
		if t.Cluster == "" {
			p.wrong(where+".kafkaTopics.cluster", t.Cluster,
				"the name of Strimzi's Kafka, as in the label strimzi.io/cluster")
		}
	}
	return cluster
}

// kafka returns the connection to a cluster, with the mistakes in it under the keys of the file.
func (p *parser) kafka(where string, c fileCluster) kafkaconfig.Client {
	k := kafkaconfig.Client{
		Brokers:      kafkaconfig.SplitBrokers(c.BootstrapServers),
		ClientID:     "lag-collector",
		Protocol:     c.SecurityProtocol,
		CA:           c.TLS.CA,
		Cert:         c.TLS.Cert,
		Key:          c.TLS.Key,
		Mechanism:    c.SASL.Mechanism,
		UsernameFile: c.SASL.UsernameFile,
		PasswordFile: c.SASL.PasswordFile,

		TokenEndpoint: c.SASL.TokenEndpoint,
		TokenCA:       c.SASL.TokenCA,
		Scope:         c.SASL.Scope,
	}.Normal()
	names := kafkaconfig.Names{
		kafkaconfig.FieldBrokers:      where + ".bootstrapServers",
		kafkaconfig.FieldProtocol:     where + ".securityProtocol",
		kafkaconfig.FieldCA:           where + ".tls.ca",
		kafkaconfig.FieldCert:         where + ".tls.cert",
		kafkaconfig.FieldKey:          where + ".tls.key",
		kafkaconfig.FieldMechanism:    where + ".sasl.mechanism",
		kafkaconfig.FieldUsername:     where + ".sasl.usernameFile",
		kafkaconfig.FieldUsernameFile: where + ".sasl.usernameFile",
		kafkaconfig.FieldPassword:     where + ".sasl.passwordFile",
		kafkaconfig.FieldPasswordFile: where + ".sasl.passwordFile",
		kafkaconfig.FieldEndpoint:     where + ".sasl.tokenEndpoint",
		kafkaconfig.FieldTokenCA:      where + ".sasl.tokenCA",
		kafkaconfig.FieldScope:        where + ".sasl.scope",
	}
	for _, invalid := range k.ValidateAll(names) {
		p.wrong(names.Of(invalid.Field), invalid.Value, invalid.Want)
	}
	return k
}
