package localkafka

import "syscall"

// child puts the process into a group of its own, so that the terminal's signals do not reach it
// and its owner ends it in order. If the owner is killed, the kernel kills the process too.
func child() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
