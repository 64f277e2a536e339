package auth

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// What a source of credentials does at a time, and what connections get.
func TestCached(t *testing.T) {
	t.Parallel()
	down := errors.New("the source is down")
	const lifetime = 100 * time.Second
	for name, steps := range map[string][]struct {
		after time.Duration
		// err is what the source returns, and drop what Kafka refuses first.
		err  error
		drop string
		want string
	}{
		"renewed after four fifths of their lifetime": {
			{want: "1"}, {after: 79 * time.Second, want: "1"}, {after: 2 * time.Second, want: "2"},
		},
		"kept until five seconds before they expire if there are no others": {
			{want: "1"}, {after: 81 * time.Second, err: down, want: "1"},
			{after: 13 * time.Second, err: down, want: "1"},
			{after: 2 * time.Second, err: down, want: down.Error()}, {after: 2 * time.Second, want: "2"},
		},
		"asked for again when they are refused": {
			{want: "1"}, {drop: "1", want: "2"}, {drop: "1", want: "2"}, {drop: "2", err: down, want: down.Error()},
		},
		"a failure is shared for a second": {
			{err: down, want: down.Error()}, {after: 900 * time.Millisecond, want: down.Error()},
			{after: 200 * time.Millisecond, want: "1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				fetched := 0
				var failure error
				c := cached[string]{fetch: func(context.Context) (string, time.Time, error) {
					if failure != nil {
						return "", time.Time{}, failure
					}
					fetched++
					return fmt.Sprint(fetched), time.Now().Add(lifetime), nil
				}}
				for i, s := range steps {
					time.Sleep(s.after)
					failure = s.err
					c.drop(s.drop)
					got, err := c.get(t.Context())
					if err != nil {
						got = err.Error()
					}
					if got != s.want {
						t.Fatalf("step %d: got %s, want %s", i, got, s.want)
					}
				}
			})
		})
	}
}

// Credentials of which nobody says when they expire are fetched for each connection.
func TestCachedWithoutAnExpiry(t *testing.T) {
	t.Parallel()
	fetched := 0
	c := cached[int]{fetch: func(context.Context) (int, time.Time, error) {
		fetched++
		return fetched, time.Time{}, nil
	}}
	for want := range 3 {
		if got, err := c.get(t.Context()); got != want+1 || err != nil {
			t.Errorf("got %d, %v, want %d", got, err, want+1)
		}
	}
}

// A source that does not respond fails before a poll gives up, and connections that waited meanwhile
// fail with it.
func TestCachedWaitsForTwoSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := cached[int]{fetch: func(ctx context.Context) (int, time.Time, error) {
			<-ctx.Done()
			return 0, time.Time{}, ctx.Err()
		}}
		begin := time.Now()
		for range 3 {
			if _, err := c.get(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the error is %v", err)
			}
		}
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
