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
	"path/filepath"
)

// Start starts a broker and waits until it serves. It returns a [*MissingError] if a program is
// not installed, and a [*PortTakenError] if the port is taken.
func Start(ctx context.Context, o Options) (*Broker, error) {
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
	b := &Broker{options: o, installation: in}
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
