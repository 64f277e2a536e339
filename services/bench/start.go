package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

// start measures how long the services take from their start until they are ready, and how much
// memory they use. There is no bare limit. Instead, a bare net/http server is started in the same
// way: that is what a Go process costs on this machine.
func (b *bench) start(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	s := starts{bench: b, kafka: k.Addr}
	for n := range b.repeats {
		dir := filepath.Join(b.dir, fmt.Sprint("start-first", n))
		if err := s.measure(ctx, dir, &s.first, nil); err != nil {
			return err
		}
	}
	for n := range b.repeats {
		if err := s.load(ctx, n); err != nil {
			return err
		}
	}
	// The services start again on the data of the last load.
	for range b.repeats {
		if err := s.measure(ctx, s.loadedDir(b.repeats-1), &s.again, &s.memory); err != nil {
			return err
		}
	}
	var results []result
	for _, pair := range []struct {
		what string
		unit unit
		pair pair
	}{
		{"%s, first start (empty topics)", milliseconds, s.first},
		{"%s, started again", milliseconds, s.again},
		{"%s, memory when ready", mebibytes, s.memory},
		{"%s, most memory under full load", mebibytes, s.peak},
	} {
		for i, name := range []string{"Cart", "Order"} {
			pair.pair[i].what, pair.pair[i].unit = fmt.Sprintf(pair.what, name), pair.unit
			results = append(results, pair.pair[i])
		}
	}
	printTable(b.out, "Start and memory", fmt.Sprintf(
		`From starting the process until /readyz reports it as ready, asked every 2 ms; resident memory.
Started again: on their stores, with some %s orders in each. Under full load: the peak of %s at %d
connections, from empty topics. Instead of a raw limit: a bare net/http server.`,
		number(float64(s.accepted)), b.duration.Round(time.Second), b.connections), results...)
	return nil
}

// pair has the results of Cart and of Order.
type pair [2]result

// starts collects the results of the subject start.
type starts struct {
	*bench
	kafka string
	// first and again are times, memory and peak are mebibytes.
	first, again, memory, peak pair
	// accepted is the number of orders in the stores after the load.
	accepted int
}

// measure starts the echo server and both services on the data in dir, one after the other. It adds
// the times and, unless memory is nil, the memory when ready.
func (s *starts) measure(ctx context.Context, dir string, times, memory *pair) error {
	echo, err := s.startEcho(ctx)
	if err != nil {
		return err
	}
	rawTook := echo.readyAfter
	rawMemory, _ := echo.memory()
	if err := echo.stop(); err != nil {
		return err
	}
	for i, p := range []program{s.cart, s.order} {
		var used float64
		var took time.Duration
		if err := s.with(ctx, p, filepath.Join(dir, p.name, "0"), s.kafka, func(s *service) (err error) {
			took, err = s.ready(ctx)
			used, _ = s.memory()
			return err
		}); err != nil {
			return err
		}
		progress("start: %s ready after %s, %s", p.name, took.Round(time.Millisecond), mebibytes.format(used))
		times[i].addTimes(took, rawTook)
		if memory != nil {
			memory[i].add(stats.Sample{Value: used}, stats.Sample{Value: rawMemory})
		}
	}
	return nil
}

// loadedDir returns the folder of the data that load leaves behind in a repeat.
func (s *starts) loadedDir(n int) string { return filepath.Join(s.dir, fmt.Sprint("start-loaded", n)) }

// load measures the peak of memory under full load.
func (s *starts) load(ctx context.Context, n int) error {
	// Otherwise the peak would be that of a rebuild from the topics.
	if err := emptyTopics(ctx, s.kafka); err != nil {
		return err
	}
	echo, err := s.startEcho(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = echo.stop() }()
	return s.withSystem(ctx, s.loadedDir(n), s.kafka, 1, func(loaded system) error {
		if _, _, err := load.Closed(ctx, echo.api, "echo-", s.connections, s.duration); err != nil {
			return err
		}
		prefix := fmt.Sprintf("start%d-", n)
		if s.accepted, _, err = load.Closed(ctx, loaded.carts[0].api, prefix, s.connections, s.duration); err != nil {
			return err
		}
		if _, err := loaded.settled(ctx); err != nil {
			return err
		}
		_, rawPeak := echo.memory()
		for i, service := range slices.Concat(loaded.carts, loaded.orders) {
			_, peak := service.memory()
			s.peak[i].add(stats.Sample{Value: peak}, stats.Sample{Value: rawPeak})
		}
		progress("start: memory under load %d/%d: cart %s, order %s, echo %s", n+1, s.repeats,
			mebibytes.format(s.peak[0].ours[n]), mebibytes.format(s.peak[1].ours[n]), mebibytes.format(rawPeak))
		return nil
	})
}

// emptyTopics deletes and recreates the order topics.
func emptyTopics(ctx context.Context, addr string) error {
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		if err := localkafka.DeleteTopic(ctx, addr, topic); err != nil {
			return err
		}
	}
	return localkafka.CreateTopics(ctx, addr, contract.Topics(), 1)
}
