package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// bound keeps the terminal's signals from a child process. If the tests are killed, the kernel
// kills the process too.
func bound() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// frozen waits until each thread of a process that was sent SIGSTOP has stopped.
func frozen(t testing.TB, pid int) {
	t.Helper()
	eventually(t, patience, "every thread has stopped", func() (bool, string) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || threads == nil {
			t.Fatalf("process %d has no threads: %v", pid, err)
		}
		for _, thread := range threads {
			stat, _ := os.ReadFile(thread)
			if _, state, ok := bytes.Cut(stat, []byte(") ")); ok && state[0] != 'T' && state[0] != 't' {
				return false, string(stat)
			}
		}
		return true, ""
	})
}
