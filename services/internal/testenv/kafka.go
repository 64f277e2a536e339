// Package testenv runs what the services need around them: a real Kafka broker, a fake one inside the process, and readers and
// writers that share no code with the services. Tests get real servers where these can run, and skip where they cannot, unless
// TEST_REQUIRE=1 makes that a failure.
package testenv

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	//go:embed kafka/broker.properties
	brokerProperties string
	//go:embed kafka/single-node.properties
	singleNodeProperties string
	//go:embed kafka/log4j2.properties
	log4jProperties []byte
)

// quickJVM starts quickly and stays small: no optimizing compiler to warm up, no collector threads. Wrong for a benchmark.
var quickJVM = []string{"-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"}

const (
	startPatience = 60 * time.Second
	stopPatience  = 30 * time.Second
)

// Options say what broker to start.
type Options struct {
	Dir      string            // keeps data, settings and logs; a broker started on the same one again goes on with its data
	Port     int               // 0: a free one
	Settings map[string]string // broker settings besides or instead of BrokerSettings; "" means Kafka's own default
	JVM      []string          // flags; nil: quick to start, slow under load
	Detached bool              // survives this process
	TLS      bool              // a listener for TLS besides, with the Settings ssl.*
	Log      *slog.Logger      // nil: silent
}

// Kafka is a real broker, which is its own controller, in a process of its own.
type Kafka struct {
	Addr    string // 127.0.0.1:port
	TLSAddr string // likewise, if the Options say so

	options      Options
	installation installation
	process      *process
}

// BrokerSettings are the settings that every broker which this project declares has in common.
func BrokerSettings() map[string]string { return parseProperties(brokerProperties) }

// MetricsSettings are settings by which a broker shows its metrics at an address, those that Strimzi's brokers show by default.
func MetricsSettings(addr string) map[string]string {
	return map[string]string{
		"metric.reporters":                     "io.strimzi.kafka.metrics.KafkaPrometheusMetricsReporter",
		"kafka.metrics.reporters":              "io.strimzi.kafka.metrics.YammerPrometheusMetricsReporter",
		"prometheus.metrics.reporter.listener": "http://" + addr,
		"prometheus.metrics.reporter.allowlist": strings.Join([]string{
			"kafka_cluster_partition.*", "kafka_controller_kafkacontroller.*", "kafka_controller_controllerstats_uncleanleaderelectionspersec",
			"kafka_log_log_size", "kafka_network_requestmetrics.*", "kafka_network_socketserver_networkprocessoravgidlepercent",
			"kafka_server_app_info.*", "kafka_server_brokertopicmetrics.*", "kafka_server_kafkarequesthandlerpool_requesthandleravgidlepercent",
			"kafka_server_kafkaserver_brokerstate", "kafka_server_kafkaserver_clusterid", "kafka_server_kafkaserver_linux.*", "kafka_server_raft.*",
			"kafka_server_replicamanager.*", "kafka_server_request_queue_size", "kafka_server_socket_server.*",
		}, ","),
	}
}

// PortTakenError says that the broker cannot listen at the port that was asked for.
type PortTakenError struct {
	Addr string
	Err  error
}

func (e *PortTakenError) Error() string {
	return fmt.Sprintf("%s cannot be listened at: %v", e.Addr, e.Err)
}

func (e *PortTakenError) Unwrap() error { return e.Err }

// Start starts a broker and waits until it serves.
func Start(ctx context.Context, o Options) (*Kafka, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.JVM == nil {
		o.JVM = quickJVM
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("start kafka in %s: %w", o.Dir, err)
	}
	o.Dir = dir
	if _, pid, err := Running(dir); err != nil || pid != 0 {
		return nil, cmp.Or(err, fmt.Errorf("start kafka in %s: process %d already works on it", dir, pid))
	}
	in, err := install(ctx, o.Log)
	if err != nil {
		return nil, fmt.Errorf("install kafka: %w", err)
	}
	k := &Kafka{options: o, installation: in}
	if err := k.start(ctx); err != nil {
		return nil, fmt.Errorf("start kafka in %s: %w", o.Dir, err)
	}
	return k, nil
}

// StartAgain starts a broker that was stopped or killed: same data, same port.
func (k *Kafka) StartAgain(ctx context.Context) error {
	if k.process.running() {
		return errors.New("start kafka again: it still runs")
	}
	if err := k.start(ctx); err != nil {
		return fmt.Errorf("start kafka again: %w", err)
	}
	return nil
}

// Stop ends the broker in order and waits for its end.
func (k *Kafka) Stop() { k.process.stop(stopPatience) }

// Kill ends the broker as a crash does (SIGKILL).
func (k *Kafka) Kill() { k.process.kill() }

// LogFile is what the broker logs.
func (k *Kafka) LogFile() string { return filepath.Join(k.options.Dir, "kafka.log") }

// start runs the broker. Between finding a free port and using it another process may take it: then another one is tried.
func (k *Kafka) start(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := k.startOnce(ctx)
		if err == nil || attempt == 3 || !strings.Contains(err.Error(), "Socket server failed to bind") {
			return err
		}
	}
}

func (k *Kafka) startOnce(ctx context.Context) error {
	addr, tlsAddr := k.Addr, k.TLSAddr // started again
	if addr == "" {
		addr = localAddr(cmp.Or(k.options.Port, FreePort()))
	}
	if k.options.TLS && tlsAddr == "" {
		tlsAddr = localAddr(FreePort())
	}
	if err := free(addr); err != nil {
		return err
	}
	if err := k.configure(addr, tlsAddr, localAddr(FreePort())); err != nil {
		return err
	}
	if err := k.format(ctx); err != nil {
		return err
	}
	before, _ := os.ReadFile(k.LogFile())
	begin := time.Now()
	cmd := k.java(context.Background(), "kafka.Kafka", k.file("server.properties"))
	console, err := os.Create(k.file("console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	cmd.Stdout, cmd.Stderr = console, console
	if k.process, err = startProcess(cmd, k.options.Detached); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := k.await(ctx, addr); err != nil {
		k.process.kill()
		out, _ := os.ReadFile(k.file("console.log"))
		log, _ := os.ReadFile(k.LogFile())
		return fmt.Errorf("%w\n%s%s", err, tail(out, 20, ""), tail(log[min(len(before), len(log)):], 20, "ERROR|FATAL|Exception"))
	}
	k.Addr, k.TLSAddr = addr, tlsAddr
	k.options.Log.Info("kafka serves", "addr", addr, "dir", k.options.Dir, "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

func (k *Kafka) file(name string) string { return filepath.Join(k.options.Dir, name) }

func (k *Kafka) configure(addr, tlsAddr, controllerAddr string) error {
	settings := parseProperties(singleNodeProperties)
	maps.Copy(settings, BrokerSettings())
	maps.Copy(settings, k.options.Settings)
	maps.Copy(settings, map[string]string{
		"log.dirs":                 k.file("data"),
		"listeners":                "PLAINTEXT://" + addr + ",CONTROLLER://" + controllerAddr,
		"controller.quorum.voters": "1@" + controllerAddr,
	})
	if tlsAddr != "" {
		settings["listeners"] += ",SSL://" + tlsAddr
	}
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if settings[name] != "" {
			fmt.Fprintf(&b, "%s=%s\n", name, settings[name])
		}
	}
	if err := os.MkdirAll(k.file("data"), 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(k.file("server.properties"), b.Bytes(), 0o644),
		os.WriteFile(k.file("log4j2.properties"), log4jProperties, 0o644))
}

// format prepares an empty data directory, which also settles the features: without it the new group protocol is off.
func (k *Kafka) format(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(k.file("data"), "meta.properties")); err == nil {
		return nil
	}
	cmd := k.java(ctx, "kafka.tools.StorageTool", "format", "--cluster-id", "b3JkZXJzeXN0ZW0tZGV2MQ", "--config", k.file("server.properties"))
	if out, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("UnsupportedClassVersionError")) {
			return &MissingError{"java 17", needJDK}
		}
		return fmt.Errorf("format the data directory: %w\n%s", err, tail(out, 20, ""))
	}
	return nil
}

func (k *Kafka) java(ctx context.Context, class string, args ...string) *exec.Cmd {
	flags := slices.Clone(k.options.JVM)
	if k.installation.archive != "" {
		// One that does not fit this JVM is passed over by it.
		flags = append(flags, "-XX:SharedArchiveFile="+k.installation.archive)
	}
	flags = append(flags,
		"-Dlog4j2.configurationFile="+k.file("log4j2.properties"),
		"-Dkafka.log="+k.LogFile(),
		"-Djava.io.tmpdir="+k.options.Dir, // where it unpacks native libraries, which a kill leaves behind
		"-cp", strings.Join(k.installation.jars, string(os.PathListSeparator)), class)
	return exec.CommandContext(ctx, k.installation.java, append(flags, args...)...)
}

// await waits until the broker is in its own metadata; it accepts connections before that.
func (k *Kafka) await(ctx context.Context, addr string) error {
	for {
		if !k.process.running() {
			return fmt.Errorf("kafka ended: %v", k.process.cmd.ProcessState)
		}
		err := serves(ctx, addr)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for kafka: %w", cmp.Or(context.Cause(ctx), err))
		case <-k.process.done:
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serves says whether a broker answers at addr and is ready to work.
func serves(ctx context.Context, addr string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second) // the client below would back off for longer
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
	if err == nil && len(brokers) == 0 {
		err = errors.New("no broker is registered yet")
	}
	return err
}

func newAdmin(addr string, opts ...kgo.Opt) (*kadm.Client, error) {
	return kadm.NewOptClient(append([]kgo.Opt{kgo.SeedBrokers(addr)}, opts...)...)
}

// FreePort finds a port outside the range from which the system takes those of outgoing connections: a client that keeps trying
// to reach a stopped server could otherwise be given the server's own port, connect to itself, and hold it.
func FreePort() int {
	for {
		if port := 15000 + rand.IntN(15000); free(localAddr(port)) == nil {
			return port
		}
	}
}

func localAddr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// free says whether a broker could listen at addr.
func free(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return &PortTakenError{addr, err}
	}
	return ln.Close()
}

func parseProperties(text string) map[string]string {
	m := make(map[string]string)
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && name[0] != '#' {
			m[name] = value
		}
	}
	return m
}
