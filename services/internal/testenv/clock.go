package testenv

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

//go:embed testdata/ahead.go
var aheadGo []byte

// Clock is the time of day as some child processes see it: programs that were built with a [ClockOverlay], and
// servers on a [Machine]. Their monotonic clock is that of this machine.
type Clock struct {
	// Env is for the environment of these processes.
	Env []string
	// ahead is in a page of the file that they read.
	ahead *int64
}

// NewClock makes a clock in a new file. It shows the time of this machine until it jumps.
func NewClock(t testing.TB, file string) *Clock {
	t.Helper()
	const size = int(unsafe.Sizeof(int64(0)))
	f, err := os.Create(file)
	if err == nil {
		defer f.Close()
		err = f.Truncate(int64(size))
	}
	if err != nil {
		t.Fatal(err)
	}
	page, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(page) })
	return &Clock{Env: []string{"CLOCK_AHEAD=" + file}, ahead: (*int64)(unsafe.Pointer(&page[0]))}
}

// Jump lets the clock be ahead of that of this machine from now on, by whole seconds.
func (c *Clock) Jump(ahead time.Duration) { atomic.StoreInt64(c.ahead, int64(ahead/time.Second)) }

// ClockOverlay writes the files of an overlay for `go build` into a directory, and returns the value of the flag
// -overlay. Programs that are built with it have the time of day of the [Clock] in their environment. The C code
// in them has that of this machine: librdkafka lets the kernel wait by it.
func ClockOverlay(dir string) (overlay string, err error) {
	root, err := exec.CommandContext(context.Background(), "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return "", err
	}
	const now = "sec, nsec, mono := runtimeNow()"
	if n := strings.Count(string(text), now); n != 1 {
		return "", fmt.Errorf("time.go of this Go has %q %d times, want once, in Now", now, n)
	}
	files := map[string]string{
		"time.go":  strings.Replace(string(text), now, "sec, nsec, mono := jumped(runtimeNow())", 1),
		"ahead.go": string(aheadGo),
	}
	replace := make(map[string]string)
	for name, text := range files {
		replace[filepath.Join(source, name)] = filepath.Join(dir, name)
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	overlay = filepath.Join(dir, "overlay.json")
	list, failed := json.Marshal(map[string]any{"Replace": replace})
	return overlay, errors.Join(err, failed, os.WriteFile(overlay, list, 0o600))
}
