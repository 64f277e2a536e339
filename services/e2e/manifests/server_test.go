package manifests_test

import (
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
