package localkafka

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/child"
)

//go:embed log4j2.properties
var log4jProperties []byte

const (
	startPatience = 3 * time.Minute
	stopPatience  = 30 * time.Second
)

// Options describe the broker to start.
type Options struct {
	// Dir keeps data, settings and logs. A broker started again on the same directory keeps its
	// data.
	Dir string
	// Port is where the broker listens. Zero takes a free port.
	Port int
	// Settings are added to BrokerSettings or replace them. An empty value restores Kafka's own
	// default.
	Settings map[string]string
	// JVM holds the flags of the JVM. Nil is [QuickJVM], which is slow under load.
	JVM []string
	// Env is added to the environment of the broker, which runs in Dir.
	Env []string
	// Detached lets the broker survive this process.
	Detached bool
	// TLS adds a listener for TLS. Settings must have ssl.*.
	TLS bool
	// Groups lets root run each broker of a cluster as a group of its own, by which a packet filter tells
	// what it sends: the sum of Groups and the broker's ID. Zero leaves them this process's group.
	Groups uint32
	// Log reports the installation and the start. Nil is silent.
	Log *slog.Logger
}

// Broker is a real Kafka broker in a process of its own. It is a controller too, the only one unless
// [StartCluster] has started it. Its methods must not be called concurrently.
type Broker struct {
	// ID is its number in the cluster, from 1 on.
	ID int
	// Addr is 127.0.0.1:port.
	Addr string
	// TLSAddr is the address of the TLS listener. It is empty without Options.TLS.
	TLSAddr string
	// ControllerAddr is where the other brokers of the cluster reach it as a controller.
	ControllerAddr string

	options      Options
	installation installation
	// controllers are the addresses of the cluster's controllers, in the order of their IDs. It is nil
	// if this broker is the only one.
	controllers []string
	process     *child.Process
}

// StartAgain starts a broker that was stopped or killed, with the same data and port.
func (b *Broker) StartAgain(ctx context.Context) error {
	if b.process.Running() {
		return errors.New("start kafka again: it still runs")
	}
	if err := b.start(ctx); err != nil {
		return fmt.Errorf("start kafka again: %w", err)
	}
	return nil
}

// Stop ends the broker in order and waits for its end. A broker that does not end within 30 s is
// killed.
func (b *Broker) Stop() { b.process.Stop(syscall.SIGTERM, stopPatience) }

// Kill ends the broker as a crash does (SIGKILL) and waits for its end.
func (b *Broker) Kill() { b.process.Kill() }

// PID returns the ID of the broker's process.
func (b *Broker) PID() int { return b.process.PID() }

// Group returns the ID of the group as which the broker runs, if Options.Groups is set.
func (b *Broker) Group() uint32 { return b.options.Groups + uint32(b.ID) }

// Warnings returns the last warnings and errors of the broker's log.
func (b *Broker) Warnings() string {
	log, _ := os.ReadFile(b.logFile())
	return tail(log, 20, "WARN|ERROR|FATAL")
}

// start runs the broker. Another process may take a free port between its discovery and its use.
// Then start tries with another port.
func (b *Broker) start(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := b.startOnce(ctx)
		_, taken := errors.AsType[*PortTakenError](err)
		// The port that was asked for, or that clients know, is the only right one.
		taken = taken && b.options.Port == 0 && b.Addr == ""
		if err == nil || attempt == 3 || !taken && !strings.Contains(err.Error(), "Socket server failed to bind") {
			return err
		}
	}
}

func (b *Broker) startOnce(ctx context.Context) error {
	// A broker that is started again keeps its addresses.
	addr, tlsAddr := b.Addr, b.TLSAddr
	if addr == "" {
		addr = localAddr(cmp.Or(b.options.Port, child.FreePort()))
	}
	if b.options.TLS && tlsAddr == "" {
		tlsAddr = localAddr(child.FreePort())
	}
	if err := checkFree(addr); err != nil {
		return err
	}
	controllers := b.controllers
	if controllers == nil {
		controllers = []string{localAddr(child.FreePort())}
	}
	if err := b.configure(addr, tlsAddr, controllers); err != nil {
		return err
	}
	if err := b.format(ctx); err != nil {
		return err
	}
	before, _ := os.ReadFile(b.logFile())
	begin := time.Now()
	// The broker outlives ctx, which only limits the start.
	cmd := b.java(context.WithoutCancel(ctx), "kafka.Kafka", b.file("server.properties"))
	cmd.Env = append(os.Environ(), b.options.Env...)
	console, err := os.Create(b.file("console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	cmd.Stdout, cmd.Stderr = console, console
	if b.options.Groups != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Gid: b.Group()}}
	}
	if b.process, err = child.Start(cmd, b.options.Detached); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := b.await(ctx, addr); err != nil {
		b.process.Kill()
		out, _ := os.ReadFile(b.file("console.log"))
		log, _ := os.ReadFile(b.logFile())
		log = log[min(len(before), len(log)):]
		return fmt.Errorf("%w\n%s%s", err, tail(out, 20, ""), tail(log, 20, "ERROR|FATAL|Exception"))
	}
	b.Addr, b.TLSAddr, b.ControllerAddr = addr, tlsAddr, controllers[b.ID-1]
	took := time.Since(begin).Round(time.Millisecond)
	b.options.Log.Info("kafka serves", "addr", addr, "dir", b.options.Dir, "took", took)
	return nil
}

// configure writes the broker's settings into its directory.
func (b *Broker) configure(addr, tlsAddr string, controllers []string) error {
	settings := parseProperties(singleNodeProperties)
	maps.Copy(settings, BrokerSettings())
	maps.Copy(settings, b.options.Settings)
	var voters []string
	for i, controller := range controllers {
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, controller))
	}
	maps.Copy(settings, map[string]string{
		"node.id":                  strconv.Itoa(b.ID),
		"log.dirs":                 b.file("data"),
		"listeners":                "PLAINTEXT://" + addr + ",CONTROLLER://" + controllers[b.ID-1],
		"controller.quorum.voters": strings.Join(voters, ","),
	})
	if tlsAddr != "" {
		settings["listeners"] += ",SSL://" + tlsAddr
	}
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if settings[name] != "" {
			fmt.Fprintf(&text, "%s=%s\n", name, settings[name])
		}
	}
	if err := os.MkdirAll(b.file("data"), 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(b.file("server.properties"), text.Bytes(), 0o644),
		os.WriteFile(b.file("log4j2.properties"), log4jProperties, 0o644))
}

// format prepares an empty data directory. It also settles which of Kafka's features are on: the
// new group protocol would otherwise be off.
func (b *Broker) format(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(b.file("data"), "meta.properties")); err == nil {
		return nil
	}
	cmd := b.java(ctx, "kafka.tools.StorageTool",
		"format", "--cluster-id", "b3JkZXJzeXN0ZW0tZGV2MQ", "--config", b.file("server.properties"))
	if out, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("UnsupportedClassVersionError")) {
			return &child.MissingError{Program: "java 17", Install: needJDK}
		}
		return fmt.Errorf("format the data directory: %w\n%s", err, tail(out, 20, ""))
	}
	return nil
}

// java returns a command that runs a class of Kafka's with this broker's flags.
func (b *Broker) java(ctx context.Context, class string, args ...string) *exec.Cmd {
	flags := append(slices.Clone(b.options.JVM),
		"-Dlog4j2.configurationFile="+b.file("log4j2.properties"),
		"-Dkafka.log="+b.logFile(),
		// Kafka unpacks native libraries there, and leaves them behind when it is killed.
		"-Djava.io.tmpdir="+b.options.Dir)
	cmd := b.installation.command(ctx, flags, class, args...)
	// The folder in which this program was started may go. A JVM does not start in one that is gone, and a
	// broker may outlive this program.
	cmd.Dir = b.options.Dir
	return cmd
}

// await waits until the broker serves, or fails as soon as its process ends.
func (b *Broker) await(ctx context.Context, addr string) error {
	for {
		if !b.process.Running() {
			return fmt.Errorf("kafka ended: %v", b.process.State())
		}
		err := serves(ctx, addr, b.ID)
		if err == nil {
			return nil
		}
		if !backoff.Sleep(ctx, 20*time.Millisecond) {
			return fmt.Errorf("wait for kafka: %w", cmp.Or(context.Cause(ctx), err))
		}
	}
}

func (b *Broker) logFile() string { return b.file("kafka.log") }

func (b *Broker) file(name string) string { return filepath.Join(b.options.Dir, name) }

// serves returns nil if the broker at addr, which has this ID, is in its own metadata. A broker
// accepts connections before that.
func serves(ctx context.Context, addr string, id int) error {
	// The client below would wait longer between its attempts to connect.
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	conn.Close()
	admin, err := newAdmin(addr)
	if err != nil {
		return err
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	brokers, err := admin.ListBrokers(ctx)
	if err == nil && !slices.Contains(brokers.NodeIDs(), int32(id)) {
		err = errors.New("the broker is not registered yet")
	}
	return err
}

func newAdmin(addr string) (*kadm.Client, error) {
	return kadm.NewOptClient(kgo.SeedBrokers(addr))
}

// tail returns the last n lines of text that match pattern.
func tail(text []byte, n int, pattern string) string {
	match := regexp.MustCompile(pattern)
	var lines []string
	for line := range bytes.Lines(text) {
		if match.Match(line) {
			lines = append(lines, string(line))
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
