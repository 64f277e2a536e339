package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
)

// reconcile measures how long orderctl takes to compare both stores with the topics, and its memory. The bare
// limit consumes both topics and throws the records away.
func (b *bench) reconcile(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	// Each order has a creation and three updates.
	events := 4 * b.audited
	progress("reconcile: producing %s records", grouped(int64(events)))
	if _, err := limit.Produce(ctx, k.Addr, "", load.Histories("reconcile-", events)); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "reconcile")
	progress("reconcile: waiting until Cart is rebuilt")
	return b.with(ctx, b.cart, filepath.Join(dir, "cart"), k.Addr, func(cart *service) error {
		if _, err := cart.ready(ctx); err != nil {
			return err
		}
		progress("reconcile: waiting until the view has caught up")
		return b.with(ctx, b.order, filepath.Join(dir, "order"), k.Addr, func(order *service) error {
			if _, err := order.ready(ctx); err != nil {
				return err
			}
			return b.reconcileRepeatedly(ctx, k.Addr, cart, order, events)
		})
	})
}

func (b *bench) reconcileRepeatedly(ctx context.Context, kafka string, cart, order *service, events int) error {
	took := result{what: "all compared", unit: milliseconds, sooner: true}
	memory := result{what: "most memory of orderctl", unit: mebibytes, sooner: true}
	for n := range b.repeats {
		quiet()
		begin, read := time.Now(), 0
		for _, topic := range contract.OrderTopics() {
			_, some, err := limit.Consume(ctx, kafka, topic)
			if err != nil {
				return err
			}
			read += some
		}
		raw := time.Since(begin)
		if read != events {
			return fmt.Errorf("%d records were produced and %d are in the topics", events, read)
		}
		quiet()
		begin = time.Now()
		cmd := exec.CommandContext(ctx, b.orderctl.path, "reconcile", "-cart", cart.ops, "-order", order.ops)
		cmd.Env = []string{"KAFKA_BROKERS=" + kafka}
		out, err := cmd.CombinedOutput()
		want := fmt.Sprintf("%d orders compared, 0 differ", b.audited)
		if err != nil || !strings.Contains(string(out), want) {
			return errors.Join(fmt.Errorf("orderctl must say %q: %s", want, out), err)
		}
		took.addTimes(time.Since(begin), raw)
		mib := float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024
		memory.add(stats.Sample{Value: mib}, stats.Sample{Value: math.NaN()})
		progress("reconcile %d/%d: raw %s, all compared %s, %s", n+1, b.repeats, raw.Round(time.Millisecond),
			milliseconds.format(took.ours[n]), mebibytes.format(mib))
	}
	printTable(b.out, "Reconcile", fmt.Sprintf(
		`%s orders, %s records in the topics. orderctl compares Cart's store, the topics and Order's view.
Raw: a bare consumer (librdkafka through its Go binding) reads the topics and throws the records away.`,
		grouped(int64(b.audited)), grouped(int64(events))), took, memory)
	return nil
}
