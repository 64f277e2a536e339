package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("TESTENV_OWNER_OF"); dir != "" {
		ownBroker(dir)
	}
	Main(m)
}

// A broker that is stopped or killed comes back at the same address with all it had.
func TestKafkaStartAgain(t *testing.T) {
	k := StartKafka(t)
	addr := k.Addr
	if err := CreateTopics(t.Context(), addr, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	want := Produce(t, addr, message(contract.TopicCreated, "a", "1"), message(contract.TopicCreated, "b", "2"))
	commit(t, addr, "readers", contract.TopicCreated, 0, 7)

	for _, end := range []struct {
		name string
		end  func()
	}{{"stopped", k.Stop}, {"killed", k.Kill}} {
		t.Run(end.name, func(t *testing.T) {
			if err := k.StartAgain(t.Context()); err == nil {
				t.Error("a running broker was started again")
			}
			end.end()
			if conn, err := net.Dial("tcp", addr); err == nil {
				conn.Close()
				t.Error("something still accepts connections")
			}
			if err := k.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if k.Addr != addr {
				t.Errorf("the address was %s and is %s", addr, k.Addr)
			}
			if diff := cmp.Diff(byPartition(want), ReadAll(t, addr, contract.TopicCreated), ignoreTime); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			committed := map[string]map[int32]int64{contract.TopicCreated: {0: 7}}
			if diff := cmp.Diff(committed, CommittedOffsets(t, addr, "readers")); diff != "" {
				t.Errorf("committed offsets (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever ends the owner, no broker is left behind.
func TestKafkaEndsWithItsOwner(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process of its parent's death")
	}
	SharedKafka(t) // skips where no broker can run
	dir := t.TempDir()
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), "TESTENV_OWNER_OF="+dir)
	owner.Stderr = t.Output()
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(io.LimitReader(out, 3)); string(text) != "up\n" {
		t.Fatalf("the owner said %q, %v", text, err)
	}
	if _, pid, err := Running(dir); pid == 0 || err != nil {
		t.Fatalf("no broker runs: %v", err)
	}
	owner.Process.Kill()
	owner.Wait()
	await(t, "the broker to end", func() bool {
		_, pid, err := Running(dir)
		return err == nil && pid == 0
	})
}

// ownBroker is the process that TestKafkaEndsWithItsOwner kills.
func ownBroker(dir string) {
	if _, err := Start(context.Background(), Options{Dir: dir}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("up")
	select {}
}

func TestStartRefuses(t *testing.T) {
	k := SharedKafka(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		name    string
		options Options
		want    string
	}{
		{"a taken port", Options{Dir: t.TempDir(), Port: taken.Addr().(*net.TCPAddr).Port}, taken.Addr().String() + " cannot be listened at"},
		{"a directory in use", Options{Dir: k.options.Dir}, "already works on it"},
		{"a broker that ends at once", Options{Dir: t.TempDir(), Settings: map[string]string{"num.io.threads": "none"}}, "num.io.threads"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Start(t.Context(), tt.options)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

// The numbers are the design's; the manifests are held against the same file.
func TestBrokerSettings(t *testing.T) {
	want := map[string]string{
		"auto.create.topics.enable":                "false",
		"group.consumer.heartbeat.interval.ms":     "500",
		"group.consumer.min.heartbeat.interval.ms": "500",
		"group.consumer.session.timeout.ms":        "6000",
		"group.consumer.min.session.timeout.ms":    "3000",
		"group.consumer.assignment.interval.ms":    "0",
		"group.initial.rebalance.delay.ms":         "0",
	}
	if diff := cmp.Diff(want, BrokerSettings()); diff != "" {
		t.Errorf("declared settings (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, only(want, brokerConfig(t, SharedKafka(t).Addr))); diff != "" {
		t.Errorf("settings of a real broker (-want +got):\n%s", diff)
	}
	known := map[string]string{ // kfake rebalances at once and creates no topics without being asked to
		"group.consumer.heartbeat.interval.ms": "500",
		"group.consumer.session.timeout.ms":    "6000",
	}
	if diff := cmp.Diff(known, only(want, brokerConfig(t, Fake(t)))); diff != "" {
		t.Errorf("settings of the fake (-want +got):\n%s", diff)
	}
}

func TestConfigureOverrides(t *testing.T) {
	dir := t.TempDir()
	k := &Kafka{options: Options{Dir: dir, Settings: map[string]string{
		"auto.create.topics.enable":         "true", // instead
		"group.consumer.session.timeout.ms": "",     // Kafka's default
		"message.max.bytes":                 "2000", // besides
	}}}
	if err := k.configure("127.0.0.1:1", "", "127.0.0.1:2"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "server.properties"))
	if err != nil {
		t.Fatal(err)
	}
	got := parseProperties(string(text))
	want := map[string]string{
		"auto.create.topics.enable":            "true",
		"message.max.bytes":                    "2000",
		"group.consumer.heartbeat.interval.ms": "500",
		"process.roles":                        "broker,controller",
		"log.dirs":                             filepath.Join(dir, "data"),
	}
	if diff := cmp.Diff(want, only(want, got)); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if value, ok := got["group.consumer.session.timeout.ms"]; ok {
		t.Errorf("the session timeout is set to %q", value)
	}
}

// However many packages are tested at once, Kafka is fetched once; what fails leaves nothing behind that looks complete.
func TestInstall(t *testing.T) {
	bin, count := t.TempDir(), filepath.Join(t.TempDir(), "count")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	program := func(name, script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	program("java", "exit 1")

	program("mvn", "touch half.jar; echo no such artifact; exit 1")
	if _, err := install(t.Context(), log); err == nil || !strings.Contains(err.Error(), "no such artifact") {
		t.Fatalf("error is %v, want mvn's own words", err)
	}

	program("mvn", "sleep 0.1; echo x >>"+count+"; touch kafka.jar")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			in, err := install(t.Context(), log)
			if err != nil || len(in.jars) != 1 || filepath.Base(in.jars[0]) != "kafka.jar" {
				t.Errorf("installed %v, %v", in.jars, err)
			}
		})
	}
	wg.Wait()
	if text, err := os.ReadFile(count); string(text) != "x\n" {
		t.Errorf("mvn ran %d times, want once (%v)", strings.Count(string(text), "x"), err)
	}
}

func TestMissingPrograms(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, want := range []string{"java", "mvn"} {
		_, err := Start(t.Context(), Options{Dir: t.TempDir()})
		missing, ok := errors.AsType[*MissingError](err)
		if !ok || missing.Program != want || missing.Install == "" {
			t.Errorf("error is %v, want that %s is missing and what to install", err, want)
		}
		if err := os.WriteFile(filepath.Join(bin, want), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOldJava(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	bin := t.TempDir()
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	for name, script := range map[string]string{"mvn": "touch kafka.jar", "java": "echo UnsupportedClassVersionError; exit 1"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Start(t.Context(), Options{Dir: t.TempDir()})
	if missing, ok := errors.AsType[*MissingError](err); !ok || missing.Program != "java 17" {
		t.Errorf("error is %v, want that java 17 is missing", err)
	}
}

func TestRequire(t *testing.T) {
	missing := fmt.Errorf("start: %w", &MissingError{"java", needJDK})
	for _, tt := range []struct {
		name     string
		err      error
		required string
		want     string
	}{
		{"all is there", nil, "", "runs"},
		{"something is missing", missing, "", "skipped"},
		{"something is missing and required", missing, "1", "failed"},
		{"something is broken", errors.New("broken"), "", "failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TEST_REQUIRE", tt.required)
			r := &recorder{TB: t, outcome: "runs"}
			var wg sync.WaitGroup // what ends a test ends its goroutine
			wg.Go(func() { Require(r, tt.err) })
			wg.Wait()
			if r.outcome != tt.want {
				t.Errorf("the test is %s, want %s", r.outcome, tt.want)
			}
		})
	}
}

// recorder notes what a real test would do.
type recorder struct {
	testing.TB
	outcome string
}

func (r *recorder) Skipf(string, ...any) { r.outcome = "skipped"; runtime.Goexit() }
func (r *recorder) Fatal(...any)         { r.outcome = "failed"; runtime.Goexit() }

func only(names, from map[string]string) map[string]string {
	m := make(map[string]string)
	for name := range names {
		if value, ok := from[name]; ok {
			m[name] = value
		}
	}
	return m
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}
