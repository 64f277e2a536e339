package main

import (
	"context"
	"fmt"
	"log/slog"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/rival"
	"ordersystem.dev/services/bench/stats"
)

// streams measures how the Order service and a Kafka Streams application with the same job catch up.
func (b *bench) streams(ctx context.Context) error {
	progress("preparing Kafka Streams")
	java, args, err := rival.Streams(ctx, slog.Default())
	if err != nil {
		return err
	}
	app := program{name: "kafka-streams", path: java, args: args}
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	const prefix = "streams-"
	events := b.audited / load.Versions * load.Versions
	if _, err := limit.Produce(ctx, k.Addr, "", load.Histories(prefix, events)); err != nil {
		return err
	}
	contests := []*contest{newContest("at_least_once", events), newContest("exactly_once_v2", events)}
	for n := range b.repeats {
		for _, c := range contests {
			quiet()
			ours, err := b.catchUp(ctx, b.order, k.Addr, 1, prefix, events)
			if err != nil {
				return err
			}
			quiet()
			theirs, err := b.catchUp(ctx, app, k.Addr, 1, prefix, events,
				"GUARANTEE="+c.guarantee, fmt.Sprint("APP_ID=", c.guarantee, "-", n))
			if err != nil {
				return err
			}
			c.add(ours, theirs)
			progress("streams %d/%d, %s: ours %s, theirs %s", n+1, b.repeats, c.guarantee,
				perSecond.format(ours.rate.Value), perSecond.format(theirs.rate.Value))
		}
	}
	var results []result
	for _, c := range contests {
		results = append(results, c.rate, c.after, c.peak, c.kafka)
	}
	printTable(b.out, "Against Kafka Streams",
		`A new Order service, and a Kafka Streams application with the same job, read both topics from their
beginning (creations : updates = 1 : 3). Instead of a raw limit: Kafka Streams. It keeps the newest version of
each order in a store of RocksDB with its cache, and a changelog of that in Kafka. It checks the events as Order
does, has a thread for each processor, a heap of 1 GiB at most, and otherwise the defaults. Order has SQLite
(synchronous=NORMAL). The rate counts from the assignment of the partitions until all is applied.`, results...)
	return nil
}

// contest has the results of Order and of Kafka Streams with one processing.guarantee.
type contest struct {
	guarantee string
	// rate is that of events, after the time until all are applied, peak the most memory, and kafka the broker's
	// processor time for an event.
	rate, after, peak, kafka result
}

func newContest(guarantee string, events int) *contest {
	what := func(text string) string { return guarantee + ": " + text }
	return &contest{
		guarantee: guarantee,
		rate: result{
			what: what(grouped(int64(events)) + " events applied"), unit: perSecond, goal: goal{atLeast: 2},
		},
		after: result{what: what("from its start until caught up"), unit: milliseconds},
		peak:  result{what: what("most memory until then"), unit: mebibytes, goal: goal{atMost: 0.125}},
		kafka: result{what: what("Kafka's processor time for an event"), unit: microseconds},
	}
}

// add adds one repeat.
func (c *contest) add(ours, theirs caughtUp) {
	c.rate.add(ours.rate, theirs.rate)
	c.after.addTimes(ours.after, theirs.after)
	c.peak.add(stats.Sample{Value: ours.peak}, stats.Sample{Value: theirs.peak})
	c.kafka.add(stats.Sample{Value: ours.kafka}, stats.Sample{Value: theirs.kafka})
}
