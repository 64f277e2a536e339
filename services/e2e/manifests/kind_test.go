package manifests_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/kind/pkg/cluster"
)

func kindConfig(t *testing.T) (config v1alpha4.Cluster) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "kind-config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// kind refuses unknown fields too.
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&config); err != nil {
		t.Fatal(err)
	}
	return config
}

func TestKindClusterHasAWorkerInEachOfThreeZones(t *testing.T) {
	t.Parallel()
	config := kindConfig(t)
	roles, zones := []string{}, []string{}
	for _, node := range config.Nodes {
		roles = append(roles, string(node.Role))
		if zone, ok := node.Labels["topology.kubernetes.io/zone"]; ok {
			zones = append(zones, string(node.Role)+" in "+zone)
		}
	}
	slices.Sort(zones)
	if diff := cmp.Diff([]string{"control-plane", "worker", "worker", "worker"}, roles); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"worker in zone-a", "worker in zone-b", "worker in zone-c"}, zones); diff != "" {
		t.Errorf("zones (-want +got):\n%s", diff)
	}
	if "kind-"+config.Name != kindContext {
		t.Errorf("the cluster's name is %q; scripts and docs say %s", config.Name, kindContext)
	}
}

func TestKindNodesAreOfOneImageByItsDigest(t *testing.T) {
	t.Parallel()
	pinned := regexp.MustCompile(`^kindest/node:v1\.\d+\.\d+@sha256:[0-9a-f]{64}$`)
	config := kindConfig(t)
	for _, node := range config.Nodes {
		if !pinned.MatchString(node.Image) || node.Image != config.Nodes[0].Image {
			t.Errorf("%s: image %q", node.Role, node.Image)
		}
	}
}

// kind itself reads the file, applies defaults and validates it. It gets as far as Docker, which a
// script replaces.
func TestKindTakesTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	docker := "#!/bin/sh\necho \"$*\" >>" + asked +
		"\ncase $1 in info) echo '{}' ;; ps | inspect) ;; *) echo 'no Docker' >&2; exit 1 ;; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(docker), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("KUBECONFIG", filepath.Join(dir, "kubeconfig"))

	file := cluster.CreateWithConfigFile(filepath.Join(root, "kind-config.yaml"))
	err := cluster.NewProvider(cluster.ProviderWithDocker()).Create("", file)
	if err == nil || !strings.Contains(err.Error(), "docker network") {
		t.Errorf("kind got as far as: %v", err)
	}
	got, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"label=io.x-k8s.kind.cluster=orders", kindConfig(t).Nodes[0].Image} {
		if !strings.Contains(string(got), want) {
			t.Errorf("kind did not ask Docker for %s, but:\n%s", want, got)
		}
	}
}
