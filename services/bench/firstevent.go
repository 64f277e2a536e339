package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/localkafka"
)

// defaultRefresh is the interval at which a consumer refreshes its metadata by default.
const defaultRefresh = "5 min"

// The deployments that are compared. The reference system is the first one.
var (
	reference   = limit.Deployment{Protocol: "classic"}
	declared    = limit.Deployment{Declared: true, Protocol: "classic"}
	deployments = []limit.Deployment{
		reference, {Protocol: "consumer"}, declared, {Declared: true, Protocol: "consumer"},
	}
)

// firstEvent measures the delay that this project removes. It deploys a consumer of two topics, as
// the reference system has it, with the default settings of the clients and the broker, and then
// this system. Most of the time is idle waiting, so all deployments wait at the same time.
func (b *bench) firstEvent(ctx context.Context) error {
	// An empty value is Kafka's own default.
	defaults := map[string]string{}
	for name := range localkafka.BrokerSettings() {
		defaults[name] = ""
	}
	defaults["auto.create.topics.enable"] = "true"
	k, err := b.startBroker(ctx, defaults)
	if err != nil {
		return err
	}
	defer k.Stop()
	// The coordinator of the group creates its topic at the first request. That is not measured.
	if _, err := limit.Deploy(ctx, k.Addr, declared, "warm-up"); err != nil {
		return err
	}

	results := make(map[limit.Deployment][]limit.Delays)
	// Only one goroutine appends to system. The deployments share results.
	var system []coldStart
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	for i, d := range deployments {
		for n := range b.repeats {
			g.Go(func() error {
				// No two deployments start at once.
				if !backoff.Sleep(ctx, time.Duration(n*len(deployments)+i)*time.Second) {
					return ctx.Err()
				}
				got, err := limit.Deploy(ctx, k.Addr, d, fmt.Sprintf("%s-%d-%d", d.Protocol, i, n))
				if err != nil {
					return fmt.Errorf("topics %s, protocol %s: %w", topicsOf(d), d.Protocol, err)
				}
				mu.Lock()
				defer mu.Unlock()
				results[d] = append(results[d], got)
				progress("first-event: topics %s, protocol %s: first topic %s, second topic %s, later %s",
					topicsOf(d), d.Protocol, milliseconds.format(got.First),
					milliseconds.format(got.Second), milliseconds.format(got.Later))
				return nil
			})
		}
	}
	g.Go(func() error {
		// By then the deployments only wait.
		if !backoff.Sleep(ctx, time.Duration(b.repeats*len(deployments)+5)*time.Second) {
			return ctx.Err()
		}
		// One after the other: two systems at once would measure the processors.
		for n := range b.repeats {
			got, err := b.coldStart(ctx)
			if err != nil {
				return fmt.Errorf("this system: %w", err)
			}
			system = append(system, got)
			progress("first-event: this system %d/%d: ready %s, first creation %s, first update %s", n+1, b.repeats,
				milliseconds.format(got.ready), milliseconds.format(got.creation), milliseconds.format(got.update))
		}
		return nil
	})
	// Nothing is printed unless all results are complete.
	if err := g.Wait(); err != nil {
		return err
	}
	b.printDeployments(results)
	b.printColdStarts(system)
	b.printTargets(results, system)
	return nil
}

// topicsOf describes the topics of a deployment in a table.
func topicsOf(d limit.Deployment) string {
	if d.Declared {
		return "declared beforehand"
	}
	return "made by the first event"
}

// spreadOf returns the spread of one number of several results.
func spreadOf[T any](results []T, number func(T) float64) stats.Spread {
	var xs []float64
	for _, r := range results {
		xs = append(xs, number(r))
	}
	return stats.SpreadOf(xs)
}

// The numbers of a deployment and of a cold start.
func first(d limit.Delays) float64      { return d.First }
func second(d limit.Delays) float64     { return d.Second }
func later(d limit.Delays) float64      { return d.Later }
func toReady(c coldStart) float64       { return c.ready }
func toCreation(c coldStart) float64    { return c.creation }
func toUpdate(c coldStart) float64      { return c.update }
func toLaterUpdate(c coldStart) float64 { return c.later }
func toVisible(c coldStart) float64     { return c.whole }

// printDeployments prints the delays of all deployments.
func (b *bench) printDeployments(results map[limit.Deployment][]limit.Delays) {
	fmt.Fprintf(b.out, `
### The first event of a new deployment

From handing an event to the producer until a consumer of both topics has it: median (min–max) of %d
fresh deployments of each kind, with the default settings of the clients and the broker. The event
for the second topic is sent after the first topic's has arrived. A classic consumer finds a topic
that appears later only when it refreshes its metadata, every %s.

| topics | group protocol | first event, first topic | first event, second topic | any later event |
| --- | --- | --- | --- | --- |
`, b.repeats, defaultRefresh)
	names := map[string]string{"classic": "classic", "consumer": "KIP-848"}
	cell := milliseconds.formatSpread
	for _, d := range deployments {
		r := results[d]
		fmt.Fprintf(b.out, "| %s | %s | %s | %s | %s |\n", topicsOf(d), names[d.Protocol],
			cell(spreadOf(r, first)), cell(spreadOf(r, second)), cell(spreadOf(r, later)))
	}
}

// printColdStarts prints the times of this system.
func (b *bench) printColdStarts(system []coldStart) {
	fmt.Fprint(b.out, `
This system, from a cold start on declared topics (from sending the request over HTTP to Cart until
a look-up over HTTP at Order shows it):

| both services started → ready | first creation → visible | first update → visible `+
		`| next update → visible | started → first update visible |
| --- | --- | --- | --- | --- |
|`)
	for _, number := range []func(coldStart) float64{toReady, toCreation, toUpdate, toLaterUpdate, toVisible} {
		fmt.Fprintf(b.out, " %s |", milliseconds.formatSpread(spreadOf(system, number)))
	}
}

// printTargets compares the first event of the second topic in the reference system, where that
// event makes the topic, with declared topics and with this system.
func (b *bench) printTargets(results map[limit.Deployment][]limit.Delays, system []coldStart) {
	fmt.Fprint(b.out, "\n\n| target | result: median (least–most) | |\n| --- | --- | --- |\n")
	dynamic := spreadOf(results[reference], second)
	for _, against := range []struct {
		what  string
		other stats.Spread
	}{
		{"topics declared beforehand, the same clients", spreadOf(results[declared], second)},
		{"this system's first update, HTTP to HTTP", spreadOf(system, toUpdate)},
	} {
		r := dynamic.Median / against.other.Median
		fmt.Fprintf(b.out,
			"| first event of a second topic, dynamic and classic, against %s | %s × (%s–%s) sooner | %s |\n",
			against.what, number(r), number(dynamic.Low/against.other.High), number(dynamic.High/against.other.Low),
			goal{atLeast: 100}.format(r))
	}
	creation := spreadOf(system, toCreation)
	fmt.Fprintf(b.out, "| this system's very first event, in ms | %s | %s |\n",
		milliseconds.formatSpread(creation), goal{atMost: 100}.format(creation.Median))
}
