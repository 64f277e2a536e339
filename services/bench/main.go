// Command bench measures the services against the bare limits of the machine that it runs on: the
// same bytes through a bare HTTP server, into a bare SQLite and through bare librdkafka. Each
// repeat measures both, one right after the other. Their ratio is therefore meaningful even where
// the numbers alone are not.
//
//	go run ./services/bench [-only accept,visible,relay,apply,streams,audit,reconcile,crowd,start] [-repeats 5]
//	go run ./services/bench first-event [-repeats 5]
//
// The services are the real programs in processes of their own, against a real Kafka. Progress goes
// to stderr, the tables go to stdout as Markdown. The command fails if a result is not only slow
// but wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"ordersystem.dev/services/bench/limit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// subject is what one table is about.
type subject struct {
	// name is that of the flag -only.
	name string
	// run measures and prints the table.
	run func(context.Context) error
}

// run reads the command line and measures what it asks for.
func run(ctx context.Context, args []string) (err error) {
	command := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	// The flags set the size of the run. The defaults are those of docs/benchmarks.md.
	b := &bench{out: os.Stdout}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&b.repeats, "repeats", 5, "how often each pair is measured")
	flags.DurationVar(&b.duration, "for", 4*time.Second, "how long one measurement under load takes")
	flags.IntVar(&b.connections, "connections", 64, "connections of the load")
	flags.IntVar(&b.records, "records", 200_000, "records to relay, and to apply")
	flags.IntVar(&b.audited, "audited", 1_000_000,
		"records to audit, orders to reconcile, and events that Kafka Streams applies too")
	only := flags.String("only", "accept,visible,relay,apply,streams,audit,reconcile,crowd,start",
		"subjects, in this order")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	subjects := []subject{
		{"accept", b.accept}, {"visible", b.visible}, {"relay", b.relay},
		{"apply", b.apply}, {"streams", b.streams}, {"audit", b.audit}, {"reconcile", b.reconcile},
		{"crowd", b.crowd}, {"start", b.start},
	}
	chosen := strings.Split(*only, ",")
	switch command {
	case echoCommand:
		// This process is a child of another bench.
		return limit.Echo(ctx, os.Getenv("HTTP_ADDR"), os.Getenv("OPS_ADDR"))
	case "first-event":
		subjects, chosen = []subject{{command, b.firstEvent}}, []string{command}
	case "":
	default:
		return fmt.Errorf("there is no command %q: use first-event, or none for the subjects", command)
	}
	for _, name := range chosen {
		if !slices.ContainsFunc(subjects, func(s subject) bool { return s.name == name }) {
			return fmt.Errorf("there is no subject %q", name)
		}
	}

	// From here on there are files to remove.
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.describe()
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
