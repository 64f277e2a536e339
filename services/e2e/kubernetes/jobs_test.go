package kubernetes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// runbookJobs are the Jobs of docs/runbooks.
var runbookJobs = []string{"dead-letters", "reconcile"}

// readRunbook returns a manifest of docs/runbooks, for the test's namespace.
func readRunbook(t *testing.T, c *cluster, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/runbooks", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "namespace: orders\n", "namespace: "+c.namespace+"\n")
}

// runJobs runs the Jobs as the user that the runbooks declare.
func (i *installation) runJobs(t *testing.T) {
	// The rest of the file is a pod with Kafka's tools, whose image may be out of reach.
	declared, _, _ := strings.Cut(readRunbook(t, i.cluster, "tools"), "\n---\n")
	var user resource
	if err := yaml.Unmarshal([]byte(declared), &user); err != nil {
		t.Fatal(err)
	}
	i.apply(t, declared)
	i.strimzi.allowUser(t, user)
	i.strimzi.writeSecret(t, user)
	for job, want := range map[string]string{"dead-letters": "", "reconcile": " orders compared, 0 differ"} {
		manifest := readRunbook(t, i.cluster, job)
		i.apply(t, manifest)
		i.kubectl(t, "wait", "job/"+job, "--for=condition=Complete", "--timeout=2m")
		if log := i.kubectl(t, "logs", "job/"+job); !strings.Contains(log, want) || job == "dead-letters" && log != "" {
			t.Errorf("Job %s: %s", job, log)
		}
		if _, err := i.try(t.Context(), manifest, "kubectl", "delete", "-f", "-", "--cascade=foreground",
			"--timeout=1m"); err != nil {
			t.Error(err)
		}
	}
	i.kubectl(t, "delete", "kafkauser/"+user.Metadata.Name, "secret/"+user.Metadata.Name)
}
