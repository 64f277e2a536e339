package child

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestProcessStop(t *testing.T) {
	for _, tt := range []struct {
		name     string
		script   string
		patience time.Duration
		// How it ended.
		want string
	}{
		{"one that listens", "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done", time.Minute, "exit status 3"},
		{"one that does not", "trap '' TERM; echo up; while :; do sleep 0.01; done", 50 * time.Millisecond,
			"signal: killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("/bin/sh", "-c", tt.script)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			p, err := Start(cmd, false)
			if err != nil {
				t.Fatal(err)
			}
			// The trap is set.
			if _, err := out.Read(make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
			p.Stop(syscall.SIGTERM, tt.patience)
			p.Stop(syscall.SIGTERM, tt.patience)
			p.Kill()
			if got := p.State().String(); got != tt.want || p.Running() {
				t.Errorf("it ended with %q, want %q", got, tt.want)
			}
		})
	}
}

func TestProcessThatCannotStart(t *testing.T) {
	p, err := Start(exec.Command("/no/such/program"), false)
	if err == nil {
		t.Fatal("it started")
	}
	// Neither may wait for a process that never ran.
	p.Stop(syscall.SIGTERM, time.Minute)
	p.Kill()
}
