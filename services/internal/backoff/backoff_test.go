package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/backoff"
)

func TestWaitsDoubleUpToMaxAndStartAgainAfterReset(t *testing.T) {
	t.Parallel()
	b := backoff.Backoff{Min: time.Second, Max: 5 * time.Second}
	var got []time.Duration
	for range 4 {
		got = append(got, b.Next())
	}
	b.Reset()
	got = append(got, b.Next())
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
}

func TestWaitEndsWhenItsTimeIsUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := backoff.Backoff{Min: time.Second, Max: time.Minute}
		start := time.Now()
		for range 2 {
			if !b.Wait(t.Context()) {
				t.Error("Wait = false, want true while the context lives")
			}
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("two waits took %v, want 3s", took)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if backoff.Sleep(ctx, time.Hour) {
			t.Error("Sleep = true, want false after the end of the context")
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("Sleep took %v, want 1s", took)
		}
		if backoff.Sleep(ctx, 0) {
			t.Error("Sleep = true on a context that has ended, want false")
		}
	})
}
