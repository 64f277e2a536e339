package localkafka

import "syscall"

// child keeps the terminal's signals from the process, so that it is ended in order by its owner;
// when the owner itself is killed, so is the process.
func child() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
