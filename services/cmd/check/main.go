// Command check tries a running order system from outside, as a client of its APIs: it places, updates, finds and audits orders, one
// or many at a rate, and tells by its exit code whether everything was as promised. Helm's tests, Tilt's buttons and load tests use it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"ordersystem.dev/services/internal/env"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run returns the exit code: 0 when all was right, 1 when something was not, 2 for a wrong command line or configuration.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "check: %v\ncheck -h tells what there is\n", err)
		return 2
	}
	if !o.steps[stepPoison] {
		return newChecker(o, stdout, stderr).run(ctx)
	}
	if err := poison(ctx, o, env.New(getenv), stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "poison: %v\n", err)
		if _, wrong := errors.AsType[*env.Error](err); wrong {
			return 2
		}
		return 1
	}
	return 0
}
