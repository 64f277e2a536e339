package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/internal/testenv"
)

const (
	committed   = "../../../k8s/monitoring"
	runbookDir  = "../../../docs/runbooks"
	promtoolDoc = "promtool, which comes with Prometheus (Debian and Ubuntu: prometheus)"
)

func TestCommittedFilesAreUpToDate(t *testing.T) {
	t.Parallel()
	made, err := files()
	if err != nil {
		t.Fatal(err)
	}
	there, err := filepath.Glob(committed + "/dashboards/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(there, committed+"/rules.yaml") {
		name, err := filepath.Rel(committed, path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(text), string(made[filepath.ToSlash(name)])); diff != "" {
			t.Errorf("%s is out of date: run `make generate` (-committed +generated):\n%s", name, diff)
		}
		delete(made, filepath.ToSlash(name))
	}
	for name := range made {
		t.Errorf("%s is not committed: run `make generate`", name)
	}
}

func TestWriteRemovesFormerDashboards(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, "dashboards", "former.json")
	if err := os.WriteFile(stray, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stray); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", stray, err)
	}
}

// alerts returns the alert rules by the name of their alert.
func alerts() map[string][]rulefmt.Rule {
	all := map[string][]rulefmt.Rule{}
	for _, g := range ruleGroups() {
		for _, r := range g.Rules {
			if r.Alert != "" {
				all[r.Alert] = append(all[r.Alert], r)
			}
		}
	}
	return all
}

// kind distinguishes the rules of one alert.
func kind(labels map[string]string) string { return " " + labels["severity"] + " " + labels["cause"] }

func dashboards(t *testing.T) map[string]map[string]any {
	made, err := files()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]any{}
	for name, text := range made {
		if strings.HasSuffix(name, ".json") {
			var d map[string]any
			if err := json.Unmarshal(text, &d); err != nil {
				t.Fatal(err)
			}
			all[name] = d
		}
	}
	return all
}

// panels returns the panels of a dashboard, without the headings of rows.
func panels(d map[string]any) (all []map[string]any) {
	for _, p := range d["panels"].([]any) {
		if p := p.(map[string]any); p["type"] != "row" {
			all = append(all, p)
		}
	}
	return all
}

func TestEachAlertHasARunbookAndTexts(t *testing.T) {
	t.Parallel()
	for name, rules := range alerts() {
		if _, err := os.Stat(filepath.Join(runbookDir, name+".md")); err != nil {
			t.Errorf("%s has no runbook: %v", name, err)
		}
		causes := map[string]bool{}
		for _, r := range rules {
			if s := r.Labels["severity"]; s != critical && s != warning {
				t.Errorf("%s has the severity %q", name, s)
			}
			if causes[kind(r.Labels)] {
				t.Errorf("%s: two rules with the same labels are one alert to Alertmanager", name)
			}
			causes[kind(r.Labels)] = true
			if r.Annotations["summary"] == "" || !strings.Contains(r.Annotations["description"], "$value") {
				t.Errorf("%s has no summary, or a description without its value: %v", name, r.Annotations)
			}
			if want := runbooks + name + ".md"; r.Annotations["runbook_url"] != want {
				t.Errorf("%s has the runbook %s, want %s", name, r.Annotations["runbook_url"], want)
			}
		}
	}
}

func TestRunbooksAreThoseOfTheAlerts(t *testing.T) {
	t.Parallel()
	index, err := os.ReadFile(filepath.Join(runbookDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(runbookDir + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		name := strings.TrimSuffix(filepath.Base(page), ".md")
		if name == "README" {
			continue
		}
		if alerts()[name] == nil {
			t.Errorf("%s is about no alert", page)
		}
		if !bytes.Contains(index, []byte("["+name+"]("+name+".md)")) {
			t.Errorf("%s is not in the index", page)
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"## How bad", "## Look", "## Do", "## When it is a false alarm"} {
			if !bytes.Contains(text, []byte(part+"\n")) {
				t.Errorf("%s has no part %q", page, part)
			}
		}
	}
}

func TestPanelsExplainThemselvesAndDoNotOverlap(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\[(\w+)\]\(` + regexp.QuoteMeta(runbooks) + `(\w+)\.md\)`)
	watched, uids := map[string]bool{}, map[any]string{}
	for name, d := range dashboards(t) {
		if other := uids[d["uid"]]; other != "" {
			t.Errorf("%s and %s have the uid %s", name, other, d["uid"])
		}
		uids[d["uid"]] = name
		taken := map[[2]float64]string{}
		for _, p := range panels(d) {
			about, _ := p["description"].(string)
			if means, _, _ := strings.Cut(about, "\n\nAlert: "); len(means) < 20 {
				t.Errorf("%s, %s: the description is too short: %q", name, p["title"], about)
			}
			for _, m := range link.FindAllStringSubmatch(about, -1) {
				if alerts()[m[1]] == nil || m[1] != m[2] {
					t.Errorf("%s, %s: there is no such alert: %s", name, p["title"], m[0])
				}
				watched[m[1]] = true
			}
			at := p["gridPos"].(map[string]any)
			for x := at["x"].(float64); x < at["x"].(float64)+at["w"].(float64); x++ {
				for y := at["y"].(float64); y < at["y"].(float64)+at["h"].(float64); y++ {
					if other := taken[[2]float64{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s, %s overlaps %q, or is outside the grid", name, p["title"], other)
					}
					taken[[2]float64{x, y}] = p["title"].(string)
				}
			}
		}
	}
	for name := range alerts() {
		if !watched[name] {
			t.Errorf("no panel is about %s", name)
		}
	}
}

func TestTheObjectiveIsTheDeclaredOne(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../k8s/consumer-groups/order-service.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var declared struct {
		Spec struct {
			Group     string `yaml:"group"`
			Objective struct {
				MaxLagSeconds int `yaml:"maxLagSeconds"`
			} `yaml:"objective"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(text, &declared); err != nil {
		t.Fatal(err)
	}
	if s := declared.Spec; s.Group != orderGroup || s.Objective.MaxLagSeconds != orderObjective {
		t.Errorf("the dashboards have %s and %d s, declared is %+v", orderGroup, orderObjective, s)
	}
}

// expressions returns all queries by the places where they are, with the viewer's choices filled
// in.
func expressions(t *testing.T) map[string]string {
	choices := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h",
		"$kafka_cluster", ".+", "$consumergroup", ".+", "$topic", ".+", "$namespace", ".*", "$release", ".*")
	all := map[string]string{}
	for _, g := range ruleGroups() {
		for i, r := range g.Rules {
			all[fmt.Sprintf("rule %d of %s", i, g.Name)] = r.Expr
		}
	}
	for name, d := range dashboards(t) {
		for _, p := range panels(d) {
			for i, target := range p["targets"].([]any) {
				expr := target.(map[string]any)["expr"].(string)
				all[fmt.Sprintf("%s, %s, query %d", name, p["title"], i)] = choices.Replace(expr)
			}
		}
		for _, v := range d["templating"].(map[string]any)["list"].([]any) {
			v := v.(map[string]any)
			if v["type"] != "query" {
				continue
			}
			q := v["query"].(map[string]any)["query"].(string)
			m := regexp.MustCompile(`^label_values\((.+), \w+\)$`).FindStringSubmatch(q)
			if m == nil {
				t.Errorf("%s: the query of variable %s is %q", name, v["name"], q)
				continue
			}
			all[fmt.Sprintf("%s, variable %s", name, v["name"])] = choices.Replace(m[1])
		}
	}
	return all
}

// inRunbooks returns the queries in runbooks.
func inRunbooks(t *testing.T) map[string]string {
	pages, err := filepath.Glob(runbookDir + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllSubmatch(text, -1) {
			for line := range strings.Lines(string(block[1])) {
				if expr, _, _ := strings.Cut(line, "#"); strings.TrimSpace(expr) != "" {
					all[filepath.Base(page)+": "+expr] = expr
				}
			}
		}
	}
	if len(all) == 0 {
		t.Error("the runbooks have no queries")
	}
	return all
}

func TestExpressionsParse(t *testing.T) {
	t.Parallel()
	recorded := map[string]bool{}
	for _, g := range ruleGroups() {
		for _, r := range g.Rules {
			recorded[r.Record] = true
		}
	}
	all := expressions(t)
	maps.Copy(all, inRunbooks(t))
	for where, expr := range all {
		tree, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
		if err != nil {
			t.Errorf("%s: %v\n%s", where, err, expr)
			continue
		}
		if strings.Contains(expr, "$") {
			t.Errorf("%s: an unknown variable: %s", where, expr)
		}
		parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
			if s, ok := node.(*parser.VectorSelector); ok && strings.Contains(s.Name, ":") && !recorded[s.Name] {
				t.Errorf("%s: no rule records %s", where, s.Name)
			}
			return nil
		})
	}
}

// Another leader of the lag operator, or another pod of a service, must neither fire an alert nor
// fire it twice.
func TestAlertsDoNotDependOnPods(t *testing.T) {
	t.Parallel()
	for name, rules := range alerts() {
		for _, r := range rules {
			tree, err := parser.NewParser(parser.Options{}).ParseExpr(r.Expr)
			if err != nil {
				t.Fatal(err)
			}
			parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
				s, ok := node.(*parser.VectorSelector)
				// A recorded series was aggregated when it was recorded.
				if !ok || strings.Contains(s.Name, ":") {
					return nil
				}
				if !slices.ContainsFunc(path, func(n parser.Node) bool {
					switch n := n.(type) {
					case *parser.AggregateExpr:
						return !n.Without
					case *parser.Call:
						return strings.HasPrefix(n.Func.Name, "absent")
					}
					return false
				}) {
					t.Errorf("%s: %s is not aggregated", name, s)
				}
				return nil
			})
		}
	}
}

// ruleTest is the part of a file for promtool that these tests read.
type ruleTest struct {
	Interval string `yaml:"evaluation_interval"`
	Tests    []struct {
		Name   string `yaml:"name"`
		Alerts []struct {
			Name string `yaml:"alertname"`
			Want []struct {
				Labels map[string]string `yaml:"exp_labels"`
			} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	} `yaml:"tests"`
}

func ruleTests(t *testing.T) map[string]ruleTest {
	paths, err := filepath.Glob(committed + "/tests/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal("there are no tests", err)
	}
	all := map[string]ruleTest{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var f ruleTest
		if err := yaml.Unmarshal(text, &f); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[path] = f
	}
	return all
}

func TestEachAlertHasTestsInWhichItFiresAndDoesNot(t *testing.T) {
	t.Parallel()
	fires, silent := map[string]bool{}, map[string]bool{}
	for path, f := range ruleTests(t) {
		if f.Interval != evaluation.String() {
			t.Errorf("%s evaluates every %s, but Prometheus every %s", path, f.Interval, evaluation.String())
		}
		for _, test := range f.Tests {
			if test.Name == "" {
				t.Errorf("%s has a test without a name", path)
			}
			for _, a := range test.Alerts {
				for _, w := range a.Want {
					fires[a.Name+kind(w.Labels)] = true
				}
				if len(a.Want) == 0 {
					silent[a.Name] = true
				}
			}
		}
	}
	for name, rules := range alerts() {
		for _, r := range rules {
			if !fires[name+kind(r.Labels)] {
				t.Errorf("in no test %s fires:%s", name, kind(r.Labels))
			}
		}
		if !silent[name] {
			t.Errorf("in no test %s does not fire", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(silent)) {
		if alerts()[name] == nil {
			t.Errorf("there is no alert %s", name)
		}
	}
}

// Prometheus itself checks names, labels and expressions, and the templates in texts.
func TestPrometheusAcceptsTheRules(t *testing.T) {
	t.Parallel()
	groups, err := yaml.Marshal(rulefmt.RuleGroups{Groups: ruleGroups()})
	if err != nil {
		t.Fatal(err)
	}
	const ignoreUnknownFields = false
	_, errs := rulefmt.Parse(groups, ignoreUnknownFields, model.UTF8Validation,
		parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
}

// promtool runs the tests in k8s/monitoring/tests.
func TestRules(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "promtool", promtoolDoc)
	text, err := os.ReadFile(committed + "/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Spec struct {
			Groups []rulefmt.RuleGroup `yaml:"groups"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	// promtool compares all annotations, and the tests have only descriptions.
	for _, g := range object.Spec.Groups {
		for _, r := range g.Rules {
			maps.DeleteFunc(r.Annotations, func(key, _ string) bool { return key != "description" })
		}
	}
	// promtool reads the rules without the Kubernetes object around them.
	spec, err := yaml.Marshal(object.Spec)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("rules.yaml", spec)
	args := []string{"test", "rules"}
	for path := range ruleTests(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := "test-" + filepath.Base(path)
		write(name, text)
		args = append(args, name)
	}
	for _, args := range [][]string{{"check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"}, args} {
		cmd := exec.CommandContext(t.Context(), "promtool", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
