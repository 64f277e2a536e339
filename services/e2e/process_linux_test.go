package e2e

import "syscall"

// child keeps the terminal's signals from a child process; when the tests are killed, so is it.
func child() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
