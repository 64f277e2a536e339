package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/web"
)

const (
	// republishOrders and republishBytes limit a page. Requests wait while one is written.
	republishOrders = 500
	republishBytes  = 1 << 20
	// republishPoll is the pause while the relay publishes a page.
	republishPoll = 5 * time.Millisecond
	// republishReport is the time between two lines of the response, and republishPatience how long
	// the client may take for one.
	republishReport   = time.Second
	republishPatience = 10 * time.Second
)

var errBusy = errors.New("the orders are being published again already")

// republisher publishes the newest version of every order again, after Kafka has lost records. The
// relay publishes the pages in order with all other events. The next page waits until Kafka has the
// last one, so a republication takes no more of the outbox than one page.
type republisher struct {
	store      *store
	reconciler *reconciler
	// page limits a page, and limit the outbox.
	page, limit room
	log         *slog.Logger

	// one is held during a republication, and for good once the service stops.
	one sync.Mutex
	// stopping ends the one that is under way.
	stopping context.Context
	stop     context.CancelCauseFunc
}

// newRepublisher returns one. limit is how many events and bytes may wait for Kafka.
func newRepublisher(s *store, r *reconciler, limit room, log *slog.Logger) *republisher {
	p := &republisher{
		store: s, reconciler: r, limit: limit, log: log,
		// Half of what may wait is left to requests.
		page: room{
			events: max(1, min(republishOrders, limit.events/2)),
			bytes:  max(1, min(republishBytes, limit.bytes/2)),
		},
	}
	p.stopping, p.stop = context.WithCancelCause(context.Background())
	return p
}

// run waits until ctx ends, then ends the republication that is under way. The relay runs longer.
func (p *republisher) run(ctx context.Context) error {
	<-ctx.Done()
	p.stop(errStopping)
	p.one.Lock()
	return nil
}

// ServeHTTP publishes all orders again. The response is text for a person, and grows while that
// goes on. The republication ends with the connection.
func (p *republisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := p.begin(); err != nil {
		status := http.StatusServiceUnavailable
		if errors.Is(err, errBusy) {
			status = http.StatusConflict
		}
		web.Problem{Status: status, Text: err.Error() + "\n"}.Write(w, r)
		return
	}
	defer p.one.Unlock()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(p.stopping, func() { cancel(context.Cause(p.stopping)) })()

	control := http.NewResponseController(w)
	// The time to read a request would end the wait for the end of the connection too.
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	report := func(format string, args ...any) {
		_ = control.SetWriteDeadline(time.Now().Add(republishPatience))
		_, err := fmt.Fprintf(w, format+"\n", args...)
		if err = errors.Join(err, control.Flush()); err != nil {
			cancel(err)
		}
	}
	total, err := p.republish(ctx, continueTrace(r.Header.Get("Traceparent")), report)
	if err != nil {
		p.log.Error("the orders are not all published again; repeat POST /republish", "orders", total, "err", err)
		report("ended after %d orders: %v. Repeat the command: that is harmless.", total, err)
		return
	}
	p.log.Info("all orders are published again", "orders", total)
	report("done: %d orders are in Kafka again", total)
}

// begin reports why no republication can begin now. After nil, one is held.
func (p *republisher) begin() error {
	select {
	case <-p.reconciler.done:
	default:
		return fmt.Errorf("%w: that needs Kafka; try again later", errComparing)
	}
	if err := context.Cause(p.stopping); err != nil {
		return err
	}
	if !p.one.TryLock() {
		return errBusy
	}
	return nil
}

// republish puts page after page into the outbox, and waits until Kafka has each. It returns how
// many orders Kafka has.
func (p *republisher) republish(
	ctx context.Context, traceparent string, report func(format string, args ...any),
) (done int64, err error) {
	total, end, err := p.store.extent(ctx)
	if err != nil {
		return 0, err
	}
	p.log.Info("publishing all orders again: POST /republish", "orders", total)
	report("publishing the newest version of %d orders again", total)
	begin, reported := time.Now(), time.Now()
	// say reports progress once in a while.
	say := func(waits string) {
		if now := time.Now(); now.Sub(reported) >= republishReport {
			reported = now
			report("%d of %d orders, %.0f/s%s", done, total, float64(done)/now.Sub(begin).Seconds(), waits)
		}
	}
	for after := int64(0); ; {
		// A conflict means that the store may not be published.
		if err := p.reconciler.err(); err != nil {
			return done, err
		}
		page, roomy, err := p.store.repeat(ctx, after, end, p.page, p.limit, time.Now(), traceparent)
		switch {
		case err != nil:
			return done, err
		case page.orders == 0 && done != total:
			return done, fmt.Errorf("the store had %d orders", total)
		case page.orders == 0:
			return done, nil
		case !roomy:
			say("; the outbox or the disk has no room now")
			if !backoff.Sleep(ctx, republishReport/10) {
				return done, context.Cause(ctx)
			}
			continue
		}
		if err := p.await(ctx, page.lastMessage, say); err != nil {
			return done, err
		}
		after, done = page.lastRow, done+page.orders
		say("")
	}
}

// await waits until Kafka has the outbox up to a message.
func (p *republisher) await(ctx context.Context, message int64, say func(waits string)) error {
	for {
		published, err := p.store.box.Published(ctx, message)
		if err != nil || published {
			return err
		}
		if err := p.reconciler.err(); err != nil {
			return err
		}
		say("; the relay has not published them yet")
		if !backoff.Sleep(ctx, republishPoll) {
			return context.Cause(ctx)
		}
	}
}
