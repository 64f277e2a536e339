package testenv

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/internal/backoff"
)

// GroupOffsets are the offsets of a consumer group and of the topics that it reads, between two moments. They
// are by topic and partition.
type GroupOffsets struct {
	Begin, End time.Time
	// Committed is how far the group has committed, and Stable how far it can read: to the first record of an
	// open transaction at most.
	Committed, Stable map[string]map[int32]int64
}

// WatchOffsets asks Kafka for the offsets of a group and of topics several times a second, while Kafka responds,
// until stop is called.
func WatchOffsets(t testing.TB, addr, group string, topics ...string) (stop func() []GroupOffsets) {
	t.Helper()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var seen []GroupOffsets
	var asking sync.WaitGroup
	asking.Go(func() {
		defer admin.Close()
		for backoff.Sleep(ctx, 200*time.Millisecond) {
			if now, err := groupOffsets(ctx, admin, group, topics); err == nil {
				seen = append(seen, now)
			}
		}
	})
	t.Cleanup(cancel)
	return func() []GroupOffsets {
		cancel()
		asking.Wait()
		return seen
	}
}

func groupOffsets(ctx context.Context, admin *kadm.Client, group string, topics []string) (GroupOffsets, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	now := GroupOffsets{Begin: time.Now(), Stable: map[string]map[int32]int64{}}
	var err error
	if now.Committed, err = fetchOffsets(ctx, admin, group); err != nil {
		return GroupOffsets{}, err
	}
	for _, topic := range topics {
		if now.Stable[topic], err = list(ctx, admin.ListCommittedOffsets, topic); err != nil {
			return GroupOffsets{}, err
		}
	}
	now.End = time.Now()
	return now, nil
}
