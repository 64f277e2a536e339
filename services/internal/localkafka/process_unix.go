//go:build unix && !linux

package localkafka

import "syscall"

// child leaves the process in its owner's group. Only Linux has a parent-death signal; in one group
// at least ^C ends both.
func child() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
