package order

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/order/audit"
)

// askAgain is how often the offsets are read although this member has not moved them: another
// member may have.
const askAgain = time.Second

// catchUp knows whether the store has reached the offsets at which the topics ended when the
// service started. They end at their high watermarks: what an open transaction withholds counts.
//
// It asks the store and not the consumer. A member without partitions never hears from its group;
// it has caught up when the store has, no matter which member filled it. A partition counts only
// once the store has a row for it, which some member writes when it takes the partition over. So a
// new deployment is not ready before its first event would be read.
type catchUp struct {
	done  atomic.Bool
	moved chan struct{} // holds a token when offsets moved

	mu sync.Mutex
	// missing is what it waits for. It is not nil.
	missing error
}

func newCatchUp() *catchUp {
	return &catchUp{moved: make(chan struct{}, 1), missing: errors.New("not connected to Kafka yet")}
}

// run waits for the topics of the store and that of the dead letters, and then until the store has caught
// up with its own. It stays caught up until other members hold partitions: then it has to catch up again
// after them. It returns an error when the store cannot be read.
func (c *catchUp) run(
	ctx context.Context, admin *broker.Admin, s *store, letters string, shares *sharing, log *slog.Logger,
) error {
	infos, err := admin.AwaitTopics(ctx, c.waitFor, append(slices.Clone(s.topics), letters)...)
	if err != nil {
		return err
	}
	for _, topic := range s.topics {
		shares.partitions += int(infos[topic].Partitions)
	}
	for {
		start := time.Now()
		if err := c.follow(ctx, s, ends{admin.Bounds, admin.Withheld}, shares, log); err != nil {
			return err
		}
		log.Info("caught up with the topics", "seconds", time.Since(start).Seconds())
		if err := c.whileAlone(ctx, shares); err != nil {
			return err
		}
		log.Error("look-ups respond with 503: their orders may be stale", "err", c.ready(),
			"next", "docs/runbooks/OrderGroupShared.md")
	}
}

// whileAlone returns nil when other members hold partitions. The service is then not ready any more.
func (c *catchUp) whileAlone(ctx context.Context, shares *sharing) error {
	for backoff.Sleep(ctx, askAgain) {
		if why := shares.look(ctx, time.Now()); why != nil {
			c.waitFor(why)
			c.done.Store(false)
			return nil
		}
	}
	return context.Cause(ctx)
}

// ends are the functions of a broker.Admin that know where the topics end.
type ends struct {
	bounds   audit.BoundsFunc
	withheld func(ctx context.Context, topics ...string) error
}

// errDatabase is a database that may be back later.
var errDatabase = errors.New("the database cannot be used at present")

// follow returns once the store has reached the high watermarks of the topics. While they cannot be
// looked up, or the database of several services cannot be used, follow tries again.
func (c *catchUp) follow(ctx context.Context, s *store, kafka ends, shares *sharing, log *slog.Logger) error {
	var first, end map[broker.Partition]int64
	// waited is true when no offset has moved for askAgain, and logged when that has a line. away is
	// true when the log has a line about the database.
	waited, logged, away := false, false, false
	for {
		at, err := s.offsets(ctx)
		switch {
		case err == nil:
			away = false
		case !sqldb.IsUnavailable(err):
			return err
		default:
			if !away {
				log.Warn("the view cannot be read: trying again", "err", err)
			}
			// The error may hold details that clients must not see.
			away, err = true, errDatabase
		}
		if err == nil && (end == nil || recreated(at, end)) {
			if first, end, err = kafka.bounds(ctx, s.topics...); err == nil {
				// The consumer notices it when it takes the partition over.
				err = ahead(at, end)
			}
			if err != nil {
				end = nil
			}
		}
		if err == nil {
			err = behind(at, first, end)
		}
		if why := shares.look(ctx, time.Now()); why != nil {
			// What they read is missing here, wherever the topics end now.
			end, err = nil, why
		}
		if err == nil {
			c.done.Store(true)
			return nil
		}
		if waited && end != nil && !away {
			why := kafka.withheld(ctx, s.topics...)
			if withheld, ok := errors.AsType[*broker.WithheldError](why); ok {
				err = withheld
				if !logged {
					logged = true
					log.Warn("an open transaction withholds records from the view",
						"err", err, "next", broker.FindHanging)
				}
			}
		}
		c.waitFor(err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.moved:
			waited = false
		case <-time.After(askAgain):
			waited = true
		}
	}
}

// waitFor sets what ready returns. nil changes nothing.
func (c *catchUp) waitFor(missing error) {
	if missing == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.missing = missing
}

// ready returns nil once the store has caught up, and stays nil. Before that it returns what is
// missing.
func (c *catchUp) ready() error {
	if c.done.Load() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missing
}

// offsetsMoved must be called when this member has moved offsets in the store. It does not block.
func (c *catchUp) offsetsMoved() {
	if c.done.Load() {
		return
	}
	select {
	case c.moved <- struct{}{}:
	default:
	}
}

// ahead returns an error if an offset lies behind the end of its partition. The offsets were read before the
// ends, so the log has lost its end.
func ahead(at, end map[broker.Partition]int64) error {
	for p, last := range end {
		if at[p] > last {
			return fmt.Errorf("the view is ahead of %s/%d: Kafka has lost records", p.Topic, p.Number)
		}
	}
	return nil
}

// recreated reports whether a topic was deleted and created again since its ends were listed. Those
// ends would never be reached.
func recreated(at, end map[broker.Partition]int64) bool {
	ids := map[string]string{}
	for p := range at {
		ids[p.Topic] = p.TopicID
	}
	for p := range end {
		if id, ok := ids[p.Topic]; ok && id != p.TopicID {
			return true
		}
	}
	return false
}

// behind returns nil when the offsets have reached the ends, else how far they are. What is before
// first is no longer in the topics and does not count.
func behind(at, first, end map[broker.Partition]int64) error {
	var read, all int64
	unassigned := 0
	for p, last := range end {
		next, assigned := at[p]
		if !assigned {
			unassigned++
		}
		all += last - first[p]
		read += min(max(next, first[p]), last) - first[p]
	}
	switch {
	case read < all:
		return fmt.Errorf("catching up: %d of %d records", read, all)
	case unassigned > 0:
		return fmt.Errorf("waiting for the consumer group: %d of %d partitions are not assigned to anyone yet",
			unassigned, len(end))
	}
	return nil
}
