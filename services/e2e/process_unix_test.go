//go:build unix && !linux

package e2e

import (
	"syscall"
	"testing"
	"time"
)

// child: without Linux's parent-death signal the process stays in the tests' group, so that at
// least ^C ends both.
func child() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// frozen gives a process that was sent SIGSTOP a moment to stop.
func frozen(testing.TB, int) { time.Sleep(20 * time.Millisecond) }
