// Package schemas finds what the manifests are checked against: the CRDs that they use, and
// Kubernetes' own types. It takes each from its project's release and commits none.
package schemas

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"ordersystem.dev/services/internal/backoff"
)

// These are the releases that the manifests are written for.
const (
	kubernetes         = "k8s.io/kubernetes@v1.37.2"
	prometheusOperator = "github.com/prometheus-operator/prometheus-operator@v0.93.1"
	gatewayAPI         = "sigs.k8s.io/gateway-api@v1.6.3"
	keda               = "github.com/kedacore/keda/v2@v2.21.0"
	cloudNativePG      = "github.com/cloudnative-pg/cloudnative-pg@v1.30.0"
	barmanCloud        = "github.com/cloudnative-pg/plugin-barman-cloud@v0.15.0"
)

// releases are the modules that commit their CRDs, with the files of those that are used.
var releases = []struct {
	module string
	crds   []string
}{
	{prometheusOperator, []string{
		"example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
		"example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
	}},
	{gatewayAPI, []string{"config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"}},
	{keda, []string{"config/crd/bases/keda.sh_scaledobjects.yaml"}},
	{cloudNativePG, []string{
		"config/crd/bases/postgresql.cnpg.io_clusters.yaml",
		"config/crd/bases/postgresql.cnpg.io_scheduledbackups.yaml",
	}},
	{barmanCloud, []string{"config/crd/bases/barmancloud.cnpg.io_objectstores.yaml"}},
}

// ConsumerGroup is the path of the project's own CRD in the repository.
const ConsumerGroup = "charts/lag-operator/files/ordersystem.dev_consumergroups.yaml"

// CRDs returns the files of the CRDs that the manifests use. It downloads what is missing.
func CRDs(ctx context.Context) ([]string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the repository: %w", err)
	}
	// Strimzi commits no CRDs, so its generator makes them. The other projects commit theirs.
	strimzi, err := strimzi(ctx)
	if err != nil {
		return nil, err
	}
	crds := append(strimzi, filepath.Join(strings.TrimSpace(string(root)), ConsumerGroup))
	for _, release := range releases {
		dir, err := module(ctx, release.module)
		if err != nil {
			return nil, err
		}
		for _, crd := range release.crds {
			crds = append(crds, filepath.Join(dir, crd))
		}
	}
	return crds, nil
}

// Install creates the CRDs that the cluster of kubectl's configuration lacks. It never changes one
// that exists.
func Install(ctx context.Context) error {
	crds, err := CRDs(ctx)
	if err != nil {
		return err
	}
	for _, crd := range crds {
		out, err := exec.CommandContext(ctx, "kubectl", "create", "--filename", crd).CombinedOutput()
		if err != nil && !bytes.Contains(out, []byte("AlreadyExists")) {
			return fmt.Errorf("create %s: %w\n%s", crd, err, out)
		}
		if err := established(ctx, crd); err != nil {
			return err
		}
	}
	return nil
}

// established waits until the API server serves a CRD. `kubectl wait` would fail on a CRD so new
// that it has no conditions.
func established(ctx context.Context, crd string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, "kubectl", "get", "--filename", crd,
			"--output", `jsonpath={.status.conditions[?(@.type=="Established")].status}`).CombinedOutput()
		if err == nil && string(out) == "True" {
			return nil
		}
		if !backoff.Sleep(ctx, 100*time.Millisecond) {
			return fmt.Errorf("%s is not established after 30 s: %s", crd, out)
		}
	}
}

// module downloads a Go module, if need be, and returns the directory of its source.
func module(ctx context.Context, version string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", version)
	// Outside of this repository, the download does not touch its go.sum.
	cmd.Dir = os.TempDir()
	out, failed := cmd.Output()
	var m struct{ Dir, Error string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", fmt.Errorf("download %s: %w", version, errors.Join(failed, err))
	}
	if m.Error != "" {
		return "", fmt.Errorf("download %s: %s", version, m.Error)
	}
	return m.Dir, nil
}
