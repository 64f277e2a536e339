//go:build unix && !linux

package e2e

import (
	"syscall"
	"testing"
	"time"
)

// bound leaves the process in the tests' group. Only Linux has a parent-death signal; in one group
// at least ^C ends both.
func bound() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// frozen gives a process that was sent SIGSTOP a moment to stop.
func frozen(testing.TB, int) { time.Sleep(20 * time.Millisecond) }
