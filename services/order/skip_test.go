package order

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/skip"
	"ordersystem.dev/services/order/ordertest"
)

// damaged is the batch that is damaged in these tests. It has the offsets 2 and 3.
var damaged = broker.Place{Topic: contract.TopicCreated, Partition: 0, Offset: 2}

// meets is the damage that a reader at an offset meets.
func meets(_ context.Context, _ broker.Partition, offset int64) (*broker.DamagedError, error) {
	if offset > 3 {
		return nil, nil
	}
	return &broker.DamagedError{Place: damaged, Records: 2, Bytes: 91}, nil
}

// skipping returns what sends the command to a member.
func skipping(
	t *testing.T, c *topicConsumer, damage func(context.Context, broker.Partition, int64) (*broker.DamagedError, error),
) func(at broker.Place, confirm bool) (*skip.Result, error) {
	t.Helper()
	server := httptest.NewServer(newSkipper(c.store, damage, c.log))
	t.Cleanup(server.Close)
	return func(at broker.Place, confirm bool) (*skip.Result, error) {
		return skip.Run(t.Context(), server.URL, skip.Options{At: at, Confirm: confirm})
	}
}

// mustSkip reports whether the batch is skipped.
func (s *store) mustSkip(t testing.TB, at broker.Place) bool {
	t.Helper()
	skips, err := s.skips(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	return skips
}

// fault is the batch as the consumer gets it once it is skipped.
func fault(p broker.Partition) broker.Batch {
	record := broker.Record{Topic: p.Topic, Partition: p.Number, Offset: 2, Fault: errors.New("its CRC is wrong")}
	return broker.Batch{Records: []broker.Record{record}, Next: offsets{p: 4}}
}

// The command ends when the consumer has passed the batch, with its dead letter. Any replica takes the command,
// whichever has the partition. Once more, it does nothing.
func TestADamagedBatchIsSkippedOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		at, p := fresh(), ordertest.Partition(damaged.Topic, damaged.Partition)
		c := memberOn(t, at)
		c.mustAssign(t, p)
		// At offset 1 there is the marker of a transaction.
		c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
		asked := c
		if at.url != "" {
			asked = memberOn(t, at)
		}
		run := skipping(t, asked, meets)
		want := &skip.Result{At: damaged.String(), Outcome: skip.Would, Records: 2, Bytes: 91}
		got, err := run(damaged, false)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("not confirmed: %v (-want +got):\n%s", err, diff)
		}
		if c.store.mustSkip(t, damaged) {
			t.Error("the batch is skipped without confirmation")
		}

		done := make(chan error, 1)
		go func() {
			var err error
			got, err = run(damaged, true)
			done <- err
		}()
		ordertest.Eventually(t, "a batch to skip", func() bool { return c.store.mustSkip(t, damaged) })
		if _, err := run(damaged, true); err == nil || !strings.Contains(err.Error(), "being skipped already") {
			t.Errorf("a second command at the same time: %v", err)
		}
		select {
		case err := <-done:
			t.Errorf("the command has ended before the consumer has passed the batch: %v", err)
		default:
		}
		c.mustApply(t, fault(p))
		err = <-done
		want.Outcome = skip.Skipped
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("confirmed: %v (-want +got):\n%s", err, diff)
		}
		if letters := c.store.deadLetters(t); len(letters) != 1 {
			t.Errorf("%d dead letters, want 1", len(letters))
		}
		got, err = run(damaged, true)
		if diff := cmp.Diff(&skip.Result{At: damaged.String(), Outcome: skip.Already}, got); diff != "" || err != nil {
			t.Errorf("once more: %v (-want +got):\n%s", err, diff)
		}

		recreated := p
		recreated.TopicID = "another-id"
		c.mustAssign(t, recreated)
		if c.store.mustSkip(t, damaged) {
			t.Error("a batch of the topic that was recreated is skipped too")
		}
	})
}

// What Order has read before its disk changed it, audits and rebuilds meet. Nothing is lost to the view.
func TestABatchThatWasDamagedAfterItWasReadIsSkipped(t *testing.T) {
	t.Parallel()
	c, p := member(t, t.TempDir()), ordertest.Partition(damaged.Topic, damaged.Partition)
	c.mustAssign(t, p)
	c.mustApply(t, broker.Batch{Next: offsets{p: 4}})
	got, err := skipping(t, c, meets)(damaged, true)
	if err != nil || got.Outcome != skip.Skipped || !c.store.mustSkip(t, damaged) {
		t.Errorf("got %+v, error %v; want %s", got, err, skip.Skipped)
	}
	if letters := c.store.deadLetters(t); len(letters) > 0 {
		t.Errorf("dead letters: %v", letters)
	}
}

func TestNothingElseIsSkipped(t *testing.T) {
	t.Parallel()
	c, p := member(t, t.TempDir()), ordertest.Partition(damaged.Topic, damaged.Partition)
	c.mustAssign(t, p)
	c.mustApply(t, batch(ordertest.Event(t, "A", 1, "a1")))
	whole := func(context.Context, broker.Partition, int64) (*broker.DamagedError, error) { return nil, nil }
	away := func(context.Context, broker.Partition, int64) (*broker.DamagedError, error) {
		return nil, errors.New("no leader")
	}
	at := func(topic string, partition int32, offset int64) broker.Place {
		return broker.Place{Topic: topic, Partition: partition, Offset: offset}
	}
	for name, tt := range map[string]struct {
		damage func(context.Context, broker.Partition, int64) (*broker.DamagedError, error)
		at     broker.Place
		want   string
	}{
		"whole again": {
			whole, damaged,
			"409 Conflict: nothing is skipped: Order is at offset 1 of order-created-topic/0, and has met no damaged " +
				"batch at order-created-topic/0/2",
		},
		"read": {
			whole, at(damaged.Topic, 0, 0),
			"409 Conflict: nothing is skipped: Order is at offset 1 of",
		},
		"before it": {
			meets, at(damaged.Topic, 0, 1),
			"/0/1. The next damaged batch is order-created-topic/0/2",
		},
		"within it": {
			meets, at(damaged.Topic, 0, 3),
			"/0/3. The next damaged batch is order-created-topic/0/2",
		},
		"behind it": {
			meets, at(damaged.Topic, 0, 4),
			"/0/4. The next damaged batch is order-created-topic/0/2",
		},
		"another partition": {meets, at(damaged.Topic, 1, 2), "Order has not had order-created-topic/1. It reads"},
		"another topic": {
			meets, at(contract.TopicDeadLetter, 0, 2), "It reads order-created-topic and order-updated-topic",
		},
		"not known": {away, damaged, "503 Service Unavailable: look at the batch: no leader"},
	} {
		got, err := skipping(t, c, tt.damage)(tt.at, true)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %+v, error %v, want %q", name, got, err, tt.want)
		}
		if c.store.mustSkip(t, tt.at) {
			t.Errorf("%s: it is skipped", name)
		}
	}
}
