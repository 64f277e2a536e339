// Package web is what both services' HTTP servers share: listening and draining, routes that ignore case, errors as answers, request
// metrics, and the operations endpoints.
package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/env"
)

// Drain is how long requests under way may take once the server is told to stop.
const Drain = 10 * time.Second

// Listen binds a TCP address. When the port is taken the error names the variable that moves it.
func Listen(addr env.Addr) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr.Value)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port of %s is taken by another program (on macOS, AirPlay holds 5000 and 7000); set %s to move it, for example %s=:15000: %w",
			addr.Value, addr.Variable, addr.Variable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s=%s: %w", addr.Variable, addr.Value, err)
	}
	return ln, nil
}

// Serve answers requests on ln until ctx ends, then stops accepting and waits for those under way, at most Drain.
func Serve(ctx context.Context, log *slog.Logger, ln net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      60 * time.Second, // longer than a look-up may wait; a long answer moves its own deadline
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
	var g errgroup.Group
	served := make(chan struct{})
	g.Go(func() error {
		select {
		case <-served:
			return nil
		case <-ctx.Done():
		}
		final, cancel := context.WithTimeout(context.WithoutCancel(ctx), Drain)
		defer cancel()
		if err := srv.Shutdown(final); err != nil {
			return errors.Join(fmt.Errorf("drain %s: %w", ln.Addr(), err), srv.Close())
		}
		return nil
	})
	g.Go(func() error {
		defer close(served)
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", ln.Addr(), err)
		}
		return nil
	})
	return g.Wait()
}

// FoldCase hands h every request with its path and its query's names in lower case, as no router does. Values stay as they are.
func FoldCase(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := *r.URL
		u.Path, u.RawPath = strings.ToLower(u.Path), ""
		if u.RawQuery != "" {
			pairs := strings.Split(u.RawQuery, "&")
			for i, pair := range pairs {
				name, value, found := strings.Cut(pair, "=")
				if plain, err := url.QueryUnescape(name); err == nil {
					name = url.QueryEscape(strings.ToLower(plain))
				}
				if found {
					name += "="
				}
				pairs[i] = name + value
			}
			u.RawQuery = strings.Join(pairs, "&")
		}
		folded := *r // not WithContext: one copy is enough
		folded.URL = &u
		h.ServeHTTP(w, &folded)
	})
}

// WantsJSON says whether the client asked for JSON. Text is the default, as the reference system's clients expect it.
func WantsJSON(r *http.Request) bool {
	for _, header := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(header, ",") {
			kind, params, err := mime.ParseMediaType(part)
			if err != nil || (kind != "application/json" && kind != "application/problem+json") {
				continue
			}
			if q, err := strconv.ParseFloat(params["q"], 64); err != nil || q > 0 {
				return true
			}
		}
	}
	return false
}

// Problem is an answer that is not the one hoped for.
type Problem struct {
	Status     int
	Text       string        // what was wrong and what would be right
	RetryAfter time.Duration // when it may be worth trying again; 0 says nothing
}

// Write answers with the text, or with problem details (RFC 9457) when the client wants JSON.
func (p Problem) Write(w http.ResponseWriter, r *http.Request) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(p.RetryAfter.Round(time.Second).Seconds()))))
	}
	if !WantsJSON(r) {
		WriteText(w, p.Status, p.Text)
		return
	}
	WriteJSON(w, p.Status, "application/problem+json", struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(p.Status), p.Status, p.Text})
}

// WriteText answers with plain text, to the letter: no line end is added.
func WriteText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the client has gone: nobody is left to tell
}

// WriteJSON answers with v as JSON.
func WriteJSON(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // only a type that cannot be encoded gets here
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
