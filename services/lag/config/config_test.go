package config

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
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/lag"
)

// read reads a configuration with that file.
func read(t *testing.T, text string, vars map[string]string) (Config, string, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"CONFIG_FILE": name}
	maps.Copy(all, vars)
	cfg, err := ForOperator(env.New(func(v string) string { return all[v] }))
	return cfg, name, err
}

// secrets writes the files that a secured cluster's configuration names, and returns their
// directory.
func secrets(t *testing.T) string {
	t.Helper()
	ca := testenv.NewAuthority(t, "cluster-ca")
	cert, key := ca.Issue(t, "lag-operator")
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		"ca.crt": ca.PEM, "c.crt": cert, "c.key": key, "u": []byte("lag-operator"), "p": []byte("secret"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestConfig(t *testing.T) {
	t.Parallel()
	dir := secrets(t)
	got, _, err := read(t, strings.ReplaceAll(`
interval: 10s
maxSeries: 0
clusters:
  - name: orders
    bootstrapServers: a:9093, b:9093
    securityProtocol: SASL_SSL
    tls: {ca: DIR, cert: DIR/c.crt, key: DIR/c.key}
    sasl: {mechanism: SCRAM-SHA-512, usernameFile: DIR/u, passwordFile: DIR/p}
    discover: order-.*|audit
    excludeGroups: order-test-.*
    topics: order-.*
    excludeTopics: .*-retry
    kafkaTopics: {namespace: orders, cluster: main}
  - name: plain
    bootstrapServers: kafka:9092
  - name: tokens
    bootstrapServers: kafka:9093
    securityProtocol: sasl_ssl
    sasl:
      mechanism: oauthbearer
      usernameFile: DIR/u
      passwordFile: DIR/p
      tokenEndpoint: https://idp.example.com/token
      tokenCA: DIR
      scope: kafka lag
  - name: msk
    bootstrapServers: kafka:9098
    securityProtocol: sasl_ssl
    sasl: {mechanism: AWS_MSK_IAM}
watchNamespaces: [orders, audit]
`, "DIR", dir), map[string]string{"OPS_ADDR": "127.0.0.1:0"})
	orders := lag.Config{
		Name: "orders", Interval: 10 * time.Second, Groups: regexp.MustCompile("^(?:order-.*|audit)$"),
		ExcludeGroups: regexp.MustCompile("^(?:order-test-.*)$"), Topics: regexp.MustCompile("^(?:order-.*)$"),
		ExcludeTopics: regexp.MustCompile("^(?:.*-retry)$"),
		Kafka: kafkaconfig.Client{
			Brokers: []string{"a:9093", "b:9093"}, ClientID: "lag-collector", Protocol: "sasl_ssl",
			CA: dir, Cert: dir + "/c.crt", Key: dir + "/c.key",
			Mechanism: "SCRAM-SHA-512", UsernameFile: dir + "/u", PasswordFile: dir + "/p",
		},
	}
	plain := lag.Config{
		Name: "plain", Interval: 10 * time.Second,
		Kafka: kafkaconfig.Client{
			Brokers: []string{"kafka:9092"}, ClientID: "lag-collector", Protocol: "plaintext",
		},
	}
	tokens, msk := plain, plain
	tokens.Name, msk.Name = "tokens", "msk"
	tokens.Kafka = kafkaconfig.Client{
		Brokers: []string{"kafka:9093"}, ClientID: "lag-collector", Protocol: "sasl_ssl",
		Mechanism: kafkaconfig.OAuthBearer, UsernameFile: dir + "/u", PasswordFile: dir + "/p",
		TokenEndpoint: "https://idp.example.com/token", TokenCA: dir, Scope: "kafka lag",
	}
	msk.Kafka = kafkaconfig.Client{
		Brokers: []string{"kafka:9098"}, ClientID: "lag-collector", Protocol: "sasl_ssl", Mechanism: kafkaconfig.MSKIAM,
	}
	want := Config{
		OpsAddr:         env.Addr{Value: "127.0.0.1:0", Variable: "OPS_ADDR"},
		WatchNamespaces: []string{"orders", "audit"},
		Interval:        10 * time.Second,
		Clusters: []Cluster{
			{Config: orders, KafkaTopics: KafkaTopics{"orders", "main"}},
			{Config: plain}, {Config: tokens}, {Config: msk},
		},
	}
	samePattern := cmp.Comparer(func(a, b *regexp.Regexp) bool { return pattern(a) == pattern(b) })
	if diff := cmp.Diff(want, got, samePattern); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if text := got.LogValue().String(); strings.Contains(text, dir+"/p") || !strings.Contains(text, "a:9093,b:9093") {
		t.Errorf("the log shows %s", text)
	}

	got, _, err = read(t, "clusters: [{name: orders, bootstrapServers: 'kafka:9092'}]", nil)
	c := got.Clusters[0]
	if err != nil || got.OpsAddr.Value != ":8080" || got.Interval != 5*time.Second ||
		c.Interval != 5*time.Second || c.MaxSeries != 120_000 || c.Groups != nil {
		t.Errorf("the defaults are %+v, %v", got, err)
	}
}

func TestEveryMistakeInTheConfigIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	const fine = "clusters: [{name: orders, bootstrapServers: 'kafka:9092'}]"
	const address = "host:port with a port from 1 to 65535, several separated by commas"
	const name = "a name of its own of lower case letters, digits and '-', at most 63"
	noCluster := []string{
		"clusters: there is none: for example",
		"clusters:",
		"- name: orders",
		"  bootstrapServers: orders-kafka-bootstrap:9092",
	}
	dir := secrets(t)
	for what, c := range map[string]struct {
		text string
		vars map[string]string
		// want are the lines of the error, without the file's name.
		want []string
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
    tls: {ca: DIR}
    discover: "["
    excludeGroups: "a)|(b"
    topics: "*"
    excludeTopics: "(?!a)"
  - name: a
    bootstrapServers: kafka:0
    securityProtocol: sasl_plaintext
    sasl: {mechanism: GSSAPI, usernameFile: DIR/u}
  - name: b
    bootstrapServers: kafka:9092
    securityProtocol: ssl
    tls: {ca: DIR/none, cert: DIR/c.crt}
    sasl: {mechanism: PLAIN}
    kafkaTopics: {namespace: b}
  - name: c
    bootstrapServers: kafka:9092
    securityProtocol: sasl_ssl
    sasl: {mechanism: OAUTHBEARER, usernameFile: DIR/u, tokenEndpoint: "idp:443", tokenCA: DIR/none}
  - name: d
    bootstrapServers: kafka:9092
    securityProtocol: sasl_ssl
    sasl: {mechanism: AWS_MSK_IAM, passwordFile: DIR/p, scope: kafka}
watchNamespaces: [fine, not_fine]
`, map[string]string{"OPS_ADDR": "8080"}, []string{
			`OPS_ADDR="8080": must be host:port or :port, such as :8080`,
			`line 2: there is no key intervall`,
			`line 9: there is no key sals`,
			`interval: "5": must be a duration from 1s to 1m`,
			`maxSeries: "-1": must be a number of series for each cluster, or 0 for no cap`,
			`clusters[0].name: "Orders": must be ` + name,
			`clusters[0].bootstrapServers: "kafka": must be ` + address,
			`clusters[0].securityProtocol: "tls": must be one of plaintext, ssl, sasl_plaintext, sasl_ssl`,
			`clusters[0].kafkaTopics.namespace: "": must be the name of a namespace`,
			`clusters[1].bootstrapServers: "kafka:9092,:9093": must be ` + address,
			`clusters[1].securityProtocol: "plaintext": must be ssl or sasl_ssl when clusters[1].tls.ca is set`,
			`clusters[1].discover: "[": must be a regular expression for whole names of groups (RE2)`,
			`clusters[1].excludeGroups: "a)|(b": must be a regular expression for whole names of groups (RE2)`,
			`clusters[1].topics: "*": must be a regular expression for whole names of topics (RE2)`,
			`clusters[1].excludeTopics: "(?!a)": must be a regular expression for whole names of topics (RE2)`,
			`clusters[2].name: "a": must be ` + name,
			`clusters[2].bootstrapServers: "kafka:0": must be ` + address,
			`clusters[2].sasl.mechanism: "GSSAPI": must be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, ` +
				`OAUTHBEARER, AWS_MSK_IAM with sasl_plaintext`,
			`clusters[2].sasl.passwordFile: "": must be set with sasl_plaintext`,
			`clusters[3].tls.ca: "DIR/none": must be a file of PEM certificates, ` +
				`or a directory with *.crt files of them: read CA: stat DIR/none: no such file or directory`,
			`clusters[3].tls.cert: "DIR/c.crt": must be set together with clusters[3].tls.key`,
			`clusters[3].securityProtocol: "ssl": must be sasl_plaintext or sasl_ssl ` +
				`when clusters[3].sasl.mechanism is set`,
			`clusters[3].kafkaTopics.cluster: "": must be the name of Strimzi's Kafka, ` +
				`as in the label strimzi.io/cluster`,
			`clusters[4].sasl.passwordFile: "": must be set with sasl_ssl`,
			`clusters[4].sasl.tokenEndpoint: "idp:443": must be an https or http URL, ` +
				`such as https://idp.example.com/token`,
			`clusters[4].sasl.tokenCA: "DIR/none": must be a file of PEM certificates, ` +
				`or a directory with *.crt files of them: read CA: stat DIR/none: no such file or directory`,
			`clusters[5].sasl.passwordFile: "DIR/p": must be left out with AWS_MSK_IAM`,
			`clusters[5].sasl.scope: "kafka": must be left out with AWS_MSK_IAM`,
			`watchNamespaces[1]: "not_fine": must be the name of a namespace`,
		}},
		"nothing": {"", nil, noCluster},
		"another shape": {
			"clusters: {name: orders}", nil,
			append([]string{"line 1: cannot unmarshal !!map into []config.fileCluster"}, noCluster...),
		},
		"no YAML": {"clusters: [", nil, []string{"yaml: line 1: did not find expected node content"}},
		"too often": {
			"interval: 999ms\n" + fine, nil, []string{`interval: "999ms": must be a duration from 1s to 1m`},
		},
		"too seldom": {"interval: 61s\n" + fine, nil, []string{`interval: "61s": must be a duration from 1s to 1m`}},
		"another file": {
			fine, map[string]string{"CONFIG_FILE": "/no/such/file"},
			[]string{`CONFIG_FILE="/no/such/file": must be a file that can be read: ` +
				`open /no/such/file: no such file or directory`},
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			_, file, err := read(t, strings.ReplaceAll(c.text, "DIR", dir), c.vars)
			if err == nil {
				t.Fatal("it is accepted")
			}
			got := strings.ReplaceAll(strings.ReplaceAll(err.Error(), file+": ", ""), dir, "DIR")
			if diff := cmp.Diff(c.want, strings.Split(got, "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The collector without Kubernetes takes the operator's file, if it says which groups to watch.
func TestConfigOfTheCollector(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "config.yaml")
	for _, tt := range []struct {
		text     string
		ignored  []string
		mistakes string
	}{
		{text: "clusters: [{name: a, bootstrapServers: 'a:1', discover: .*}]"},
		{
			text: "clusters: [{name: a, bootstrapServers: 'a:1', discover: .*}, {name: b, bootstrapServers: 'b:1', " +
				"discover: .*, kafkaTopics: {namespace: orders, cluster: main}}]\nwatchNamespaces: [orders]",
			ignored: []string{"watchNamespaces", "clusters[1].kafkaTopics"},
		},
		{
			text: "clusters: [{name: a, bootstrapServers: 'a:1', excludeGroups: b}]",
			mistakes: name + `: clusters[0].discover: "": must be a regular expression for names of groups, such as ` +
				`".*" for all`,
		},
	} {
		if err := os.WriteFile(name, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := ForCollector(env.New(func(v string) string { return map[string]string{"CONFIG_FILE": name}[v] }))
		mistakes := ""
		if err != nil {
			mistakes = err.Error()
		}
		if diff := cmp.Diff(tt.mistakes, mistakes); diff != "" {
			t.Errorf("%s: mistakes (-want +got):\n%s", tt.text, diff)
		}
		if diff := cmp.Diff(tt.ignored, cfg.OfOperator()); diff != "" && err == nil {
			t.Errorf("%s: keys without effect (-want +got):\n%s", tt.text, diff)
		}
	}
}
