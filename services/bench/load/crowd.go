package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/backoff"
)

// Crowd holds connections to the API at addr as slow clients do, until ctx ends: each sends the headers
// of a request, one a second, and never ends them. Whatever the server closes is opened again at once.
func Crowd(ctx context.Context, addr string, connections int) {
	var all errgroup.Group
	for range connections {
		all.Go(func() error {
			for ctx.Err() == nil {
				dawdle(ctx, addr)
			}
			return nil
		})
	}
	_ = all.Wait()
}

// dawdle holds one connection until the server closes it or ctx ends.
func dawdle(ctx context.Context, addr string) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		backoff.Sleep(ctx, time.Second)
		return
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, conn)
	}()
	// The reader ends with the connection.
	defer func() { conn.Close(); <-closed }()
	line := fmt.Sprintf("POST /order/create-order HTTP/1.1\r\nHost: %s\r\n", addr)
	for {
		if _, err := io.WriteString(conn, line); err != nil {
			return
		}
		line = "X-Slow: 1\r\n"
		select {
		case <-ctx.Done():
			return
		case <-closed:
			return
		case <-time.After(time.Second):
		}
	}
}
