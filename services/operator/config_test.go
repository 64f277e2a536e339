package operator

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/lag"
)

// read reads a configuration with that file; POD_NAMESPACE is orders, unless the test says otherwise.
func read(t *testing.T, text string, vars map[string]string) (Config, string, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"CONFIG_FILE": name, "POD_NAMESPACE": "orders"}
	maps.Copy(all, vars)
	cfg, err := ConfigFromEnv(env.New(func(v string) string { return all[v] }))
	return cfg, name, err
}

func TestConfig(t *testing.T) {
	t.Parallel()
	got, _, err := read(t, `
interval: 10s
maxSeries: 0
clusters:
  - name: orders
    bootstrapServers: a:9093, b:9093
    securityProtocol: SASL_SSL
    tls: {ca: /etc/kafka/orders/ca, cert: /c.crt, key: /c.key}
    sasl: {mechanism: SCRAM-SHA-512, usernameFile: /u, passwordFile: /p}
    discover: order-.*|audit
    kafkaTopics: {namespace: orders, cluster: main}
  - name: plain
    bootstrapServers: kafka:9092
watchNamespaces: [orders, audit]
`, map[string]string{"OPS_ADDR": "127.0.0.1:0"})
	want := Config{
		OpsAddr: env.Addr{Value: "127.0.0.1:0", Variable: "OPS_ADDR"}, Namespace: "orders", WatchNamespaces: []string{"orders", "audit"}, Interval: 10 * time.Second,
		Clusters: []Cluster{
			{Config: lag.Config{
				Name: "orders", Interval: 10 * time.Second, Groups: regexp.MustCompile("^(?:order-.*|audit)$"),
				Kafka: kafkaconfig.Client{Brokers: []string{"a:9093", "b:9093"}, Protocol: "sasl_ssl", CA: "/etc/kafka/orders/ca", Cert: "/c.crt", Key: "/c.key",
					Mechanism: "SCRAM-SHA-512", UsernameFile: "/u", PasswordFile: "/p"},
			}, KafkaTopics: KafkaTopics{"orders", "main"}},
			{Config: lag.Config{Name: "plain", Interval: 10 * time.Second, Kafka: kafkaconfig.Client{Brokers: []string{"kafka:9092"}, Protocol: "plaintext"}}},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b *regexp.Regexp) bool { return pattern(a) == pattern(b) })); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if text := got.LogValue().String(); strings.Contains(text, "/p") || !strings.Contains(text, "a:9093,b:9093") {
		t.Errorf("the log shows %s", text)
	}

	got, _, err = read(t, "clusters: [{name: orders, bootstrapServers: 'kafka:9092'}]", nil)
	if c := got.Clusters[0]; err != nil || got.OpsAddr.Value != ":8080" || got.Interval != 5*time.Second || c.Interval != 5*time.Second || c.MaxSeries != 120_000 || c.Groups != nil {
		t.Errorf("the defaults are %+v, %v", got, err)
	}
}

func TestEveryMistakeInTheConfigIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	const fine = "clusters: [{name: orders, bootstrapServers: 'kafka:9092'}]"
	for name, c := range map[string]struct {
		text string
		vars map[string]string
		want []string // without the file's name
	}{
		"everything": {`
intervall: 5s
interval: 5
maxSeries: -1
clusters:
  - name: Orders
    bootstrapServers: kafka
    securityProtocol: tls
    sals: {}
    kafkaTopics: {cluster: main}
  - name: a
    bootstrapServers: kafka:9092,:9093
    tls: {ca: /ca}
    discover: "["
  - name: a
    bootstrapServers: kafka:0
    securityProtocol: sasl_plaintext
    sasl: {mechanism: PLAIN, usernameFile: /u}
  - name: b
    bootstrapServers: kafka:9092
    securityProtocol: ssl
    tls: {cert: /c}
    sasl: {mechanism: PLAIN}
    kafkaTopics: {namespace: b}
watchNamespaces: [fine, not_fine]
`, map[string]string{"POD_NAMESPACE": "", "OPS_ADDR": "8080"}, []string{
			`OPS_ADDR="8080": must be host:port or :port, such as :8080`,
			`POD_NAMESPACE is not set: for example POD_NAMESPACE=orders`,
			`line 2: there is no key intervall`,
			`line 9: there is no key sals`,
			`interval: "5": must be a duration from 1s to 1m`,
			`maxSeries: "-1": must be a number of series for each cluster, or 0 for no cap`,
			`clusters[0].name: "Orders": must be a name of its own of lower case letters, digits and '-', at most 63`,
			`clusters[0].bootstrapServers: "kafka": must be host:port, several with commas between`,
			`clusters[0].securityProtocol: "tls": must be one of plaintext, sasl_plaintext, sasl_ssl, ssl`,
			`clusters[0].kafkaTopics.namespace: "": must be the name of a namespace`,
			`clusters[1].bootstrapServers: "kafka:9092,:9093": must be host:port, several with commas between`,
			`clusters[1].securityProtocol: "": must be ssl or sasl_ssl, as tls is given`,
			`clusters[1].discover: "[": must be a regular expression for whole names of groups (RE2)`,
			`clusters[2].name: "a": must be a name of its own of lower case letters, digits and '-', at most 63`,
			`clusters[2].bootstrapServers: "kafka:0": must be host:port, several with commas between`,
			`clusters[2].sasl: "PLAIN": must be given in full: usernameFile, passwordFile, and mechanism, one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512`,
			`clusters[3].securityProtocol: "ssl": must be sasl_plaintext or sasl_ssl, as sasl is given`,
			`clusters[3].tls.cert: "/c": must be given together with tls.key, or neither`,
			`clusters[3].kafkaTopics.cluster: "": must be the name of Strimzi's Kafka, as in the label strimzi.io/cluster`,
			`watchNamespaces[1]: "not_fine": must be the name of a namespace`,
		}},
		"nothing":        {"", nil, []string{"clusters: there is none: for example", "clusters:", "- name: orders", "  bootstrapServers: orders-kafka-bootstrap:9092"}},
		"another shape":  {"clusters: {name: orders}", nil, []string{"line 1: cannot unmarshal !!map into []operator.fileCluster", "clusters: there is none: for example", "clusters:", "- name: orders", "  bootstrapServers: orders-kafka-bootstrap:9092"}},
		"no YAML":        {"clusters: [", nil, []string{"yaml: line 1: did not find expected node content"}},
		"too often":      {"interval: 999ms\n" + fine, nil, []string{`interval: "999ms": must be a duration from 1s to 1m`}},
		"too seldom":     {"interval: 61s\n" + fine, nil, []string{`interval: "61s": must be a duration from 1s to 1m`}},
		"another's file": {fine, map[string]string{"CONFIG_FILE": "/no/such/file"}, []string{`CONFIG_FILE="/no/such/file": must be a file that can be read: open /no/such/file: no such file or directory`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, file, err := read(t, c.text, c.vars)
			if err == nil {
				t.Fatal("it is taken")
			}
			if diff := cmp.Diff(c.want, strings.Split(strings.ReplaceAll(err.Error(), file+": ", ""), "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
