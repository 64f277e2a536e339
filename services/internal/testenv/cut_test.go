package testenv

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// What a process sends is dropped while its way is cut, even if it closes the connection and ends. It arrives
// afterwards. Other processes are not concerned.
func TestCut(t *testing.T) {
	if addr := os.Getenv("CUT_SENDS_TO"); addr != "" {
		sendInput(t, addr)
		return
	}
	RequireCuts(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	addr := listener.Addr().String()
	accept := func() net.Conn {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	arrives := func(conn net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		_ = conn.SetReadDeadline(time.Now().Add(ioPatience))
		if _, err := io.ReadFull(conn, got); string(got) != want {
			t.Fatalf("got %q (%v), want %q", got, err, want)
		}
	}

	const group = 60_000
	sender := exec.Command(os.Args[0], "-test.run=^TestCut$")
	sender.Env = append(os.Environ(), "CUT_SENDS_TO="+addr)
	sender.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Gid: group}}
	input, err := sender.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Start(); err != nil {
		t.Fatal(err)
	}
	send := func(text string) {
		if _, err := io.WriteString(input, text); err != nil {
			t.Fatal(err)
		}
	}
	sent := accept()
	send("before")
	arrives(sent, "before")

	Cut(t, func() {
		send("meanwhile")
		input.Close()
		if err := sender.Wait(); err != nil {
			t.Fatal(err)
		}
		other, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if _, err := io.WriteString(other, "other"); err != nil {
			t.Fatal(err)
		}
		arrives(accept(), "other")
		// The kernel tries again after 200 ms.
		_ = sent.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if n, err := sent.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes arrive although the way is cut (%v)", n, err)
		}
	}, Way{From: group, To: []string{addr}})

	arrives(sent, "meanwhile")
	if _, err := sent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after what was sent: %v, want the end", err)
	}
}

// sendInput is the process whose way TestCut cuts.
func sendInput(t *testing.T, addr string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(conn, os.Stdin); err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
