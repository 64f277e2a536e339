package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ordersystem.dev/services/contract"
)

// batchRecords is how many records the Order service brings into its store in one transaction.
const batchRecords = 1000

// apply measures how fast the Order service builds its view of the topics. The raw limit writes the same rows, ready made, into a bare
// SQLite, in transactions of the same size.
func (b *bench) apply(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	events := slices.Collect(histories("apply-", b.records))
	if _, err := produceAll(ctx, k.Addr, "", slices.Values(events)); err != nil {
		return err
	}
	rows := make([]orderRow, len(events))
	for i, m := range events {
		if rows[i], err = newOrderRow(m); err != nil {
			return err
		}
	}
	r := row{what: fmt.Sprintf("%s events applied, creations : updates = 1 : 3", grouped(int64(len(events)))), unit: perSecond, goal: goal{atLeast: 0.5}}
	for n := range b.repeats {
		quiet()
		rate, cpu, err := b.applyOnce(ctx, k.Addr, len(events))
		if err != nil {
			return err
		}
		r.ours, r.cpu = append(r.ours, rate), append(r.cpu, cpu)
		quiet()
		if rate, cpu, err = b.rawApply(ctx, rows); err != nil {
			return err
		}
		r.raw, r.rawCPU = append(r.raw, rate), append(r.rawCPU, cpu)
		progress("apply %d/%d: ours %s, raw %s", n+1, b.repeats, perSecond.format(r.ours[n]), perSecond.format(r.raw[n]))
	}
	table(b.out, "Apply", fmt.Sprintf(`A new Order service reads both topics from their beginning: from the assignment of its partitions until it has caught up. Raw: the rows of these events, ready made, upserted
into a bare SQLite with the same schema (synchronous=NORMAL) in transactions of %d, %d rows to a statement. CPU: of the service since its start.`,
		batchRecords, rowsPerStatement), r)
	return nil
}

func (b *bench) applyOnce(ctx context.Context, kafka string, events int) (rate, cpu float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "apply-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	order, err := startService(ctx, "order", b.order, dir, kafka)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, order.stop()) }()
	// Until it listens there is nobody to ask.
	if err := order.await(ctx, 2*time.Millisecond, func() (bool, error) {
		assigned, err := order.metric(ctx, "order_assigned_partitions")
		return err == nil && int(assigned) == 2*contract.Topics()[0].Partitions, nil
	}); err != nil {
		return 0, 0, fmt.Errorf("await the assignment: %w", err)
	}
	begin := time.Now()
	if _, err := order.ready(ctx); err != nil {
		return 0, 0, err
	}
	took := time.Since(begin)
	cpu = perOrder(order.cpu(), events)
	applied, err := order.metric(ctx, "order_apply_batch_records_sum")
	if err == nil && int(applied) != events {
		err = fmt.Errorf("%d events were to be applied and %v were", events, applied)
	}
	return float64(events) / took.Seconds(), cpu, err
}

func (b *bench) rawApply(ctx context.Context, rows []orderRow) (rate, cpu float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "raw-apply-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	db, err := b.openRaw(ctx, "order", filepath.Join(dir, "order"), "NORMAL")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	before, begin := ownCPU(), time.Now()
	for batch := range slices.Chunk(rows, batchRecords) {
		if err := db.write(orderRows(batch)); err != nil {
			return 0, 0, err
		}
	}
	return float64(len(rows)) / time.Since(begin).Seconds(), perOrder(ownCPU()-before, len(rows)), nil
}
