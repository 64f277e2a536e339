package testenv

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	//go:embed testdata/faultydisk.c
	faultyDisk []byte
	//go:embed testdata/faultyclock.c
	faultyClock []byte
)

// Machine is the disk and the clock as a server in a child process sees them, if it looks at them by calls of the
// C library. PostgreSQL does, and the JVM of a broker.
type Machine struct {
	// Env is for the environment of the server.
	Env   []string
	Disk  *FaultyDisk
	Clock *Clock
}

// NewMachine returns a machine. An fsync of any file on its disk can fail.
func NewMachine(t testing.TB) *Machine {
	t.Helper()
	dir := openDir(t)
	m := &Machine{Disk: newDisk(t, dir), Clock: NewClock(t, filepath.Join(dir, "clock"))}
	m.Env = append(append(m.Disk.Env, m.Clock.Env...), preload(t, dir, faultyDisk, faultyClock))
	return m
}

// openDir makes a temporary directory for files that a server and the test share. PostgreSQL runs as another
// user than root.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "machine-") //nolint:usetesting // The server's user cannot enter that of the test.
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// preload compiles a library of C sources into a directory, and returns the environment variable that lets a
// child process call it instead of the C library.
func preload(t testing.TB, dir string, sources ...[]byte) (variable string) {
	t.Helper()
	RequireProgram(t, "cc", "a C compiler")
	library := filepath.Join(dir, "faulty.so")
	args := []string{"-shared", "-fPIC", "-o", library}
	for i, text := range sources {
		source := filepath.Join(dir, fmt.Sprintf("%d.c", i))
		if err := os.WriteFile(source, text, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, source)
	}
	if out, err := exec.CommandContext(t.Context(), "cc", append(args, "-ldl")...).CombinedOutput(); err != nil {
		t.Fatalf("cc %v: %v\n%s", args, err, out)
	}
	return "LD_PRELOAD=" + library
}
