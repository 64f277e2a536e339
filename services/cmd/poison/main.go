// Command poison writes a record that is no order to the topic of created orders, as a broken
// producer would. It reads the record back and prints its position. Order moves such a record to
// the dead-letter topic and goes on. The command reads the KAFKA_* variables of the services; its
// user must be allowed to write to the topic.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/process"
)

// What every run has in common.
const (
	// key is always the same, so that compaction keeps only the last poison record.
	key = "check-poison"
	// timeout limits the whole run.
	timeout = 30 * time.Second
)

func main() {
	os.Exit(process.Main(func(ctx context.Context, e *env.Env, log *slog.Logger) error {
		err := run(ctx, e, log, os.Stdout)
		if err != nil && ctx.Err() != nil {
			return errors.New("interrupted before the record was found in its topic")
		}
		return err
	}))
}

// run writes one record and looks for it between the ends of the topic before and after. It prints
// one line to stdout.
func run(ctx context.Context, e *env.Env, log *slog.Logger, stdout io.Writer) error {
	cfg := broker.ConfigFromEnv(e)
	if err := e.Err(); err != nil {
		return err
	}
	cfg.ClientID = "poison"
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	admin, err := broker.NewAdmin(cfg, log)
	if err != nil {
		return err
	}
	defer admin.Close()
	topic := cfg.Name(contract.TopicCreated)
	_, before, err := admin.Bounds(ctx, topic)
	if err != nil {
		return err
	}
	// The value is unique: others may write at the same time.
	m := contract.Message{
		Topic: topic, Key: []byte(key), Value: []byte("no order, but poison " + rand.Text()),
	}
	if err := write(ctx, cfg, log, m); err != nil {
		return err
	}
	_, after, err := admin.Bounds(ctx, topic)
	if err != nil {
		return err
	}

	found := false
	printIt := func(_ context.Context, records []broker.Record) error {
		for _, r := range records {
			if bytes.Equal(r.Value, m.Value) {
				found = true
				fmt.Fprintf(stdout, "poisoned %s partition %d offset %d\n", r.Topic, r.Partition, r.Offset)
			}
		}
		return nil
	}
	// The group is only for the permission to read; nothing is committed.
	err = broker.ReadTo(ctx, cfg, log, cfg.Name(contract.GroupRebuild), before, after, printIt)
	if err == nil && !found {
		err = fmt.Errorf("%s does not have the record that it acknowledged", m.Topic)
	}
	return err
}

// write publishes one record. It fails if another run takes the transactional ID in between.
func write(ctx context.Context, cfg broker.Config, log *slog.Logger, m contract.Message) error {
	producer, err := broker.NewProducer(cfg, cfg.Name(contract.TransactionalIDPoison), log)
	if err != nil {
		return err
	}
	defer producer.Close()
	if err := producer.Fence(ctx); err != nil {
		return err
	}
	_, err = producer.Publish(ctx, []contract.Message{m})
	return err
}
