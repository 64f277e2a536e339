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
	const prefix = "apply-"
	messages := slices.Collect(load.Histories(prefix, b.records))
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
		ours, err := b.catchUp(ctx, b.order, k.Addr, 1, prefix, len(messages))
		if err != nil {
			return err
		}
		quiet()
		raw, err := limit.Upserts(ctx, b.dir, b.schema("order", "NORMAL"), rows)
		if err != nil {
			return err
		}
		sqlite.add(ours.rate, raw)
		if err := b.applyPostgres(ctx, k.Addr, pg, prefix, rows, &one, &three); err != nil {
			return err
		}
		scaled.add(stats.Sample{Value: three.ours[n]}, stats.Sample{Value: one.ours[n]})
		progress("apply %d/%d: ours %s, raw %s; PostgreSQL %s, three replicas %s, raw %s", n+1, b.repeats,
			perSecond.format(ours.rate.Value), perSecond.format(raw.Value), perSecond.format(one.ours[n]),
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
	ctx context.Context, kafka string, pg *localpostgres.Server, prefix string, rows []limit.OrderRow,
	one, three *result,
) error {
	n := len(one.ours)
	fresh := func(name string) (url string, err error) {
		return newDatabase(ctx, pg, fmt.Sprint("apply_", name, n))
	}
	url, err := fresh("one")
	if err != nil {
		return err
	}
	ours, err := b.catchUp(ctx, b.order, kafka, 1, prefix, len(rows), "DATABASE_URL="+url)
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
	ofThree, err := b.catchUp(ctx, b.order, kafka, 3, prefix, len(rows), "DATABASE_URL="+url)
	if err != nil {
		return err
	}
	one.add(ours.rate, raw)
	three.add(ofThree.rate, raw)
	return nil
}

// caughtUp is what it took programs to apply all events.
type caughtUp struct {
	// rate is that from when each has its partitions.
	rate stats.Sample
	// kafka is the broker's processor time in that time, in µs per event.
	kafka float64
	// after is the time from the start of the first one.
	after time.Duration
	// peak is the most memory that the first one took, in MiB.
	peak float64
}

// catchUp starts replicas of a program that have nothing yet, and waits until they have applied all events,
// which are histories with a prefix. env is added to their environment.
func (b *bench) catchUp(
	ctx context.Context, p program, kafka string, replicas int, prefix string, events int, env ...string,
) (took caughtUp, err error) {
	err = b.inFreshDir(func(dir string) (err error) {
		var running []*service
		defer func() {
			for _, s := range running {
				err = errors.Join(err, s.stop())
			}
		}()
		for n := range replicas {
			s, err := startService(ctx, p, filepath.Join(dir, fmt.Sprint(n)), kafka, env...)
			if err != nil {
				return err
			}
			running = append(running, s)
		}
		first := running[0]
		// The metrics cannot be read before the program listens. The rate is that of all of them: until the
		// rebalance is over, the first one works alone.
		if err := first.await(ctx, 2*time.Millisecond, func() (bool, error) {
			return !slices.ContainsFunc(running, func(s *service) bool {
				assigned, err := s.metric(ctx, "order_assigned_partitions")
				return err != nil || assigned == 0
			}), nil
		}); err != nil {
			return fmt.Errorf("await the assignment: %w", err)
		}
		before, err := sum(ctx, running, appliedRecords)
		if err != nil {
			return err
		}
		if 2*int(before) > events {
			return fmt.Errorf("%v of %d events were applied before each replica had partitions: "+
				"give more -records", before, events)
		}
		begin, spent := time.Now(), b.spentSoFar(running)
		// A program is ready once it has what the topics had when it started.
		for _, s := range running {
			if _, err := s.ready(ctx); err != nil {
				return err
			}
		}
		elapsed, left := time.Since(begin), events-int(before)
		spent = b.spentSoFar(running).since(spent)
		took.rate, took.kafka = stats.Rate(left, elapsed, spent.services), stats.PerOrder(spent.kafka, left)
		took.after = first.readyAfter
		_, took.peak = first.memory()
		applied, err := sum(ctx, running, appliedRecords)
		if err != nil {
			return err
		}
		if int(applied) != events {
			return fmt.Errorf("%d events were to be applied and %v were", events, applied)
		}
		return checkNewest(ctx, first, prefix, events)
	})
	return took, err
}

// checkNewest looks some orders up, and fails if one is not there in its last version.
func checkNewest(ctx context.Context, s *service, prefix string, events int) error {
	client := load.NewClient(1)
	defer client.CloseIdleConnections()
	orders := events / load.Versions
	for n := 0; n < orders; n += max(1, orders/100) {
		if err := load.AwaitVisible(ctx, client, s.api, load.OrderID(prefix, n), load.Versions); err != nil {
			return err
		}
	}
	return nil
}
