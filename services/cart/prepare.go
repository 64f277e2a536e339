package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/service"
	"ordersystem.dev/services/internal/sqldb"
)

// beginPatience is how long a Cart whose topics were seen waits for its relay to begin.
const beginPatience = 5 * time.Second

// followEvery is the time between two looks at what another replica has done.
const followEvery = 50 * time.Millisecond

var (
	errRebuilding       = errors.New("rebuilding the store from the topics")
	errRebuiltElsewhere = errors.New("another replica rebuilds the store")
)

// preparation brings a service that has just started to the point where it is ready.
type preparation struct {
	kafka broker.Config
	admin *broker.Admin
	store *store
	// reconciler runs in the relay.
	reconciler *reconciler
	// doubtful counts the orders that a rebuild leaves in doubt.
	doubtful prometheus.Counter
	log      *slog.Logger
}

// run calls open once the store is whole and agrees with the topics, and makes the service ready once
// the topics were seen. With a whole store the service accepts orders even while Kafka is away.
func (p *preparation) run(ctx context.Context, ready *service.Readiness, open func()) error {
	whole, err := p.isRebuilt(ctx, ready.Set)
	if err != nil {
		return err
	}
	open = sync.OnceFunc(open)
	if whole {
		close(p.reconciler.whole)
		err = p.awaitTopics(ctx, ready, open)
	} else if err = p.fill(ctx, ready.Set); err == nil {
		close(p.reconciler.whole)
	}
	if err == nil {
		err = p.awaitAgreement(ctx, ready.Set)
	}
	if err != nil {
		return err
	}
	open()
	ready.Set(nil)
	p.log.Info("cart is ready")
	return nil
}

// isRebuilt reports whether the store is whole. It waits while the database cannot be reached.
func (p *preparation) isRebuilt(ctx context.Context, report func(reason error)) (bool, error) {
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for {
		whole, err := p.store.isRebuilt(ctx)
		if !sqldb.IsUnavailable(err) {
			return whole, err
		}
		report(err)
		if !retry.Wait(ctx) {
			return false, context.Cause(ctx)
		}
	}
}

// awaitAgreement waits until the store agrees with the topics, as this replica or another one has found
// out. An order that is accepted before may have a version that the topics have already. If the comparison
// does not even begin, because Kafka refuses the relay, orders are accepted all the same.
func (p *preparation) awaitAgreement(ctx context.Context, report func(reason error)) error {
	report(errComparing)
	select {
	case <-p.reconciler.begun:
	case <-p.reconciler.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(beginPatience):
		return nil
	}
	// The replica that compares logs what holds that up.
	silent := slog.New(slog.DiscardHandler)
	return newHoldUps(p.kafka, p.admin, silent).during(ctx, errComparing, report, func() error {
		select {
		case <-p.reconciler.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// follow notes how far the replica has come that holds the lease, until the store agrees with the topics or
// ctx ends.
func (p *preparation) follow(ctx context.Context) error {
	if !p.store.db.Shared() {
		// There is no other replica.
		return nil
	}
	for {
		begun, agreed, err := p.store.box.Agreement(ctx)
		switch {
		case err != nil:
			// The committer shows what is wrong with the database.
			p.log.Debug("look up the agreement with the topics", "err", err)
		case agreed:
			p.reconciler.end()
			return nil
		case begun:
			p.reconciler.begin()
		}
		if !backoff.Sleep(ctx, followEvery) {
			return nil
		}
	}
}

// awaitTopics waits until the topics exist. The service accepts orders meanwhile, once a look-up has failed:
// while Kafka is only slow, the store may still have to be compared. It is ready too, except while a broker that
// can be reached has no such topics.
func (p *preparation) awaitTopics(ctx context.Context, ready *service.Readiness, open func()) error {
	_, err := p.admin.AwaitTopics(ctx, func(missing error) {
		if missing == nil {
			return
		}
		open()
		if _, unreachable := errors.AsType[*broker.UnreachableError](missing); unreachable {
			missing = nil
		}
		ready.Set(missing)
	}, orderTopics(p.kafka)...)
	return err
}

// fill waits for the topics and rebuilds a new store from them, until that succeeds. One replica does so,
// and the others wait for it. report is called with what it waits for, and never with nil.
func (p *preparation) fill(ctx context.Context, report func(reason error)) error {
	_, err := p.admin.AwaitTopics(ctx, func(missing error) {
		if missing == nil {
			missing = errRebuilding
		}
		report(missing)
	}, orderTopics(p.kafka)...)
	if err != nil {
		return err
	}
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for {
		// Another replica may have rebuilt it since this one last looked.
		whole, err := p.isRebuilt(ctx, report)
		if err != nil || whole {
			return err
		}
		if !p.store.box.Leads() {
			report(errRebuiltElsewhere)
			if !backoff.Sleep(ctx, followEvery) {
				return context.Cause(ctx)
			}
			continue
		}
		err = p.rebuildOnce(ctx, report)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, outbox.ErrLeaseLost):
			continue
		}
		report(fmt.Errorf("%w: trying again: %w", errRebuilding, err))
		wait := retry.Next()
		p.log.Warn("the store could not be rebuilt; trying again", "pause", wait, "err", err)
		if !backoff.Sleep(ctx, wait) {
			return context.Cause(ctx)
		}
	}
}

// rebuildOnce rebuilds the store, and reports when the rebuild waits for Kafka.
func (p *preparation) rebuildOnce(ctx context.Context, report func(reason error)) error {
	return newHoldUps(p.kafka, p.admin, p.log).during(ctx, errRebuilding, report, func() error {
		first, inDoubt, err := rebuild(ctx, p.kafka, p.admin, p.store, p.log)
		p.doubtful.Add(float64(inDoubt))
		if err == nil {
			// If another replica has rebuilt the store meanwhile, and agreed, watch may look at the topics now.
			p.reconciler.mu.Lock()
			defer p.reconciler.mu.Unlock()
			p.reconciler.deleted(nil, first)
		}
		return err
	})
}
