package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv("KAFKAD_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The steps are one story, because each broker takes seconds: start, start again, stop, stop again,
// and start with the data that was there.
func TestStartStop(t *testing.T) {
	// Skips where no broker can run.
	other := testenv.StartKafka(t)
	dir := t.TempDir()
	t.Cleanup(func() { run(context.Background(), []string{"stop", "-dir", dir}, noEnv, t.Output()) })

	kafkad(t, "status", dir, "No Kafka runs")
	kafkad(t, "stop", dir, "No Kafka runs")

	// kafkad runs in a process of its own here. The broker must not end with it.
	cmd := exec.Command(os.Args[0], "start", "-port", "0", "-dir", dir)
	cmd.Env = append(os.Environ(), "KAFKAD_MAIN=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("start: %v\n%s", err, out)
	}
	addr := brokers(t, string(out))
	kafkad(t, "status", dir, "KAFKA_BROKERS="+addr)
	kafkad(t, "start", dir, "already runs")
	want := testenv.Produce(t, addr,
		contract.Message{Topic: contract.TopicDeadLetter, Key: []byte("k"), Value: []byte("v")})

	_, port, _ := net.SplitHostPort(other.Addr)
	err = run(t.Context(), []string{"start", "-dir", t.TempDir()}, func(string) string { return port }, t.Output())
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:"+port) || !strings.Contains(err.Error(), "KAFKA_PORT") {
		t.Errorf("error is %v, want that the port is taken and what to do", err)
	}

	kafkad(t, "stop", dir, "is stopped")
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("something still accepts connections")
	}
	kafkad(t, "stop", dir, "No Kafka runs")

	addr = brokers(t, kafkad(t, "start", dir, "KAFKA_BROKERS="))
	if diff := cmp.Diff(want, testenv.ReadAll(t, addr, contract.TopicDeadLetter)); diff != "" {
		t.Errorf("records after a restart (-want +got):\n%s", diff)
	}
	kafkad(t, "stop", dir, "is stopped")
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		env  string
		want string
	}{
		{nil, "", "usage"},
		{[]string{"restart"}, "", "usage"},
		{[]string{"start", "-port", "http"}, "", `is "http", must be a number`},
		{[]string{"start"}, "70000", `is "70000", must be a number`},
		{[]string{"start", "-prot", "1"}, "", "not defined: -prot"},
	} {
		t.Run(fmt.Sprint(tt.args, tt.env), func(t *testing.T) {
			err := run(t.Context(), tt.args, func(string) string { return tt.env }, t.Output())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

func kafkad(t *testing.T, command, dir, want string) string {
	t.Helper()
	var out strings.Builder
	args := []string{command, "-dir", dir}
	if command == "start" {
		args = append(args, "-port", "0")
	}
	if err := run(t.Context(), args, noEnv, &out); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, &out)
	}
	if !strings.Contains(out.String(), want) {
		t.Errorf("%s said %q, want %q", command, &out, want)
	}
	return out.String()
}

// brokers returns the address from the line that a shell can evaluate.
func brokers(t *testing.T, out string) string {
	t.Helper()
	for line := range strings.Lines(out) {
		if addr, ok := strings.CutPrefix(strings.TrimSpace(line), "KAFKA_BROKERS="); ok {
			if _, port, err := net.SplitHostPort(addr); err == nil {
				if _, err := strconv.Atoi(port); err == nil {
					return addr
				}
			}
		}
	}
	t.Fatalf("no address in %q", out)
	return ""
}

func noEnv(string) string { return "" }
