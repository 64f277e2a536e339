package broker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"ordersystem.dev/services/internal/backoff"
)

// Consumer is a member of a consumer group. It uses the protocol of KIP-848, which needs Kafka 4.0.
//
// It lives in sessions, each with a client of its own. A session ends when the member is fenced,
// when its client fails for good, when a topic was recreated, or when the TLS files have changed.
// The consumer then joins its group again with a new client.
type Consumer struct{ *membership }

// NewConsumer returns a consumer. Run makes it join its group. The admin looks up the topics' IDs.
func NewConsumer(cfg Config, cc ConsumerConfig, admin *Admin, log *slog.Logger) *Consumer {
	cc.MaxRecords = cmp.Or(cc.MaxRecords, 1000)
	cc.MaxBytes = cmp.Or(cc.MaxBytes, 8<<20)
	cc.TopicCheck = cmp.Or(cc.TopicCheck, 5*time.Second)
	cc.MaxSilence = cmp.Or(cc.MaxSilence, 5*time.Minute)
	log = log.With("group", cc.Group)
	return &Consumer{&membership{
		cfg: cfg, cc: cc, admin: admin, log: log,
		trouble: &trouble{log: log, brokers: cfg.BrokerList()},
	}}
}

// Run consumes until ctx ends. It then finishes the batch in hand, for which it takes closeTimeout
// at most.
func (c *Consumer) Run(ctx context.Context, h Handler) {
	// work is the context of the handler. It outlives ctx by closeTimeout.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		backoff.Sleep(work, closeTimeout)
		cancel()
	})()

	logged := ""
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for ctx.Err() == nil {
		useful, err := runSession(ctx, work, c.membership, h)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, errRenewed):
			// This is not a failure, and the Admin has logged it.
			retry.Reset()
		case errors.Is(err, errReconnected), errors.Is(err, errReadable):
			retry.Reset()
			c.log.Info("consumer joins again", "reason", err)
		default:
			if useful {
				retry.Reset()
				logged = ""
			}
			c.fails(err)
			if err.Error() != logged {
				logged = err.Error()
				c.log.Warn("consumer joins again", "reason", err)
			}
		}
		retry.Wait(ctx)
	}
}

// Rebalances counts changes of this member's partitions.
func (c *Consumer) Rebalances() int64 { return c.rebalances.Load() }

// Assigned returns how many partitions this member has.
func (c *Consumer) Assigned() int { return len(c.holds()) }

// Others returns the members of the group that hold partitions which this member does not have, as
// the group's coordinator knows them.
func (c *Consumer) Others(ctx context.Context) ([]Member, error) {
	return members(ctx, c.cfg, c.cc.Group, c.holds())
}

// LastPoll returns when the consumer last asked for records. It is zero before the first time.
func (c *Consumer) LastPoll() time.Time {
	if at := c.polled.Load(); at > 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// Lag is how far a consumer is behind in a partition.
type Lag struct {
	// Records is how many offsets there are from the last applied record to the high watermark.
	Records int64
	// Withheld is how long an open transaction has withheld records, so that no consumer of
	// committed records can move on. It is 0 if none does.
	Withheld time.Duration
}

// Lag returns the lag of each partition, as the client knows it from its last fetches. Partitions
// whose lag is unknown (not fetched yet, paused, broker away) are absent. Without Config.Stats it
// returns nil.
func (c *Consumer) Lag() map[Partition]Lag {
	c.lagMu.Lock()
	defer c.lagMu.Unlock()
	// After a while without a fetch, what is known is too old.
	if c.cfg.Stats == nil || time.Since(c.lagAt) > 3*c.cfg.Stats.every {
		return nil
	}
	return maps.Clone(c.lag)
}

// Err returns what keeps the consumer from working at the moment, or nil.
func (c *Consumer) Err() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return c.trouble.reason()
}
