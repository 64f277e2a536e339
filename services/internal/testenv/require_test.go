package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"ordersystem.dev/services/internal/child"
)

func TestRequire(t *testing.T) {
	missing := fmt.Errorf("start: %w", &child.MissingError{Program: "java", Install: "a JDK"})
	for _, tt := range []struct {
		name     string
		err      error
		required string
		want     string
	}{
		{"all is there", nil, "", "runs"},
		{"something is missing", missing, "", "skipped"},
		{"something is missing and required", missing, "1", "failed"},
		{"something is broken", errors.New("broken"), "", "failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TEST_REQUIRE", tt.required)
			if got := end(t, func(t testing.TB) { Require(t, tt.err) }); got != tt.want {
				t.Errorf("the test is %s, want %s", got, tt.want)
			}
		})
	}
}

// Each script stands for a Docker client that lacks a part.
func TestRequireBuildKit(t *testing.T) {
	const (
		noBuildx = `case $1 in buildx) echo "docker: unknown command" >&2; exit 1 ;; esac` + "\n"
		noDaemon = `case $1 in info) echo "Cannot connect to the Docker daemon" >&2; exit 1 ;; esac` + "\n"
		version  = `case $1 in version) echo %s ;; esac` + "\n"
	)
	for _, tt := range []struct {
		name     string
		script   string
		required string
		want     string
	}{
		{"all is there", "", "", "runs"},
		{"no client", "absent", "", "skipped"},
		{"no daemon", noDaemon, "", "skipped"},
		{"no buildx", noBuildx + fmt.Sprintf(version, "28.2.2"), "", "skipped"},
		{"no buildx, required", noBuildx + fmt.Sprintf(version, "28.2.2"), "1", "failed"},
		{"no buildx, but BuildKit built in", noBuildx + fmt.Sprintf(version, "20.10.24+dfsg1"), "1", "runs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := filepath.Join(t.TempDir(), "docker")
			if tt.script != "absent" {
				if err := os.WriteFile(client, []byte("#!/bin/sh\n"+tt.script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("DOCKER", client)
			t.Setenv("TEST_REQUIRE", tt.required)
			if got := end(t, RequireBuildKit); got != tt.want {
				t.Errorf("the test is %s, want %s", got, tt.want)
			}
		})
	}
}

// end returns how a test ends that calls require: it runs, is skipped, or failed.
func end(t *testing.T, require func(testing.TB)) string {
	r := &recorder{TB: t, end: "runs"}
	// What ends a test ends its goroutine.
	var wg sync.WaitGroup
	wg.Go(func() { require(r) })
	wg.Wait()
	return r.end
}

// recorder records how a test would end, and does not end the real one.
type recorder struct {
	testing.TB
	end string
}

func (r *recorder) Skipf(string, ...any)  { r.end = "skipped"; runtime.Goexit() }
func (r *recorder) Fatal(...any)          { r.end = "failed"; runtime.Goexit() }
func (r *recorder) Fatalf(string, ...any) { r.end = "failed"; runtime.Goexit() }
