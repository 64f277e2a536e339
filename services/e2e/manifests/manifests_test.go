// Package manifests_test checks what is deployed, without deploying it. It renders charts/,
// strimzi/ and k8s/ as their users do and compares the result with the schemas, with other
// manifests, with the code, and with a real API server if KUBECONFIG names one.
package manifests_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/e2e/manifests/schemas"
	"ordersystem.dev/services/internal/testenv"
)

const root = "../../.."

// run runs a program in the repository's root and returns its output. Any failure ends the test.
func run(t testing.TB, stdin []byte, program string, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = root
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, &out, &errs)
	}
	return out.String(), errs.String()
}

func kustomize(t testing.TB, dir string) []byte {
	t.Helper()
	testenv.RequireProgram(t, "kubectl", "kubectl, which has kustomize in it")
	out, _ := run(t, nil, "kubectl", "kustomize", dir)
	return []byte(out)
}

// helmVersion is asked for once, because many tests need it.
var helmVersion = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("helm", "version", "--template", "{{.Version}}").Output()
	return strings.TrimSpace(string(out)), err
})

// requireHelm ends the test as testenv.CannotRun does without Helm 4.
func requireHelm(t testing.TB) {
	t.Helper()
	testenv.RequireProgram(t, "helm", "Helm 4")
	version, err := helmVersion()
	if err != nil {
		t.Fatalf("ask helm for its version: %v", err)
	}
	if !strings.HasPrefix(version, "v4.") {
		testenv.CannotRun(t, "helm is "+version+": install Helm 4")
	}
}

// helmTemplate renders the chart with a values file. If values is empty, it uses the chart's own
// values only.
func helmTemplate(t testing.TB, namespace, chart, values string) []byte {
	t.Helper()
	requireHelm(t)
	args := []string{"template", filepath.Base(chart), chart, "--namespace", namespace}
	if values != "" {
		args = append(args, "--values", values)
	}
	out, _ := run(t, nil, "helm", args...)
	return []byte(out)
}

// glob returns the files that match, relative to the root. The test fails if there are none.
func glob(t testing.TB, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("there is no %s (%v)", pattern, err)
	}
	for i := range found {
		if found[i], err = filepath.Rel(root, found[i]); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// charts returns each chart's directory with each of its values files, and once without.
func charts(t testing.TB) (all []struct{ chart, values string }) {
	t.Helper()
	for _, file := range glob(t, "charts/*/Chart.yaml") {
		chart := filepath.Dir(file)
		for _, values := range append(glob(t, chart+"/ci/*-values.yaml"), "") {
			all = append(all, struct{ chart, values string }{chart, values})
		}
	}
	return all
}

// overlays returns the directories that a user applies: every kustomization that is not only a base
// for others.
func overlays(t testing.TB) (dirs []string) {
	t.Helper()
	for _, top := range []string{"strimzi", "k8s"} {
		err := fs.WalkDir(os.DirFS(root), top, func(path string, _ fs.DirEntry, err error) error {
			if dir := filepath.Dir(path); filepath.Base(path) == "kustomization.yaml" && filepath.Base(dir) != "base" {
				dirs = append(dirs, dir)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(dirs) == 0 {
		t.Fatal("there is no kustomization")
	}
	return dirs
}

// forEach calls check with each set of manifests that a user may apply, rendered for the namespace.
func forEach(t *testing.T, namespace string, check func(t *testing.T, manifests []byte)) {
	for _, c := range charts(t) {
		t.Run(filepath.Join(c.chart, filepath.Base(c.values)), func(t *testing.T) {
			t.Parallel()
			check(t, helmTemplate(t, namespace, c.chart, c.values))
		})
	}
	for _, dir := range overlays(t) {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			check(t, kustomize(t, dir))
		})
	}
	// These are in no kustomization.
	for _, file := range append(glob(t, "k8s/keda/*.yaml"), glob(t, "docs/runbooks/*.yaml")...) {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				t.Fatal(err)
			}
			check(t, text)
		})
	}
}

type document = map[string]any

// documents decodes a stream of YAML documents.
func documents(t testing.TB, text []byte) (objects []document) {
	t.Helper()
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var o document
		switch err := decoder.Decode(&o); {
		case errors.Is(err, io.EOF):
			return objects
		case err != nil:
			t.Fatal(err)
		}
		if o != nil {
			objects = append(objects, o)
		}
	}
}

func TestManifestsFitTheSchemas(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "kubeconform", "kubeconform")
	dir := t.TempDir()
	testenv.Require(t, schemas.Write(t.Context(), dir))
	forEach(t, "orders", func(t *testing.T, manifests []byte) {
		run(t, manifests, "kubeconform", "-strict", "-schema-location", schemas.Location(dir))
	})
}

func TestChartsPassTheLinter(t *testing.T) {
	t.Parallel()
	requireHelm(t)
	for _, c := range charts(t) {
		t.Run(filepath.Join(c.chart, filepath.Base(c.values)), func(t *testing.T) {
			t.Parallel()
			args := []string{"lint", "--strict", c.chart}
			if c.values != "" {
				args = append(args, "--values", c.values)
			}
			run(t, nil, "helm", args...)
		})
	}
}

func TestChartsPassTheirUnitTests(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "helm-unittest", "helm-unittest, as a program or linked from the plugin's directory")
	for _, file := range glob(t, "charts/*/Chart.yaml") {
		chart := filepath.Dir(file)
		// helm-unittest also passes if there are no tests.
		glob(t, chart+"/tests/*_test.yaml")
		run(t, nil, "helm-unittest", "--strict", chart)
	}
}

func TestChartsDocumentEveryValue(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "helm-docs", "helm-docs")
	for _, file := range glob(t, "charts/*/Chart.yaml") {
		chart := filepath.Dir(file)
		want, _ := run(t, nil, "helm-docs", "--dry-run", "--chart-search-root", chart)
		got, err := os.ReadFile(filepath.Join(root, chart, "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(string(got))); diff != "" {
			t.Errorf("%s/README.md is not what helm-docs makes of the comments now (-want +got):\n%s", chart, diff)
		}
	}
}
