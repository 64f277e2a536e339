//go:build unix && !linux

package child

import "syscall"

// bind leaves the process in its owner's group. Only Linux has a parent-death signal; in one group
// at least ^C ends both.
func bind(*syscall.SysProcAttr) {}
