package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
)

// poison writes a record that is no order to the created topic, as a broken producer would, reads it back, and tells where it is. Its
// key is always the same, so compaction leaves no more than the last one.
func poison(ctx context.Context, o options, e *env.Env, stdout, stderr io.Writer) error {
	cfg := broker.ConfigFromEnv(e)
	if err := e.Err(); err != nil {
		return err
	}
	cfg.ClientID = "check"
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()

	admin, err := broker.NewAdmin(cfg, log)
	if err != nil {
		return err
	}
	defer admin.Close()
	_, from, err := admin.Bounds(ctx, contract.TopicCreated)
	if err != nil {
		return err
	}

	delivered := make(chan error, 1)
	producer, err := broker.NewProducer(cfg, log, func(_ int64, err error) { delivered <- err })
	if err != nil {
		return err
	}
	defer producer.Close()
	m := contract.Message{Topic: contract.TopicCreated, Key: []byte(o.prefix + "poison"), Value: []byte("no order, but poison of check " + o.tag)}
	if err := producer.Produce(m, 0); err != nil {
		return err
	}
	select {
	case err = <-delivered:
	case <-ctx.Done():
		err = fmt.Errorf("not acknowledged: %w", context.Cause(ctx))
	}
	if err != nil {
		return err
	}

	_, to, err := admin.Bounds(ctx, contract.TopicCreated)
	if err != nil {
		return err
	}
	found := false
	err = broker.ReadTo(ctx, cfg, log, contract.GroupRebuild, from, to, func(_ context.Context, records []broker.Record) error {
		for _, r := range records {
			if bytes.Equal(r.Value, m.Value) {
				found = true
				fmt.Fprintf(stdout, "poisoned %s partition %d offset %d\n", r.Topic, r.Partition, r.Offset)
			}
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%s does not have the record that it acknowledged", m.Topic)
	}
	return err
}
