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

// unreachable is where no Kafka is.
const unreachable = "127.0.0.1:1"

// accept measures how many creations per second the Cart service accepts, durably.
//
// The raw limit answers each request without doing anything, and writes the rows without anybody asking: both have to be done for an
// order, on the same processors, so their times add up.
func (b *bench) accept(ctx context.Context) error {
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
	echo, err := b.startEcho(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = echo.stop() }()

	relaying := row{what: "accepted, and published at the same time", unit: perSecond, goal: goal{atLeast: 0.6}}
	alone := row{what: "accepted, while Kafka is away", unit: perSecond, goal: goal{atLeast: 0.6}}
	var echoRate, rowRate []float64
	for n := range b.repeats {
		prefix := fmt.Sprintf("a%d-", n)
		quiet()
		before := echo.cpu()
		answered, took, err := b.closedLoop(ctx, echo.api, prefix, b.span)
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		echoCPU := perOrder(echo.cpu()-before, answered)
		echoRate = append(echoRate, float64(answered)/took.Seconds())

		quiet()
		rate, cpu, err := b.acceptOnce(ctx, k.Addr, prefix, topic)
		if err != nil {
			return err
		}
		relaying.ours, relaying.cpu = append(relaying.ours, rate), append(relaying.cpu, cpu)

		quiet()
		rows, rowCPU, err := b.rawRows(ctx, prefix)
		if err != nil {
			return fmt.Errorf("raw rows: %w", err)
		}
		rowRate = append(rowRate, rows)

		quiet()
		if rate, cpu, err = b.acceptAlone(ctx, k.Addr, prefix); err != nil {
			return err
		}
		alone.ours, alone.cpu = append(alone.ours, rate), append(alone.cpu, cpu)
		for _, r := range []*row{&relaying, &alone} {
			r.raw, r.rawCPU = append(r.raw, inSeries(echoRate[n], rows)), append(r.rawCPU, echoCPU+rowCPU)
		}
		progress("accept %d/%d: echo %s, raw rows %s, ours %s, without Kafka %s", n+1, b.repeats, perSecond.format(echoRate[n]), perSecond.format(rows),
			perSecond.format(relaying.ours[n]), perSecond.format(alone.ours[n]))
	}
	table(b.out, "Accepted creations", fmt.Sprintf(`%d connections, each sends its next request when the last is answered; an answer means that the order and its event are on the disk
(synchronous=FULL). Raw: 1 / (1 / e + 1 / r), with e = %s answered by a bare net/http server with the same answer (median; %s–%s), and
r = %s of the same rows written into a bare SQLite in transactions of %d (%s–%s). The load runs on the same processors; in the first row Kafka and
the relay to it do too, which the raw limit has not. CPU: of the service, in the first row until everything is published.`,
		b.connections, perSecond.format(spreadOf(echoRate).median), number(spreadOf(echoRate).low), number(spreadOf(echoRate).high),
		perSecond.format(spreadOf(rowRate).median), rowsPerStatement, number(spreadOf(rowRate).low), number(spreadOf(rowRate).high)), relaying, alone)
	return nil
}

// acceptOnce loads a new Cart, and waits until all it accepted is published.
func (b *bench) acceptOnce(ctx context.Context, kafka, prefix string, topic *counter) (rate, cpu float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "accept-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	cart, err := startService(ctx, "cart", b.cart, dir, kafka)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, cart.stop()) }()
	if _, err := cart.ready(ctx); err != nil {
		return 0, 0, err
	}
	published, err := topic.records()
	if err != nil {
		return 0, 0, err
	}
	before := cart.cpu()
	accepted, took, err := b.closedLoop(ctx, cart.api, prefix, b.span)
	if err != nil {
		return 0, 0, err
	}
	if err := cart.awaitMetric(ctx, 20*time.Millisecond, "cart_outbox_rows", func(rows float64) bool { return rows == 0 }); err != nil {
		return 0, 0, err
	}
	cpu = perOrder(cart.cpu()-before, accepted)
	now, err := topic.records()
	if err == nil && now-published != accepted {
		err = fmt.Errorf("%d orders were accepted and %d published", accepted, now-published)
	}
	return float64(accepted) / took.Seconds(), cpu, err
}

// acceptAlone loads a Cart that cannot reach Kafka. It has to have reached it once, to be sure that its store is whole.
func (b *bench) acceptAlone(ctx context.Context, kafka, prefix string) (rate, cpu float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "accept-alone-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	// The store is rebuilt from empty topics: a broker's whose topics are full would cost time and change nothing.
	if err := b.emptyStore(ctx, kafka, dir); err != nil {
		return 0, 0, err
	}
	cart, err := startService(ctx, "cart", b.cart, dir, unreachable)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, cart.stop()) }()
	if _, err := cart.ready(ctx); err != nil {
		return 0, 0, err
	}
	before := cart.cpu()
	accepted, took, err := b.closedLoop(ctx, cart.api, prefix+"alone-", b.span)
	if err != nil {
		return 0, 0, err
	}
	cpu = perOrder(cart.cpu()-before, accepted)
	rows, err := cart.metric(ctx, "cart_outbox_rows")
	if err == nil && int(rows) != accepted {
		err = fmt.Errorf("%d orders were accepted and %v are in the outbox", accepted, rows)
	}
	return float64(accepted) / took.Seconds(), cpu, err
}

// emptyStore makes a Cart's store that is known to be whole.
func (b *bench) emptyStore(ctx context.Context, kafka, dir string) error {
	cart, err := startService(ctx, "cart", b.cart, dir, kafka)
	if err != nil {
		return err
	}
	_, err = cart.ready(ctx)
	return errors.Join(err, cart.stop())
}

// rawRows writes the rows of creations into a bare SQLite, as many orders to a transaction as there are connections.
func (b *bench) rawRows(ctx context.Context, prefix string) (rate, cpu float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "rows-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	db, err := b.openRaw(ctx, "cart", filepath.Join(dir, "cart"), "FULL")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	var batches [][]insert
	const most = 100_000
	for batch := range slices.Chunk(slices.Collect(orders(prefix, most)), rowsPerStatement) {
		batches = append(batches, cartRows(batch))
	}
	before, begin, written := ownCPU(), time.Now(), 0
	for _, batch := range batches {
		if time.Since(begin) > b.span {
			break
		}
		if err := db.write(batch...); err != nil {
			return 0, 0, err
		}
		written += len(batch[0].args) / batch[0].columns
	}
	return float64(written) / time.Since(begin).Seconds(), perOrder(ownCPU()-before, written), nil
}
