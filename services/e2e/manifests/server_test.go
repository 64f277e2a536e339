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

// Everything is sent to a real API server, which checks it and keeps nothing: defaults, validation,
// admission, Pod Security.
func TestAPIServerTakesTheManifestsWithoutWarning(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	forEach(t, namespace, func(t *testing.T, manifests []byte) {
		_, warnings := run(t, moved(t, manifests, namespace), "kubectl", "apply", "--namespace", namespace,
			// A CRD is there already, perhaps an older one.
			"--server-side", "--force-conflicts", "--dry-run=server", "--filename", "-")
		if warnings != "" {
			t.Error(warnings)
		}
	})
}

// newNamespace makes a namespace for this test alone, as strict as k8s/namespaces makes `orders`,
// in a cluster with the CRDs.
func newNamespace(t *testing.T) string {
	t.Helper()
	testenv.RequireProgram(t, "kubectl", "kubectl")
	testenv.RequireCluster(t)
	// And never deleted: that would delete every Kafka.
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
	// Pods need it.
	run(t, nil, "kubectl", "wait", "--namespace", name, "--for=create", "--timeout=30s", "serviceaccount/default")
	return name
}

// moved puts the objects into the namespace, so that what runs in theirs has no part in the test.
func moved(t *testing.T, manifests []byte, namespace string) []byte {
	t.Helper()
	var all []byte
	for _, o := range documents(t, manifests) {
		metadata := o["metadata"].(document)
		switch o["kind"] {
		case "Namespace":
			metadata["name"] = namespace + "-" + metadata["name"].(string)
		case "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding":
			// Are in none.
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
