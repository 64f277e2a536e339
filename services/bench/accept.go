package main

import (
	"context"
	"fmt"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
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

	publishing := result{what: "accepted, and published at the same time", unit: perSecond, goal: goal{atLeast: 0.6}}
	alone := result{what: "accepted, while Kafka is away", unit: perSecond, goal: goal{atLeast: 0.6}}
	var echoRates, rowRates []float64
	for n := range b.repeats {
		prefix := fmt.Sprintf("a%d-", n)
		quiet()
		echoed, err := b.creations(ctx, echo, prefix, func(int) error { return nil })
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		quiet()
		published, err := b.acceptPublishing(ctx, k.Addr, prefix)
		if err != nil {
			return err
		}
		quiet()
		written, err := limit.Creations(ctx, b.dir, b.schema("cart", "FULL"), prefix, b.duration)
		if err != nil {
			return fmt.Errorf("raw rows: %w", err)
		}
		quiet()
		accepted, err := b.acceptAlone(ctx, k.Addr, prefix+"alone-")
		if err != nil {
			return err
		}
		// Both limits of a repeat are combined before the ratio is taken.
		raw := stats.Sample{Value: stats.InSeries(echoed.Value, written.Value), CPU: echoed.CPU + written.CPU}
		publishing.add(published, raw)
		alone.add(accepted, raw)
		echoRates, rowRates = append(echoRates, echoed.Value), append(rowRates, written.Value)
		progress("accept %d/%d: echo %s, raw rows %s, ours %s, without Kafka %s", n+1, b.repeats,
			perSecond.format(echoed.Value), perSecond.format(written.Value),
			perSecond.format(published.Value), perSecond.format(accepted.Value))
	}
	e, r := stats.SpreadOf(echoRates), stats.SpreadOf(rowRates)
	printTable(b.out, "Accepted creations", fmt.Sprintf(
		`%d connections. Each sends its next request when it has the last response. A response means that
the order and its event are on the disk (synchronous=FULL). Raw: 1 / (1 / e + 1 / r). e = %s is the
rate of a bare net/http server with the same response (median; %s–%s). r = %s is the rate of the
same rows, written into a bare SQLite in transactions of %d (%s–%s). The load runs on the same
processors. In the first row Kafka and the relay to it do too, which is not in the raw limit. CPU:
of the service; in the first row until everything is published.`,
		b.connections, perSecond.format(e.Median), number(e.Low), number(e.High),
		perSecond.format(r.Median), limit.RowsPerStatement, number(r.Low), number(r.High)), publishing, alone)
	return nil
}

// acceptPublishing loads a new Cart and waits until all accepted orders are published.
func (b *bench) acceptPublishing(ctx context.Context, kafka, prefix string) (rate stats.Sample, err error) {
	err = b.withFresh(ctx, b.cart, kafka, func(cart *service) error {
		if _, err := cart.ready(ctx); err != nil {
			return err
		}
		_, before, err := limit.Consume(ctx, kafka, contract.TopicCreated)
		if err != nil {
			return err
		}
		rate, err = b.creations(ctx, cart, prefix, func(accepted int) error {
			if err := cart.awaitPublished(ctx); err != nil {
				return err
			}
			_, after, err := limit.Consume(ctx, kafka, contract.TopicCreated)
			if err == nil && after-before != accepted {
				err = fmt.Errorf("%d orders were accepted and %d published", accepted, after-before)
			}
			return err
		})
		return err
	})
	return rate, err
}

// acceptAlone loads a Cart that cannot reach Kafka. Cart must have reached Kafka once, to know that
// its store is complete.
func (b *bench) acceptAlone(ctx context.Context, kafka, prefix string) (rate stats.Sample, err error) {
	// The store is made beforehand: its rebuild from the topics needs Kafka.
	err = b.inFreshDir(func(dir string) error {
		if err := b.newStore(ctx, kafka, dir); err != nil {
			return err
		}
		return b.with(ctx, b.cart, dir, unreachable, func(cart *service) error {
			if _, err := cart.ready(ctx); err != nil {
				return err
			}
			rate, err = b.creations(ctx, cart, prefix, func(accepted int) error {
				rows, err := cart.metric(ctx, "cart_outbox_rows")
				if err == nil && int(rows) != accepted {
					err = fmt.Errorf("%d orders were accepted and %v are in the outbox", accepted, rows)
				}
				return err
			})
			return err
		})
	})
	return rate, err
}

// creations creates orders at a service on all connections. finish waits for the rest of the work
// of the accepted orders, and checks it; the processor time that it takes counts too.
func (b *bench) creations(
	ctx context.Context, s *service, prefix string, finish func(accepted int) error,
) (rate stats.Sample, err error) {
	before := s.cpu()
	var accepted int
	var took time.Duration
	if accepted, took, err = load.Closed(ctx, s.api, prefix, b.connections, b.duration); err != nil {
		return rate, err
	}
	if err := finish(accepted); err != nil {
		return rate, err
	}
	return stats.Rate(accepted, took, s.cpu()-before), nil
}
