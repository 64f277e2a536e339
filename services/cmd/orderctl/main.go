// Command orderctl repairs what the services cannot repair by themselves. It looks at the dead letters,
// and has Cart publish their orders again.
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

const usage = `orderctl looks at the dead letters of the order topics, and redrives them: it has Cart publish the newest
version of their orders again.

  orderctl dead-letters list                      a line for each letter
  orderctl dead-letters show PARTITION/OFFSET     one letter, whole
  orderctl dead-letters redrive                   what would be published again, and what would not

Kafka is that of the environment, as for the services: KAFKA_BROKERS, KAFKA_SECURITY_PROTOCOL,
KAFKA_PREFIX and so on (docs/configuration.md). redrive needs Cart's operations port, which takes
commands from its own host only; on Kubernetes, kubectl port-forward deployment/orders-cart 5001.
The exit code is 0 if all was done, 1 if something failed or was refused, and 2 if the command or
the environment is wrong.

The flags of list and redrive:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// usageError is a wrong command line.
type usageError struct{ error }

// run returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		help(stdout)
		return exitDone
	}
	if err == nil {
		log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		e := env.New(getenv)
		cfg := broker.ConfigFromEnv(e)
		cfg.ClientID = "orderctl"
		if err = e.Err(); err == nil {
			err = o.deadLetters(ctx, &kafka{cfg, log, stderr}, stdout)
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
