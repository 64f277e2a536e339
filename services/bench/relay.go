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

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
)

// relay measures how fast the Cart service publishes the backlog of an outage of Kafka: reads it
// from the outbox, sends it, and removes what Kafka has acknowledged. The bare limit produces the
// same bytes with the same settings from memory.
func (b *bench) relay(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	pg, err := b.startPostgres(ctx)
	if err != nil {
		return err
	}
	defer pg.Stop()
	url, err := newDatabase(ctx, pg, "relay")
	if err != nil {
		return err
	}
	backlog := slices.Collect(load.Orders("relay-", b.records))
	// All repeats use the same stores: the outbox is empty after each.
	dir := filepath.Join(b.dir, "relay")
	sqlite := result{
		what: fmt.Sprintf("backlog of %s orders published", grouped(int64(b.records))),
		unit: perSecond, goal: goal{atLeast: 0.25},
	}
	postgres := result{what: "on PostgreSQL", unit: perSecond, goal: goal{atLeast: 0.25}}
	binding := result{what: "raw by the Go binding, against raw from C", unit: perSecond}
	// Each store has topics of its own: a Cart adopts what another one has published.
	stores := []struct {
		url, prefix string
		to          *result
	}{{"", "", &sqlite}, {url, "postgres.", &postgres}}
	for _, s := range stores {
		if err := localkafka.CreateTopics(ctx, k.Addr, contract.TopicsOf(s.prefix), 1); err != nil {
			return err
		}
		if err := b.newStore(ctx, k.Addr, dir, "DATABASE_URL="+s.url, "KAFKA_PREFIX="+s.prefix); err != nil {
			return err
		}
	}
	for n := range b.repeats {
		quiet()
		raw, err := limit.Produce(ctx, k.Addr, rawTopic, slices.Values(backlog))
		if err != nil {
			return err
		}
		quiet()
		fromC, err := limit.ProduceFromC(k.Addr, rawTopic, slices.Values(backlog))
		if err != nil {
			return err
		}
		binding.add(raw, fromC)
		for _, s := range stores {
			if err := b.addBacklog(ctx, dir, s.url, backlog); err != nil {
				return fmt.Errorf("make the backlog: %w", err)
			}
			quiet()
			ours, err := b.relayOnce(ctx, k.Addr, dir, s.url, s.prefix)
			if err != nil {
				return err
			}
			s.to.add(ours, raw)
		}
		progress("relay %d/%d: ours %s, on PostgreSQL %s, raw %s, from C %s", n+1, b.repeats,
			perSecond.format(sqlite.ours[n]), perSecond.format(postgres.ours[n]), perSecond.format(raw.Value),
			perSecond.format(fromC.Value))
	}
	printTable(b.out, "Relay of a backlog",
		`From the first record in the topic until Kafka has acknowledged every order and the outbox is
empty. Raw: librdkafka through its Go binding, the same bytes, keys, headers and settings (idempotent,
acks=all, lz4, linger 1 ms, no transactions), from memory, over a connection that exists already. CPU: of the service
since its start. Of several replicas one publishes, so there is no row for them. The last row has what the
binding costs: a producer in C sends the same bytes.`, sqlite, postgres, binding)
	return nil
}

// addBacklog writes events into the outbox of a Cart that does not run. It leaves out the orders
// themselves, which the relay does not read.
func (b *bench) addBacklog(ctx context.Context, dir, url string, backlog []contract.Message) (err error) {
	discard := slog.New(slog.DiscardHandler)
	db, err := sqldb.Open(ctx, sqldb.Config{
		URL: url, Schema: "cart", Path: filepath.Join(dir, "cart.db"), Sync: sqldb.Full,
		Migrations: os.DirFS(b.migrations("cart")),
	}, discard)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	box, err := outbox.Open(ctx, db, discard, prometheus.NewRegistry(), "bench", nil)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(backlog, 10_000) {
		if err := db.Tx(ctx, func(tx *sqldb.Tx) error {
			ledger, err := box.Lock(tx)
			if err != nil {
				return err
			}
			return ledger.Add(time.Now(), batch)
		}); err != nil {
			return err
		}
	}
	return nil
}

// relayOnce starts a Cart on a store with a backlog, and waits until the backlog is published.
func (b *bench) relayOnce(ctx context.Context, kafka, dir, url, prefix string) (rate stats.Sample, err error) {
	created := prefix + contract.TopicCreated
	topic, err := limit.NewCounter(kafka, created)
	if err != nil {
		return rate, err
	}
	defer topic.Close()
	_, before, err := limit.Consume(ctx, kafka, created)
	if err != nil {
		return rate, err
	}
	start, err := topic.Offsets()
	if err != nil {
		return rate, err
	}
	err = b.with(ctx, b.cart, dir, kafka, func(cart *service) error {
		// The rate counts from the first published record: the start of the process is not part of
		// it.
		first := start
		if err := cart.await(ctx, 2*time.Millisecond, func() (_ bool, err error) {
			first, err = topic.Offsets()
			// Each of the relay's producers begins with an empty transaction, whose markers come first.
			first -= len(contract.TransactionalIDsRelay) * topic.Partitions()
			return first > start, err
		}); err != nil {
			return err
		}
		begin := time.Now()
		if err := cart.awaitPublished(ctx); err != nil {
			return err
		}
		took := time.Since(begin)
		cpu := cart.cpu()
		_, after, err := limit.Consume(ctx, kafka, created)
		if err == nil && after-before != b.records {
			err = fmt.Errorf("%d orders were to be published and %d were", b.records, after-before)
		}
		// The first records were published before the time began, but their processor time counts.
		timed := b.records - (first - start)
		rate = stats.Sample{Value: float64(timed) / took.Seconds(), CPU: stats.PerOrder(cpu, b.records)}
		return err
	}, "DATABASE_URL="+url, "KAFKA_PREFIX="+prefix)
	return rate, err
}
