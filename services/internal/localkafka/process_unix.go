//go:build unix && !linux

package localkafka

import "syscall"

// child: without Linux's parent-death signal the process stays in its owner's group, so that at
// least ^C ends both.
func child() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
