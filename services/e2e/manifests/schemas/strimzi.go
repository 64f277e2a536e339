package schemas

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	"ordersystem.dev/services/internal/child"
)

// pom pins Strimzi's version and lists what its generator of CRDs needs.
//
//go:embed pom.xml
var pom []byte

// strimzi returns the files of Strimzi's CRDs. Strimzi's own generator makes them once, into the
// user's cache.
func strimzi(ctx context.Context) ([]string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache directory: %w", err)
	}
	// A changed pom has another sum and so another directory.
	sum := sha256.Sum256(pom)
	dir := filepath.Join(cache, "ordersystem", "strimzi-crds-"+hex.EncodeToString(sum[:4]))
	if _, err := os.Stat(dir); err != nil {
		if err := generate(ctx, dir); err != nil {
			return nil, err
		}
	}
	return filepath.Glob(filepath.Join(dir, "*.yaml"))
}

// generate writes the CRDs into dir. It works in another directory and renames that at the end, so
// that dir exists only when it is complete. It returns a [*child.MissingError] if Maven or
// Java 21 is missing: the generator's classes need that version.
func generate(ctx context.Context, dir string) error {
	java, err := findJava(ctx, 21)
	if err != nil {
		return err
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return &child.MissingError{Program: "mvn", Install: "Apache Maven (Debian and Ubuntu: maven)"}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "strimzi-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	jars, crds := filepath.Join(tmp, "jars"), filepath.Join(tmp, "crds")
	if err := os.Mkdir(crds, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "pom.xml"), pom, 0o644); err != nil {
		return err
	}
	// The generator gets each kind by its Java class.
	const model = "io.strimzi.api.kafka.model."
	for _, cmd := range []*exec.Cmd{
		exec.CommandContext(ctx, mvn, "--batch-mode", "--strict-checksums", "-f", filepath.Join(tmp, "pom.xml"),
			"dependency:copy-dependencies", "-DoutputDirectory="+jars),
		exec.CommandContext(ctx, java, "-cp", filepath.Join(jars, "*"), "io.strimzi.crdgenerator.CrdGenerator",
			"--yaml", "--crd-api-version", "v1", "--api-versions", "v1", "--target-kube", "1.16+",
			model+"kafka.Kafka="+filepath.Join(crds, "kafka.yaml"),
			model+"nodepool.KafkaNodePool="+filepath.Join(crds, "kafkanodepool.yaml"),
			model+"topic.KafkaTopic="+filepath.Join(crds, "kafkatopic.yaml"),
			model+"user.KafkaUser="+filepath.Join(crds, "kafkauser.yaml")),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make Strimzi's CRDs: %s: %w\n%s", filepath.Base(cmd.Path), err, out)
		}
	}
	// Another process may have been faster.
	if err := os.Rename(crds, dir); err != nil && !exists(dir) {
		return err
	}
	return nil
}

// exists reports whether there is a file or directory at path.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// findJava returns the path of a Java of at least this version. It looks at JAVA_HOME, then at
// PATH, then at where Debian installs them: a machine's default is often an older Java beside it.
func findJava(ctx context.Context, version int) (string, error) {
	found, _ := filepath.Glob("/usr/lib/jvm/*/bin/java")
	for _, java := range append([]string{filepath.Join(os.Getenv("JAVA_HOME"), "bin", "java"), "java"}, found...) {
		out, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
		match := regexp.MustCompile(` version "(\d+)`).FindSubmatch(out)
		if err != nil || match == nil {
			continue
		}
		if have, err := strconv.Atoi(string(match[1])); err == nil && have >= version {
			return java, nil
		}
	}
	return "", &child.MissingError{
		Program: fmt.Sprintf("Java %d", version),
		Install: fmt.Sprintf(
			"a JDK, %d or newer, beside any other, and set JAVA_HOME if it is not below /usr/lib/jvm", version),
	}
}
