package order

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"ordersystem.dev/services/internal/broker"
)

// sharingGrace is how long other members may hold partitions. It is longer than a handover, and than
// the session of a member that was killed, on brokers with the declared settings.
const sharingGrace = 10 * time.Second

// sharing finds out whether other members of the consumer group hold partitions. A store of its own
// does not get what they read, so its look-ups would be stale without anybody noticing.
//
// To hold fewer partitions than there are is no reason by itself: so it is at a start, in a rebalance
// and while Kafka is away. Only the group's coordinator knows that others hold them.
type sharing struct {
	// assigned and others are those of the broker.Consumer.
	assigned func() int
	others   func(context.Context) ([]broker.Member, error)
	// wanted is true if all members write into one database. None lacks anything then.
	wanted bool
	log    *slog.Logger
	// partitions is how many partitions there are. It is set before the first look.
	partitions int

	// asked is when the coordinator was last asked.
	asked time.Time
	// since is when others were first seen. It is zero when there are none.
	since time.Time
	// last is what the last look returned, and unknown is the last error that was logged.
	last    error
	unknown string
	// elsewhere is how many partitions others hold.
	elsewhere atomic.Int64
}

// look returns who holds partitions, once they have held them for sharingGrace, or nil if that is
// wanted. While it cannot be looked up, look returns what it returned before. It is called by one
// goroutine. A store that catches up moves many times a second, so it asks the coordinator once in
// askAgain at most.
func (s *sharing) look(ctx context.Context, now time.Time) error {
	if s.wanted {
		return nil
	}
	var others []broker.Member
	if s.assigned() < s.partitions {
		if now.Sub(s.asked) < askAgain {
			return s.last
		}
		s.asked = now
		var err error
		if others, err = s.others(ctx); err != nil {
			if err.Error() != s.unknown {
				s.unknown = err.Error()
				s.log.Warn("whether other members of the group hold partitions is not known", "err", err)
			}
			return s.last
		}
	}
	s.unknown = ""
	elsewhere := 0
	var names []string
	for _, m := range others {
		elsewhere += m.Partitions
		names = append(names, fmt.Sprintf("%s at %s has %d", m.ClientID, strings.TrimPrefix(m.Host, "/"), m.Partitions))
	}
	s.elsewhere.Store(int64(elsewhere))
	switch {
	case elsewhere == 0:
		s.since, s.last = time.Time{}, nil
	case s.since.IsZero():
		s.since = now
	case now.Sub(s.since) >= sharingGrace:
		s.last = fmt.Errorf("other members of the consumer group hold %d of %d partitions, and this store lacks what "+
			"they read: %s", elsewhere, s.partitions, strings.Join(names, ", "))
	}
	return s.last
}
