package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/web"
)

const (
	// republishOrders and republishBytes limit a page. Requests wait while one is written.
	republishOrders = 500
	republishBytes  = 1 << 20
	// republishPoll is the pause while the relay publishes a page.
	republishPoll = 5 * time.Millisecond
	// republishReport is the time between two lines of the response.
	republishReport = time.Second
)

// republisher publishes the newest version of orders again: of all of them after Kafka has lost records, or
// of some. The relay publishes the pages in order with all other events. The next page waits until Kafka has
// the last one, so a republication takes no more of the outbox than one page.
type republisher struct {
	store      *store
	reconciler *reconciler
	// page limits a page, and limit the outbox.
	page, limit room
	log         *slog.Logger

	command *web.Command
}

// newRepublisher returns one. limit is how many events and bytes may wait for Kafka.
func newRepublisher(s *store, r *reconciler, limit room, log *slog.Logger) *republisher {
	return &republisher{
		store: s, reconciler: r, limit: limit, log: log,
		// Half of what may wait is left to requests.
		page: room{
			events: max(1, min(republishOrders, limit.events/2)),
			bytes:  max(1, min(republishBytes, limit.bytes/2)),
		},
		command: web.NewCommand("orders are being published again already"),
	}
}

// ServeHTTP publishes orders again: those of the parameters orderId, or all if there is none. The response
// is text for a person, and grows while that goes on. The republication ends with the connection.
func (p *republisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, err error) { web.Problem{Status: status, Text: err.Error() + "\n"}.Write(w, r) }
	ids, err := p.wanted(r)
	if err != nil {
		refuse(http.StatusBadRequest, err)
		return
	}
	if err := p.reconciler.compared(); err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	response, begun := p.command.Begin(w, r)
	if !begun {
		return
	}
	defer response.End()
	ctx := response.Context()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	report := func(format string, args ...any) { fmt.Fprintf(response, format+"\n", args...) }
	trace := continueTrace(r.Header.Get("Traceparent"))
	var total int64
	if len(ids) > 0 {
		total, err = p.some(ctx, ids, trace, report)
	} else {
		total, err = p.all(ctx, trace, report)
	}
	if _, unknown := errors.AsType[*unknownOrdersError](err); unknown {
		// Nothing was reported, because nothing was begun.
		refuse(http.StatusNotFound, err)
		return
	}
	if err != nil {
		p.log.Error("the orders are not all published again; repeat POST /republish", "orders", total, "err", err)
		report("ended after %d orders: %v. Repeat the command: that is harmless.", total, err)
		return
	}
	p.log.Info("the orders are published again", "orders", total)
	report("done: %d orders are in Kafka again", total)
}

// wanted returns the IDs of the orders that the request is about, or none for all orders.
func (p *republisher) wanted(r *http.Request) ([]string, error) {
	if r.ContentLength != 0 {
		return nil, errors.New("there is a body: POST /republish takes the parameter orderId in its URL, once for " +
			"each order, or nothing for all orders")
	}
	return contract.ParseOrderIDs(r.URL.RawQuery, int(p.page.events))
}

// all publishes every order again, page after page. It returns how many orders Kafka has.
func (p *republisher) all(
	ctx context.Context, traceparent string, report func(format string, args ...any),
) (done int64, err error) {
	total, end, err := p.store.extent(ctx)
	if err != nil {
		return 0, err
	}
	p.log.Info("publishing all orders again: POST /republish", "orders", total)
	report("publishing the newest version of %d orders again", total)
	begin := time.Now()
	say := seldom(func(waits string) {
		report("%d of %d orders, %.0f/s%s", done, total, float64(done)/time.Since(begin).Seconds(), waits)
	})
	for after := int64(0); ; {
		page, err := p.publish(ctx, say, func() (repeated, bool, error) {
			return p.store.repeat(ctx, after, end, p.page, p.limit, time.Now(), traceparent)
		})
		switch {
		case err != nil:
			return done, err
		case page.orders == 0 && done != total:
			return done, fmt.Errorf("the store had %d orders", total)
		case page.orders == 0:
			return done, nil
		}
		after, done = page.lastRow, done+page.orders
		say("")
	}
}

// some publishes these orders again, in one page. It returns how many of them Kafka has.
func (p *republisher) some(
	ctx context.Context, ids []string, traceparent string, report func(format string, args ...any),
) (int64, error) {
	p.log.Info("publishing orders again: POST /republish", "order_ids", ids)
	say := seldom(func(waits string) { report("0 of %d orders%s", len(ids), waits) })
	page, err := p.publish(ctx, say, func() (repeated, bool, error) {
		return p.store.repeatOrders(ctx, ids, p.limit, time.Now(), traceparent)
	})
	return page.orders, err
}

// seldom returns what calls say once in republishReport at most.
func seldom(say func(waits string)) func(waits string) {
	said := time.Now()
	return func(waits string) {
		if time.Since(said) >= republishReport {
			said = time.Now()
			say(waits)
		}
	}
}

// publish calls repeat, which puts a page into the outbox, until there is room, and then waits until Kafka
// has it. After an error Kafka may have a part of the page.
func (p *republisher) publish(
	ctx context.Context, say func(waits string), repeat func() (page repeated, roomy bool, err error),
) (repeated, error) {
	for {
		// A conflict means that the store may not be published.
		if err := p.reconciler.err(); err != nil {
			return repeated{}, err
		}
		page, roomy, err := repeat()
		switch {
		case err != nil:
			return repeated{}, err
		case page.orders == 0 && roomy:
			return page, nil
		case roomy:
			if err := p.reconciler.awaitPublished(ctx, page.lastMessage, say); err != nil {
				return repeated{}, err
			}
			return page, nil
		}
		say("; the outbox or the disk has no room now")
		if !backoff.Sleep(ctx, republishReport/10) {
			return repeated{}, context.Cause(ctx)
		}
	}
}
