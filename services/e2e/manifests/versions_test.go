package manifests_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/localkafka"
)

// Another project's release has the same version everywhere: in the commands that a reader copies,
// and in what runs it.
func TestOneVersionOfEachProject(t *testing.T) {
	t.Parallel()
	pom, err := os.ReadFile("schemas/pom.xml")
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for _, dir := range []string{"docs", "k8s", "strimzi", "tilt"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "node_modules" {
				return fs.SkipDir
			}
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			text[path] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	modules, err := os.ReadFile("schemas/schemas.go")
	if err != nil {
		t.Fatal(err)
	}
	postgres := regexp.MustCompile(`cloudnative-pg/cloudnative-pg@v([\d.]+)`).FindStringSubmatch(string(modules))[1]
	backups := regexp.MustCompile(`plugin-barman-cloud@v([\d.]+)`).FindStringSubmatch(string(modules))[1]
	image := regexp.MustCompile(`cloudnative-pg/postgresql:(\S+)`).FindStringSubmatch(
		text[filepath.Join(root, "k8s/postgres/base/cluster.yaml")])[1]
	strimzi := regexp.MustCompile(`<strimzi\.version>(.*)</`).FindStringSubmatch(string(pom))[1]
	stack := regexp.MustCompile(`kube-prometheus-stack ([\d.]+)`).FindStringSubmatch(
		text[filepath.Join(root, "tilt/observability.Tiltfile")])[1]
	for _, project := range []struct {
		name, version string
		stands        *regexp.Regexp
		least         int // how often
	}{
		{"Strimzi", strimzi,
			regexp.MustCompile(`(?:Strimzi |strimzi-kafka-operator (?:--version )?|` +
				`strimzi/operator:|strimzi/kafka:)(\d+\.\d+\.\d+)`), 7},
		{"Kafka in Strimzi's image", localkafka.Version(),
			regexp.MustCompile(`strimzi/kafka:[\d.]+-kafka-(\d+\.\d+\.\d+)`), 1},
		{"kube-prometheus-stack", stack, regexp.MustCompile(`kube-prometheus-stack (?:--version )?(\d+\.\d+\.\d+)`), 5},
		{"CloudNativePG", postgres,
			regexp.MustCompile(`(?:CloudNativePG |releases/cnpg-|cloudnative-pg/cloudnative-pg:)(\d+\.\d+\.\d+)`), 5},
		{"PostgreSQL's image", image, regexp.MustCompile(`cloudnative-pg/postgresql:([\w.-]+)`), 2},
		{"Barman Cloud", backups,
			regexp.MustCompile(`(?:Barman Cloud |plugin-barman-cloud(?:-sidecar:|:|/releases/download/)v)` +
				`(\d+\.\d+\.\d+)`), 3},
	} {
		found := 0
		for path, content := range text {
			for _, m := range project.stands.FindAllStringSubmatch(content, -1) {
				if found++; m[1] != project.version {
					t.Errorf("%s says %q, want %s %s", strings.TrimPrefix(path, root+"/"), m[0], project.name,
						project.version)
				}
			}
		}
		if found < project.least {
			t.Errorf("the version of %s was found %d times, want at least %d: is it written in another way now?",
				project.name, found, project.least)
		}
	}
}
