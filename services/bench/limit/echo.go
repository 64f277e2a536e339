package limit

import (
	"context"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Echo serves the response of Cart to a creation, and does nothing for it, until ctx ends. It
// listens at two addresses as the services do, and is always ready.
func Echo(ctx context.Context, api, ops string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /order/create-order", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10)); err != nil {
			return
		}
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		// An error means that the client is gone.
		_, _ = io.WriteString(w, "Order created successfully")
	})
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	g, ctx := errgroup.WithContext(ctx)
	for _, addr := range []string{api, ops} {
		srv := &http.Server{
			Addr: addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second,
		}
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
