package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/internal/localpostgres"
)

// apply measures how fast the Order service builds its view of the topics. The bare limit writes
// the same rows, decoded beforehand, into a bare SQLite in transactions of the same size.
func (b *bench) apply(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	messages := slices.Collect(load.Histories("apply-", b.records))
	if _, err := limit.Produce(ctx, k.Addr, "", slices.Values(messages)); err != nil {
		return err
	}
	// The bare limit does not decode: its rows are made before any time begins.
	rows := make([]limit.OrderRow, len(messages))
	for i, m := range messages {
		if rows[i], err = limit.NewOrderRow(m); err != nil {
			return err
		}
	}
	pg, err := b.startPostgres(ctx)
	if err != nil {
		return err
	}
	defer pg.Stop()
	events := grouped(int64(len(messages)))
	sqlite := result{
		what: events + " events applied, creations : updates = 1 : 3", unit: perSecond, goal: goal{atLeast: 0.5},
	}
	one := result{what: "on PostgreSQL", unit: perSecond, goal: goal{atLeast: 0.5}}
	three := result{what: "on PostgreSQL, by three replicas", unit: perSecond}
	scaled := result{what: "three replicas against one, on PostgreSQL", unit: perSecond, goal: goal{atLeast: 1}}
	for n := range b.repeats {
		quiet()
		ours, err := b.applyOnce(ctx, k.Addr, 1, "", len(messages))
		if err != nil {
			return err
		}
		quiet()
		raw, err := limit.Upserts(ctx, b.dir, b.schema("order", "NORMAL"), rows)
		if err != nil {
			return err
		}
		sqlite.add(ours, raw)
		if err := b.applyPostgres(ctx, k.Addr, pg, rows, &one, &three); err != nil {
			return err
		}
		scaled.add(stats.Sample{Value: three.ours[n]}, stats.Sample{Value: one.ours[n]})
		progress("apply %d/%d: ours %s, raw %s; PostgreSQL %s, three replicas %s, raw %s", n+1, b.repeats,
			perSecond.format(ours.Value), perSecond.format(raw.Value), perSecond.format(one.ours[n]),
			perSecond.format(three.ours[n]), perSecond.format(one.raw[n]))
	}
	printTable(b.out, "Apply", fmt.Sprintf(
		`A new Order service reads both topics from their beginning: from the assignment of its partitions
until it has caught up. Raw: the rows of these events, decoded beforehand, are upserted into a bare
SQLite with the same schema (synchronous=NORMAL) in transactions of %d, %d rows to a statement. On
PostgreSQL (fsync and synchronous_commit on), raw has one statement for a transaction, with the rows as
arrays. Three replicas are measured from when each has its partitions: what the first one applies before
does not count. CPU: of the services in that time, without PostgreSQL's.`,
		limit.BatchRecords, limit.RowsPerStatement), sqlite, one, three, scaled)
	return nil
}

// applyPostgres adds one repeat of the results on PostgreSQL, each in a database of its own.
func (b *bench) applyPostgres(
	ctx context.Context, kafka string, pg *localpostgres.Server, rows []limit.OrderRow, one, three *result,
) error {
	n := len(one.ours)
	fresh := func(name string) (url string, err error) {
		return newDatabase(ctx, pg, fmt.Sprint("apply_", name, n))
	}
	url, err := fresh("one")
	if err != nil {
		return err
	}
	ours, err := b.applyOnce(ctx, kafka, 1, url, len(rows))
	if err != nil {
		return err
	}
	if url, err = fresh("raw"); err != nil {
		return err
	}
	raw, err := limit.UpsertsPostgres(ctx, url, filepath.Join(b.migrations("order"), "postgres"), rows)
	if err != nil {
		return err
	}
	if url, err = fresh("three"); err != nil {
		return err
	}
	ofThree, err := b.applyOnce(ctx, kafka, 3, url, len(rows))
	if err != nil {
		return err
	}
	one.add(ours, raw)
	three.add(ofThree, raw)
	return nil
}

// applyOnce starts Orders with an empty store and waits until they have applied all events. They share
// the database at url, or the only one has a SQLite of its own if that is empty.
func (b *bench) applyOnce(
	ctx context.Context, kafka string, replicas int, url string, events int,
) (rate stats.Sample, err error) {
	err = b.inFreshDir(func(dir string) (err error) {
		var orders []*service
		defer func() {
			for _, order := range orders {
				err = errors.Join(err, order.stop())
			}
		}()
		for n := range replicas {
			order, err := startService(ctx, b.order, filepath.Join(dir, fmt.Sprint(n)), kafka, "DATABASE_URL="+url)
			if err != nil {
				return err
			}
			orders = append(orders, order)
		}
		// The metrics cannot be read before the service listens. The rate is that of all of them: until the
		// rebalance is over, the first one works alone.
		if err := orders[0].await(ctx, 2*time.Millisecond, func() (bool, error) {
			return !slices.ContainsFunc(orders, func(order *service) bool {
				assigned, err := order.metric(ctx, "order_assigned_partitions")
				return err != nil || assigned == 0
			}), nil
		}); err != nil {
			return fmt.Errorf("await the assignment: %w", err)
		}
		before, err := sum(ctx, orders, appliedRecords)
		if err != nil {
			return err
		}
		if 2*int(before) > events {
			return fmt.Errorf("%v of %d events were applied before each replica had partitions: "+
				"give more -records", before, events)
		}
		begin := time.Now()
		var cpu time.Duration
		for _, order := range orders {
			cpu -= order.cpu()
		}
		// A service is ready once the store has what the topics had when it started.
		for _, order := range orders {
			if _, err := order.ready(ctx); err != nil {
				return err
			}
		}
		took := time.Since(begin)
		for _, order := range orders {
			cpu += order.cpu()
		}
		applied, err := sum(ctx, orders, appliedRecords)
		if err != nil {
			return err
		}
		if int(applied) != events {
			return fmt.Errorf("%d events were to be applied and %v were", events, applied)
		}
		rate = stats.Rate(events-int(before), took, cpu)
		return nil
	})
	return rate, err
}
