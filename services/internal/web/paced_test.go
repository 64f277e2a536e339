package web_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ordersystem.dev/services/internal/web"
)

var errEnd = errors.New("the context has ended")

// deadlines is a response writer that takes everything and remembers the last write deadline.
type deadlines struct {
	*httptest.ResponseRecorder
	mu   sync.Mutex
	last time.Time
}

func newDeadlines() *deadlines { return &deadlines{ResponseRecorder: httptest.NewRecorder()} }

// SetWriteDeadline is what http.ResponseController calls.
func (d *deadlines) SetWriteDeadline(at time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = at
	return nil
}

func (d *deadlines) after(start time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last.Sub(start)
}

// Each write gets the time in which a client that keeps the pace has taken all bytes so far.
func TestPacedWriterMovesTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start, d := time.Now(), newDeadlines()
		p := web.NewPacedWriter(t.Context(), d, web.Pace{Grace: 30 * time.Second, Rate: 100})
		defer p.Close()
		if p.Begun() {
			t.Error("the response has begun before the first write")
		}
		for _, want := range []time.Duration{30, 31, 31, 32} {
			if _, err := p.Write(make([]byte, 60)); err != nil {
				t.Fatal(err)
			}
			if got := d.after(start); got != want*time.Second {
				t.Errorf("after %d bytes the deadline is at %s, want %s", p.Written(), got, want*time.Second)
			}
		}
		if !p.Begun() || p.Written() != 240 || d.Body.Len() != 240 {
			t.Errorf("begun %v, %d bytes written, %d received; want 240", p.Begun(), p.Written(), d.Body.Len())
		}
	})
}

// Hurry moves the deadline of a write that waits, and of those that follow.
func TestPacedWriterHurries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start, d := time.Now(), newDeadlines()
		p := web.NewPacedWriter(t.Context(), d,
			web.Pace{Grace: 30 * time.Second, ShortGrace: 2 * time.Second, Rate: 100})
		for _, want := range []time.Duration{31, 4, 5} {
			if _, err := p.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			if got := d.after(start); got != want*time.Second {
				t.Errorf("after %d bytes the deadline is at %s, want %s", p.Written(), got, want*time.Second)
			}
			p.Hurry()
			if got, want := d.after(start), 2*time.Second+time.Duration(p.Written()/100)*time.Second; got != want {
				t.Errorf("after %d bytes and Hurry the deadline is at %s, want %s", p.Written(), got, want)
			}
		}
		p.Close()
		last := d.after(start)
		p.Hurry()
		if got := d.after(start); got != last {
			t.Errorf("after Close the deadline moves to %s", got)
		}
	})
}

// However the end of the context and the writes fall together, the deadline that stays is the one
// that lets a waiting write fail. Before the first write it stays as it was: the handler responds with
// something else then.
func TestEndOfContextHasTheLastWord(t *testing.T) {
	t.Parallel()
	for range 500 {
		synctest.Test(t, func(t *testing.T) {
			start, d := time.Now(), newDeadlines()
			ctx, end := context.WithCancelCause(t.Context())
			p := web.NewPacedWriter(ctx, d, web.Pace{Grace: time.Minute, Rate: 1})
			defer p.Close()
			go end(errEnd)
			var err error
			for err == nil {
				_, err = p.Write([]byte("x"))
			}
			synctest.Wait()
			want := start
			if !p.Begun() {
				want = time.Time{}
			}
			if !errors.Is(err, errEnd) || d.after(want) != 0 {
				t.Errorf("Write: %v, the deadline is %s beside %s, want %v and none", err, d.after(want), want, errEnd)
			}
		})
	}
}

// A handler that is told to stop before it has written anything can still respond.
func TestEndOfContextBeforeTheFirstWriteLeavesTheConnectionAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDeadlines()
		ctx, end := context.WithCancelCause(t.Context())
		p := web.NewPacedWriter(ctx, d, web.Pace{Grace: time.Minute, Rate: 1})
		defer p.Close()
		end(errEnd)
		synctest.Wait()
		if _, err := p.Write([]byte("x")); !errors.Is(err, errEnd) || p.Begun() {
			t.Errorf("Write: %v, begun %v; want %v and not begun", err, p.Begun(), errEnd)
		}
		if !d.last.IsZero() {
			t.Errorf("the deadline was moved to %s", d.last)
		}
	})
}

// A connection may serve the next request once the handler has returned.
func TestEndOfContextLeavesAClosedResponseAlone(t *testing.T) {
	t.Parallel()
	for range 500 {
		synctest.Test(t, func(t *testing.T) {
			d := newDeadlines()
			ctx, end := context.WithCancel(t.Context())
			p := web.NewPacedWriter(ctx, d, web.Pace{Grace: time.Minute, Rate: 1})
			// What follows the end runs in a goroutine of its own, mostly after Close.
			end()
			p.Close()
			next := time.Now().Add(time.Hour)
			if err := d.SetWriteDeadline(next); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := d.after(next); got != 0 {
				t.Errorf("the deadline of the next request was moved by %s", got)
			}
		})
	}
}

// endless serves a response without end and sends the error at which it gives up.
func endless(t *testing.T, ctx context.Context, pace web.Pace) (addr string, gaveUp <-chan error) {
	t.Helper()
	failed := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p := web.NewPacedWriter(ctx, w, pace)
		defer p.Close()
		for {
			if _, err := p.Write(make([]byte, 64<<10)); err != nil {
				failed <- err
				panic(http.ErrAbortHandler)
			}
		}
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), failed
}

// deaf sends a request and reads nothing of the response.
func deaf(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
}

func TestClientBelowThePaceIsCutOff(t *testing.T) {
	t.Parallel()
	addr, gaveUp := endless(t, t.Context(), web.Pace{Grace: 100 * time.Millisecond, Rate: 1 << 40})
	deaf(t, addr)
	var timeout net.Error
	if err := <-gaveUp; !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("Write: %v, want a time-out", err)
	}
}

func TestEndOfContextFailsAWriteThatWaits(t *testing.T) {
	t.Parallel()
	ctx, end := context.WithCancelCause(t.Context())
	addr, gaveUp := endless(t, ctx, web.Pace{Grace: time.Hour, Rate: 1})
	deaf(t, addr)
	end(errEnd)
	if err := <-gaveUp; !errors.Is(err, errEnd) {
		t.Errorf("Write: %v, want %v", err, errEnd)
	}
}
