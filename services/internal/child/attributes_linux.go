package child

import "syscall"

// bind puts the process into a group of its own, so that the terminal's signals do not reach it
// and its owner ends it in order. If the owner is killed, the kernel kills the process too.
func bind(a *syscall.SysProcAttr) { a.Setpgid, a.Pdeathsig = true, syscall.SIGKILL }
