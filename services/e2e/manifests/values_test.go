package manifests_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// A key without a value is null in YAML, for example when all lines below it are comments. Helm
// removes such a key, and with it the chart's default, which its users expect. Helm itself adds the
// defaults to an empty map. An empty list replaces the default.
func TestNullIsTheDefault(t *testing.T) {
	t.Parallel()
	for _, file := range glob(t, "charts/*/Chart.yaml") {
		chart := filepath.Dir(file)
		defaults := valuesIn(t, filepath.Join(chart, "values.yaml"))
		want, _ := render(t, chart, nil)
		checkDefault := func(t *testing.T, values document) {
			t.Helper()
			got, refusal := render(t, chart, values)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%v (-default +got):\n%s\n%s", values, diff, refusal)
			}
		}
		collections, scalars := settings(defaults, defaults)
		for _, path := range collections {
			t.Run(filepath.Join(chart, strings.Join(path, ".")), func(t *testing.T) {
				t.Parallel()
				checkDefault(t, with(nil, path, nil))
				if _, isMap := at(defaults, path).(document); isMap {
					checkDefault(t, with(nil, path, document{}))
				} else {
					_, refusal := render(t, chart, with(nil, path, []any{}))
					checkRefusal(t, refusal)
				}
			})
		}
		t.Run(filepath.Join(chart, "all scalars"), func(t *testing.T) {
			t.Parallel()
			var null document
			for _, path := range scalars {
				null = with(null, path, nil)
			}
			checkDefault(t, null)
		})
	}
}

// With other values, too, null is the default. The chart may refuse that, as it would without the
// key.
func TestNullIsAsIfLeftOut(t *testing.T) {
	t.Parallel()
	for _, c := range charts(t) {
		if c.values == "" {
			continue
		}
		values := valuesIn(t, c.values)
		collections, _ := settings(values, valuesIn(t, filepath.Join(c.chart, "values.yaml")))
		for _, path := range collections {
			t.Run(filepath.Join(c.values, strings.Join(path, ".")), func(t *testing.T) {
				t.Parallel()
				want, wantRefusal := render(t, c.chart, without(values, path))
				got, refusal := render(t, c.chart, with(values, path, nil))
				checkRefusal(t, refusal)
				if diff := cmp.Diff(want, got); diff != "" || (refusal == "") != (wantRefusal == "") {
					t.Errorf("(-left out +null):\n%s\nleft out: %s\nnull: %s", diff, wantRefusal, refusal)
				}
			})
		}
	}
}

// Each template completes the values itself. Helm executes them in no fixed order, so one that does
// not would depend on the others.
func TestEachTemplateCompletesTheValues(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"templates/*.yaml", "templates/NOTES.txt", "templates/tests/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(root, "charts/*", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("there is no %s (%v)", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			chart, _, _ := strings.Cut(strings.TrimPrefix(file, filepath.Join(root, "charts")+"/"), "/")
			if first := `{{- include "` + chart + `.defaults" . }}` + "\n"; !strings.HasPrefix(string(text), first) {
				t.Errorf("%s does not begin with %s", file, first)
			}
		}
	}
}

// A chart's templates can read any file but values.yaml.
func TestDefaultsAreTheValues(t *testing.T) {
	t.Parallel()
	for _, file := range glob(t, "charts/*/Chart.yaml") {
		chart := filepath.Dir(file)
		want := valuesIn(t, filepath.Join(chart, "values.yaml"))
		got := valuesIn(t, filepath.Join(chart, "files/defaults.yaml"))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: run make charts-docs (-values.yaml +files/defaults.yaml):\n%s", chart, diff)
		}
	}
}

func valuesIn(t *testing.T, file string) (values document) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// settings returns the paths of all values that the chart has defaults for: maps and lists, and
// those below the maps. The maps that go into pods as they are have no defaults: null leaves a
// field out.
func settings(values, defaults document) (collections, scalars [][]string) {
	for key, value := range values {
		standard, known := defaults[key]
		if !known || slices.Contains([]string{"resources", "podSecurityContext", "securityContext"}, key) {
			continue
		}
		switch value := value.(type) {
		case document:
			collections = append(collections, []string{key})
			standard, _ := standard.(document)
			maps, others := settings(value, standard)
			for _, path := range maps {
				collections = append(collections, append([]string{key}, path...))
			}
			for _, path := range others {
				scalars = append(scalars, append([]string{key}, path...))
			}
		case []any:
			collections = append(collections, []string{key})
		default:
			scalars = append(scalars, []string{key})
		}
	}
	return collections, scalars
}

func at(values document, path []string) any {
	if len(path) == 1 {
		return values[path[0]]
	}
	return at(values[path[0]].(document), path[1:])
}

// with returns a copy of the values in which the path has this value.
func with(values document, path []string, value any) document {
	changed := document{}
	maps.Copy(changed, values)
	if len(path) > 1 {
		below, _ := values[path[0]].(document)
		value = with(below, path[1:], value)
	}
	changed[path[0]] = value
	return changed
}

// without returns a copy of the values that lacks the path.
func without(values document, path []string) document {
	changed := maps.Clone(values)
	if below, ok := values[path[0]].(document); ok && len(path) > 1 {
		changed[path[0]] = without(below, path[1:])
	} else {
		delete(changed, path[0])
	}
	return changed
}

// render returns what the chart makes of the values, or why it refuses them.
func render(t *testing.T, chart string, values document) (manifests, refusal string) {
	t.Helper()
	requireHelm(t)
	cmd := exec.CommandContext(t.Context(), "helm", "template", filepath.Base(chart), chart, "--values", "-")
	cmd.Dir = root
	cmd.Stdin = bytes.NewReader(encode(t, values))
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if cmd.Run() != nil {
		return "", errs.String()
	}
	return out.String(), ""
}

// checkRefusal checks that the schema or the chart refused the values, if anything did. The template
// engine's own errors do not name the value.
func checkRefusal(t *testing.T, refusal string) {
	t.Helper()
	if refusal != "" && !strings.Contains(refusal, "don't meet the specifications of the schema") &&
		!strings.Contains(refusal, "execution error at (") {
		t.Error(refusal)
	}
}
