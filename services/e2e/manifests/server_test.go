package manifests_test

import (
	"bytes"
	"crypto/rand"
	"os/exec"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/e2e/manifests/schemas"
	"ordersystem.dev/services/internal/testenv"
)

// A real API server checks everything and stores nothing: defaults, validation, admission and Pod
// Security.
func TestAPIServerTakesTheManifestsWithoutWarning(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	forEach(t, namespace, func(t *testing.T, manifests []byte) {
		_, warnings := run(t, moved(t, manifests, namespace), "kubectl", "apply", "--namespace", namespace,
			// The cluster already has the CRD, perhaps an older one.
			"--server-side", "--force-conflicts", "--dry-run=server", "--filename", "-")
		if warnings != "" {
			t.Error(warnings)
		}
	})
}

// Whoever applies the same manifests again changes nothing. What the server adds to the elements of a
// list, kubectl would take away each time. Only of a PodDisruptionBudget does kubectl always send the
// selector, and reports a change that is none.
func TestSecondApplyChangesNothing(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	forEach(t, namespace, func(t *testing.T, manifests []byte) {
		manifests = idle(t, moved(t, manifests, namespace), "t"+strings.ToLower(rand.Text()[:5]))
		apply := []string{"apply", "--namespace", namespace, "--filename", "-"}
		t.Cleanup(func() {
			cmd := exec.Command("kubectl", "delete", "--wait=false", "--ignore-not-found", "--filename", "-")
			cmd.Stdin = bytes.NewReader(manifests)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
		run(t, manifests, "kubectl", apply...)
		out, _ := run(t, manifests, "kubectl", apply...)
		for line := range strings.Lines(out) {
			if !strings.HasSuffix(line, " unchanged\n") && !strings.HasPrefix(line, "poddisruptionbudget.policy/") {
				t.Error(strings.TrimSpace(line))
			}
		}
	})
}

// idle gives the objects other names, so that they exist beside those of other tests. Nothing runs:
// Deployments get no pods, and nobody schedules a pod.
func idle(t *testing.T, manifests []byte, prefix string) []byte {
	t.Helper()
	var all []byte
	for _, o := range documents(t, manifests) {
		metadata, spec := o["metadata"].(document), document{}
		if s, ok := o["spec"].(document); ok {
			spec = s
		}
		switch o["kind"] {
		case "CustomResourceDefinition":
			// The name of a CRD ends with its group. Another group keeps the real one as it is.
			spec["group"] = prefix + "." + spec["group"].(string)
			metadata["name"] = field[string](o, "spec", "names", "plural") + "." + spec["group"].(string)
		case "Deployment":
			spec["replicas"] = 0
		case "Pod":
			spec["schedulerName"] = "nobody"
		}
		if o["kind"] != "CustomResourceDefinition" {
			metadata["name"] = prefix + "-" + metadata["name"].(string)
		}
		all = append(append(all, "---\n"...), encode(t, o)...)
	}
	return all
}

// newNamespace makes a namespace for this test alone, in a cluster with the CRDs. It is as strict
// as `orders` in k8s/namespaces.
func newNamespace(t *testing.T) string {
	t.Helper()
	testenv.RequireProgram(t, "kubectl", "kubectl")
	testenv.RequireCluster(t)
	// The CRDs are never deleted: that would delete every Kafka of the cluster.
	testenv.Require(t, schemas.Install(t.Context()))
	name := "manifests-" + strings.ToLower(rand.Text()[:8])
	for _, o := range documents(t, kustomize(t, "k8s/namespaces")) {
		metadata := o["metadata"].(document)
		if metadata["name"] == "orders" {
			metadata["name"] = name
			run(t, encode(t, o), "kubectl", "create", "--filename", "-")
			t.Cleanup(func() {
				if out, err := exec.Command("kubectl", "delete", "namespace", name,
					"--wait=false").CombinedOutput(); err != nil {
					t.Errorf("delete the namespace %s: %v\n%s", name, err, out)
				}
			})
		}
	}
	// Pods need the default service account.
	run(t, nil, "kubectl", "wait", "--namespace", name, "--for=create", "--timeout=30s", "serviceaccount/default")
	return name
}

// moved moves the objects into the namespace, so that objects of the cluster's own namespaces do
// not affect the test.
func moved(t *testing.T, manifests []byte, namespace string) []byte {
	t.Helper()
	var all []byte
	for _, o := range documents(t, manifests) {
		metadata := o["metadata"].(document)
		switch o["kind"] {
		case "Namespace":
			metadata["name"] = namespace + "-" + metadata["name"].(string)
		case "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding":
			// These kinds have no namespace.
		default:
			metadata["namespace"] = namespace
		}
		all = append(append(all, "---\n"...), encode(t, o)...)
	}
	return all
}

func encode(t *testing.T, o document) []byte {
	t.Helper()
	text, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
