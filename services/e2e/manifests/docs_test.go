package manifests_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages returns the lines of each Markdown file, by its name.
func pages(t testing.TB) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, top := range []string{"docs", "charts", "k8s", "strimzi"} {
		err := fs.WalkDir(os.DirFS(root), top, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Name() == "node_modules" {
				return fs.SkipDir
			}
			if err != nil || filepath.Ext(path) != ".md" {
				return err
			}
			text, err := os.ReadFile(filepath.Join(root, path))
			all[path] = strings.Split(string(text), "\n")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// Strimzi labels Kafka's pods and volumes with the same instance as the chart does its own, because both
// are named orders. A selector without the name would delete Kafka's too.
func TestCommandsOfTheDocsSelectOnlyOneChartsPods(t *testing.T) {
	t.Parallel()
	selector := regexp.MustCompile(`(?:-l|--selector)[ =](\S*app\.kubernetes\.io/\S*)`)
	found := 0
	for file, lines := range pages(t) {
		for i, line := range lines {
			for _, m := range selector.FindAllStringSubmatch(line, -1) {
				if found++; !strings.Contains(m[1], "app.kubernetes.io/name=") {
					t.Errorf("%s:%d: %s has no app.kubernetes.io/name", file, i+1, m[1])
				}
			}
		}
	}
	if found == 0 {
		t.Error("no selector was found")
	}
}

// The Jobs of the runbooks run once: the log of a second attempt is not that of the first.
func TestJobsOfTheRunbooksRunOnce(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"reconcile", "dead-letters"} {
		text, err := os.ReadFile(filepath.Join(root, "docs/runbooks", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if got := field[int](kinds(t, text, "Job")[0], "spec", "backoffLimit"); got != 0 {
			t.Errorf("%s: backoffLimit is %d", name, got)
		}
	}
}

// A Job's log begins when its pod runs, and has the progress among the JSON.
func TestDocsReadTheLogOfAJobWhenItHasEnded(t *testing.T) {
	t.Parallel()
	log := regexp.MustCompile(`kubectl logs .*job/(\S+)`)
	found := 0
	for file, lines := range pages(t) {
		for i, line := range lines {
			m := log.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			found++
			ends := "job/" + m[1] + " --for=jsonpath='{.status.conditions[0].type}'"
			if strings.Contains(line, " -f ") || !strings.Contains(lines[i-1], ends) {
				t.Errorf("%s:%d: the line before does not wait for %s", file, i+1, m[1])
			}
			if !strings.Contains(lines[i+1], "jq -cR 'fromjson?'") {
				t.Errorf("%s:%d: the line behind does not leave the progress out", file, i+1)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d logs of Jobs are read, want 2", found)
	}
}

// What is asked and dropped after a restore is the restored database, not the first one beside it.
func TestRestoreOfTheDocsLooksAtTheRestoredDatabase(t *testing.T) {
	t.Parallel()
	text := strings.Join(pages(t)["docs/operations.md"], "\n")
	_, restore, _ := strings.Cut(text, "\n### Restore\n")
	restore, _, _ = strings.Cut(restore, "\n### ")
	clusters := regexp.MustCompile(`clusters\.postgresql\.cnpg\.io/(\S+)`).FindAllStringSubmatch(restore, -1)
	for _, m := range clusters {
		if m[1] != "orders-db-restored" {
			t.Errorf("a command looks at %s", m[1])
		}
	}
	if len(clusters) < 2 {
		t.Error("the commands look at no database")
	}
}

// kubectl scale becomes the owner of .spec.replicas, and Helm 4 applies on the server: an upgrade to another
// number of replicas ends with a conflict, while both services are at 0.
func TestDocsUpgradeByForceAfterTheyScaledToZero(t *testing.T) {
	t.Parallel()
	zero := regexp.MustCompile(`kubectl scale .*deployment/orders-cart deployment/orders-order --replicas=0`)
	found := 0
	lines := pages(t)["docs/operations.md"]
	for i, line := range lines {
		if !zero.MatchString(line) {
			continue
		}
		found++
		next := slices.IndexFunc(lines[i:], func(l string) bool { return strings.Contains(l, "helm upgrade orders ") })
		if upgrade := lines[i+next]; !strings.Contains(upgrade, " --force-conflicts") {
			t.Errorf("docs/operations.md:%d: no --force-conflicts: %s", i+next+1, upgrade)
		}
	}
	if found == 0 {
		t.Error("no move between databases was found")
	}
}

// A runbook's command of Kafka's tools can be pasted: the index has an alias for it, with the address and the
// certificate.
func TestRunbooksUseKafkasToolsByTheirAliases(t *testing.T) {
	t.Parallel()
	alias := regexp.MustCompile(`^alias (kafka-\w+)='kubectl exec .* bin/kafka-[a-z-]+\.sh ` +
		`--bootstrap-server \S+:9093 --command-config /tmp/client\.properties'$`)
	all := pages(t)
	known := map[string]bool{}
	for _, line := range all["docs/runbooks/README.md"] {
		if m := alias.FindStringSubmatch(line); m != nil {
			known[m[1]] = true
		}
	}
	command := regexp.MustCompile(`^\s*((?:bin/)?kafka-\S+) `)
	for file, lines := range all {
		for i, line := range lines {
			if m := command.FindStringSubmatch(line); m != nil && !known[m[1]] {
				t.Errorf("%s:%d: docs/runbooks/README.md has no alias %s", file, i+1, m[1])
			}
		}
	}
}

// `kubectl logs deployment/NAME` shows the log of any one replica, which may be the one without the fault.
func TestDocsReadTheLogsOfAllReplicas(t *testing.T) {
	t.Parallel()
	for file, lines := range pages(t) {
		for i, line := range lines {
			_, logs, ok := strings.Cut(line, "kubectl logs ")
			if ok && (strings.Contains(logs, "deployment/") ||
				strings.Contains(logs, " -l ") && !strings.Contains(logs, "--prefix")) {
				t.Errorf("%s:%d: not the logs of all replicas, each with its name: %s", file, i+1, line)
			}
		}
	}
}
