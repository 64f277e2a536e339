// Command orderctl repairs what the services cannot repair by themselves. It looks at the dead letters, and
// compares the stores with the topics. What it finds, it has Cart publish again, or Order rebuild its view. What
// no client can read any more, it has Order skip.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
)

// The exit codes.
const (
	exitDone = 0
	// exitFailed: something failed, or could not be done for all that was asked for.
	exitFailed = 1
	// exitUsage: the command line or the environment is wrong. Nothing was done.
	exitUsage = 2
)

const usage = `orderctl looks at the dead letters of the order topics, and compares the stores of Cart and Order with
the topics. What is wrong with an order, it repairs by having Cart publish the newest version again. A view of
Order that is wrong although the topics are right, it has Order rebuild. A damaged batch that holds Order up, and
of which no whole copy is left, it has Order skip.

  orderctl dead-letters list                      a line for each letter
  orderctl dead-letters show PARTITION/OFFSET     one letter, whole
  orderctl dead-letters redrive                   what would be published again, and what would not
  orderctl reconcile                              a line for each order that is not the same everywhere
  orderctl reconcile -repair                      the same, and has Cart publish those orders again
  orderctl rebuild                                how Order's view differs from the topics
  orderctl rebuild -swap                          the same, and has Order make its view what the topics have
  orderctl skip TOPIC/PARTITION/OFFSET            whether that is a damaged batch which Order could skip
  orderctl skip TOPIC/PARTITION/OFFSET -confirm   the same, and has Order skip it

Kafka is that of the environment, as for the services: KAFKA_BROKERS, KAFKA_SECURITY_PROTOCOL,
KAFKA_PREFIX and so on (docs/configuration.md). redrive needs Cart's operations port, and reconcile
needs Order's too. rebuild and skip need only Order's, and no Kafka. Cart publishes and Order rebuilds and skips
only for a caller on its own host; on Kubernetes, that is kubectl port-forward deployment/orders-cart 5001, or
deployment/orders-order 7001. The services go on meanwhile. Where a batch is damaged, reconcile waits for it, unless
KAFKA_SKIP_DAMAGED has its place.
The exit code is 0 if all was done and all is well, 1 if something failed, was refused or differs,
and 2 if the command or the environment is wrong.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// usageError is a wrong command line.
type usageError struct{ error }

// command is what a command line asks for.
type command interface {
	run(ctx context.Context, k *kafka, stdout io.Writer) error
}

// parse reads the command line. The error is flag.ErrHelp or a usageError.
func parse(args []string) (command, error) {
	switch {
	case len(args) == 0:
		return nil, usageError{errors.New("no command is given")}
	case slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]):
		return nil, flag.ErrHelp
	case args[0] == "dead-letters":
		return parseLetters(args[1:])
	case args[0] == "reconcile":
		return parseReconcile(args[1:])
	case args[0] == "rebuild":
		return parseRebuild(args[1:])
	case args[0] == "skip":
		return parseSkip(args[1:])
	default:
		return nil, usageError{
			fmt.Errorf("there is no command %q: use dead-letters, reconcile, rebuild or skip", args[0]),
		}
	}
}

// newFlags returns the flags that all commands have.
func newFlags(asJSON *bool) *flag.FlagSet {
	flags := flag.NewFlagSet("orderctl", flag.ContinueOnError)
	// run prints the error.
	flags.SetOutput(io.Discard)
	flags.BoolVar(asJSON, "json", false, "a JSON object in each line")
	return flags
}

// cartFlag adds the address of Cart.
func cartFlag(flags *flag.FlagSet, addr *string) {
	flags.StringVar(addr, "cart", "http://localhost:5001", "the `address` of Cart's operations endpoints")
}

// orderFlag adds the address of Order.
func orderFlag(flags *flag.FlagSet, addr *string) {
	flags.StringVar(addr, "order", "http://localhost:7001", "the `address` of Order's operations endpoints")
}

// parseOnlyFlags is parseFlags for a command that takes no arguments.
func parseOnlyFlags(command string, flags *flag.FlagSet, args []string) error {
	rest, err := parseFlags(flags, args)
	if err == nil && len(rest) > 0 {
		err = usageError{fmt.Errorf("%s takes no argument %q", command, rest[0])}
	}
	return err
}

// parseFlags returns the arguments that are no flags. One may come before them.
func parseFlags(flags *flag.FlagSet, args []string) ([]string, error) {
	var arguments []string
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		arguments, args = args[:1:1], args[1:]
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, usageError{err}
	}
	return append(arguments, flags.Args()...), nil
}

// help prints how to use the program.
func help(to io.Writer) {
	fmt.Fprint(to, usage)
	for _, of := range []struct {
		command string
		flags   *flag.FlagSet
	}{
		{"list and redrive", (&lettersOptions{}).flags()},
		{"reconcile", (&reconcileOptions{}).flags()},
		{"rebuild", (&rebuildOptions{}).flags()},
		{"skip", (&skipOptions{}).flags()},
	} {
		fmt.Fprintf(to, "\nThe flags of %s:\n", of.command)
		of.flags.SetOutput(to)
		of.flags.PrintDefaults()
	}
}

// run returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	c, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		help(stdout)
		return exitDone
	}
	if err == nil {
		log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		e := env.New(getenv)
		cfg := broker.ConfigFromEnv(e)
		cfg.ClientID, cfg.SkipDamaged = "orderctl", broker.SkipDamagedFromEnv(e)
		elsewhere := false
		switch c.(type) {
		case *rebuildOptions, *skipOptions:
			// It is Order that reads Kafka for these.
			elsewhere = true
		}
		if err = e.Err(); err == nil || elsewhere {
			err = c.run(ctx, &kafka{cfg, log, stderr}, stdout)
		}
	}
	_, misused := errors.AsType[usageError](err)
	_, misconfigured := errors.AsType[*env.Error](err)
	switch {
	case err == nil:
		return exitDone
	case misused:
		fmt.Fprintf(stderr, "orderctl: %v\norderctl -h shows the usage\n", err)
		return exitUsage
	case misconfigured:
		fmt.Fprintf(stderr, "The configuration is wrong:\n%v\n", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "orderctl:", err)
		return exitFailed
	}
}
