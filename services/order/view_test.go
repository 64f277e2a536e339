package order

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

func TestBehind(t *testing.T) {
	t.Parallel()
	type at = map[broker.Partition]int64
	a, b := one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0)
	for _, tt := range []struct {
		name           string
		at, first, end at
		want           string // "" is caught up
	}{
		{"nobody has joined the group yet, and nothing is to be read", at{}, at{a: 0, b: 0}, at{a: 0, b: 0},
			"waiting for the consumer group: 2 of 2 partitions are not assigned to anyone yet"},
		{"nobody has joined the group yet", at{}, at{a: 0, b: 0}, at{a: 10, b: 0}, "catching up: 0 of 10 records"},
		{"empty topics", at{a: 0, b: 0}, at{a: 0, b: 0}, at{a: 0, b: 0}, ""},
		{"under way", at{a: 4, b: 1}, at{a: 0, b: 0}, at{a: 10, b: 5}, "catching up: 5 of 15 records"},
		{"one partition is there, the other is not", at{a: 10, b: 1}, at{a: 0, b: 0}, at{a: 10, b: 5}, "catching up: 11 of 15 records"},
		{"beyond where the topics ended then", at{a: 99, b: 5}, at{a: 0, b: 0}, at{a: 10, b: 5}, ""},
		{"what retention took is not waited for", at{a: 0, b: 0}, at{a: 10, b: 5}, at{a: 10, b: 5}, ""},
		{"what retention took does not count", at{a: 2, b: 7}, at{a: 10, b: 5}, at{a: 12, b: 9}, "catching up: 2 of 6 records"},
		{"one partition has no member", at{a: 10}, at{a: 0, b: 0}, at{a: 10, b: 0},
			"waiting for the consumer group: 1 of 2 partitions are not assigned to anyone yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := ""
			if err := behind(tt.at, tt.first, tt.end); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("behind = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestMadeAnew(t *testing.T) {
	t.Parallel()
	type at = map[broker.Partition]int64
	p, other := one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0)
	anew := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
	for _, tt := range []struct {
		at, end at
		want    bool
	}{
		{at{}, at{p: 1}, false},
		{at{p: 0, other: 0}, at{p: 1, other: 3}, false},
		{at{anew: 0, other: 0}, at{p: 1, other: 3}, true},
	} {
		if got := madeAnew(tt.at, tt.end); got != tt.want {
			t.Errorf("madeAnew(%v, %v) = %v", tt.at, tt.end, got)
		}
	}
}

// The view of a member that has no partitions catches up by what others write, and it is not misled by a topic made anew meanwhile.
func TestViewFollowsTheStore(t *testing.T) {
	t.Parallel()
	created, updated := one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0)
	anew := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
	var mu sync.Mutex
	end, unreachable := map[broker.Partition]int64{created: 5, updated: 1}, errors.New("no Kafka today")
	bounds := func(context.Context, ...string) (first, last map[broker.Partition]int64, err error) {
		mu.Lock()
		defer mu.Unlock()
		return nil, end, unreachable
	}
	c := member(t, t.TempDir())
	done := make(chan error, 1)
	go func() { done <- c.view.follow(t.Context(), c.store, bounds) }()
	says := func(want string) {
		t.Helper()
		eventually(t, want, func() bool {
			c.view.moved()
			err := c.view.ready()
			return err != nil && err.Error() == want
		})
	}
	says("no Kafka today")
	mu.Lock()
	unreachable = nil
	mu.Unlock()
	says("catching up: 0 of 6 records")
	c.mustAssign(t, created, updated)
	c.mustApply(t, batch(event(t, "A", 1, "a1"), event(t, "A", 2, "a2")))
	says("catching up: 2 of 6 records")
	mu.Lock()
	end = map[broker.Partition]int64{anew: 2, updated: 9} // of the updated topic too: it went on
	mu.Unlock()
	c.mustAssign(t, anew)
	says("catching up: 1 of 11 records")
	if err := c.Apply(t.Context(), broker.Batch{Next: map[broker.Partition]int64{anew: 2, updated: 9}}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := c.view.ready(); err != nil {
		t.Errorf("caught up, and not ready: %v", err)
	}
}

func TestWaiters(t *testing.T) {
	t.Parallel()
	open := func(changed <-chan struct{}) bool {
		select {
		case <-changed:
			return false
		default:
			return true
		}
	}
	w := newWaiters()
	wake := func(id string) {
		d := decode([]broker.Record{event(t, id, 1, "e")})
		w.wake([]*decoded{&d[0]})
	}
	first, leaveFirst := w.watch("A")
	second, leaveSecond := w.watch("A")
	other, leaveOther := w.watch("B")
	wake("A")
	if open(first) || open(second) || !open(other) {
		t.Error("a change must wake all who watch the order, and nobody else")
	}
	again, leaveAgain := w.watch("A")
	leaveFirst() // of the round before: the new watch stays
	leaveSecond()
	if !open(again) {
		t.Error("a new watch is woken by an old change")
	}
	wake("A")
	if open(again) {
		t.Error("a watch was lost when an earlier one left")
	}
	leaveAgain()
	leaveOther()
	if len(w.by) != 0 {
		t.Errorf("nobody watches, and %d are kept", len(w.by))
	}
	for i := range 3 {
		_, leave := w.watch(fmt.Sprint(i))
		leave()
	}
	if len(w.by) != 0 {
		t.Errorf("who has left is kept: %d", len(w.by))
	}
}
