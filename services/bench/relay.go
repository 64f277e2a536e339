package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
)

// relay measures how fast the Cart service publishes a backlog, as one is left by an outage of Kafka: read from the outbox, acknowledged by
// Kafka, and removed. The raw limit produces the same bytes with the same settings from memory.
func (b *bench) relay(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	topic, err := newCounter(k.Addr, contract.TopicCreated)
	if err != nil {
		return err
	}
	defer topic.close()
	backlog := slices.Collect(orders("relay-", b.records))
	dir := filepath.Join(b.dir, "relay")
	if err := b.emptyStore(ctx, k.Addr, dir); err != nil {
		return err
	}
	r := row{what: fmt.Sprintf("backlog of %s orders published", grouped(int64(b.records))), unit: perSecond, goal: goal{atLeast: 0.25}}
	for n := range b.repeats {
		if err := b.addBacklog(ctx, dir, backlog); err != nil {
			return fmt.Errorf("make the backlog: %w", err)
		}
		quiet()
		rate, cpu, err := b.relayOnce(ctx, k.Addr, dir, topic)
		if err != nil {
			return err
		}
		r.ours, r.cpu = append(r.ours, rate), append(r.cpu, cpu)

		quiet()
		before := ownCPU()
		took, err := produceAll(ctx, k.Addr, rawTopic, slices.Values(backlog))
		if err != nil {
			return err
		}
		r.raw, r.rawCPU = append(r.raw, float64(b.records)/took.Seconds()), append(r.rawCPU, perOrder(ownCPU()-before, b.records))
		progress("relay %d/%d: ours %s, raw %s", n+1, b.repeats, perSecond.format(r.ours[n]), perSecond.format(r.raw[n]))
	}
	table(b.out, "Relay of a backlog", `From the first record in the topic until Kafka has acknowledged every row and the outbox is empty. Raw: librdkafka through its Go binding, the same bytes,
keys, headers and settings (idempotent, acks=all, lz4, linger 1 ms), from memory, over a connection that is there. CPU: of the service since its start.`, r)
	return nil
}

// addBacklog writes into the store of a Cart that does not run what the Cart writes, but the orders themselves, which the relay does
// not look at.
func (b *bench) addBacklog(ctx context.Context, dir string, backlog []contract.Message) (err error) {
	db, err := sqldb.Open(ctx, filepath.Join(dir, "cart.db"), sqldb.Full, os.DirFS(filepath.Join(b.root, "services", "cart", "migrations")), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	box, err := outbox.Open(ctx, db, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), "bench")
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(backlog, 10_000) {
		if err := db.Tx(ctx, func(tx *sqldb.Tx) error {
			return box.Add(tx, time.Now(), batch)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) relayOnce(ctx context.Context, kafka, dir string, topic *counter) (rate, cpu float64, err error) {
	before, err := topic.records()
	if err != nil {
		return 0, 0, err
	}
	cart, err := startService(ctx, "cart", b.cart, dir, kafka)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, cart.stop()) }()
	first := before
	if err := cart.await(ctx, 2*time.Millisecond, func() (bool, error) {
		first, err = topic.records()
		return first > before, err
	}); err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := cart.awaitMetric(ctx, 20*time.Millisecond, "cart_outbox_rows", func(rows float64) bool { return rows == 0 }); err != nil {
		return 0, 0, err
	}
	took := time.Since(begin)
	cpu = perOrder(cart.cpu(), b.records)
	after, err := topic.records()
	if err == nil && after-before != b.records {
		err = fmt.Errorf("%d orders were to be published and %d were", b.records, after-before)
	}
	return float64(after-first) / took.Seconds(), cpu, err
}
