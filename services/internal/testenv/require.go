package testenv

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/child"
)

// Require ends the test if a server could not be started. If err is a [child.MissingError], a
// program is not installed on this machine, and the test ends as [CannotRun] says. It fails for any
// other reason.
func Require(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if _, missing := errors.AsType[*child.MissingError](err); missing {
		CannotRun(t, err.Error())
	}
	t.Fatal(err)
}

// CannotRun ends a test that this machine cannot run. The test is skipped with the reason, or fails
// if TEST_REQUIRE=1 asks for every test to run.
func CannotRun(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("TEST_REQUIRE") == "1" {
		t.Fatal(reason)
	}
	t.Skipf("%s (TEST_REQUIRE=1 makes this a failure)", reason)
}

// RequireProgram ends the test as [CannotRun] does if a program is not in PATH. The last argument
// names what to install.
func RequireProgram(t testing.TB, program, install string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		Require(t, &child.MissingError{Program: program, Install: install})
	}
}

// RequireCluster ends the test as [CannotRun] does if KUBECONFIG names no Kubernetes cluster. The
// tests never use kubectl's current cluster, which may be anybody's.
func RequireCluster(t testing.TB) {
	t.Helper()
	if os.Getenv("KUBECONFIG") == "" {
		CannotRun(t, "there is no Kubernetes cluster: install kind, then `make kind`, and set KUBECONFIG")
	}
}

// Docker returns the name of Docker's client, which is make's too.
func Docker() string { return cmp.Or(os.Getenv("DOCKER"), "docker") }

// RequireDocker ends the test as [CannotRun] does if Docker's client is missing or has no daemon.
func RequireDocker(t testing.TB) {
	t.Helper()
	RequireProgram(t, Docker(), "Docker")
	if err := exec.CommandContext(t.Context(), Docker(), "info").Run(); err != nil {
		CannotRun(t, "Docker has no daemon: start it (docker info: "+err.Error()+")")
	}
}

// RequireBuildKit ends the test as [CannotRun] does if Docker cannot build images with BuildKit,
// which the Dockerfile needs. Docker's client has BuildKit built in up to version 22; later ones
// need the plugin buildx.
func RequireBuildKit(t testing.TB) {
	t.Helper()
	RequireDocker(t)
	if exec.CommandContext(t.Context(), Docker(), "buildx", "version").Run() == nil {
		return
	}
	version, err := exec.CommandContext(t.Context(), Docker(), "version", "--format", "{{.Client.Version}}").Output()
	if err != nil {
		t.Fatalf("ask Docker's client for its version: %v", err)
	}
	major, _, _ := strings.Cut(string(version), ".")
	if n, err := strconv.Atoi(major); err != nil || n > 22 {
		CannotRun(t, "Docker has no buildx: install its plugin buildx (Debian and Ubuntu: docker-buildx)")
	}
}
