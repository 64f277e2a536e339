package order

import (
	"context"
	"errors"
	"testing"
	"time"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/order/ordertest"
)

// Only what the group's coordinator knows makes a service unready, and only after a while. Fewer
// partitions than there are, and a Kafka that is away, change nothing.
func TestSharing(t *testing.T) {
	t.Parallel()
	away := errors.New("no Kafka today")
	half := []broker.Member{{ClientID: "order", Host: "/10.0.0.7", Partitions: 12}}
	const text = "other members of the consumer group hold 12 of 24 partitions, and this store lacks what they read: " +
		"order at 10.0.0.7 has 12"
	var others []broker.Member
	var failure error
	assigned, asked := 24, 0
	s := &sharing{
		assigned: func() int { return assigned }, partitions: 24, log: member(t, t.TempDir()).log,
		others: func(context.Context) ([]broker.Member, error) { asked++; return others, failure },
	}
	now := ordertest.At
	for _, step := range []struct {
		what     string
		after    time.Duration
		assigned int
		others   []broker.Member
		failure  error
		want     string
	}{
		{"all partitions are here", 0, 24, half, nil, ""},
		{"a start, before the group has given any", time.Hour, 0, nil, nil, ""},
		{"Kafka is away", time.Hour, 0, nil, away, ""},
		{"another member takes half of them", time.Second, 12, half, nil, ""},
		{"it is not asked again at once", 0, 12, nil, nil, ""},
		{"a handover takes seconds", 9 * time.Second, 12, half, nil, ""},
		{"the other one stays", time.Second, 12, half, nil, text},
		{"Kafka is away, and nothing is known any more", time.Hour, 0, nil, away, text},
		{"the other one has gone, a rebalance is under way", time.Second, 12, nil, nil, ""},
		{"another one comes later", time.Hour, 12, half, nil, ""},
		{"it has gone before it did harm", time.Second, 24, nil, nil, ""},
		{"the next one has its own time", time.Hour, 12, half, nil, ""},
	} {
		now = now.Add(step.after)
		assigned, others, failure = step.assigned, step.others, step.failure
		got := ""
		if err := s.look(t.Context(), now); err != nil {
			got = err.Error()
		}
		if got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
	if asked != 9 {
		t.Errorf("the coordinator was asked %d times, want 9: not while all partitions are here", asked)
	}
}

// Members of one database lack nothing that others read.
func TestSharingOfOneDatabaseIsWanted(t *testing.T) {
	t.Parallel()
	s := &sharing{
		assigned: func() int { return 12 }, partitions: 24, wanted: true,
		others: func(context.Context) ([]broker.Member, error) {
			t.Error("the coordinator was asked")
			return []broker.Member{{ClientID: "order", Host: "/10.0.0.7", Partitions: 12}}, nil
		},
	}
	for now := ordertest.At; now.Before(ordertest.At.Add(time.Hour)); now = now.Add(time.Minute) {
		if err := s.look(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
}
