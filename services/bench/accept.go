package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localpostgres"
)

// unreachable is an address without a Kafka.
const unreachable = "127.0.0.1:1"

// accept measures how many creations per second the Cart service accepts, durably.
//
// One bare limit responds to each request without doing anything. The other writes the rows without
// a request. An order needs both, on the same processors, so their times add up.
func (b *bench) accept(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	echo, err := b.startEcho(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = echo.stop() }()
	pg, err := b.startPostgres(ctx)
	if err != nil {
		return err
	}
	defer pg.Stop()

	publishing := result{what: "accepted, and published at the same time", unit: perSecond, goal: goal{atLeast: 0.6}}
	alone := result{what: "accepted, while Kafka is away", unit: perSecond, goal: goal{atLeast: 0.6}}
	one := result{what: "on PostgreSQL, and published at the same time", unit: perSecond, goal: goal{atLeast: 0.5}}
	away := result{what: "on PostgreSQL, while Kafka is away", unit: perSecond, goal: goal{atLeast: 0.5}}
	three := result{what: "on PostgreSQL, by three replicas", unit: perSecond, goal: goal{atLeast: 0.5}}
	scaled := result{what: "three replicas against one, on PostgreSQL", unit: perSecond, goal: goal{atLeast: 1}}
	var echoRates, rowRates []float64
	for n := range b.repeats {
		prefix := fmt.Sprintf("a%d-", n)
		quiet()
		echoed, err := b.creations(ctx, []*service{echo}, prefix, func(int) error { return nil })
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		quiet()
		published, err := b.acceptPublishing(ctx, k.Addr, 1, "", prefix)
		if err != nil {
			return err
		}
		quiet()
		written, err := limit.Creations(ctx, b.dir, b.schema("cart", "FULL"), prefix, b.duration)
		if err != nil {
			return fmt.Errorf("raw rows: %w", err)
		}
		quiet()
		accepted, err := b.acceptAlone(ctx, k.Addr, "", prefix+"alone-")
		if err != nil {
			return err
		}
		// Both limits of a repeat are combined before the ratio is taken.
		raw := stats.Sample{Value: stats.InSeries(echoed.Value, written.Value), CPU: echoed.CPU + written.CPU}
		publishing.addCreated(published, raw)
		alone.addCreated(accepted, raw)
		if err := b.acceptPostgres(ctx, k.Addr, pg, echoed.Sample, prefix, &one, &away, &three); err != nil {
			return fmt.Errorf("on PostgreSQL: %w", err)
		}
		scaled.add(stats.Sample{Value: three.ours[n]}, stats.Sample{Value: one.ours[n]})
		echoRates, rowRates = append(echoRates, echoed.Value), append(rowRates, written.Value)
		progress("accept %d/%d: echo %s, raw rows %s, ours %s, without Kafka %s; "+
			"PostgreSQL %s, without Kafka %s, three replicas %s, raw %s",
			n+1, b.repeats, perSecond.format(echoed.Value), perSecond.format(written.Value),
			perSecond.format(published.Value), perSecond.format(accepted.Value),
			perSecond.format(one.ours[n]), perSecond.format(away.ours[n]), perSecond.format(three.ours[n]),
			perSecond.format(one.raw[n]))
	}
	e, r := stats.SpreadOf(echoRates), stats.SpreadOf(rowRates)
	printTable(b.out, "Accepted creations", fmt.Sprintf(
		`%d connections. Each sends its next request when it has the last response. A response means that
the order and its event are on the disk (synchronous=FULL). Raw: 1 / (1 / e + 1 / r). e = %s is the
rate of a bare net/http server with the same response (median; %s–%s). r = %s is the rate of the
same rows, written into a bare SQLite in transactions of %d (%s–%s). The load runs on the same
processors. In the rows with "published" Kafka and the relay to it do too, which is not in the raw limit.
On PostgreSQL (fsync and synchronous_commit on), r is the rate of its rows, written as arrays on one
connection. CPU: of the services, without PostgreSQL's; with "published" until everything is.`,
		b.connections, perSecond.format(e.Median), number(e.Low), number(e.High),
		perSecond.format(r.Median), limit.RowsPerStatement, number(r.Low), number(r.High)),
		publishing, alone, one, away, three, scaled)
	printSpent(b.out, `Where the time of the processors went while these orders were accepted. What was published after
the last response is not in it.`, publishing, alone, one, away, three)
	return nil
}

// created is how fast orders were accepted.
type created struct {
	stats.Sample
	// orders is how many that were, and spent what it took until the last response.
	orders int
	spent  spent
}

// addCreated adds one repeat of accepted orders.
func (r *result) addCreated(ours created, raw stats.Sample) {
	r.add(ours.Sample, raw)
	r.created = append(r.created, ours)
}

// acceptPostgres adds one repeat of the results on PostgreSQL, each in a database of its own.
func (b *bench) acceptPostgres(
	ctx context.Context, kafka string, pg *localpostgres.Server, echoed stats.Sample, prefix string,
	one, away, three *result,
) error {
	n := len(one.ours)
	fresh := func(name string) (url string, err error) {
		return newDatabase(ctx, pg, fmt.Sprint("accept_", name, n))
	}
	url, err := fresh("raw")
	if err != nil {
		return err
	}
	migrations := filepath.Join(b.migrations("cart"), "postgres")
	written, err := limit.CreationsPostgres(ctx, url, migrations, prefix, b.duration)
	if err != nil {
		return fmt.Errorf("raw rows: %w", err)
	}
	raw := stats.Sample{Value: stats.InSeries(echoed.Value, written.Value), CPU: echoed.CPU + written.CPU}
	for _, of := range []struct {
		replicas int
		name     string
		to       *result
	}{{1, "one", one}, {3, "three", three}} {
		if url, err = fresh(of.name); err != nil {
			return err
		}
		accepted, err := b.acceptPublishing(ctx, kafka, of.replicas, url, prefix+of.name+"-")
		if err != nil {
			return err
		}
		of.to.addCreated(accepted, raw)
	}
	if url, err = fresh("away"); err != nil {
		return err
	}
	accepted, err := b.acceptAlone(ctx, kafka, url, prefix+"away-")
	if err != nil {
		return err
	}
	away.addCreated(accepted, raw)
	return nil
}

// acceptPublishing loads new Carts and waits until all accepted orders are published. They share the
// database at url, or the only one has a SQLite of its own if that is empty.
func (b *bench) acceptPublishing(
	ctx context.Context, kafka string, replicas int, url, prefix string,
) (accepted created, err error) {
	err = b.inFreshDir(func(dir string) (err error) {
		var carts []*service
		defer func() {
			for _, cart := range carts {
				err = errors.Join(err, cart.stop())
			}
		}()
		for n := range replicas {
			cart, err := startService(ctx, b.cart, filepath.Join(dir, fmt.Sprint(n)), kafka, "DATABASE_URL="+url)
			if err != nil {
				return err
			}
			carts = append(carts, cart)
			if _, err := cart.ready(ctx); err != nil {
				return err
			}
		}
		_, before, err := limit.Consume(ctx, kafka, contract.TopicCreated)
		if err != nil {
			return err
		}
		accepted, err = b.creations(ctx, carts, prefix, func(orders int) error {
			// All replicas know how many rows their database has.
			if err := carts[0].awaitPublished(ctx); err != nil {
				return err
			}
			_, after, err := limit.Consume(ctx, kafka, contract.TopicCreated)
			if err == nil && after-before != orders {
				err = fmt.Errorf("%d orders were accepted and %d published", orders, after-before)
			}
			return err
		})
		return err
	})
	return accepted, err
}

// acceptAlone loads a Cart that cannot reach Kafka. Cart must have reached Kafka once, to know that
// its store is complete: the database at url, or a SQLite of its own if that is empty.
func (b *bench) acceptAlone(ctx context.Context, kafka, url, prefix string) (accepted created, err error) {
	// The store is made beforehand: its rebuild from the topics needs Kafka.
	database := "DATABASE_URL=" + url
	err = b.inFreshDir(func(dir string) error {
		if err := b.newStore(ctx, kafka, dir, database); err != nil {
			return err
		}
		return b.with(ctx, b.cart, dir, unreachable, func(cart *service) error {
			if _, err := cart.ready(ctx); err != nil {
				return err
			}
			accepted, err = b.creations(ctx, []*service{cart}, prefix, func(orders int) error {
				rows, err := cart.metric(ctx, "cart_outbox_rows")
				if err == nil && int(rows) != orders {
					err = fmt.Errorf("%d orders were accepted and %v are in the outbox", orders, rows)
				}
				return err
			})
			return err
		}, database)
	})
	return accepted, err
}

// creations creates orders on all connections, which are spread over the replicas of a service. finish
// waits for the rest of the work of the accepted orders, and checks it; the processor time that it takes
// counts too.
func (b *bench) creations(
	ctx context.Context, replicas []*service, prefix string, finish func(accepted int) error,
) (done created, err error) {
	before := b.spentSoFar(replicas)
	accepted, took := make([]int, len(replicas)), make([]time.Duration, len(replicas))
	var loads errgroup.Group
	for n, s := range replicas {
		loads.Go(func() (err error) {
			accepted[n], took[n], err = load.Closed(ctx, s.api, fmt.Sprint(prefix, n, "-"), b.connections/len(replicas),
				b.duration)
			return err
		})
	}
	if err := loads.Wait(); err != nil {
		return done, err
	}
	done.spent = b.spentSoFar(replicas).since(before)
	longest := time.Duration(0)
	for n := range replicas {
		done.orders, longest = done.orders+accepted[n], max(longest, took[n])
	}
	if err := finish(done.orders); err != nil {
		return done, err
	}
	cpu := -before.services
	for _, s := range replicas {
		cpu += s.cpu()
	}
	done.Sample = stats.Rate(done.orders, longest, cpu)
	return done, nil
}
