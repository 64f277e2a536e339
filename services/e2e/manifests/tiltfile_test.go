package manifests_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.starlark.net/starlark"

	"ordersystem.dev/services/internal/testenv"
)

const kindContext = "kind-orders"

// eachTiltfile calls check with what the Tiltfile declares, for each combination of flags that
// changes it.
func eachTiltfile(t *testing.T, check func(t *testing.T, f *tiltfile)) {
	for name, args := range map[string]map[string]starlark.Value{
		"all":              nil,
		"no observability": {"no-observability": starlark.True},
		"PostgreSQL":       {"postgres": starlark.True},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := evaluate(t, kindContext, args)
			if err != nil {
				t.Fatal(err)
			}
			check(t, f)
		})
	}
}

func TestTiltTouchesOnlyKindClusters(t *testing.T) {
	t.Parallel()
	for _, context := range []string{"", "production", "docker-desktop", "my-kind-cluster"} {
		f, err := evaluate(t, context, nil)
		if err == nil || !strings.Contains(err.Error(), "is no kind cluster") {
			t.Errorf("context %q: declared %v, %v", context, f, err)
		}
	}
}

func TestTiltStartsEachAfterWhatItNeeds(t *testing.T) {
	t.Parallel()
	f, err := evaluate(t, kindContext, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for name, r := range f.resources {
		got[name] = r.needs
	}
	buttons := []string{"check", "cart", "order"}
	want := map[string][]string{
		"namespaces":           nil,
		"monitoring-namespace": nil,
		"strimzi":              {"namespaces"},
		"kafka":                {"strimzi"},
		"topics":               {"kafka"},
		"network-policies":     {"namespaces"},
		"cart":                 {"topics"},
		"order":                {"topics"},
		"lag-operator":         {"topics"},
		"consumer-groups":      {"lag-operator"},
		"monitoring":           {"monitoring-namespace"},
		"monitors":             {"monitoring"},
		"dashboards":           {"monitoring"},
		"grafana":              {"monitoring"},
		"prometheus":           {"monitoring"},
		"check":                {"namespaces"},
		"place-and-update":     buttons, "load": buttons, "audit": buttons, "poison": buttons,
		"restart-broker": buttons,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("resource_deps (-want +got):\n%s", diff)
	}
}

func TestTiltStartsTheServicesAfterTheirDatabase(t *testing.T) {
	t.Parallel()
	f, err := evaluate(t, kindContext, map[string]starlark.Value{"postgres": starlark.True})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"cloudnative-pg": nil,
		"database":       {"namespaces", "cloudnative-pg"},
		"cart":           {"topics", "database"},
		"order":          {"topics", "database"},
	} {
		r := f.resources[name]
		if r == nil {
			t.Errorf("there is no %s", name)
			continue
		}
		if diff := cmp.Diff(want, r.needs); diff != "" {
			t.Errorf("%s needs (-want +got):\n%s", name, diff)
		}
		for _, o := range r.objects {
			if replicas := field[int](o, "spec", "replicas"); o["kind"] == "Deployment" && replicas < 2 {
				t.Errorf("%s has %d replicas", name, replicas)
			}
		}
	}
}

func TestTiltWaitsForNothingThatIsNotThere(t *testing.T) {
	t.Parallel()
	eachTiltfile(t, func(t *testing.T, f *tiltfile) {
		done := map[string]bool{}
		// Each round starts the resources whose dependencies have started.
		for range f.resources {
			for name, r := range f.resources {
				done[name] = done[name] ||
					!slices.ContainsFunc(r.needs, func(needed string) bool { return !done[needed] })
			}
		}
		for name, r := range f.resources {
			if !done[name] {
				t.Errorf("%s never starts: it needs %v", name, r.needs)
			}
			for _, needed := range r.needs {
				if n := f.resources[needed]; n != nil && n.button {
					t.Errorf("%s waits for the button %s", name, needed)
				}
			}
		}
	})
}

func TestTiltAppliesNoObjectBeforeItsTime(t *testing.T) {
	t.Parallel()
	eachTiltfile(t, func(t *testing.T, f *tiltfile) {
		for _, o := range f.objects {
			t.Errorf("%s %s is in no resource: it would be applied before the namespaces", o["kind"],
				field[string](o, "metadata", "name"))
		}
	})
}

// Without the Prometheus operator's CRDs, applying a PodMonitor fails and stops everything.
func TestTiltWithoutObservabilityNeedsNoCRDOfIt(t *testing.T) {
	t.Parallel()
	f, err := evaluate(t, kindContext, map[string]starlark.Value{"no-observability": starlark.True})
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range f.resources {
		if slices.Contains(r.labels, "observability") {
			t.Errorf("%s is there", name)
		}
		for _, o := range r.objects {
			if strings.Contains(o["apiVersion"].(string), "monitoring.coreos.com") {
				t.Errorf("%s has a %s", name, o["kind"])
			}
		}
	}
}

func TestTiltForwardsEachPortOnce(t *testing.T) {
	t.Parallel()
	moved := map[string]starlark.Value{"cart-port": starlark.String("15000"), "order-port": starlark.String("17000")}
	for _, test := range []struct {
		name string
		args map[string]starlark.Value
		want []int
	}{
		{"as they are", nil, []int{3000, 5000, 5001, 7000, 7001, 9090}},
		{"moved", moved, []int{3000, 5001, 7001, 9090, 15000, 17000}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, err := evaluate(t, kindContext, test.args)
			if err != nil {
				t.Fatal(err)
			}
			got := []int{}
			for _, r := range f.resources {
				got = append(got, r.ports...)
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTiltGivesEveryResourceALabel(t *testing.T) {
	t.Parallel()
	eachTiltfile(t, func(t *testing.T, f *tiltfile) {
		for name, r := range f.resources {
			if len(r.labels) != 1 {
				t.Errorf("%s: labels %v", name, r.labels)
			}
			if r.button != (slices.Contains(r.labels, "checks") && name != "check") {
				t.Errorf("%s: button %v, labels %v; `tilt ci` runs all but the buttons", name, r.button, r.labels)
			}
		}
	})
}

// repositoryPath matches a word of a command that names something in this repository.
var repositoryPath = regexp.MustCompile(`(?:^|[\s"'])((?:tilt|k8s|strimzi|charts|services)/[\w./-]+)`)

func TestTiltNamesOnlyFilesThatExist(t *testing.T) {
	t.Parallel()
	eachTiltfile(t, func(t *testing.T, f *tiltfile) {
		paths := []string{}
		for _, r := range f.resources {
			paths = append(paths, r.files...)
			for _, command := range r.commands {
				for _, match := range repositoryPath.FindAllStringSubmatch(command, -1) {
					paths = append(paths, match[1])
				}
			}
		}
		for _, b := range f.builds {
			paths = append(append(paths, b.context, b.dockerfile), b.only...)
		}
		if len(paths) < 20 {
			t.Errorf("looked for %q only", paths)
		}
		for _, path := range paths {
			info, err := os.Stat(filepath.Join(root, path))
			if err != nil {
				t.Error(err)
			} else if strings.HasSuffix(path, ".sh") && info.Mode()&0o111 == 0 {
				t.Errorf("%s is not executable", path)
			}
		}
	})
}

func TestTiltsCommandsParse(t *testing.T) {
	t.Parallel()
	eachTiltfile(t, func(t *testing.T, f *tiltfile) {
		for name, r := range f.resources {
			for _, command := range r.commands {
				if command == "" {
					t.Errorf("%s: a command is empty", name)
				}
				parses(t, name, command)
			}
		}
	})
	for _, script := range glob(t, "tilt/*.sh") {
		text, err := os.ReadFile(filepath.Join(root, script))
		if err != nil {
			t.Fatal(err)
		}
		parses(t, script, string(text))
	}
}

func parses(t *testing.T, name, script string) {
	t.Helper()
	testenv.RequireProgram(t, "bash", "bash")
	cmd := exec.CommandContext(t.Context(), "bash", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

// Without a context, kubectl would use whichever is current by then.
func TestTiltsLocalCommandsNameTheContext(t *testing.T) {
	t.Parallel()
	const named = `kubectl --context "$KUBE_CONTEXT"`
	f, err := evaluate(t, kindContext, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range f.resources {
		if r.custom {
			continue
		}
		for _, command := range r.commands {
			text := command
			if script := repositoryPath.FindString(command); strings.HasSuffix(script, ".sh") {
				content, err := os.ReadFile(filepath.Join(root, script))
				if err != nil {
					t.Fatal(err)
				}
				// A user may also call it by hand.
				text = strings.ReplaceAll(string(content), "${KUBE_CONTEXT:-kind-orders}", "$KUBE_CONTEXT")
			}
			if !strings.Contains(text, named) {
				t.Errorf("%s: %s does not say %s", name, command, named)
			}
		}
	}
}

// jobFiles have the CronJobs of Tilt's buttons.
var jobFiles = []string{"tilt/check.yaml", "tilt/poison.yaml"}

// cronJobs returns the CronJobs of Tilt's buttons by name.
func cronJobs(t *testing.T) map[string]document {
	t.Helper()
	jobs := map[string]document{}
	for _, file := range jobFiles {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range documents(t, text) {
			jobs[field[string](o, "metadata", "name")] = o
		}
	}
	return jobs
}

func TestTiltsButtonsRunWhatIsThere(t *testing.T) {
	t.Parallel()
	f, err := evaluate(t, kindContext, nil)
	if err != nil {
		t.Fatal(err)
	}
	jobs := cronJobs(t)
	used := map[string]bool{}
	for name, r := range f.resources {
		words := strings.Fields(strings.Join(r.commands, " "))
		if !r.button || words[0] != "tilt/check.sh" {
			continue
		}
		if jobs[words[1]] == nil {
			t.Errorf("%s: there is no CronJob %q", name, words[1])
		}
		used[words[1]] = true
		if words[1] != "check" {
			if len(words) > 2 {
				t.Errorf("%s: %s takes no arguments", name, words[1])
			}
			continue
		}
		// The last step does not exist. The program refuses it after it has accepted everything
		// before it.
		args := append([]string{"run", "./services/cmd/check"}, append(words[2:], "nonsense")...)
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), `no step "nonsense"`) {
			t.Errorf("%s: check %s: %s", name, words[2:], out)
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(jobs)), slices.Sorted(maps.Keys(used))); diff != "" {
		t.Errorf("CronJobs that a button runs (-there +run):\n%s", diff)
	}
}

func TestTiltsJobsRunOnlyWhenAskedTo(t *testing.T) {
	t.Parallel()
	for name, job := range cronJobs(t) {
		if !field[bool](job, "spec", "suspend") {
			t.Errorf("%s is not suspended", name)
		}
		spec := field[document](job, "spec", "jobTemplate", "spec")
		if retries, ok := spec["backoffLimit"].(int); !ok || retries != 0 {
			t.Errorf("%s: backoffLimit %v: what failed has to show", name, spec["backoffLimit"])
		}
	}
}

// Docker gets exactly the files from which a program is built.
func TestTiltBuildsEachProgramFromItsPackages(t *testing.T) {
	t.Parallel()
	f, err := evaluate(t, kindContext, nil)
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for image, b := range f.builds {
		program := b.args["PROGRAM"]
		if want := "ghcr.io/ordersystem/" + program; image != want {
			t.Errorf("PROGRAM=%s builds %s", program, image)
		}
		out, _ := run(t, nil, "go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.Dir}}{{end}}{{end}}",
			"./services/cmd/"+program)
		sent := func(dir string) bool {
			return slices.ContainsFunc(b.only,
				func(path string) bool { return dir == path || strings.HasPrefix(dir, path+"/") })
		}
		needed := map[string]bool{}
		for dir := range strings.Lines(out) {
			dir, err := filepath.Rel(top, strings.TrimSpace(dir))
			if err != nil {
				t.Fatal(err)
			}
			needed[dir] = true
			if !sent(dir) {
				t.Errorf("%s: its package %s is not sent", image, dir)
			}
		}
		for _, service := range []string{"services/cart", "services/order"} {
			if sent(service) && !needed[service] {
				t.Errorf("%s is built again when %s changes", image, service)
			}
		}
	}
}

// Every image of this project that a pod asks for is built, because no registry has it.
func TestTiltBuildsEveryImageOfOurs(t *testing.T) {
	t.Parallel()
	f, err := evaluate(t, kindContext, nil)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, r := range f.resources {
		for _, image := range r.images {
			name, _, _ := strings.Cut(image, ":")
			used[name] = true
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(f.builds)), slices.Sorted(maps.Keys(used))); diff != "" {
		t.Errorf("images (-built +used):\n%s", diff)
	}
}

func TestAPIServerTakesTiltsJobsWithoutWarning(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	for _, file := range jobFiles {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		_, warnings := run(t, moved(t, text, namespace),
			"kubectl", "apply", "--namespace", namespace, "--dry-run=server", "--filename", "-")
		if warnings != "" {
			t.Errorf("%s: %s", file, warnings)
		}
	}
}
