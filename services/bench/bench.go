package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/localpostgres"
)

// bench is one run: its size and its files.
type bench struct {
	// repeats is how often each pair is measured.
	repeats int
	// duration is that of one measurement under load.
	duration time.Duration
	// connections of the load. Each has one request under way.
	connections int
	// records is the size of a relay's backlog, and the number of events to apply.
	records int
	// audited is the number of records in the audited topic, of orders that are reconciled, and of events that
	// Kafka Streams applies too.
	audited int

	// root is the repository.
	root string
	// dir has all data and is removed at the end.
	dir string
	// cart, order and orderctl are built by prepare.
	cart, order, orderctl program
	// kafka and postgres are the processes of the servers that were started last.
	kafka, postgres int
	// out gets the tables. Progress goes to stderr.
	out io.Writer
}

// prepare builds the programs as they are shipped. Data is below the repository: a temporary
// directory may be in memory, where a commit costs nothing.
func (b *bench) prepare(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	b.root = filepath.Dir(strings.TrimSpace(string(out)))
	// .gitignore has this folder.
	data := filepath.Join(b.root, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(data, "bench-"); err != nil {
		return err
	}
	progress("building the programs")
	for name, p := range map[string]*program{"cart": &b.cart, "order": &b.order, "orderctl": &b.orderctl} {
		*p = program{name: name, path: filepath.Join(b.dir, name+".program")}
		// -trimpath is what the images are built with.
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", p.path, "./services/cmd/"+p.name)
		build.Dir = b.root
		if out, err := build.CombinedOutput(); err != nil {
			return errors.Join(fmt.Errorf("build %s: %w\n%s", p.name, err, out), os.RemoveAll(b.dir))
		}
	}
	return nil
}

// describe prints the machine and the versions.
func (b *bench) describe() {
	librdkafka, sqlite := limit.Versions()
	fmt.Fprintf(b.out, "%s, %d processors, %s/%s, %s, "+
		"Kafka %s (G1 collector, 1 GiB heap, the flags of its own start script), "+
		"librdkafka %s, SQLite %s, %d repeats.\n",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(),
		localkafka.Version(), librdkafka, sqlite, b.repeats)
}

// rawTopic is for the bare limits, and declared as the order topics are.
const rawTopic = "raw-topic"

// startKafka starts a broker with all topics and warms it up. A JVM compiles what it does often: for half a
// minute of transactions that takes half of its processor time, which would count for what is measured first.
func (b *bench) startKafka(ctx context.Context) (*localkafka.Broker, error) {
	k, err := b.startBroker(ctx, nil)
	if err != nil {
		return nil, err
	}
	// The caller gets no broker that it would have to stop after an error.
	if err := b.warmUp(ctx, k.Addr); err != nil {
		k.Stop()
		return nil, fmt.Errorf("prepare Kafka: %w", err)
	}
	return k, nil
}

// startBroker starts a broker without topics. It has the flags of Kafka's own start script:
// localkafka's are for a quick start, and slow under load.
func (b *bench) startBroker(ctx context.Context, settings map[string]string) (*localkafka.Broker, error) {
	dir, err := os.MkdirTemp(b.dir, "kafka-")
	if err != nil {
		return nil, err
	}
	flags := []string{
		"-Xms1g", "-Xmx1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
		"-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent",
	}
	k, err := localkafka.Start(ctx, localkafka.Options{Dir: dir, JVM: flags, Settings: settings})
	if err != nil {
		return nil, err
	}
	b.kafka = k.PID()
	return k, nil
}

// warmUp declares all topics, and writes and reads many records: with bare clients, and with an
// installation of both services that is used for nothing else.
func (b *bench) warmUp(ctx context.Context, addr string) error {
	const prefix = "warm-up."
	topics := slices.Concat(contract.Topics(), contract.TopicsOf(prefix))
	topics = append(topics, contract.Topic{
		Name: rawTopic, Partitions: topics[0].Partitions, Config: topics[0].Config,
	})
	if err := localkafka.CreateTopics(ctx, addr, topics, 1); err != nil {
		return err
	}
	progress("warming Kafka up")
	created := prefix + contract.TopicCreated
	if _, err := limit.Produce(ctx, addr, created, load.Orders("warm-", 100_000)); err != nil {
		return err
	}
	if _, _, err := limit.Consume(ctx, addr, created); err != nil {
		return err
	}
	return b.inFreshDir(func(dir string) error {
		return b.withSystem(ctx, dir, addr, 1, func(s system) error {
			for begin := time.Now(); time.Since(begin) < 8*b.duration; {
				part := fmt.Sprint("warm-", time.Since(begin), "-")
				if _, err := b.creations(ctx, s.carts, part, func(int) error { return nil }); err != nil {
					return err
				}
			}
			_, err := s.settled(ctx)
			return err
		}, "KAFKA_PREFIX="+prefix)
	})
}

// startPostgres starts a server that keeps what was committed, also through a power loss.
func (b *bench) startPostgres(ctx context.Context) (*localpostgres.Server, error) {
	// The user who runs PostgreSQL must reach its directory.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "postgres-")
	if err != nil {
		return nil, err
	}
	pg, err := localpostgres.Start(ctx, localpostgres.Options{
		Dir: dir, Settings: map[string]string{"shared_buffers": "256MB"},
	})
	if err != nil {
		return nil, err
	}
	b.postgres = pg.PID()
	return pg, nil
}

// newDatabase makes an empty database for a measurement, which begins right after that.
func newDatabase(ctx context.Context, pg *localpostgres.Server, name string) (url string, err error) {
	err = pg.Wait(ctx, "CREATE DATABASE "+name)
	quiet()
	return pg.URL(name), err
}

// migrations returns the folder of a service with those of each kind of database.
func (b *bench) migrations(service string) string {
	return filepath.Join(b.root, "services", service, "migrations")
}

// schema returns the schema of a service for a bare SQLite.
func (b *bench) schema(service, synchronous string) limit.Schema {
	return limit.Schema{
		Migrations:  filepath.Join(b.migrations(service), "sqlite"),
		Synchronous: synchronous,
	}
}

// inFreshDir calls use with a new directory, which it removes afterwards.
func (b *bench) inFreshDir(use func(dir string) error) (err error) {
	dir, err := os.MkdirTemp(b.dir, "fresh-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return use(dir)
}

// with starts a program with its data in dir, calls use and stops the program. The program is not
// ready yet when use is called. env is added to its environment.
func (b *bench) with(
	ctx context.Context, p program, dir, kafka string, use func(*service) error, env ...string,
) (err error) {
	s, err := startService(ctx, p, dir, kafka, env...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return use(s)
}

// system is both services, with one or more replicas of each.
type system struct{ carts, orders []*service }

// withSystem starts replicas of both services with their data in dir, calls use when all are ready, and
// stops them. env is added to their environment.
func (b *bench) withSystem(
	ctx context.Context, dir, kafka string, replicas int, use func(system) error, env ...string,
) (err error) {
	var s system
	defer func() {
		for _, one := range slices.Concat(s.carts, s.orders) {
			err = errors.Join(err, one.stop())
		}
	}()
	for n := range replicas {
		for _, of := range []struct {
			p  program
			to *[]*service
		}{{b.cart, &s.carts}, {b.order, &s.orders}} {
			data := filepath.Join(dir, of.p.name, fmt.Sprint(n))
			one, err := startService(ctx, of.p, data, kafka, env...)
			if err != nil {
				return err
			}
			*of.to = append(*of.to, one)
		}
	}
	for _, one := range slices.Concat(s.carts, s.orders) {
		if _, err := one.ready(ctx); err != nil {
			return err
		}
	}
	return use(s)
}

// newStore makes a Cart's store that is known to be complete. env is that of the Cart.
func (b *bench) newStore(ctx context.Context, kafka, dir string, env ...string) error {
	return b.with(ctx, b.cart, dir, kafka, func(cart *service) error {
		_, err := cart.ready(ctx)
		return err
	}, env...)
}

// echoCommand is the argument that makes this program the bare HTTP server.
const echoCommand = "echo"

// startEcho starts the bare HTTP server and waits until it is ready. It is a process of its own, as
// the services are.
func (b *bench) startEcho(ctx context.Context) (*service, error) {
	// The server is this program itself, started with another command.
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := program{name: "echo", path: self, args: []string{echoCommand}}
	s, err := startService(ctx, p, filepath.Join(b.dir, "echo"), "none:1")
	if err != nil {
		return nil, err
	}
	if _, err := s.ready(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// settled waits until everything accepted is published and applied, and returns how many records
// that were.
func (s system) settled(ctx context.Context) (applied float64, err error) {
	// Cart counts acknowledgements, and Order must have applied as many records.
	if err := s.carts[0].awaitPublished(ctx); err != nil {
		return 0, err
	}
	acked, err := sum(ctx, s.carts, "cart_produce_ack_seconds_count")
	if err != nil {
		return 0, err
	}
	return acked, s.awaitApplied(ctx, acked)
}

// awaitApplied waits until the Orders have applied so many records together.
func (s system) awaitApplied(ctx context.Context, records float64) error {
	return s.orders[0].await(ctx, 5*time.Millisecond, func() (bool, error) {
		applied, err := sum(ctx, s.orders, appliedRecords)
		return applied >= records, err
	})
}

// sum returns the sum of a metric of several services.
func sum(ctx context.Context, of []*service, metric string) (all float64, err error) {
	for _, s := range of {
		some, err := s.metric(ctx, metric)
		if err != nil {
			return 0, err
		}
		all += some
	}
	return all, nil
}

// quiet returns memory to the system and lets the disk settle, so that one measurement does not pay
// for the one before it.
func quiet() {
	// Otherwise the garbage collector of this process runs during the next measurement.
	debug.FreeOSMemory()
	syscall.Sync()
	time.Sleep(300 * time.Millisecond)
}

// started is the start of this process, from which progress counts.
var started = time.Now()

// progress prints a line to stderr, with the time since the start.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}
