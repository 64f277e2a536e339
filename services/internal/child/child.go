// Package child runs a server as a child process that ends with this one, on a port of its own.
package child

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is a child process.
type Process struct {
	cmd *exec.Cmd
	// done is closed when the process has ended.
	done chan struct{}
}

// Start starts cmd. A detached process survives this one. If cmd writes to something that is not a
// file, the process has ended only when its own children have ended too.
func Start(cmd *exec.Cmd, detached bool) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if detached {
		cmd.SysProcAttr.Setsid = true
	} else {
		bind(cmd.SysProcAttr)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
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

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// PID returns the ID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// State returns how the process ended. It is nil while it runs.
func (p *Process) State() *os.ProcessState {
	if p.Running() {
		return nil
	}
	return p.cmd.ProcessState
}

// Stop asks the process by a signal to end, and waits for it. It kills a process that does not end
// within patience.
func (p *Process) Stop(by os.Signal, patience time.Duration) {
	p.signal(by)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.Kill()
	}
}

// Kill ends the process as a crash does, and waits for it.
func (p *Process) Kill() {
	p.signal(os.Kill)
	<-p.done
}

func (p *Process) signal(s os.Signal) {
	if p.Running() {
		// An error means that the process has just ended.
		_ = p.cmd.Process.Signal(s)
	}
}
