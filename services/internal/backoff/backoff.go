// Package backoff waits between attempts: twice as long each time, and never beyond the end of a
// context.
//
// A library would bring jitter and a limit on the total time. The callers here need neither: each
// is the only one of its process, and none gives up before its context ends.
package backoff

import (
	"context"
	"time"
)

// Backoff is the wait before the next attempt. It is not safe for concurrent use.
type Backoff struct {
	// Min is the first wait, and the first after a Reset.
	Min time.Duration
	// Max is the longest wait.
	Max time.Duration

	next time.Duration
}

// Next returns the wait before the next attempt and doubles the one after it.
func (b *Backoff) Next() time.Duration {
	wait := max(b.next, b.Min)
	b.next = min(2*wait, b.Max)
	return wait
}

// Reset makes Min the next wait. Call it when an attempt succeeded or made progress.
func (b *Backoff) Reset() { b.next = 0 }

// Wait sleeps until the next attempt is due. It reports whether ctx is still alive.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Sleep waits for d or until ctx ends. It reports whether ctx is still alive.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
