// Command bench measures the services against the raw limits of the machine that it runs on: the same bytes through a bare HTTP
// server, into a bare SQLite, through bare librdkafka (by its Go binding). Each repeat runs them one right after the other, so that
// the ratio of the two means something even where the numbers alone do not.
//
//	go run ./services/bench [-only accept,visible,relay,apply,audit,start] [-repeats 5]
//	go run ./services/bench first-event [-repeats 5]
//
// The services are the real programs in processes of their own, against a real Kafka. Progress goes to stderr, the tables, in
// Markdown, to stdout. It ends with an error when a result is not only slow but wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/mattn/go-sqlite3"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

// bench is one run: its size and where its things are.
type bench struct {
	repeats     int
	span        time.Duration // of one measurement under load
	connections int
	records     int // of a relay's backlog, and of the events applied
	audited     int

	root        string // of the repository
	dir         string // for data; removed at the end
	cart, order string // the programs
	out         io.Writer
}

// subject is what one table is about.
type subject struct {
	name string
	run  func(context.Context) error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	command := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	b := &bench{out: os.Stdout}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&b.repeats, "repeats", 5, "how often each pair is measured")
	flags.DurationVar(&b.span, "span", 4*time.Second, "how long one measurement under load takes")
	flags.IntVar(&b.connections, "connections", 64, "connections of the load")
	flags.IntVar(&b.records, "records", 200_000, "records to relay, and to apply")
	flags.IntVar(&b.audited, "audited", 1_000_000, "records to audit")
	only := flags.String("only", "accept,visible,relay,apply,audit,start", "subjects, in this order")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	subjects := []subject{
		{"accept", b.accept}, {"visible", b.visible}, {"relay", b.relay}, {"apply", b.apply}, {"audit", b.audit}, {"start", b.start},
	}
	chosen := strings.Split(*only, ",")
	switch command {
	case "echo": // a child of ours
		return echo(ctx, os.Getenv("HTTP_ADDR"), os.Getenv("OPS_ADDR"))
	case "first-event":
		subjects, chosen = subjects[:0], nil
	case "":
	default:
		return fmt.Errorf("there is no command %q: first-event is the only one, none measures the subjects", command)
	}
	for _, name := range chosen {
		if !slices.ContainsFunc(subjects, func(s subject) bool { return s.name == name }) {
			return fmt.Errorf("there is no subject %q", name)
		}
	}

	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.describe()
	if command == "first-event" {
		return b.firstEvent(ctx)
	}
	for _, s := range subjects {
		if !slices.Contains(chosen, s.name) {
			continue
		}
		begin := time.Now()
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		progress("%s took %s", s.name, time.Since(begin).Round(time.Second))
	}
	return nil
}

// prepare builds the programs as they are shipped, and makes room for data below the repository: a temporary directory may be in memory,
// where a commit costs nothing.
func (b *bench) prepare(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	b.root = filepath.Dir(strings.TrimSpace(string(out)))
	data := filepath.Join(b.root, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(data, "bench-"); err != nil {
		return err
	}
	progress("building the services")
	b.cart, b.order = filepath.Join(b.dir, "cart"), filepath.Join(b.dir, "order")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.dir+string(filepath.Separator), "./services/cmd/cart", "./services/cmd/order")
	build.Dir = b.root
	if out, err := build.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("build the services: %w\n%s", err, out), os.RemoveAll(b.dir))
	}
	return nil
}

// describe says what was measured with.
func (b *bench) describe() {
	_, librdkafka := kafka.LibraryVersion()
	sqlite, _, _ := sqlite3.Version()
	fmt.Fprintf(b.out, "%s, %d processors, %s/%s, %s, Kafka %s (G1 collector, 1 GiB heap, the flags of its own start script), librdkafka %s, SQLite %s, %d repeats.\n",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), localkafka.Version(), librdkafka, sqlite, b.repeats)
}

// brokerJVM are the flags of Kafka's own start script: localkafka's are for a quick start, and slow under load.
var brokerJVM = []string{"-Xms1g", "-Xmx1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"}

// rawTopic is declared as the order topics are, for the raw limits.
const rawTopic = "raw-topic"

// startKafka starts a broker of the subject's own with all topics, and warms it up: the first hundred thousand records of a JVM are
// slow, and whoever came first would pay for them.
func (b *bench) startKafka(ctx context.Context) (*localkafka.Broker, error) {
	dir, err := os.MkdirTemp(b.dir, "kafka-")
	if err != nil {
		return nil, err
	}
	k, err := localkafka.Start(ctx, localkafka.Options{Dir: dir, JVM: brokerJVM})
	if err != nil {
		return nil, err
	}
	like := contract.Topics()[0]
	const warm = "warm-up"
	topics := append(contract.Topics(),
		contract.Topic{Name: rawTopic, Partitions: like.Partitions, Config: like.Config},
		contract.Topic{Name: warm, Partitions: like.Partitions, Config: like.Config})
	if err = localkafka.CreateTopics(ctx, k.Addr, topics, 1); err == nil {
		progress("warming kafka up")
		if _, err = produceAll(ctx, k.Addr, warm, orders("warm-", 100_000)); err == nil {
			_, err = consumeAll(ctx, k.Addr, warm)
		}
	}
	if err != nil {
		k.Stop()
		return nil, fmt.Errorf("prepare kafka: %w", err)
	}
	return k, nil
}

// quiet gives memory back and lets the disk settle, so that one arm does not pay for the one before it.
func quiet() {
	debug.FreeOSMemory()
	syscall.Sync()
	time.Sleep(300 * time.Millisecond)
}

var begin = time.Now()

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}
