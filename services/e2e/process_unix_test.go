//go:build unix && !linux

package e2e

import "syscall"

// child: without Linux's parent-death signal the process stays in the tests' group, so that at least ^C ends both.
func child() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
