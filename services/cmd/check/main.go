// Command check tests a running order system from outside, as a client of its HTTP APIs. It places,
// updates, finds and audits orders, once or many times at a rate. Its exit code reports whether
// every response was right. Helm's tests, Tilt's buttons and load tests use it.
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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run returns the exit code: 0 if everything was right, 1 if something was not, 2 for a wrong
// command line.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var c *checker
	if err == nil {
		c, err = newChecker(o, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "check: %v\ncheck -h shows the usage\n", err)
		return 2
	}
	return c.run(ctx)
}
