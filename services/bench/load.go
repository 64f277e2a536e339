package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// newClient keeps its connections: what is measured is no handshake.
func newClient(connections int) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		MaxIdleConns: connections, MaxIdleConnsPerHost: connections, DisableCompression: true,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}}
}

// ask sends a request and reads the whole answer; anything but 200 is an error.
func ask(ctx context.Context, client *http.Client, method, url string, body io.Reader, prefer string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if prefer != "" {
		req.Header.Set("Prefer", prefer)
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %.200s", method, url, res.Status, answer)
	}
	return err
}

func create(ctx context.Context, client *http.Client, api, id string) error {
	return ask(ctx, client, http.MethodPost, api+"/order/create-order", strings.NewReader(orderBody(id)), "")
}

// awaitVisible returns when a look-up shows the order at that version.
func awaitVisible(ctx context.Context, client *http.Client, order *service, id string, version int) error {
	return ask(ctx, client, http.MethodGet, fmt.Sprintf("%s/order/order-details?orderId=%s&minVersion=%d", order.api, id, version), http.NoBody, "wait=20")
}

// closedLoop creates orders on all connections, each as soon as the one before it is answered, and returns how many were accepted
// and in what time.
func (b *bench) closedLoop(ctx context.Context, api, prefix string, span time.Duration) (accepted int, took time.Duration, err error) {
	client := newClient(b.connections)
	defer client.CloseIdleConnections()
	var next atomic.Int64
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range b.connections {
		g.Go(func() error {
			for time.Since(begin) < span {
				if err := create(ctx, client, api, orderID(prefix, int(next.Add(1)))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = g.Wait()
	return int(next.Load()), time.Since(begin), err
}

// openLoop calls do at a fixed rate, whether or not earlier calls have returned: a slow answer must not spare the ones behind it. It
// fails when the rate cannot be kept, since what is measured then would be the queue.
func openLoop(ctx context.Context, rate float64, span time.Duration, do func(ctx context.Context, n int) error) error {
	const mostAtOnce = 4096
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mostAtOnce)
	begin := time.Now()
	every := time.Duration(float64(time.Second) / rate)
	total := int(span / every)
	for n := 0; n < total && ctx.Err() == nil; n++ {
		if wait := time.Until(begin.Add(time.Duration(n) * every)); wait > 0 {
			time.Sleep(wait)
		}
		if !g.TryGo(func() error { return do(ctx, n) }) {
			return errors.Join(fmt.Errorf("%d calls are under way at %.0f/s: the rate cannot be kept", mostAtOnce, rate), g.Wait())
		}
	}
	return g.Wait()
}

// latencies collects what calls took, in milliseconds.
type latencies struct {
	mu sync.Mutex
	ms []float64
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ms = append(l.ms, float64(d)/float64(time.Millisecond))
}

// startBoth starts both services in dir and waits until they are ready.
func (b *bench) startBoth(ctx context.Context, dir, kafka string) (cart, order *service, err error) {
	if cart, err = startService(ctx, "cart", b.cart, filepath.Join(dir, "cart"), kafka); err != nil {
		return nil, nil, err
	}
	if order, err = startService(ctx, "order", b.order, filepath.Join(dir, "order"), kafka); err != nil {
		return nil, nil, errors.Join(err, cart.stop())
	}
	for _, s := range []*service{cart, order} {
		if _, err := s.ready(ctx); err != nil {
			return nil, nil, errors.Join(err, cart.stop(), order.stop())
		}
	}
	return cart, order, nil
}

// startEcho starts the bare HTTP server, in a process of its own like the services.
func (b *bench) startEcho(ctx context.Context) (*service, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s, err := startService(ctx, "echo", self, filepath.Join(b.dir, "echo"), "none:1", "echo")
	if err != nil {
		return nil, err
	}
	if _, err := s.ready(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// echo serves what the Cart service answers to a creation, and does nothing for it.
func echo(ctx context.Context, api, ops string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /order/create-order", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10)); err != nil {
			return
		}
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, "Order created successfully") // the client has gone: nobody is left to tell
	})
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	g, ctx := errgroup.WithContext(ctx)
	for _, addr := range []string{api, ops} {
		srv := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second}
		g.Go(func() error {
			defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
			if err := srv.ListenAndServe(); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	return g.Wait()
}
