package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/e2e/manifests/schemas"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// The image of Strimzi's operator may be out of reach, so this file does the operator's work. It
// applies strimzi/cluster/dev and strimzi/topics/dev, starts a real Kafka as they declare it,
// issues certificates, writes the Secrets, creates the topics and the users' rights, and sets the
// conditions of all these.

// strimzi is what Strimzi's operators know.
type strimzi struct {
	cluster              *cluster
	kafka, pool          resource
	topics, users        []resource
	clusterCA, clientsCA *testenv.Authority
	// forwarded is where the test reaches the broker.
	forwarded string
}

// resource is any resource of Strimzi's, with the fields that matter here.
type resource struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Kafka struct {
			Version         string
			MetadataVersion string `yaml:"metadataVersion"`
			Config          map[string]any
			Authorization   struct{ Type string }
			Listeners       []listener
			MetricsConfig   struct{ Type string } `yaml:"metricsConfig"`
		}
		// The fields from here on belong to a KafkaNodePool.
		JVMOptions map[string]string `yaml:"jvmOptions"`
		Resources  map[string]map[string]any
		Roles      []string
		// The fields from here on belong to a KafkaTopic too.
		Replicas   int16
		Partitions int32
		Config     map[string]any
		// The fields from here on belong to a KafkaUser.
		Authentication struct{ Type string }
		Authorization  struct {
			Type string
			ACLs []acl `yaml:"acls"`
		}
	}
}

type listener struct {
	Name           string
	Port           int
	Type           string
	TLS            bool `yaml:"tls"`
	Authentication struct{ Type string }
}

type acl struct {
	Operations []string
	Resource   struct {
		Type, Name  string
		PatternType string `yaml:"patternType"`
	}
}

func newACL(kind, name string, operations ...string) acl {
	a := acl{Operations: operations}
	a.Resource.Type, a.Resource.Name = kind, name
	return a
}

// admin may do everything on the broker. It creates topics and rights on Strimzi's behalf.
const admin = "admin"

// newStrimzi reads the manifests. Anything that this stand-in does not support is an error.
func newStrimzi(t *testing.T, c *cluster) *strimzi {
	t.Helper()
	s := &strimzi{cluster: c, clusterCA: testenv.NewAuthority(t, "cluster-ca"),
		clientsCA: testenv.NewAuthority(t, "clients-ca")}
	declared := s.declare(t)
	for manifests := yaml.NewDecoder(strings.NewReader(declared)); ; {
		var r resource
		if err := manifests.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, declared)
		}
		switch r.Kind {
		case "Kafka":
			s.kafka = r
		case "KafkaNodePool":
			s.pool = r
		case "KafkaTopic":
			s.topics = append(s.topics, r)
		case "KafkaUser":
			s.users = append(s.users, r)
		default:
			t.Fatalf("strimzi/ has a %s, of which this test does not know what Strimzi would do", r.Kind)
		}
	}
	want := listener{Name: "tls", Port: 9093, Type: "internal", TLS: true, Authentication: struct{ Type string }{"tls"}}
	if k := s.kafka.Spec.Kafka; k.Authorization.Type != "simple" || !slices.Equal(k.Listeners, []listener{want}) ||
		k.Version != localkafka.Version() || k.MetricsConfig.Type != "strimziMetricsReporter" {
		t.Fatalf("strimzi/cluster/dev is not Kafka %s with simple authorization, Strimzi's metrics "+
			"and one listener %+v: %+v", localkafka.Version(), want, k)
	}
	if p := s.pool; p.Metadata.Name != "dual-role" || p.Spec.Replicas != 1 {
		t.Fatalf("strimzi/cluster/dev has %d nodes in pool %s, want one in dual-role", p.Spec.Replicas, p.Metadata.Name)
	}
	for _, u := range s.users {
		if u.Spec.Authentication.Type != "tls" || u.Spec.Authorization.Type != "simple" {
			t.Fatalf("KafkaUser %s has no certificate or no ACLs: %+v", u.Metadata.Name, u.Spec)
		}
	}
	return s
}

// declare applies the manifests to the test's namespace and returns them. They are paused, so that
// an operator in this cluster leaves them to the test.
func (s *strimzi) declare(t *testing.T) string {
	t.Helper()
	testenv.Require(t, schemas.Install(t.Context()))
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	overlays, err := filepath.Rel(dir, filepath.Join(here, "strimzi"))
	if err != nil {
		t.Fatal(err)
	}
	kustomization := fmt.Sprintf(
		`{"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": %q,
		"resources": [%q, %q], "commonAnnotations": {"strimzi.io/pause-reconciliation": "true"}}`,
		s.cluster.namespace, overlays+"/cluster/dev", overlays+"/topics/dev")
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization), 0o600); err != nil {
		t.Fatal(err)
	}
	manifests := s.cluster.run(t, "kubectl", "kustomize", dir)
	s.cluster.apply(t, manifests)
	return manifests
}

// isReady sets a resource's condition Ready, with more of its status.
func (s *strimzi) isReady(t *testing.T, r resource, status map[string]any) {
	t.Helper()
	status["observedGeneration"] = 1
	status["conditions"] = []map[string]string{{"type": "Ready", "status": "True",
		"lastTransitionTime": time.Now().UTC().Format(time.RFC3339)}}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		t.Fatal(err)
	}
	s.cluster.kubectl(t, "patch", r.Kind+".kafka.strimzi.io/"+r.Metadata.Name, "--subresource=status", "--type=merge",
		"--patch", string(patch))
}

// bootstrap returns the broker's address for clients in the cluster.
func (s *strimzi) bootstrap() string {
	return fmt.Sprintf("orders-kafka-bootstrap.%s.svc:9093", s.cluster.namespace)
}

//go:embed kafka/broker.yaml
var brokerManifest string

// startKafka starts the broker and waits until it serves. After stopKafka, the broker still has its
// data.
func (s *strimzi) startKafka(t *testing.T) {
	t.Helper()
	resources, err := json.Marshal(s.pool.Spec.Resources)
	if err != nil {
		t.Fatal(err)
	}
	var jvm []string
	for _, name := range slices.Sorted(maps.Keys(s.pool.Spec.JVMOptions)) {
		jvm = append(jvm, name+s.pool.Spec.JVMOptions[name])
	}
	var manifest bytes.Buffer
	if err := template.Must(template.New("").Parse(brokerManifest)).Execute(&manifest, map[string]any{
		"Image": kafkaImage, "MetadataVersion": s.kafka.Spec.Kafka.MetadataVersion, "JVM": jvm,
		"Resources": string(resources),
	}); err != nil {
		t.Fatal(err)
	}
	s.cluster.apply(t, manifest.String())
	s.cluster.kubectl(t, "rollout", "status", "statefulset/orders-dual-role", "--timeout=2m")
	if s.forwarded == "" {
		s.forwarded = s.cluster.forward("service/orders-kafka-bootstrap", 9093)[0]
	}
	eventually(t, time.Minute, "Kafka serves", func() (bool, string) {
		brokers, err := s.client(t, admin).ListBrokers(t.Context())
		return err == nil && len(brokers) == 1, fmt.Sprint(brokers, err)
	})
	s.isReady(t, s.kafka,
		map[string]any{"listeners": []any{map[string]any{"name": "tls", "bootstrapServers": s.bootstrap()}}})
}

// stopKafka deletes the broker but not its volume.
func (s *strimzi) stopKafka(t *testing.T) {
	t.Helper()
	s.cluster.kubectl(t, "delete", "statefulset/orders-dual-role", "--cascade=foreground", "--timeout=1m")
}

// prepareKafka writes what the broker reads at its start.
func (s *strimzi) prepareKafka(t *testing.T) {
	t.Helper()
	ns := s.cluster.namespace
	broker := fmt.Sprintf("orders-dual-role-0.orders-kafka-brokers.%s.svc", ns)
	properties := map[string]string{
		"process.roles":                             "broker,controller",
		"node.id":                                   "0",
		"controller.quorum.voters":                  "0@localhost:9090",
		"controller.listener.names":                 "CONTROLLER",
		"inter.broker.listener.name":                "REPLICATION",
		"listeners":                                 "CONTROLLER://localhost:9090,REPLICATION://:9091,TLS://:9093",
		"advertised.listeners":                      fmt.Sprintf("REPLICATION://%s:9091,TLS://%s:9093", broker, broker),
		"listener.security.protocol.map":            "CONTROLLER:SSL,REPLICATION:SSL,TLS:SSL",
		"ssl.keystore.type":                         "PEM",
		"ssl.keystore.location":                     "/etc/kafka/broker.pem",
		"ssl.truststore.type":                       "PEM",
		"ssl.truststore.location":                   "/etc/kafka/cluster-ca.crt",
		"ssl.client.auth":                           "required",
		"listener.name.tls.ssl.truststore.type":     "PEM",
		"listener.name.tls.ssl.truststore.location": "/etc/kafka/clients-ca.crt",
		"authorizer.class.name":                     "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":                               "User:CN=orders-kafka;User:CN=" + admin,
		"log.dirs":                                  "/data/kafka-log0",
	}
	maps.Copy(properties, localkafka.MetricsSettings(":9404"))
	maps.Copy(properties, texts(s.kafka.Spec.Kafka.Config))
	var file bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&file, "%s=%s\n", name, properties[name])
	}
	cert, key := s.clusterCA.Issue(t, "orders-kafka", "localhost", broker,
		fmt.Sprintf("orders-kafka-bootstrap.%s.svc", ns))
	s.cluster.secret(t, "orders-dual-role-0", map[string][]byte{
		"server.properties": file.Bytes(),
		"broker.pem":        append(key, cert...),
		"cluster-ca.crt":    s.clusterCA.PEM,
		"clients-ca.crt":    s.clientsCA.PEM,
	})
}

// allow creates the rights that the KafkaUsers declare, as the User Operator does.
func (s *strimzi) allow(t *testing.T) {
	t.Helper()
	for _, u := range s.users {
		for _, a := range u.Spec.Authorization.ACLs {
			s.grant(t, u.Metadata.Name, a)
		}
	}
}

func (s *strimzi) grant(t *testing.T, user string, a acl) {
	t.Helper()
	results, err := s.client(t, admin).CreateACLs(t.Context(), a.of(t, user))
	for _, r := range results {
		err = errors.Join(err, r.Err)
	}
	if err != nil {
		t.Fatalf("grant %+v to %s: %v", a, user, err)
	}
}

// revoke takes back a right that was granted.
func (s *strimzi) revoke(t *testing.T, user string, a acl) {
	t.Helper()
	results, err := s.client(t, admin).DeleteACLs(t.Context(), a.of(t, user))
	for _, r := range results {
		if err = errors.Join(err, r.Err); len(r.Deleted) != 1 {
			t.Errorf("%s of %+v by %s was granted %d times", r.Operation, a.Resource, user, len(r.Deleted))
		}
	}
	if err != nil {
		t.Fatalf("revoke %+v from %s: %v", a, user, err)
	}
}

// of returns the ACL as Kafka's admin client wants it.
func (a acl) of(t *testing.T, user string) *kadm.ACLBuilder {
	t.Helper()
	b := kadm.NewACLs().Allow("User:CN=" + user).AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral)
	switch name := a.Resource.Name; {
	case a.Resource.PatternType != "" && a.Resource.PatternType != "literal":
		t.Fatalf("user %s: this test knows no ACL of pattern type %s", user, a.Resource.PatternType)
	case a.Resource.Type == "topic":
		b.Topics(name)
	case a.Resource.Type == "group":
		b.Groups(name)
	case a.Resource.Type == "transactionalId":
		b.TransactionalIDs(name)
	default:
		t.Fatalf("user %s: this test knows no ACL on a %s", user, a.Resource.Type)
	}
	var operations []kadm.ACLOperation
	for _, text := range a.Operations {
		operation, err := kmsg.ParseACLOperation(text)
		if err != nil {
			t.Fatalf("user %s: %v", user, err)
		}
		operations = append(operations, operation)
	}
	return b.Operations(operations...)
}

// writeSecrets writes the Secrets of the cluster's CA and of the users, and returns their names.
func (s *strimzi) writeSecrets(t *testing.T) (names []string) {
	t.Helper()
	s.cluster.secret(t, "orders-cluster-ca-cert", map[string][]byte{"ca.crt": s.clusterCA.PEM})
	names = append(names, "orders-cluster-ca-cert")
	for _, u := range s.users {
		cert, key := s.clientsCA.Issue(t, u.Metadata.Name)
		s.cluster.secret(t, u.Metadata.Name,
			map[string][]byte{"user.crt": cert, "user.key": key, "ca.crt": s.clientsCA.PEM})
		names = append(names, u.Metadata.Name)
		s.isReady(t, u, map[string]any{"username": "CN=" + u.Metadata.Name, "secret": u.Metadata.Name})
	}
	return names
}

// createTopics creates the named topics, as the Topic Operator does. It returns when the broker has
// responded.
func (s *strimzi) createTopics(t *testing.T, names ...string) {
	t.Helper()
	for _, topic := range s.topics {
		if !slices.Contains(names, topic.Metadata.Name) {
			continue
		}
		config := make(map[string]*string)
		for name, value := range texts(topic.Spec.Config) {
			config[name] = &value
		}
		if _, err := s.client(t, admin).CreateTopic(t.Context(), topic.Spec.Partitions, topic.Spec.Replicas, config,
			topic.Metadata.Name); err != nil {
			t.Fatalf("create topic %s: %v", topic.Metadata.Name, err)
		}
	}
}

// topicsAreReady sets the condition Ready of all topics. It is separate from createTopics, which is
// measured and must not wait for kubectl.
func (s *strimzi) topicsAreReady(t *testing.T) {
	t.Helper()
	for _, topic := range s.topics {
		s.isReady(t, topic, map[string]any{"topicName": topic.Metadata.Name})
	}
}

// as returns the options of a Kafka client with a user's certificate, or admin's. Every connection
// goes through the port-forward. The client still checks that the broker's certificate has the name
// that it asked for.
func (s *strimzi) as(t *testing.T, user string) []kgo.Opt {
	t.Helper()
	certPEM, keyPEM := s.clientsCA.Issue(t, user)
	certificate, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return s.with(certificate)
}

func (s *strimzi) with(certificates ...tls.Certificate) []kgo.Opt {
	roots := s.clusterCA.Roots()
	return []kgo.Opt{kgo.SeedBrokers(s.bootstrap()),
		kgo.Dialer(func(ctx context.Context, network, broker string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(broker)
			if err != nil {
				return nil, err
			}
			d := tls.Dialer{Config: &tls.Config{ServerName: host, RootCAs: roots, Certificates: certificates}}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			for {
				conn, err := d.DialContext(ctx, network, s.forwarded)
				// kubectl ends when one of its connections breaks, and is started again.
				if !errors.Is(err, syscall.ECONNREFUSED) || !backoff.Sleep(ctx, 100*time.Millisecond) {
					return conn, err
				}
			}
		})}
}

// client returns a Kafka client of a user. It is closed when the test ends.
func (s *strimzi) client(t *testing.T, user string) *kadm.Client {
	t.Helper()
	client, err := kadm.NewOptClient(s.as(t, user)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// read returns the records of a topic.
func (s *strimzi) read(t *testing.T, topic string) []testenv.Record {
	t.Helper()
	records, err := testenv.Read(t.Context(), s.bootstrap(), topic, s.as(t, admin)...)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// produce writes a record that no service would write.
func (s *strimzi) produce(t *testing.T, topic, key, value string) {
	t.Helper()
	client, err := kgo.NewClient(s.as(t, admin)...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(),
		&kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// texts returns settings as Kafka takes them.
func texts(settings map[string]any) map[string]string {
	m := make(map[string]string)
	for name, value := range settings {
		m[name] = fmt.Sprint(value)
	}
	return m
}
