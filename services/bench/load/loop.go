package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Closed creates orders on several connections for a time. Each connection sends its next request
// when the last one has its response. Closed returns how many orders were accepted, and the time
// until the last response.
func Closed(
	ctx context.Context, api, prefix string, connections int, duration time.Duration,
) (accepted int, took time.Duration, err error) {
	client := NewClient(connections)
	defer client.CloseIdleConnections()
	var next atomic.Int64
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range connections {
		g.Go(func() error {
			for time.Since(begin) < duration {
				if err := Create(ctx, client, api, OrderID(prefix, int(next.Add(1)))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = g.Wait()
	return int(next.Load()), time.Since(begin), err
}

// Open calls do at a fixed rate per second, whether or not earlier calls have returned: a slow
// response must not delay later requests. It fails if the rate cannot be kept, since the
// measurement would then be that of a queue.
func Open(ctx context.Context, rate float64, duration time.Duration, do func(ctx context.Context, n int) error) error {
	const mostAtOnce = 4096
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mostAtOnce)
	begin := time.Now()
	every := time.Duration(float64(time.Second) / rate)
	total := int(duration / every)
	for n := 0; n < total && ctx.Err() == nil; n++ {
		if wait := time.Until(begin.Add(time.Duration(n) * every)); wait > 0 {
			time.Sleep(wait)
		}
		if !g.TryGo(func() error { return do(ctx, n) }) {
			err := fmt.Errorf("%d calls are under way at %.0f/s: the rate cannot be kept", mostAtOnce, rate)
			return errors.Join(err, g.Wait())
		}
	}
	return g.Wait()
}

// Latencies collects how long calls took. It is safe for concurrent use.
type Latencies struct {
	mu sync.Mutex
	// ms are milliseconds in the order in which the calls returned.
	ms []float64
}

// Add adds one call.
func (l *Latencies) Add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ms = append(l.ms, float64(d)/float64(time.Millisecond))
}

// Milliseconds returns what was added so far. Call it when no more calls are under way.
func (l *Latencies) Milliseconds() []float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ms
}
