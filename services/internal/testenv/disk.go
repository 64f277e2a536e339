package testenv

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed testdata/failfsync.c
var failFsync []byte

// FailFsync returns the environment of a child process in which the next fsync of file fails with
// EIO, once fail was called. The file may be made later.
func FailFsync(t testing.TB, file string) (env []string, fail func()) {
	t.Helper()
	RequireProgram(t, "cc", "a C compiler")
	dir := t.TempDir()
	source, library, trigger := filepath.Join(dir, "f.c"), filepath.Join(dir, "f.so"), filepath.Join(dir, "fail")
	if err := os.WriteFile(source, failFsync, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-o", library, source, "-ldl").
		CombinedOutput(); err != nil {
		t.Fatalf("compile failfsync.c: %v\n%s", err, out)
	}
	env = []string{"LD_PRELOAD=" + library, "FAIL_FSYNC_OF=" + file, "FAIL_FSYNC_IF=" + trigger}
	return env, func() {
		if err := os.WriteFile(trigger, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
