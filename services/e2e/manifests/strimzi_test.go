package manifests_test

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

// manifest has the fields that these tests look at, of all kinds.
type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Spec struct {
		Kafka struct {
			Version string
			Config  map[string]any
		}
		Partitions    int
		Replicas      int
		Config        map[string]any
		Authorization struct{ ACLs []acl }
		Group         string
		Topics        []string

		NamespaceSelector struct {
			MatchNames []string `yaml:"matchNames"`
		} `yaml:"namespaceSelector"`
	}
}

type acl struct {
	Type       string
	Host       string
	Operations []string
	Resource   struct {
		Type, Name  string
		PatternType string `yaml:"patternType"`
	}
}

func decode(t testing.TB, manifests []byte) (all []manifest) {
	t.Helper()
	for _, o := range documents(t, manifests) {
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var r manifest
		if err := yaml.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// Only replication differs between the environments. Everything else is the same.
var environments = map[string]struct{ replicas, minInSync int }{
	"dev":        {1, 1},
	"production": {3, 2},
}

func TestStrimziServesTheAPIVersion(t *testing.T) {
	t.Parallel()
	for _, dir := range overlays(t) {
		if strings.HasPrefix(dir, "strimzi") {
			for _, r := range decode(t, kustomize(t, dir)) {
				if r.APIVersion != "kafka.strimzi.io/v1" {
					t.Errorf("%s: %s %s is %s; Strimzi 1.x serves kafka.strimzi.io/v1 only", dir, r.Kind,
						r.Metadata.Name, r.APIVersion)
				}
			}
		}
	}
}

func TestTopicsAreTheContracts(t *testing.T) {
	t.Parallel()
	for environment, replication := range environments {
		t.Run(environment, func(t *testing.T) {
			t.Parallel()
			var got []contract.Topic
			for _, r := range decode(t, kustomize(t, "strimzi/topics/"+environment)) {
				if r.Kind != "KafkaTopic" {
					continue
				}
				if r.Spec.Replicas != replication.replicas {
					t.Errorf("%s has %d replicas, want %d", r.Metadata.Name, r.Spec.Replicas, replication.replicas)
				}
				topic := contract.Topic{Name: r.Metadata.Name, Partitions: r.Spec.Partitions,
					Config: map[string]string{}}
				for name, value := range r.Spec.Config {
					topic.Config[name] = fmt.Sprint(value)
				}
				// The minimum of in-sync replicas is a matter of replication too.
				if replication.replicas > 1 {
					if got, want := topic.Config["min.insync.replicas"],
						fmt.Sprint(replication.minInSync); got != want {
						t.Errorf("%s has min.insync.replicas %q, want %s", r.Metadata.Name, got, want)
					}
					delete(topic.Config, "min.insync.replicas")
				}
				got = append(got, topic)
			}
			byName := func(a, b contract.Topic) int { return strings.Compare(a.Name, b.Name) }
			if diff := cmp.Diff(slices.SortedFunc(slices.Values(contract.Topics()), byName),
				slices.SortedFunc(slices.Values(got), byName)); diff != "" {
				t.Errorf("not the topics of services/contract (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUsersMayDoWhatTheyNeedAndNoMore(t *testing.T) {
	t.Parallel()
	want := map[string][]string{
		"cart": {
			"group " + contract.GroupRebuild + ": Describe",
			"topic " + contract.TopicCreated + ": Describe Read Write",
			"topic " + contract.TopicUpdated + ": Describe Read Write",
			"transactionalId " + contract.TransactionalIDPoison + ": Describe Write",
			"transactionalId " + contract.TransactionalIDsRelay[1] + ": Describe Write",
			"transactionalId " + contract.TransactionalIDsRelay[0] + ": Describe Write",
		},
		"order": {
			"group " + contract.GroupAudit + ": Describe",
			"group " + contract.GroupOrder + ": Read",
			"topic " + contract.TopicCreated + ": Describe Read",
			"topic " + contract.TopicDeadLetter + ": Describe Read Write",
			"topic " + contract.TopicUpdated + ": Describe Read",
			"transactionalId " + contract.TransactionalIDsDeadLetters[1] + ": Describe Write",
			"transactionalId " + contract.TransactionalIDsDeadLetters[0] + ": Describe Write",
		},
		"lag-operator": {
			"group *: Describe",
			"topic *: Describe",
		},
	}
	for environment := range environments {
		got := map[string][]string{}
		for _, r := range decode(t, kustomize(t, "strimzi/topics/"+environment)) {
			if r.Kind != "KafkaUser" {
				continue
			}
			for _, a := range r.Spec.Authorization.ACLs {
				line := fmt.Sprintf("%s %s: %s", a.Resource.Type, a.Resource.Name,
					strings.Join(slices.Sorted(slices.Values(a.Operations)), " "))
				// The defaults are: allow, from any host, for this name only.
				if a.Type != "" || a.Host != "" || a.Resource.PatternType != "" {
					line += fmt.Sprintf(" (type %q, host %q, pattern %q)", a.Type, a.Host, a.Resource.PatternType)
				}
				got[r.Metadata.Name] = append(got[r.Metadata.Name], line)
			}
			slices.Sort(got[r.Metadata.Name])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", environment, diff)
		}
	}
}

// A second installation beside the first declares the same, and every name of it in Kafka has its prefix.
func TestEveryNameOfASecondInstallationHasThePrefix(t *testing.T) {
	t.Parallel()
	names := func(prefix string, manifests []byte) (all []string) {
		for _, r := range decode(t, manifests) {
			if r.Metadata.Name == "lag-operator" {
				// One is enough for a Kafka.
				continue
			}
			add := func(name string) { all = append(all, fmt.Sprintf("%s %s%s", r.Kind, prefix, name)) }
			add(r.Metadata.Name)
			for _, a := range r.Spec.Authorization.ACLs {
				add(a.Resource.Name)
			}
			if r.Kind == "ConsumerGroup" {
				add(r.Spec.Group)
				for _, topic := range r.Spec.Topics {
					add(topic)
				}
			}
		}
		return all
	}
	// Staging shares the Kafka of production, so a broker that fails takes nothing of it either.
	for _, topic := range kinds(t, kustomize(t, "strimzi/topics/staging"), "KafkaTopic") {
		if got, want := field[int](topic, "spec", "replicas"), environments["production"].replicas; got != want {
			t.Errorf("%s has %d replicas, want %d", field[string](topic, "metadata", "name"), got, want)
		}
	}
	for first, second := range map[string]string{
		"strimzi/topics/production": "strimzi/topics/staging",
		"k8s/consumer-groups":       "k8s/consumer-groups-staging",
	} {
		rendered := kustomize(t, second)
		if diff := cmp.Diff(names("staging.", kustomize(t, first)), names("", rendered)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", second, diff)
		}
		if strings.Contains(string(rendered), "lag-operator") {
			t.Errorf("%s has a user for a second lag operator", second)
		}
	}
}

func TestNothingHasFewerReplicasThanItsEnvironment(t *testing.T) {
	t.Parallel()
	for environment, replication := range environments {
		for _, r := range decode(t, kustomize(t, "strimzi/cluster/"+environment)) {
			switch r.Kind {
			case "KafkaNodePool":
				if r.Spec.Replicas != replication.replicas {
					t.Errorf("%s: node pool %s has %d nodes, want %d", environment, r.Metadata.Name, r.Spec.Replicas,
						replication.replicas)
				}
			case "Kafka":
				got := map[string]any{}
				for name, value := range r.Spec.Kafka.Config {
					if strings.HasSuffix(name, "replication.factor") || strings.HasSuffix(name, "min.isr") ||
						name == "min.insync.replicas" {
						got[name] = value
					}
				}
				want := map[string]any{
					"default.replication.factor":               replication.replicas,
					"offsets.topic.replication.factor":         replication.replicas,
					"transaction.state.log.replication.factor": replication.replicas,
					"min.insync.replicas":                      replication.minInSync,
					"transaction.state.log.min.isr":            replication.minInSync,
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", environment, diff)
				}
			}
		}
	}
}

// The tests and the benchmarks run on a broker of this version, with these settings.
func TestKafkaIsTheOneThatTheTestsRunOn(t *testing.T) {
	t.Parallel()
	file, err := os.Open(filepath.Join(root, "services/internal/localkafka/broker.properties"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	want := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && !strings.HasPrefix(name, "#") {
			want[name] = value
		}
	}
	if len(want) == 0 {
		t.Fatalf("%s says nothing", file.Name())
	}
	for environment := range environments {
		for _, r := range decode(t, kustomize(t, "strimzi/cluster/"+environment)) {
			if r.Kind != "Kafka" {
				continue
			}
			if r.Spec.Kafka.Version != localkafka.Version() {
				t.Errorf("%s: Kafka %s, want %s", environment, r.Spec.Kafka.Version, localkafka.Version())
			}
			got := map[string]string{}
			for name, value := range r.Spec.Kafka.Config {
				if _, ok := want[name]; ok {
					got[name] = fmt.Sprint(value)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: not broker.properties (-want +got):\n%s", environment, diff)
			}
		}
	}
}

// The example in strimzi/README.md, saved as a reader would save it.
func TestTopicsMoveBesideAnotherKafka(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join(root, "strimzi/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n(# kustomization.yaml.*?)```").FindSubmatch(readme)
	if example == nil {
		t.Fatal("strimzi/README.md shows no kustomization.yaml")
	}
	dir := t.TempDir()
	topics, err := filepath.Abs(filepath.Join(root, "strimzi"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(topics, filepath.Join(dir, "strimzi")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), example[1], 0o644); err != nil {
		t.Fatal(err)
	}
	got := decode(t, kustomize(t, dir))
	if len(got) != len(decode(t, kustomize(t, "strimzi/topics/production"))) {
		t.Errorf("%d objects, fewer or more than in strimzi/topics/production", len(got))
	}
	for _, r := range got {
		if r.Metadata.Namespace != "kafka" || r.Metadata.Labels["strimzi.io/cluster"] != "my-cluster" {
			t.Errorf("%s %s is in the namespace %s and the cluster %s, want kafka and my-cluster",
				r.Kind, r.Metadata.Name, r.Metadata.Namespace, r.Metadata.Labels["strimzi.io/cluster"])
		}
	}
}

// The operators watch the namespaces in which the resources are.
func TestNamespacesAgree(t *testing.T) {
	t.Parallel()
	declared, used, scraped := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, dir := range overlays(t) {
		for _, r := range decode(t, kustomize(t, dir)) {
			if r.Kind == "Namespace" {
				declared[r.Metadata.Name] = true
				if level := r.Metadata.Labels["pod-security.kubernetes.io/enforce"]; level != "restricted" {
					t.Errorf("the namespace %s enforces %q, want restricted", r.Metadata.Name, level)
				}
				continue
			}
			used[r.Metadata.Namespace] = true
			for _, name := range r.Spec.NamespaceSelector.MatchNames {
				scraped[name] = true
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "k8s/strimzi-values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var operator struct {
		WatchNamespaces []string `yaml:"watchNamespaces"`
	}
	if err := yaml.Unmarshal(text, &operator); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"orders"}, operator.WatchNamespaces); diff != "" {
		t.Errorf("the operator's namespaces (-want +got):\n%s", diff)
	}
	for name, got := range map[string][]string{
		"declared": slices.Sorted(maps.Keys(declared)),
		"used":     slices.Sorted(maps.Keys(used)),
		"scraped":  slices.Sorted(maps.Keys(scraped)),
	} {
		want := map[string][]string{
			"declared": {"monitoring", "orders", "strimzi"},
			"used":     {"monitoring", "orders"},
			"scraped":  {"orders", "strimzi"},
		}[name]
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("namespaces %s (-want +got):\n%s", name, diff)
		}
	}
}
