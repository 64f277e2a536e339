// Package auth has the SASL mechanisms of the lag collector whose credentials expire: OAUTHBEARER
// and AWS_MSK_IAM. Cart and Order do not link it, because AWS' library is large.
package auth

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/internal/kafkaconfig"
)

// Options returns the options of franz-go for the client's mechanism. There are none if it is not
// one of this package's.
func Options(c kafkaconfig.Client) []kgo.Opt {
	switch c.Mechanism {
	case kafkaconfig.OAuthBearer:
		return []kgo.Opt{kgo.SASL(newBearer(c))}
	case kafkaconfig.MSKIAM:
		return []kgo.Opt{kgo.SASL(newMSK())}
	}
	return nil
}

const (
	// fetchTimeout is how long a request for credentials may take. A poll waits 2.5 s at least for a
	// response of Kafka. It shows why there are no credentials only if it waits longer than this.
	fetchTimeout = 2 * time.Second
	// failurePause is for how long connections share a failure, instead of asking again.
	failurePause = time.Second
	// leastLife is how long credentials must be valid to be used again. A session ends with them, and
	// franz-go then authenticates again. Kafka refuses that a second time within a second.
	leastLife = 5 * time.Second
)

// cached keeps credentials until four fifths of their lifetime have passed. If no others can be had
// then, it keeps them until they have leastLife left. It is safe for concurrent use.
type cached[T comparable] struct {
	// fetch returns credentials and when they expire. With the zero time they are not kept.
	fetch func(ctx context.Context) (T, time.Time, error)

	mu sync.Mutex
	// value was fetched last.
	value T
	// renew is when to fetch others, and end is when value must not be used any more.
	renew, end time.Time
	// err is why others could not be fetched. again is when to try again.
	err   error
	again time.Time
}

// get returns credentials that have not expired. Connections that open at the same time wait for one
// request.
func (c *cached[T]) get(ctx context.Context) (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); !now.Before(c.renew) && !now.Before(c.again) {
		c.fetchNow(ctx)
		if c.err == nil {
			return c.value, nil
		}
	}
	if time.Now().Before(c.end) {
		return c.value, nil
	}
	var none T
	return none, c.err
}

func (c *cached[T]) fetchNow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	value, expires, err := c.fetch(ctx)
	now := time.Now()
	if err != nil {
		c.err, c.again = err, now.Add(failurePause)
		return
	}
	c.value, c.end, c.err = value, expires.Add(-leastLife), nil
	c.renew = now.Add(min(expires.Sub(now)/5*4, c.end.Sub(now)))
}

// drop makes get fetch other credentials than value, which were refused.
func (c *cached[T]) drop(value T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.value == value {
		c.renew, c.end = time.Time{}, time.Time{}
	}
}
