package localkafka

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a child process.
type process struct {
	cmd *exec.Cmd
	// done is closed when the process has ended.
	done chan struct{}
}

// startProcess starts cmd. A detached process survives this one.
func startProcess(cmd *exec.Cmd, detached bool) (*process, error) {
	cmd.SysProcAttr = child()
	if detached {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	failed := make(chan error)
	go func() {
		// The parent-death signal is sent when the thread that forked ends, and Go ends idle
		// threads. So this goroutine keeps its thread for as long as the process runs.
		runtime.LockOSThread()
		defer close(p.done)
		if err := cmd.Start(); err != nil {
			failed <- err
			return
		}
		close(failed)
		// The result is in ProcessState.
		_ = cmd.Wait()
	}()
	err := <-failed
	if err != nil {
		<-p.done
	}
	return p, err
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop asks the process to end and waits for it. It kills a process that does not end within
// patience.
func (p *process) stop(patience time.Duration) {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.kill()
	}
}

func (p *process) kill() {
	p.signal(os.Kill)
	<-p.done
}

func (p *process) signal(s os.Signal) {
	if p.running() {
		// An error means that the process has just ended.
		_ = p.cmd.Process.Signal(s)
	}
}
