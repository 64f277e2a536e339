package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

// coldStart is a first start of this system on a Kafka that has only the declared topics. All times
// are in milliseconds.
type coldStart struct {
	// ready is the time from starting the programs until both are ready.
	ready float64
	// creation is the time from sending the first creation until a look-up shows it. update and
	// later are those of the first and of another update.
	creation, update, later float64
	// whole is the time from starting the programs until the first update is visible.
	whole float64
}

// coldStart starts this system on a broker of its own, and sends the first requests.
func (b *bench) coldStart(ctx context.Context) (c coldStart, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	k, err := b.startBroker(ctx, nil)
	if err != nil {
		return c, err
	}
	defer k.Stop()
	if err := localkafka.CreateTopics(ctx, k.Addr, contract.Topics(), 1); err != nil {
		return c, err
	}
	// As for the deployments, the system is new and Kafka is not. A Kafka that has never given out
	// a producer ID refuses the first request for one, and librdkafka asks again half a second
	// later.
	if _, err := limit.Deploy(ctx, k.Addr, declared, "warm-up"); err != nil {
		return c, err
	}
	dir, err := os.MkdirTemp(b.dir, "cold-")
	if err != nil {
		return c, err
	}
	since := func(t time.Time) float64 { return stats.Milliseconds(time.Since(t)) }
	begin := time.Now()
	err = b.withSystem(ctx, dir, k.Addr, 1, func(fresh system) error {
		c.ready = since(begin)
		const id = "first-order"
		client := http.DefaultClient
		for version, took := range []*float64{&c.creation, &c.update, &c.later} {
			sent := time.Now()
			var err error
			if version == 0 {
				err = load.Create(ctx, client, fresh.carts[0].api, id)
			} else {
				err = load.Update(ctx, client, fresh.carts[0].api, id, fmt.Sprint("status ", version))
			}
			if err != nil {
				return err
			}
			if err := load.AwaitVisible(ctx, client, fresh.orders[0].api, id, version+1); err != nil {
				return err
			}
			*took = since(sent)
			if version == 1 {
				c.whole = since(begin)
			}
		}
		return nil
	})
	return c, err
}
