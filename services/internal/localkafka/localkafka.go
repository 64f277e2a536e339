// Package localkafka runs a real Kafka broker on this machine, for development, benchmarks and
// tests.
//
// It fetches Kafka with Maven once, into the user's cache, and needs a JDK. A broker runs in a
// process of its own. It ends with the process that started it, unless it is detached. The package
// must not import testing: programs link it. Package testenv has the helpers for tests.
package localkafka

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strconv"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/child"
)

// Start starts a broker and waits until it serves. It returns a [*child.MissingError] if a program is
// not installed, and a [*PortTakenError] if the port is taken.
func Start(ctx context.Context, o Options) (*Broker, error) { return start(ctx, o, 1, nil) }

// StartCluster starts n brokers that are one cluster, and waits until all of them serve. Each of them
// is also one of the n controllers. Topics, groups and transactions have a replica on each broker.
// Every broker has a directory of its own in Options.Dir. Options.Port must be 0.
func StartCluster(ctx context.Context, n int, o Options) ([]*Broker, error) {
	replicas := strconv.Itoa(n)
	settings := map[string]string{
		"default.replication.factor":                       replicas,
		"offsets.topic.replication.factor":                 replicas,
		"transaction.state.log.replication.factor":         replicas,
		"share.coordinator.state.topic.replication.factor": replicas,
	}
	maps.Copy(settings, o.Settings)
	o.Settings = settings
	controllers := make([]string, n)
	for i := range controllers {
		controllers[i] = localAddr(child.FreePort())
	}
	brokers := make([]*Broker, n)
	// A broker serves only when more than half of the controllers are there.
	starting, ctx := errgroup.WithContext(ctx)
	for i := range brokers {
		of := o
		of.Dir = filepath.Join(o.Dir, strconv.Itoa(i+1))
		starting.Go(func() (err error) {
			brokers[i], err = start(ctx, of, i+1, controllers)
			return err
		})
	}
	err := starting.Wait()
	if err == nil {
		return brokers, nil
	}
	for _, b := range brokers {
		if b != nil {
			b.Kill()
		}
	}
	return nil, err
}

// start starts the broker with this ID. controllers are the addresses of all of the cluster's
// controllers, in the order of their IDs. It is nil if the broker is its only controller.
func start(ctx context.Context, o Options, id int, controllers []string) (*Broker, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.JVM == nil {
		o.JVM = QuickJVM()
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
	b := &Broker{ID: id, options: o, installation: in, controllers: controllers}
	if err := b.start(ctx); err != nil {
		return nil, fmt.Errorf("start kafka in %s: %w", o.Dir, err)
	}
	return b, nil
}

// Jars returns the directory of Kafka's class path, for a broker that runs elsewhere. It fetches
// Kafka if need be.
func Jars(ctx context.Context, log *slog.Logger) (string, error) {
	in, err := install(ctx, log)
	if err != nil {
		return "", fmt.Errorf("install kafka: %w", err)
	}
	return filepath.Dir(in.jars[0]), nil
}
