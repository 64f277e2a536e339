package load

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
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
	if err == nil {
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		_, err = fmt.Fprintf(conn, "POST /order/create-order HTTP/1.1\r\nHost: %s\r\n", addr)
	}
	for n := 0; ctx.Err() == nil; n++ {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		if err != nil {
			return
		}
		_, err = fmt.Fprintf(conn, "X-%d: slow\r\n", n)
	}
}
