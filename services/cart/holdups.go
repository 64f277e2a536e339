package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
)

// holdUps shows what holds up a reader of the order topics: Kafka is away, or an open transaction withholds
// records. The reader itself only waits, and would not show why.
type holdUps struct {
	admin  *broker.Admin
	topics []string
	log    *slog.Logger
}

func newHoldUps(kafka broker.Config, admin *broker.Admin, log *slog.Logger) holdUps {
	return holdUps{admin, orderTopics(kafka), log}
}

// during runs read, and returns its error. Once a second meanwhile, report gets what read waits for: doing, with
// what holds it up if anything does.
func (h holdUps) during(ctx context.Context, doing error, report func(reason error), read func() error) error {
	watched, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop()
	watching.Go(func() { h.watch(watched, doing, report) })
	return read()
}

// watch looks once a second, until ctx ends.
func (h holdUps) watch(ctx context.Context, doing error, report func(reason error)) {
	logged := false
	for backoff.Sleep(ctx, time.Second) {
		err := h.admin.Withheld(ctx, h.topics...)
		withheld, ok := errors.AsType[*broker.WithheldError](err)
		switch {
		case ctx.Err() != nil:
			return
		case ok:
			if !logged {
				logged = true
				h.log.Warn("an open transaction withholds records that are needed", "for", doing,
					"err", withheld, "next", broker.FindHanging+": docs/runbooks/TransactionHanging.md")
			}
			report(fmt.Errorf("%w: %w", doing, withheld))
		case err != nil:
			report(fmt.Errorf("%w: waiting for Kafka: %w", doing, err))
		default:
			report(doing)
		}
	}
}
