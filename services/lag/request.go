package lag

import (
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// reader asks the brokers. It keeps nothing from one poll to the next but connections.
type reader struct {
	cl   *kgo.Client
	step time.Duration // how long one request may take
}

// ask sends a request to all brokers that it concerns.
func (r *reader) ask(ctx context.Context, req kmsg.Request) []kgo.ResponseShard {
	ctx, cancel := context.WithTimeout(ctx, r.step)
	defer cancel()
	return r.cl.RequestSharded(ctx, req)
}

// askAny sends a request that any broker can answer, or for which one has to say first which brokers there are: when one does not answer,
// another is asked.
func (r *reader) askAny(ctx context.Context, req kmsg.Request) (shards []kgo.ResponseShard) {
	for range 2 {
		shards = r.ask(ctx, req)
		if slices.ContainsFunc(shards, func(s kgo.ResponseShard) bool { return s.Err == nil }) {
			break
		}
	}
	return shards
}

// request sends a request to one broker.
func (r *reader) request(ctx context.Context, broker int32, req kmsg.Request) (kmsg.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, r.step)
	defer cancel()
	return r.cl.Broker(int(broker)).RetriableRequest(ctx, req)
}
