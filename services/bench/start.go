package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

// start measures how long the services take from their start until they are ready, and how much memory they hold. There is no raw
// limit to that; a bare net/http server, started in the same way, tells what a Go process costs on this machine.
func (b *bench) start(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	rows := []row{
		{what: "Cart, first start (empty topics)", unit: milliseconds}, {what: "Order, first start (empty topics)", unit: milliseconds},
		{what: "Cart, started again", unit: milliseconds}, {what: "Order, started again", unit: milliseconds},
		{what: "Cart, memory when ready", unit: mebibytes}, {what: "Order, memory when ready", unit: mebibytes},
		{what: "Cart, most memory under full load", unit: mebibytes}, {what: "Order, most memory under full load", unit: mebibytes},
	}
	const again, memory, loaded = 2, 4, 6 // where these rows begin
	cartDir, orderDir := filepath.Join(b.dir, "start-cart"), filepath.Join(b.dir, "start-order")
	add := func(i int, ours, raw float64) {
		rows[i].ours, rows[i].raw = append(rows[i].ours, ours), append(rows[i].raw, raw)
	}
	measure := func(cartDir, orderDir string, first int) error {
		echoTook, echoMemory, err := b.startEchoOnce(ctx)
		if err != nil {
			return err
		}
		for i, s := range []struct{ name, program, dir string }{{"cart", b.cart, cartDir}, {"order", b.order, orderDir}} {
			took, held, err := startOnce(ctx, s.name, s.program, s.dir, k.Addr)
			if err != nil {
				return err
			}
			add(first+i, took, echoTook)
			if first == again {
				add(memory+i, held, echoMemory)
			}
		}
		return nil
	}
	for n := range b.repeats {
		if err := measure(fmt.Sprint(cartDir, n), fmt.Sprint(orderDir, n), 0); err != nil {
			return err
		}
	}
	var accepted int
	for n := range b.repeats {
		if err := emptyTopics(ctx, k.Addr); err != nil { // or the peak would be that of a rebuild
			return err
		}
		cart, order, err := b.startBoth(ctx, fmt.Sprint(filepath.Join(b.dir, "start-loaded"), n), k.Addr)
		if err != nil {
			return err
		}
		echo, err := b.startEcho(ctx)
		if err != nil {
			return err
		}
		if _, _, err = b.closedLoop(ctx, echo.api, "echo-", b.span); err != nil {
			return err
		}
		if accepted, _, err = b.closedLoop(ctx, cart.api, fmt.Sprintf("start%d-", n), b.span); err != nil {
			return err
		}
		if _, err := settled(ctx, cart, order); err != nil {
			return err
		}
		_, echoPeak := echo.memory()
		_, cartPeak := cart.memory()
		_, orderPeak := order.memory()
		add(loaded, cartPeak, echoPeak)
		add(loaded+1, orderPeak, echoPeak)
		if err := errors.Join(cart.stop(), order.stop(), echo.stop()); err != nil {
			return err
		}
		cartDir, orderDir = filepath.Join(b.dir, fmt.Sprint("start-loaded", n), "cart"), filepath.Join(b.dir, fmt.Sprint("start-loaded", n), "order")
		progress("start: memory under load %d/%d: cart %s, order %s, echo %s", n+1, b.repeats, mebibytes.format(cartPeak), mebibytes.format(orderPeak), mebibytes.format(echoPeak))
	}
	for range b.repeats {
		if err := measure(cartDir, orderDir, again); err != nil {
			return err
		}
	}
	table(b.out, "Start and memory", fmt.Sprintf(`From starting the process until /readyz says so, asked every 2 ms; resident memory. Started again: on their stores, with some %s orders in each. Under full load: the peak of %s
at %d connections, from empty topics. Instead of a raw limit: a bare net/http server.`, number(float64(accepted)), b.span.Round(time.Second), b.connections), rows...)
	return nil
}

// emptyTopics makes the order topics anew.
func emptyTopics(ctx context.Context, addr string) error {
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		if err := localkafka.DeleteTopic(ctx, addr, topic); err != nil {
			return err
		}
	}
	return localkafka.CreateTopics(ctx, addr, contract.Topics(), 1)
}

func (b *bench) startEchoOnce(ctx context.Context) (ms, memory float64, err error) {
	echo, err := b.startEcho(ctx)
	if err != nil {
		return 0, 0, err
	}
	took := time.Since(echo.started)
	memory, _ = echo.memory()
	return float64(took) / float64(time.Millisecond), memory, echo.stop()
}

func startOnce(ctx context.Context, name, program, dir, kafka string) (ms, memory float64, err error) {
	s, err := startService(ctx, name, program, dir, kafka)
	if err != nil {
		return 0, 0, err
	}
	took, err := s.ready(ctx)
	memory, _ = s.memory()
	if err := errors.Join(err, s.stop()); err != nil {
		return 0, 0, err
	}
	progress("start: %s ready after %s, %s", name, took.Round(time.Millisecond), mebibytes.format(memory))
	return float64(took) / float64(time.Millisecond), memory, nil
}
