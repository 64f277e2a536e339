package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// client sends requests, and sends those again that found nobody ready to answer. All of them may be: what changes something carries
// an Idempotency-Key.
type client struct {
	http    *http.Client
	retried atomic.Int64
}

type request struct {
	method, url string
	header      map[string]string
	body        string
	patience    time.Duration // how long one try may hear nothing
}

// tryFor is the patience with an answer that takes milliseconds: the connection may lead to a pod that has gone, and the next to one
// that is there.
const tryFor = 10 * time.Second

// answerError is an answer other than 200.
type answerError struct {
	status int
	text   string
}

func (e *answerError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.status, http.StatusText(e.status), e.text)
}

// temporaryError is worth another try.
type temporaryError struct {
	error
	after time.Duration // how long the answer asks to wait
}

func (e *temporaryError) Unwrap() error { return e.error }

// do sends a request until it is answered, at most until the deadline, and hands the body of the answer 200 to read, from its start
// at each try.
func (c *client) do(ctx context.Context, deadline time.Time, r request, read func(io.Reader) error) error {
	for tries, pause := 1, 100*time.Millisecond; ; tries, pause = tries+1, min(2*pause, 2*time.Second) {
		err := c.try(ctx, min(r.patience, time.Until(deadline)), r, read)
		temporary, ok := errors.AsType[*temporaryError](err)
		if !ok {
			return err
		}
		wait := max(pause, temporary.after)
		if time.Until(deadline) <= wait {
			return fmt.Errorf("%w (tries: %d)", err, tries)
		}
		time.Sleep(wait)
		c.retried.Add(1)
	}
}

func (c *client) try(ctx context.Context, patience time.Duration, r request, read func(io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(patience, func() { cancel(fmt.Errorf("%s: nothing heard for %s", r.url, patience.Round(time.Millisecond))) })
	defer silence.Stop()
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, strings.NewReader(r.body))
	if err != nil {
		return err
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	answer, err := c.http.Do(req)
	if err != nil {
		return &temporaryError{error: cmp.Or(context.Cause(ctx), err)}
	}
	defer answer.Body.Close()
	body := &listener{from: answer.Body, heard: func() { silence.Reset(patience) }}
	if answer.StatusCode == http.StatusOK {
		err = read(body)
	} else {
		err = refusal(answer, body)
	}
	if body.broken != nil {
		return &temporaryError{error: fmt.Errorf("%s: the answer broke off: %w", r.url, cmp.Or(context.Cause(ctx), body.broken))}
	}
	return err
}

// refusal is an answer as an error, its text without the wrapping of problem details.
func refusal(answer *http.Response, body io.Reader) error {
	text, _ := io.ReadAll(io.LimitReader(body, 2000)) // why it broke off is told by the listener
	var problem struct{ Detail string }
	if json.Unmarshal(text, &problem) == nil && problem.Detail != "" {
		text = []byte(problem.Detail)
	}
	err := &answerError{answer.StatusCode, strings.TrimSpace(string(text))}
	if after, noNumber := strconv.Atoi(answer.Header.Get("Retry-After")); noNumber == nil {
		return &temporaryError{err, time.Duration(after) * time.Second}
	}
	return err
}

// listener tells of everything it hears, and keeps why it heard no more: a broken connection is no broken answer.
type listener struct {
	from   io.Reader
	heard  func()
	broken error
}

func (l *listener) Read(b []byte) (int, error) {
	n, err := l.from.Read(b)
	if err == nil {
		l.heard()
	} else if !errors.Is(err, io.EOF) {
		l.broken = err
	}
	return n, err
}
