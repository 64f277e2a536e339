package testenv

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"testing"

	"ordersystem.dev/services/internal/localkafka"
)

// Require ends the test if a server could not be started. The test is skipped if err is a
// [localkafka.MissingError]: a program is not installed on this machine. It fails for any other
// reason, and also if TEST_REQUIRE=1 asks for every test to run.
func Require(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	_, missing := errors.AsType[*localkafka.MissingError](err)
	if missing && os.Getenv("TEST_REQUIRE") != "1" {
		t.Skipf("%v (TEST_REQUIRE=1 makes this a failure)", err)
	}
	t.Fatal(err)
}

// Missing ends the test as [Require] does, because something is not installed or not running. The
// arguments name what is missing and what to install.
func Missing(t testing.TB, program, install string) {
	t.Helper()
	Require(t, &localkafka.MissingError{Program: program, Install: install})
}

// RequireProgram ends the test as [Require] does if the program is not in PATH.
func RequireProgram(t testing.TB, program, install string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		Missing(t, program, install)
	}
}

// RequireCluster ends the test as [Require] does if KUBECONFIG names no Kubernetes cluster. The
// tests never use kubectl's current cluster, which may be anybody's.
func RequireCluster(t testing.TB) {
	t.Helper()
	if os.Getenv("KUBECONFIG") == "" {
		Missing(t, "a Kubernetes cluster", "kind, then `make kind`, and set KUBECONFIG")
	}
}

// Docker returns the name of Docker's client, which is make's too.
func Docker() string { return cmp.Or(os.Getenv("DOCKER"), "docker") }
