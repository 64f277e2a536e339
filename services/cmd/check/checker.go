package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/trust"
)

// mostUnderWay limits the orders under way at a rate. Beyond it a new order has to wait, and the
// rate is not kept.
const mostUnderWay = 500

// checker is one run.
type checker struct {
	options
	client client
	report *report
}

// newChecker makes a run. Its client keeps a connection for each order under way.
func newChecker(o options, stdout, stderr io.Writer) (*checker, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, mostUnderWay
	_, roots, err := trust.Read(o.ca)
	if err != nil {
		return nil, fmt.Errorf("-ca: %w", err)
	}
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	c := &checker{
		options: o,
		client:  client{http: &http.Client{Transport: transport}, token: o.token},
		report:  newReport(stdout, stderr),
	}
	if o.id != "" && !o.steps[stepPlace] {
		// The caller promises that the order was placed before.
		c.report.expectPlaced(o.id)
	}
	return c, nil
}

// run takes all orders through their steps, audits them and returns the exit code. After the end of
// ctx no order is begun; those under way are finished and audited.
func (c *checker) run(ctx context.Context) int {
	defer c.client.http.CloseIdleConnections()
	finish := context.WithoutCancel(ctx)
	if c.steps[stepPlace] || c.steps[stepUpdate] || c.steps[stepFind] {
		c.orders(ctx, finish)
	}
	if c.steps[stepAudit] {
		c.audit(finish)
	}
	return c.report.summary(c.client.retried.Load())
}

// orders begins one order after the other until ctx ends. It returns when all are done. Their
// requests run with finish.
func (c *checker) orders(ctx, finish context.Context) {
	most := c.n
	if c.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.duration)
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
			due := begin.Add(time.Duration(float64(n) / c.rate * float64(time.Second)))
			backoff.Sleep(ctx, time.Until(due))
		}
		if ctx.Err() != nil {
			break
		}
		// Go waits while the limit is reached; ctx may end in the meantime.
		underWay.Go(func() error {
			if ctx.Err() == nil {
				c.one(finish, cmp.Or(c.id, c.newID(n+1)))
			}
			return nil
		})
	}
	// Failures are in the report.
	_ = underWay.Wait()
}

// one takes one order through its steps, up to the first that fails.
func (c *checker) one(ctx context.Context, id string) {
	// last is the order as a service returned it last.
	last := state{OrderID: id}
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
			c.report.fail(step.name+" "+id, err)
			return
		}
		last = got
		c.report.succeed(step.name, got, time.Since(begin))
	}
}
