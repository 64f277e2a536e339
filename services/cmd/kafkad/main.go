// Command kafkad starts and stops a real Kafka broker for development. `make kafka` and `make
// kafka-stop` run it. The broker keeps running when the command ends.
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
	"strconv"
	"syscall"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

const (
	defaultDir  = "data/broker"
	defaultPort = 9092
	// stopPatience is how long a broker may take to end before it is killed.
	stopPatience = 30 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kafkad:", err)
		os.Exit(1)
	}
}

// run executes one command. The address is printed as KAFKA_BROKERS=..., a line that a shell can
// evaluate.
func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	if len(args) == 0 {
		args = []string{""}
	}
	flags := flag.NewFlagSet("kafkad", flag.ContinueOnError)
	flags.SetOutput(out)
	dir := flags.String("dir", defaultDir, "where the broker keeps its data and its log")
	port := flags.String("port", getenv("KAFKA_PORT"),
		"start: the port to serve at, 0 for a free one (also $KAFKA_PORT; default "+strconv.Itoa(defaultPort)+")")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "start":
		return start(ctx, *dir, *port, out)
	case "stop":
		return stop(*dir, out)
	case "status":
		return status(*dir, out)
	}
	return errors.New("usage: kafkad start [-port PORT] [-dir DIR] | stop [-dir DIR] | status [-dir DIR]")
}

// start starts a broker, unless one runs already, and makes the declared topics. The broker keeps
// running when the command ends.
func start(ctx context.Context, dir, portText string, out io.Writer) error {
	port := defaultPort
	if portText != "" {
		var err error
		if port, err = strconv.Atoi(portText); err != nil || port < 0 || port > 65535 {
			return fmt.Errorf("-port or KAFKA_PORT is %q, must be a number from 0 to 65535", portText)
		}
	}
	addr, pid, err := localkafka.Running(dir)
	if err != nil {
		return err
	}
	if pid != 0 {
		fmt.Fprintf(out, "Kafka already runs on %s (process %d).\n", dir, pid)
	} else {
		k, err := localkafka.Start(ctx, localkafka.Options{
			Dir:      dir,
			Port:     port,
			Detached: true,
			Log:      slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: withoutTime})),
		})
		if taken, ok := errors.AsType[*localkafka.PortTakenError](err); ok {
			return fmt.Errorf("%w: choose another port with KAFKA_PORT=... or -port, 0 finds a free one", taken)
		}
		if err != nil {
			return err
		}
		addr = k.Addr
	}
	if err := localkafka.CreateTopics(ctx, addr, contract.Topics(), 1); err != nil {
		return fmt.Errorf("kafka runs, but not with the declared topics (stop it and delete %s to start over): %w",
			dir, err)
	}
	how := "make kafka-stop"
	if dir != defaultDir {
		how = "go run ./services/cmd/kafkad stop -dir " + dir
	}
	fmt.Fprintf(out, "KAFKA_BROKERS=%s\nIt stops with: %s\n", addr, how)
	return nil
}

// stop stops the broker that works on dir, if there is one. Its data stays.
func stop(dir string, out io.Writer) error {
	addr, pid, err := localkafka.Running(dir)
	if err != nil {
		return err
	}
	if pid == 0 {
		fmt.Fprintf(out, "No Kafka runs on %s.\n", dir)
		return nil
	}
	if err := end(dir, pid); err != nil {
		return fmt.Errorf("stop kafka (process %d): %w", pid, err)
	}
	fmt.Fprintf(out, "Kafka at %s is stopped; its data stays in %s.\n", addr, dir)
	return nil
}

// end ends the broker that works on dir, and kills it after stopPatience. It waits until the
// broker's lock is gone: the broker is no child of this process, and in some containers no process
// collects ended children.
func end(dir string, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for deadline := time.Now().Add(stopPatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, now, err := localkafka.Running(dir); err != nil || now != pid {
			return err
		}
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// status prints whether a broker runs, and its address.
func status(dir string, out io.Writer) error {
	addr, pid, err := localkafka.Running(dir)
	if err != nil {
		return err
	}
	if pid == 0 {
		fmt.Fprintf(out, "No Kafka runs on %s.\n", dir)
		return nil
	}
	fmt.Fprintf(out, "Kafka runs on %s (process %d).\nKAFKA_BROKERS=%s\n", dir, pid, addr)
	return nil
}

// withoutTime leaves the time out of log lines: a person reads them as they come.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}
