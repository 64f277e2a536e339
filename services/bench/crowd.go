package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
)

const (
	// slowClients is how many connections a crowd has.
	slowClients = 2000
	// goodRate is how many orders per second the other clients create.
	goodRate = 200
)

// crowd measures what clients notice of many others that send their requests so slowly that none ever
// ends. The other measurement of each repeat is without these.
func (b *bench) crowd(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	p99 := result{what: "a creation, p99", unit: milliseconds, goal: goal{atMost: 1.5}}
	memory := result{what: "memory of Cart", unit: mebibytes, goal: goal{atMost: 1.2}}
	var held float64
	for n := range b.repeats {
		// A new process: memory that it once had is not given back.
		if err := b.inFreshDir(func(dir string) error {
			return b.with(ctx, b.cart, dir, k.Addr, func(cart *service) (err error) {
				held, err = b.crowdOnce(ctx, cart, fmt.Sprint("crowd-", n, "-"), &p99, &memory)
				return err
			})
		}); err != nil {
			return err
		}
		progress("crowd %d/%d: %s slow connections; p99 %s, alone %s; memory %s, alone %s", n+1, b.repeats,
			grouped(int64(held)), milliseconds.format(p99.ours[n]), milliseconds.format(p99.raw[n]),
			mebibytes.format(memory.ours[n]), mebibytes.format(memory.raw[n]))
	}
	printTable(b.out, "Slow clients", fmt.Sprintf(
		`%d orders a second are created beside %s connections whose clients send a header a second and
never end a request. Raw: without these.`, goodRate, grouped(int64(held))), p99, memory)
	return nil
}

// crowdOnce adds one repeat, and returns how many slow connections there were.
func (b *bench) crowdOnce(
	ctx context.Context, cart *service, prefix string, p99, memory *result,
) (held float64, err error) {
	if _, err := cart.ready(ctx); err != nil {
		return 0, err
	}
	// The first load makes the memory grow to what Cart needs.
	if _, err := b.creations(ctx, []*service{cart}, prefix+"warm-", func(int) error {
		return cart.awaitPublished(ctx)
	}); err != nil {
		return 0, err
	}
	quiet()
	alone, mibAlone, err := b.good(ctx, cart, prefix+"alone-")
	if err != nil {
		return 0, err
	}
	var amid, mibAmid float64
	held, err = b.amid(ctx, cart, func() (err error) {
		amid, mibAmid, err = b.good(ctx, cart, prefix+"amid-")
		return err
	})
	p99.add(stats.Sample{Value: amid}, stats.Sample{Value: alone})
	memory.add(stats.Sample{Value: mibAmid}, stats.Sample{Value: mibAlone})
	return held, err
}

// good creates orders at a rate that is far from Cart's limit. It returns the 99th percentile of the
// times until their responses, in milliseconds, and Cart's memory after that, in MiB.
func (b *bench) good(ctx context.Context, cart *service, prefix string) (p99, mib float64, err error) {
	var l load.Latencies
	client := load.NewClient(b.connections)
	defer client.CloseIdleConnections()
	if err := load.Open(ctx, goodRate, b.duration, func(ctx context.Context, n int) error {
		begin := time.Now()
		err := load.Create(ctx, client, cart.api, load.OrderID(prefix, n))
		l.Add(time.Since(begin))
		return err
	}); err != nil {
		return 0, 0, err
	}
	mib, _ = cart.memory()
	return stats.Percentile(l.Milliseconds(), 99), mib, nil
}

// amid calls do while a crowd holds as many connections as it can, and returns how many these are at least,
// before and after.
func (b *bench) amid(ctx context.Context, cart *service, do func() error) (held float64, err error) {
	limit, err := cart.metric(ctx, "http_connections_limit")
	if err != nil {
		return 0, err
	}
	crowdCtx, end := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		load.Crowd(crowdCtx, strings.TrimPrefix(cart.api, "http://"), slowClients)
	}()
	defer func() { end(); <-ended }()
	// Some of the connections are being opened again at any moment.
	if err := cart.awaitMetric(ctx, 20*time.Millisecond, "http_connections", func(n float64) bool {
		held = n
		return n >= 0.9*min(slowClients, limit)
	}); err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := cart.metric(ctx, "http_connections")
	return min(held, after), err
}
