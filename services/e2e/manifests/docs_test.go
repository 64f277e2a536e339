package manifests_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
