package manifests_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/manifests/schemas"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/operator"
)

const lagOperator = "charts/lag-operator"

// kinds returns the objects of one kind.
func kinds(t testing.TB, manifests []byte, kind string) (objects []document) {
	t.Helper()
	for _, o := range documents(t, manifests) {
		if o["kind"] == kind {
			objects = append(objects, o)
		}
	}
	return objects
}

// The operator itself accepts the ConfigMap of each of the chart's values files. Every file that it
// opens is in a directory that its pod mounts. The test puts files only there, below a directory of
// its own.
func TestOperatorTakesTheChartsConfiguration(t *testing.T) {
	t.Parallel()
	ca := testenv.NewAuthority(t, "cluster-ca")
	cert, key := ca.Issue(t, "lag-operator")
	secrets := map[string][]byte{
		"ca.crt": ca.PEM, "user.crt": cert, "tls.crt": cert, "user.key": key, "tls.key": key,
		"username": []byte("lag-operator"), "password": []byte("secret"),
	}
	for _, c := range charts(t) {
		if c.chart != lagOperator {
			continue
		}
		t.Run(filepath.Base(c.values), func(t *testing.T) {
			t.Parallel()
			manifests := helmTemplate(t, "shop", c.chart, c.values)
			root := t.TempDir()
			// An empty path means that there is no file.
			mounted := map[string]bool{"": true}
			for _, container := range field[[]any](kinds(t, manifests, "Deployment")[0], "spec", "template", "spec",
				"containers") {
				for _, mount := range field[[]any](container.(document), "volumeMounts") {
					path := filepath.Join(root, field[string](mount.(document), "mountPath"))
					mounted[path] = true
					if err := os.MkdirAll(path, 0o755); err != nil {
						t.Fatal(err)
					}
					for name, text := range secrets {
						if err := os.WriteFile(filepath.Join(path, name), text, 0o600); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			file := filepath.Join(root, "config.yaml")
			text := field[string](kinds(t, manifests, "ConfigMap")[0], "data", "config.yaml")
			text = strings.ReplaceAll(text, " /etc/kafka/", " "+root+"/etc/kafka/")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := operator.ConfigFromEnv(env.New(func(name string) string {
				return map[string]string{"CONFIG_FILE": file, "POD_NAMESPACE": "shop"}[name]
			}))
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			for _, k := range cfg.Clusters {
				for _, path := range []string{k.Kafka.CA, k.Kafka.TokenCA, dir(k.Kafka.Cert), dir(k.Kafka.Key),
					dir(k.Kafka.UsernameFile), dir(k.Kafka.PasswordFile)} {
					if !mounted[path] {
						t.Errorf("cluster %s: nothing is mounted at %s, but at %q", k.Name, path,
							slices.Sorted(maps.Keys(mounted)))
					}
				}
			}
		})
	}
}

func dir(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Dir(path)
}

// Helm renders the CRD as a template, which adds labels and changes nothing else.
func TestChartInstallsTheCRDThatIsGenerated(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, schemas.ConsumerGroup))
	if err != nil {
		t.Fatal(err)
	}
	crds := kinds(t, helmTemplate(t, "orders", lagOperator, ""), "CustomResourceDefinition")
	if len(crds) != 1 {
		t.Fatalf("%d CRDs", len(crds))
	}
	if diff := cmp.Diff(field[document](documents(t, text)[0], "spec"), field[document](crds[0], "spec")); diff != "" {
		t.Errorf("%s (-generated +installed):\n%s", schemas.ConsumerGroup, diff)
	}
}

func TestConsumerGroupIsTheOrderServices(t *testing.T) {
	t.Parallel()
	got := documents(t, kustomize(t, "k8s/consumer-groups"))
	if len(got) != 1 {
		t.Fatalf("%d objects", len(got))
	}
	objective := field[int](got[0], "spec", "objective", "maxLagSeconds")
	want := document{
		"apiVersion": "ordersystem.dev/v1alpha1",
		"kind":       "ConsumerGroup",
		"metadata":   document{"name": contract.GroupOrder, "namespace": "orders"},
		"spec": document{
			"cluster":   "orders",
			"group":     contract.GroupOrder,
			"topics":    []any{contract.TopicCreated, contract.TopicUpdated},
			"objective": document{"maxLagSeconds": objective},
		},
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if objective < 1 {
		t.Errorf("the objective is %d s", objective)
	}
}

// With more replicas than partitions, KEDA would start consumers that have nothing to read.
func TestScalingEndsWithThePartitions(t *testing.T) {
	t.Parallel()
	partitions := 0
	for _, topic := range contract.Topics() {
		if topic.Name == contract.TopicCreated {
			partitions = topic.Partitions
		}
	}
	for name, scaler := range map[string]document{"example": scalerExample(t), "chart": orderScaler(t, nil)} {
		if most := field[int](scaler, "spec", "maxReplicaCount"); most != partitions {
			t.Errorf("%s: maxReplicaCount is %d; the topics have %d partitions", name, most, partitions)
		}
	}
	_, refusal := render(t, "charts/orders", withScaler(document{"maxReplicas": partitions + 1}))
	if !strings.Contains(refusal, "order.autoscaling.maxReplicas has to be at most") {
		t.Errorf("the chart takes %d replicas: %s", partitions+1, refusal)
	}
}

// docs/lag.md says what was seen of the example. The chart scales Order in the same way.
func TestChartScalesOrderLikeTheExample(t *testing.T) {
	t.Parallel()
	example := scalerExample(t)
	const fewest, target = 4, 30
	chart := orderScaler(t, document{"minReplicas": fewest, "targetLagSeconds": target})
	want := field[document](example, "spec")
	// The example is for a consumer without state, which may have one replica.
	want["minReplicaCount"] = fewest
	want["scaleTargetRef"] = document{"name": "orders-order"}
	trigger := want["triggers"].([]any)[0].(document)["metadata"].(document)
	trigger["query"] = strings.Replace(trigger["query"].(string), "order-reports", contract.GroupOrder, 1)
	if diff := cmp.Diff(want, field[document](chart, "spec")); diff != "" {
		t.Errorf("(-example +chart):\n%s", diff)
	}
}

func scalerExample(t *testing.T) document {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "k8s/keda/scaled-object.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return documents(t, text)[0]
}

// orderScaler returns the ScaledObject that the chart makes of order.autoscaling.
func orderScaler(t *testing.T, autoscaling document) document {
	t.Helper()
	manifests, refusal := render(t, "charts/orders", withScaler(autoscaling))
	if refusal != "" {
		t.Fatal(refusal)
	}
	return kinds(t, []byte(manifests), "ScaledObject")[0]
}

func withScaler(autoscaling document) document {
	enabled := document{"enabled": true}
	maps.Copy(enabled, autoscaling)
	return document{"database": document{"existingSecret": "orders-db-app"}, "order": document{"autoscaling": enabled}}
}

// Two sources of the same series would double every sum over them.
func TestNoOtherExporterOfLag(t *testing.T) {
	t.Parallel()
	for environment := range environments {
		for _, kafka := range kinds(t, kustomize(t, "strimzi/cluster/"+environment), "Kafka") {
			if exporter := field[any](kafka, "spec", "kafkaExporter"); exporter != nil {
				t.Errorf("%s: kafkaExporter %v", environment, exporter)
			}
		}
	}
}

// `make images` builds all images with one tag, and the charts ask for that tag.
func TestChartsAskForTheImagesThatAreBuilt(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "make", "make")
	names, _ := run(t, nil, "make", "-s", "image-names")
	built := strings.Fields(names)
	for _, file := range glob(t, "charts/*/Chart.yaml") {
		chart := filepath.Dir(file)
		asked := 0
		for _, o := range documents(t, helmTemplate(t, "orders", chart, "")) {
			for _, image := range images(o) {
				if asked++; !slices.Contains(built, image) {
					t.Errorf("%s asks for %s; there is %q", chart, image, built)
				}
			}
		}
		if asked == 0 {
			t.Errorf("%s asks for no image", chart)
		}
	}
}
