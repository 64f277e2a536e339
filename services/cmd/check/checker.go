package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/contract"
)

// mostUnderWay bounds the orders under way at a rate; beyond it a new one has to wait, and the rate is not kept.
const mostUnderWay = 500

// checker is one run: what it is to do, and what came of it so far.
type checker struct {
	options
	client         client
	stdout, stderr io.Writer

	mu       sync.Mutex
	done     map[string]int // results by step
	failed   int
	visible  []time.Duration             // from an order's last answer until it was found
	answered map[string]map[string]int64 // by topic: the orders that must be in it, and their versions
}

func newChecker(o options, stdout, stderr io.Writer) *checker {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, mostUnderWay
	c := &checker{options: o, client: client{http: &http.Client{Transport: transport}}, stdout: stdout, stderr: stderr, done: map[string]int{}}
	c.answered = map[string]map[string]int64{contract.TopicCreated: {}, contract.TopicUpdated: {}}
	if o.id != "" && !o.steps[stepPlace] {
		c.answered[contract.TopicCreated][o.id] = 1 // somebody placed it, it is said
	}
	return c
}

// run does it all and returns the exit code. When ctx ends no order is begun any more; those that were are finished and audited.
func (c *checker) run(ctx context.Context) int {
	defer c.client.http.CloseIdleConnections()
	finish := context.WithoutCancel(ctx)
	if c.steps[stepPlace] || c.steps[stepUpdate] || c.steps[stepFind] {
		c.orders(ctx, finish)
	}
	if c.steps[stepAudit] {
		c.audit(finish)
	}
	return c.summary()
}

// orders begins one order after the other until ctx ends, and returns when all are through.
func (c *checker) orders(ctx, finish context.Context) {
	most := c.n
	if c.span > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.span)
		defer cancel()
		most = math.MaxInt
	}
	var underWay errgroup.Group
	underWay.SetLimit(1)
	if c.rate > 0 {
		underWay.SetLimit(mostUnderWay)
	}
	begin := time.Now()
	for n := range most {
		if c.rate > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(time.Until(begin.Add(time.Duration(float64(n) / c.rate * float64(time.Second))))):
			}
		}
		if ctx.Err() != nil {
			break
		}
		underWay.Go(func() error { // waits while too many are
			if ctx.Err() == nil {
				c.one(finish, cmp.Or(c.id, c.newID(n+1)))
			}
			return nil
		})
	}
	_ = underWay.Wait() // what failed is in the report
}

// one takes one order through its steps, up to the first that fails.
func (c *checker) one(ctx context.Context, id string) {
	last := state{OrderID: id} // as it was answered last
	for _, step := range []struct {
		name string
		do   func(ctx context.Context, deadline time.Time, last state) (state, error)
	}{{stepPlace, c.place}, {stepUpdate, c.update}, {stepFind, c.find}} {
		if !c.steps[step.name] {
			continue
		}
		begin := time.Now()
		got, err := step.do(ctx, begin.Add(c.timeout), last)
		if err != nil {
			c.fail(step.name+" "+id, err)
			return
		}
		last = got
		c.succeed(step.name, got, time.Since(begin))
	}
}

// past is how a step is called in the results.
var past = map[string]string{stepPlace: "placed", stepUpdate: "updated", stepFind: "found"}

func (c *checker) succeed(step string, o state, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[step]++
	switch step {
	case stepPlace:
		c.answered[contract.TopicCreated][o.OrderID] = o.Version
	case stepUpdate:
		c.answered[contract.TopicUpdated][o.OrderID] = o.Version
	case stepFind:
		c.visible = append(c.visible, took)
	}
	fmt.Fprintf(c.stdout, "%-7s %s version %d %s\n", past[step], o.OrderID, o.Version, short(took))
}

func (c *checker) fail(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed++
	fmt.Fprintf(c.stderr, "failed: %s: %v\n", what, err)
}

// summary prints the last line.
func (c *checker) summary() (exitCode int) {
	fmt.Fprintf(c.stdout, "summary: placed %d, updated %d, found %d, failed %d, retried %d",
		c.done[stepPlace], c.done[stepUpdate], c.done[stepFind], c.failed, c.client.retried.Load())
	if n := len(c.visible); n > 0 {
		slices.Sort(c.visible)
		fmt.Fprintf(c.stdout, "; found after p50 %s, p99 %s", short(c.visible[(n-1)*50/100]), short(c.visible[(n-1)*99/100]))
	}
	fmt.Fprintln(c.stdout)
	if c.failed > 0 {
		return 1
	}
	return 0
}

func short(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
