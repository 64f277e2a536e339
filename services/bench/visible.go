package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
)

// oneByOne is how many orders are sent one after the other, each when the last one is visible.
const oneByOne = 300

// visible measures how long after its response an order can be looked up: one at a time, and at
// a part of the rate that the whole system can take. The bare limit produces a message of the same
// bytes, consumes it and commits it to a bare database, at the same rate.
func (b *bench) visible(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	if err := limit.WithView(ctx, b.dir, b.schema("order", "NORMAL"), func(commit func([]limit.OrderRow) error) error {
		return b.visibleOn(ctx, k.Addr, "SQLite", 1, "", commit)
	}); err != nil {
		return err
	}
	pg, err := b.startPostgres(ctx)
	if err != nil {
		return err
	}
	defer pg.Stop()
	raw, err := newDatabase(ctx, pg, "visible_raw")
	if err != nil {
		return err
	}
	migrations := filepath.Join(b.migrations("order"), "postgres")
	return limit.WithViewPostgres(ctx, raw, migrations, func(commit func([]limit.OrderRow) error) error {
		for _, replicas := range []int{1, 3} {
			url, err := newDatabase(ctx, pg, fmt.Sprint("visible_", replicas))
			if err != nil {
				return err
			}
			if err := b.visibleOn(ctx, k.Addr, "PostgreSQL", replicas, url, commit); err != nil {
				return fmt.Errorf("on PostgreSQL: %w", err)
			}
		}
		return nil
	})
}

// visibleOn measures replicas of both services that share the database at url, or one of each with a
// SQLite of its own if that is empty. commit writes to the bare database.
func (b *bench) visibleOn(
	ctx context.Context, kafka, database string, replicas int, url string, commit func([]limit.OrderRow) error,
) error {
	dir := filepath.Join(b.dir, fmt.Sprint("visible-", database, replicas))
	return b.withSystem(ctx, dir, kafka, replicas, func(ours system) error {
		raw, err := limit.NewRoundTrip(kafka, rawTopic, commit)
		if err != nil {
			return err
		}
		defer raw.Close()
		// Both databases are filled from the same topics, so the IDs differ.
		prefix := fmt.Sprint(database, replicas, "-")
		capacity, err := b.capacity(ctx, ours, prefix)
		if err != nil {
			return fmt.Errorf("measure the capacity: %w", err)
		}
		// The capacity is without look-ups. Each is a request to PostgreSQL: at half of the rate they would be
		// more than these processors can take.
		share := 0.5
		if url != "" {
			share = 0.25
		}
		progress("visible on %s, %d replicas: the whole system takes %s, and gets %s",
			database, replicas, perSecond.format(capacity), perSecond.format(capacity*share))
		title := "Response → visible"
		if url != "" {
			title = fmt.Sprintf("%s, on %s, replicas of each service: %d", title, database, replicas)
		}
		return b.visibleAt(ctx, title, database, prefix, capacity*share, ours, raw)
	}, "DATABASE_URL="+url)
}

// capacity returns how many orders per second the whole system takes if it is given as many as it
// accepts: until the last one is applied.
func (b *bench) capacity(ctx context.Context, s system, prefix string) (float64, error) {
	// The first load makes connections and warms the services up.
	if _, err := b.creations(ctx, s.carts, prefix+"warm-", func(int) error { return nil }); err != nil {
		return 0, err
	}
	before, err := s.settled(ctx)
	if err != nil {
		return 0, err
	}
	begin, all := time.Now(), 0
	_, err = b.creations(ctx, s.carts, prefix+"capacity-", func(accepted int) error {
		all = accepted
		return s.awaitApplied(ctx, before+float64(accepted))
	})
	return float64(all) / time.Since(begin).Seconds(), err
}

// visibleAt measures both systems at a rate, and one at a time.
func (b *bench) visibleAt(
	ctx context.Context, title, database, prefix string, rate float64, ours system, raw *limit.RoundTrip,
) error {
	under := "at " + perSecond.format(rate)
	results := []result{
		{what: "one at a time, p50", unit: milliseconds},
		{what: "one at a time, p99", unit: milliseconds},
		{what: under + ", p50", unit: milliseconds, goal: goal{atMost: 2.5}},
		{what: under + ", p99", unit: milliseconds, goal: goal{atMost: 4}},
	}
	cpu := func() (all time.Duration) {
		for _, s := range slices.Concat(ours.carts, ours.orders) {
			all += s.cpu()
		}
		return all
	}
	for n := range b.repeats {
		prefix := fmt.Sprint(prefix, n, "-")
		quiet()
		before := cpu()
		alone, loaded, err := b.latencies(ctx, rate, func(l *load.Latencies) call {
			// A burst of arrivals must not have to connect.
			client := load.NewClient(1024)
			return func(ctx context.Context, n int) error {
				// An order is rarely looked up where its number is, as the replicas take turns.
				cart, order := ours.carts[n%len(ours.carts)], ours.orders[n/len(ours.carts)%len(ours.orders)]
				return visibleOnce(ctx, client, cart, order, load.OrderID(prefix, n), l)
			}
		})
		if err != nil {
			return err
		}
		// The processor time cannot be divided between the two loads, and is given for the second.
		took := stats.PerOrder(cpu()-before, len(alone)+len(loaded))
		quiet()
		rawAlone, rawLoaded, err := b.latencies(ctx, rate, func(l *load.Latencies) call {
			return func(ctx context.Context, n int) error { return raw.Once(ctx, prefix, n, l) }
		})
		if err != nil {
			return fmt.Errorf("raw: %w", err)
		}
		for i, p := range []float64{50, 99} {
			results[i].add(stats.Sample{Value: stats.Percentile(alone, p)},
				stats.Sample{Value: stats.Percentile(rawAlone, p)})
			results[2+i].add(stats.Sample{Value: stats.Percentile(loaded, p), CPU: took},
				stats.Sample{Value: stats.Percentile(rawLoaded, p)})
		}
		p50, p99 := results[2], results[3]
		progress("visible %d/%d: %s p50 %s, p99 %s; raw %s, %s", n+1, b.repeats, under,
			milliseconds.format(p50.ours[n]), milliseconds.format(p99.ours[n]),
			milliseconds.format(p50.raw[n]), milliseconds.format(p99.raw[n]))
	}
	printTable(b.out, title, fmt.Sprintf(
		`From Cart's response to a creation until Order has responded to a look-up with it. The look-up is
sent at once and waits with Prefer: wait, so one HTTP round trip is included. The rate is fixed: half of
what the whole system accepts and shows per second without look-ups (on PostgreSQL a quarter), with the
services, Kafka, the database and the load on the same processors. Raw: librdkafka through its Go binding,
produce → consume → one commit to a bare %s (one transaction for all records that have arrived), with the
same bytes, settings and rate. CPU: of the services, look-ups included.`, database), results...)
	return nil
}

// call is one measured call, the one of order n.
type call func(ctx context.Context, n int) error

// latencies makes calls one after the other, then at a fixed rate. It returns their milliseconds.
func (b *bench) latencies(
	ctx context.Context, rate float64, calls func(*load.Latencies) call,
) (alone, loaded []float64, err error) {
	var first, second load.Latencies
	do := calls(&first)
	for n := range oneByOne {
		if err := do(ctx, n); err != nil {
			return nil, nil, err
		}
	}
	do = calls(&second)
	err = load.Open(ctx, rate, b.duration, func(ctx context.Context, n int) error { return do(ctx, oneByOne+n) })
	return first.Milliseconds(), second.Milliseconds(), err
}

// visibleOnce creates an order and adds the time until it is visible to l.
func visibleOnce(
	ctx context.Context, client *http.Client, cart, order *service, id string, l *load.Latencies,
) error {
	if err := load.Create(ctx, client, cart.api, id); err != nil {
		return err
	}
	accepted := time.Now()
	if err := load.AwaitVisible(ctx, client, order.api, id, 1); err != nil {
		return err
	}
	l.Add(time.Since(accepted))
	return nil
}
