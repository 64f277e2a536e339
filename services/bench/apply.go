package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
)

// apply measures how fast the Order service builds its view of the topics. The bare limit writes
// the same rows, decoded beforehand, into a bare SQLite in transactions of the same size.
func (b *bench) apply(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	events := slices.Collect(load.Histories("apply-", b.records))
	if _, err := limit.Produce(ctx, k.Addr, "", slices.Values(events)); err != nil {
		return err
	}
	// The bare limit does not decode: its rows are made before any time begins.
	rows := make([]limit.OrderRow, len(events))
	for i, m := range events {
		if rows[i], err = limit.NewOrderRow(m); err != nil {
			return err
		}
	}
	applied := result{
		what: fmt.Sprintf("%s events applied, creations : updates = 1 : 3", grouped(int64(len(events)))),
		unit: perSecond, goal: goal{atLeast: 0.5},
	}
	for n := range b.repeats {
		quiet()
		ours, err := b.applyOnce(ctx, k.Addr, len(events))
		if err != nil {
			return err
		}
		quiet()
		raw, err := limit.Upserts(ctx, b.dir, b.schema("order", "NORMAL"), rows)
		if err != nil {
			return err
		}
		applied.add(ours, raw)
		progress("apply %d/%d: ours %s, raw %s", n+1, b.repeats,
			perSecond.format(ours.Value), perSecond.format(raw.Value))
	}
	printTable(b.out, "Apply", fmt.Sprintf(
		`A new Order service reads both topics from their beginning: from the assignment of its partitions
until it has caught up. Raw: the rows of these events, decoded beforehand, are upserted into a bare
SQLite with the same schema (synchronous=NORMAL) in transactions of %d, %d rows to a statement. CPU:
of the service since its start.`, limit.BatchRecords, limit.RowsPerStatement), applied)
	return nil
}

// applyOnce starts an Order with an empty store and waits until it has applied all events.
func (b *bench) applyOnce(ctx context.Context, kafka string, events int) (rate stats.Sample, err error) {
	err = b.withFresh(ctx, b.order, kafka, func(order *service) error {
		// The metrics cannot be read before the service listens.
		if err := order.await(ctx, 2*time.Millisecond, func() (bool, error) {
			assigned, err := order.metric(ctx, "order_assigned_partitions")
			return err == nil && int(assigned) == 2*contract.Topics()[0].Partitions, nil
		}); err != nil {
			return fmt.Errorf("await the assignment: %w", err)
		}
		// The service is ready once it has applied what the topics had when it started.
		begin := time.Now()
		if _, err := order.ready(ctx); err != nil {
			return err
		}
		rate = stats.Rate(events, time.Since(begin), order.cpu())
		applied, err := order.metric(ctx, appliedRecords)
		if err == nil && int(applied) != events {
			err = fmt.Errorf("%d events were to be applied and %v were", events, applied)
		}
		return err
	})
	return rate, err
}
