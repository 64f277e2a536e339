package lag

import (
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// client sends requests to the brokers. It keeps nothing from one poll to the next but connections.
// It is safe for concurrent use.
type client struct {
	kafka *kgo.Client
	// limit is how long one request may take, retries included. A silent broker must leave time to
	// ask the others.
	limit time.Duration
}

// all sends a request to every broker that it concerns, split as Kafka demands. Each shard of the
// result has its own error.
func (c *client) all(ctx context.Context, req kmsg.Request) []kgo.ResponseShard {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	return c.kafka.RequestSharded(ctx, req)
}

// anyBroker sends a request for which any broker will do, or which needs the list of brokers first.
// If no shard succeeds it tries once more, which asks another broker. Each try makes a request of its
// own, because a goroutine of the client may still use the one whose time has run out.
func (c *client) anyBroker(ctx context.Context, request func() kmsg.Request) (shards []kgo.ResponseShard) {
	succeeded := func(s kgo.ResponseShard) bool { return s.Err == nil }
	for range 2 {
		shards = c.all(ctx, request())
		if slices.ContainsFunc(shards, succeeded) {
			break
		}
	}
	return shards
}

// one sends a request to the broker with this ID.
func (c *client) one(ctx context.Context, broker int32, req kmsg.Request) (kmsg.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	return c.kafka.Broker(int(broker)).RetriableRequest(ctx, req)
}
