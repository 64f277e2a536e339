package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
)

// oneByOne is how many orders are sent one after the other, each when the last one is visible.
const oneByOne = 300

// visible measures how long after its response an order can be looked up: one at a time, and at
// half of the rate that the whole system can take. The bare limit produces a message of the same
// bytes, consumes it and commits it to a bare SQLite, at the same rate.
func (b *bench) visible(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	return b.withBoth(ctx, filepath.Join(b.dir, "visible"), k.Addr, func(cart, order *service) error {
		raw, err := limit.NewRoundTrip(ctx, k.Addr, rawTopic, b.dir, b.schema("order", "NORMAL"))
		if err != nil {
			return err
		}
		defer raw.Close()
		capacity, err := b.capacity(ctx, cart, order)
		if err != nil {
			return fmt.Errorf("measure the capacity: %w", err)
		}
		progress("visible: the whole system takes %s, half of it is %s",
			perSecond.format(capacity), perSecond.format(capacity/2))
		return b.visibleAt(ctx, capacity/2, cart, order, raw)
	})
}

// capacity returns how many orders per second the whole system takes if it is given as many as it
// accepts: until the last one is applied.
func (b *bench) capacity(ctx context.Context, cart, order *service) (float64, error) {
	if _, _, err := load.Closed(ctx, cart.api, "warm-", b.connections, b.duration/2); err != nil {
		return 0, err
	}
	// The load before has made connections and warmed the services up.
	before, err := settled(ctx, cart, order)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	accepted, _, err := load.Closed(ctx, cart.api, "capacity-", b.connections, b.duration)
	if err != nil {
		return 0, err
	}
	err = order.awaitMetric(ctx, 5*time.Millisecond, appliedRecords, func(applied float64) bool {
		return int(applied-before) >= accepted
	})
	return float64(accepted) / time.Since(begin).Seconds(), err
}

// visibleAt measures both systems at a rate, and one at a time.
func (b *bench) visibleAt(ctx context.Context, rate float64, cart, order *service, raw *limit.RoundTrip) error {
	results := []result{
		{what: "one at a time, p50", unit: milliseconds},
		{what: "one at a time, p99", unit: milliseconds},
		{what: "at half load, p50", unit: milliseconds, goal: goal{atMost: 2.5}},
		{what: "at half load, p99", unit: milliseconds, goal: goal{atMost: 4}},
	}
	for n := range b.repeats {
		prefix := fmt.Sprintf("v%d-", n)
		quiet()
		before := cart.cpu() + order.cpu()
		alone, loaded, err := b.latencies(ctx, rate, func(l *load.Latencies) call {
			// A burst of arrivals must not have to connect.
			client := load.NewClient(1024)
			return func(ctx context.Context, n int) error {
				return visibleOnce(ctx, client, cart, order, load.OrderID(prefix, n), l)
			}
		})
		if err != nil {
			return err
		}
		// The processor time cannot be divided between the two loads, and is given for the second.
		cpu := stats.PerOrder(cart.cpu()+order.cpu()-before, len(alone)+len(loaded))
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
			results[2+i].add(stats.Sample{Value: stats.Percentile(loaded, p), CPU: cpu},
				stats.Sample{Value: stats.Percentile(rawLoaded, p)})
		}
		p50, p99 := results[2], results[3]
		progress("visible %d/%d: at half load p50 %s, p99 %s; raw %s, %s", n+1, b.repeats,
			milliseconds.format(p50.ours[n]), milliseconds.format(p99.ours[n]),
			milliseconds.format(p50.raw[n]), milliseconds.format(p99.raw[n]))
	}
	printTable(b.out, "Response → visible", fmt.Sprintf(
		`From Cart's response to a creation until Order has responded to a look-up with it. The look-up is
sent at once and waits with Prefer: wait, so one HTTP round trip is included. Half load: %s at a
fixed rate. That is half of what the whole system accepts and shows per second, with both services,
Kafka and the load on the same processors. Raw: librdkafka through its Go binding, produce →
consume → one commit to a bare SQLite (synchronous=NORMAL, one transaction for all records that have
arrived), with the same bytes, settings and rate. CPU: of both services, look-ups included.`,
		perSecond.format(rate)), results...)
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
