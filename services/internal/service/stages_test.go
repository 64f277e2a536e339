package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// journal collects what happened, in order.
type journal struct {
	mu     sync.Mutex
	events []string
}

func (j *journal) add(event string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, event)
}

// task runs until it is stopped, and then takes a second to end.
func (j *journal) task(name string) Task {
	return func(ctx context.Context) error {
		<-ctx.Done()
		j.add(name + " is stopped")
		time.Sleep(time.Second)
		j.add(name + " has ended")
		return nil
	}
}

func TestStagesStopOneAfterTheOther(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		fail func(stop context.CancelFunc) error
		want error
	}{
		"when ctx ends":         {func(stop context.CancelFunc) error { stop(); return nil }, nil},
		"after a first failure": {func(context.CancelFunc) error { return broken }, broken},
	} {
		// In a bubble the second is no real one, and whatever can happen before it happens first.
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var j journal
			err := run(ctx, func() { j.add("stopping is shown") }, []Stage{
				{j.task("a1"), j.task("a2")},
				{j.task("b"), func(context.Context) error { return nil }},
				{j.task("c"), func(context.Context) error { return c.fail(stop) }},
			})
			if !errors.Is(err, c.want) {
				t.Errorf("%s: run returns %v, want %v", name, err, c.want)
			}
			// The order within a stage is free.
			slices.Sort(j.events[1:5])
			want := []string{
				"stopping is shown",
				"a1 has ended", "a1 is stopped", "a2 has ended", "a2 is stopped",
				"b is stopped", "b has ended",
				"c is stopped", "c has ended",
			}
			if diff := cmp.Diff(want, j.events); diff != "" {
				t.Errorf("%s: events (-want +got):\n%s", name, diff)
			}
		})
	}
}

func TestTasksThatAreDoneDoNotStopTheOthers(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	err := run(ctx, func() {}, []Stage{
		{func(context.Context) error { close(done); return nil }},
		{func(ctx context.Context) error {
			<-done
			if ctx.Err() != nil {
				t.Error("the second stage was stopped because the tasks of the first are done")
			}
			stop()
			return nil
		}},
	})
	if err != nil {
		t.Error(err)
	}
}

// A task that returns its context's error has ended in order; any other error while it stops is a
// failure.
func TestOnlyTheEndOfAContextIsNoFailure(t *testing.T) {
	t.Parallel()
	disk := errors.New("disk is full")
	replaced := errors.New("replaced")
	for name, c := range map[string]struct {
		result func(ctx context.Context) error
		want   error
	}{
		"the context's error": {func(ctx context.Context) error { return fmt.Errorf("read: %w", ctx.Err()) }, nil},
		"the context's cause": {
			func(ctx context.Context) error { return fmt.Errorf("read: %w", context.Cause(ctx)) }, nil,
		},
		"an error during the stop": {func(context.Context) error { return disk }, disk},
	} {
		ctx, stop := context.WithCancelCause(t.Context())
		stop(replaced)
		err := run(ctx, func() {}, []Stage{{func(ctx context.Context) error {
			<-ctx.Done()
			return c.result(ctx)
		}}})
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: run returns %v, want %v", name, err, c.want)
		}
	}
	// The task was not stopped, so the same error comes from a context of its own.
	canceled := func(context.Context) error { return context.Canceled }
	if err := run(t.Context(), func() {}, []Stage{{canceled}}); !errors.Is(err, context.Canceled) {
		t.Errorf("an inner context's error: run returns %v, want %v", err, context.Canceled)
	}
}
