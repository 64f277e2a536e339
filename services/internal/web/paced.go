package web

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// Pace is how fast a client must take a response.
type Pace struct {
	// Grace is how long the client may take nothing at the beginning, or later altogether.
	Grace time.Duration
	// ShortGrace is in the place of Grace while another client waits: see Hurry.
	ShortGrace time.Duration
	// Rate is how many bytes a second the client must take after that. It must be positive.
	Rate int64
}

// PacedWriter writes a long response to a client that must keep up with a Pace. The connection of a
// slower client breaks, because a response that is being written holds resources of the server.
//
// One goroutine calls its methods, except Hurry.
type PacedWriter struct {
	ctx     context.Context
	w       http.ResponseWriter
	control *http.ResponseController
	rate    int64
	start   time.Time
	unwatch func() bool

	written int64

	// mu is held while the deadline of the connection moves, so that no Write moves it after the
	// end of ctx, and so that the end of ctx moves it neither before the first Write nor after
	// Close: then the handler may still write another response.
	mu     sync.Mutex
	begun  bool
	closed bool
	grace  time.Duration
	short  time.Duration
	// bytes is how many bytes the client must have taken at the deadline.
	bytes int64
}

// NewPacedWriter returns a PacedWriter whose time begins now. When ctx ends, a Write that waits for
// the client fails at once, and so does every later one. The caller must call Close before its
// handler returns.
func NewPacedWriter(ctx context.Context, w http.ResponseWriter, pace Pace) *PacedWriter {
	p := &PacedWriter{
		ctx: ctx, w: w, control: http.NewResponseController(w), rate: pace.Rate, start: time.Now(),
		grace: pace.Grace, short: pace.ShortGrace,
	}
	p.unwatch = context.AfterFunc(ctx, p.cut)
	return p
}

// Write writes b to the client. Its error is the cause of ctx once ctx has ended.
func (p *PacedWriter) Write(b []byte) (int, error) {
	if err := p.extend(p.written + int64(len(b))); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	p.written += int64(n)
	if cause := context.Cause(p.ctx); err != nil && cause != nil {
		err = cause
	}
	return n, err
}

// extend moves the deadline of the connection to when the client must have taken so many bytes.
func (p *PacedWriter) extend(bytes int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cause := context.Cause(p.ctx); cause != nil {
		return cause
	}
	p.bytes = bytes
	if err := p.control.SetWriteDeadline(p.deadline()); err != nil {
		return err
	}
	p.begun = true
	return nil
}

// deadline returns when the client must have taken the bytes that were written.
func (p *PacedWriter) deadline() time.Time {
	return p.start.Add(p.grace + time.Duration(p.bytes/p.rate)*time.Second)
}

// Hurry shortens the grace, because another client waits for what the response holds. It may be
// called by any goroutine.
func (p *PacedWriter) Hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.grace = min(p.grace, p.short)
	if p.begun && !p.closed && p.ctx.Err() == nil {
		// An error here means that the connection is closed already.
		_ = p.control.SetWriteDeadline(p.deadline())
	}
}

// cut makes a Write that waits for the client fail.
func (p *PacedWriter) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun && !p.closed {
		// An error here means that the connection is closed already.
		_ = p.control.SetWriteDeadline(time.Now())
	}
}

// Begun reports whether any part of the response, its status included, may have reached the client.
func (p *PacedWriter) Begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun
}

// Written returns how many bytes of the body were written.
func (p *PacedWriter) Written() int64 { return p.written }

// Close ends the watch over ctx. After it, the end of ctx no longer touches the connection.
func (p *PacedWriter) Close() {
	p.unwatch()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}
