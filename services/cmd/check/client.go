package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"ordersystem.dev/services/internal/backoff"
)

// tryFor is the patience with a response that takes milliseconds. The connection may lead to a pod
// that is gone, and the next connection to one that is there.
const tryFor = 10 * time.Second

// client sends requests, and sends them again after temporary failures. Every request may be sent
// again: those that write carry an Idempotency-Key.
type client struct {
	http *http.Client
	// token is a file with the bearer token; empty: none is sent.
	token   string
	retried atomic.Int64
}

// request is one request, as often as it is sent.
type request struct {
	method, url string
	header      map[string]string
	body        string
	// patience is how long one try waits without a byte from the service.
	patience time.Duration
}

// statusError is a response with another status than 200.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.status, http.StatusText(e.status), e.text)
}

// silentError means that the service sent no byte for that long.
type silentError struct {
	url  string
	wait time.Duration
}

func (e *silentError) Error() string {
	return fmt.Sprintf("%s: nothing heard for %s", e.url, e.wait.Round(time.Millisecond))
}

// cutOff reports whether the last try of a request ended because of the deadline, and not because the
// service was silent for too long.
func (r request) cutOff(err error) bool {
	e, ok := errors.AsType[*silentError](err)
	return ok && e.wait < r.patience
}

// temporaryError is a failure that is worth another try.
type temporaryError struct {
	error
	// after is the wait that the response asks for; 0 if it asks for none.
	after time.Duration
}

func (e *temporaryError) Unwrap() error { return e.error }

// do sends a request until it succeeds, fails for good or the deadline is near. It passes the body
// of a response with status 200 to read, at each try from its start.
func (c *client) do(ctx context.Context, deadline time.Time, r request, read func(io.Reader) error) error {
	pause := backoff.Backoff{Min: 100 * time.Millisecond, Max: 2 * time.Second}
	for tries := 1; ; tries++ {
		err := c.try(ctx, min(r.patience, time.Until(deadline)), r, read)
		temporary, ok := errors.AsType[*temporaryError](err)
		if !ok {
			return err
		}
		wait := max(pause.Next(), temporary.after)
		if time.Until(deadline) <= wait {
			return fmt.Errorf("%w (tries: %d)", err, tries)
		}
		backoff.Sleep(ctx, wait)
		c.retried.Add(1)
	}
}

// try sends a request once.
func (c *client) try(ctx context.Context, patience time.Duration, r request, read func(io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The timer is reset by each byte, since a large response may take longer than the patience.
	silence := time.AfterFunc(patience, func() {
		cancel(&silentError{r.url, patience})
	})
	defer silence.Stop()
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, strings.NewReader(r.body))
	if err != nil {
		return err
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	if c.token != "" {
		// A token lives for minutes, and a run may take longer.
		token, err := os.ReadFile(c.token)
		if err != nil {
			return fmt.Errorf("read the bearer token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &temporaryError{error: cmp.Or(context.Cause(ctx), err)}
	}
	defer resp.Body.Close()
	body := &watchedReader{from: resp.Body, progress: func() { silence.Reset(patience) }}
	if resp.StatusCode == http.StatusOK {
		err = read(body)
	} else {
		err = refusal(resp, body)
	}
	if body.broken != nil {
		broken := cmp.Or(context.Cause(ctx), body.broken)
		return &temporaryError{error: fmt.Errorf("%s: the response broke off: %w", r.url, broken)}
	}
	return err
}

// refusal turns a response into an error. It takes the text out of problem details.
func refusal(resp *http.Response, body io.Reader) error {
	// The watchedReader keeps the error of a response that broke off.
	text, _ := io.ReadAll(io.LimitReader(body, 2000))
	var problem struct{ Detail string }
	if json.Unmarshal(text, &problem) == nil && problem.Detail != "" {
		text = []byte(problem.Detail)
	}
	err := &statusError{resp.StatusCode, strings.TrimSpace(string(text))}
	if after, noNumber := strconv.Atoi(resp.Header.Get("Retry-After")); noNumber == nil {
		return &temporaryError{err, time.Duration(after) * time.Second}
	}
	return err
}

// watchedReader reports progress, and keeps the error that ended the reading. A broken connection
// is thus distinguished from a wrong response.
type watchedReader struct {
	from     io.Reader
	progress func()
	// broken is nil after a regular end.
	broken error
}

func (w *watchedReader) Read(b []byte) (int, error) {
	n, err := w.from.Read(b)
	if err == nil {
		w.progress()
	} else if !errors.Is(err, io.EOF) {
		w.broken = err
	}
	return n, err
}
