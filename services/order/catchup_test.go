package order

import (
	"context"
	"errors"
	"sync"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/order/ordertest"
)

func TestBehind(t *testing.T) {
	t.Parallel()
	type at = map[broker.Partition]int64
	a, b := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
	for _, tt := range []struct {
		name           string
		at, first, end at
		want           string // empty when it has caught up
	}{
		{
			"no member has joined, and there is nothing to read", at{}, at{a: 0, b: 0}, at{a: 0, b: 0},
			"waiting for the consumer group: 2 of 2 partitions are not assigned to anyone yet",
		},
		{"no member has joined", at{}, at{a: 0, b: 0}, at{a: 10, b: 0}, "catching up: 0 of 10 records"},
		{"empty topics", at{a: 0, b: 0}, at{a: 0, b: 0}, at{a: 0, b: 0}, ""},
		{"under way", at{a: 4, b: 1}, at{a: 0, b: 0}, at{a: 10, b: 5}, "catching up: 5 of 15 records"},
		{
			"one partition has reached its end", at{a: 10, b: 1}, at{a: 0, b: 0}, at{a: 10, b: 5},
			"catching up: 11 of 15 records",
		},
		{"beyond where the topics ended", at{a: 99, b: 5}, at{a: 0, b: 0}, at{a: 10, b: 5}, ""},
		{"what retention took is not waited for", at{a: 0, b: 0}, at{a: 10, b: 5}, at{a: 10, b: 5}, ""},
		{
			"what retention took does not count", at{a: 2, b: 7}, at{a: 10, b: 5}, at{a: 12, b: 9},
			"catching up: 2 of 6 records",
		},
		{
			"one partition has no member", at{a: 10}, at{a: 0, b: 0}, at{a: 10, b: 0},
			"waiting for the consumer group: 1 of 2 partitions are not assigned to anyone yet",
		},
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

func TestRecreated(t *testing.T) {
	t.Parallel()
	type at = map[broker.Partition]int64
	p, other := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
	another := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
	for _, tt := range []struct {
		at, end at
		want    bool
	}{
		{at{}, at{p: 1}, false},
		{at{p: 0, other: 0}, at{p: 1, other: 3}, false},
		{at{another: 0, other: 0}, at{p: 1, other: 3}, true},
	} {
		if got := recreated(tt.at, tt.end); got != tt.want {
			t.Errorf("recreated(%v, %v) = %v", tt.at, tt.end, got)
		}
	}
}

// A member without partitions catches up by what others write. It goes for the new ends when a
// topic is recreated meanwhile.
func TestCatchUpFollowsTheStore(t *testing.T) {
	t.Parallel()
	created, updated := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
	another := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
	var mu sync.Mutex
	end, unreachable := map[broker.Partition]int64{created: 5, updated: 1}, errors.New("no Kafka today")
	bounds := func(context.Context, ...string) (first, last map[broker.Partition]int64, err error) {
		mu.Lock()
		defer mu.Unlock()
		return nil, end, unreachable
	}
	withheld := func(context.Context, ...string) error { return nil }
	c := member(t, t.TempDir())
	done := make(chan error, 1)
	alone := &sharing{assigned: func() int { return 0 }}
	go func() { done <- c.catchUp.follow(t.Context(), c.store, ends{bounds, withheld}, alone, c.log) }()
	awaitReason := func(want string) {
		t.Helper()
		ordertest.Eventually(t, want, func() bool {
			c.catchUp.offsetsMoved()
			err := c.catchUp.ready()
			return err != nil && err.Error() == want
		})
	}
	awaitReason("no Kafka today")
	mu.Lock()
	unreachable = nil
	mu.Unlock()
	awaitReason("catching up: 0 of 6 records")
	c.mustAssign(t, created, updated)
	c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "A", 2, "a2")))
	awaitReason("catching up: 2 of 6 records")
	mu.Lock()
	// The updated topic went on, too.
	end = map[broker.Partition]int64{another: 2, updated: 9}
	mu.Unlock()
	c.mustAssign(t, another)
	awaitReason("catching up: 1 of 11 records")
	c.mustApply(t, broker.Batch{Next: map[broker.Partition]int64{another: 2, updated: 9}})
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := c.catchUp.ready(); err != nil {
		t.Errorf("not ready after it has caught up: %v", err)
	}
}
