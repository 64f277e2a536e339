package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// reports collects the reports of a producer.
type reports struct {
	mu   sync.Mutex
	tags []int64
	errs map[string]int
}

func (r *reports) delivered(tag int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags = append(r.tags, tag)
	if r.errs == nil {
		r.errs = make(map[string]int)
	}
	r.errs[Code(err)]++
}

func (r *reports) get() (sorted []int64, errs map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.tags)), r.errs
}

func producer(t testing.TB, addr string) (*Producer, *reports) {
	t.Helper()
	r := &reports{}
	p, err := NewProducer(config(addr), logger(t), r.delivered)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, r
}

func flush(t testing.TB, p *Producer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func upTo(n int) []int64 {
	tags := make([]int64, n)
	for i := range tags {
		tags[i] = int64(i)
	}
	return tags
}

func TestProducerKeepsOrderAndReportsOnce(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		topic := testenv.NewTopic(t, addr, 12)
		p, r := producer(t, addr)
		const n = 5000
		for i, m := range messages(topic, n, 50) {
			if err := p.Produce(m, int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		flush(t, p)
		p.Close()

		tags, errs := r.get()
		if diff := cmp.Diff(upTo(n), tags); diff != "" {
			t.Errorf("tags reported (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]int{"": n}, errs); diff != "" {
			t.Errorf("errors (-want +got):\n%s", diff)
		}
		last := make(map[string]int)
		where := make(map[string]int32)
		for _, record := range testenv.ReadAll(t, addr, topic) {
			key, version := string(record.Key), 0
			fmt.Sscan(string(record.Value), &version)
			if version < last[key] || where[key] != record.Partition && last[key] > 0 {
				t.Fatalf("%s: %d after %d, partition %d after %d",
					key, version, last[key], record.Partition, where[key])
			}
			last[key], where[key] = version, record.Partition
		}
		if len(last) != 50 {
			t.Errorf("%d keys in the topic, want 50", len(last))
		}
		if err := p.Produce(message(topic, "k", "v"), n); !errors.Is(err, ErrClosed) {
			t.Errorf("Produce after Close: %v, want ErrClosed", err)
		}
	})
}

func TestProducerWritesWhatItIsGivenWhereJavaWould(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 12)
		all := []contract.Message{
			{Topic: topic, Key: []byte("order-1"), Value: []byte("{}"), Headers: []contract.Header{
				{Key: "ce_id", Value: []byte("1")}, {Key: "empty", Value: []byte{}},
			}},
			{Topic: topic, Key: []byte("bestellung-äöü"), Value: []byte{}},
			{Topic: topic, Key: []byte("tombstone"), Value: nil},
		}
		p, _ := producer(t, addr)
		for i, m := range all {
			if err := p.Produce(m, int64(i)); err != nil {
				t.Fatal(err)
			}
			flush(t, p)
			// The default of franz-go is murmur2, as in Java.
			testenv.Produce(t, addr, m)
		}
		got := testenv.ReadAll(t, addr, topic)
		if len(got) != 6 {
			t.Fatalf("%d records, want 6", len(got))
		}
		for i := 0; i < 6; i += 2 {
			mine, theirs := got[i], got[i+1]
			if string(mine.Key) != string(theirs.Key) || mine.Partition != theirs.Partition {
				t.Errorf("key %s in partition %d, by the other client %s in %d",
					mine.Key, mine.Partition, theirs.Key, theirs.Partition)
			}
			if diff := cmp.Diff([]any{theirs.Value, theirs.Headers}, []any{mine.Value, mine.Headers}); diff != "" {
				t.Errorf("%s (-other client +got):\n%s", mine.Key, diff)
			}
		}
	})
}

func TestProducerSendsDeadLettersOf2MiB(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		p, r := producer(t, addr)
		value := strings.Repeat("x", 2<<20-1000)
		if err := p.Produce(message(contract.TopicDeadLetter, "large", value), 0); err != nil {
			t.Fatal(err)
		}
		flush(t, p)
		if _, errs := r.get(); errs[""] != 1 {
			t.Errorf("reports: %v", errs)
		}
	})
}

func TestProducerQueueIsBoundedAndCloseReportsAll(t *testing.T) {
	leaks(t)
	p, r := producer(t, deadAddr(t))
	n := 0
	for {
		err := p.Produce(message("any", "key", "value"), int64(n))
		if errors.Is(err, ErrQueueFull) {
			break
		}
		if err != nil || n > 100_000 {
			t.Fatalf("after %d messages: %v", n, err)
		}
		n++
	}
	if n < 1000 {
		t.Errorf("the queue is full at %d messages", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush with a dead broker: %v", err)
	}
	started := time.Now()
	p.Close()
	// The limit is what Close promises.
	if took := time.Since(started); took > closeTimeout {
		t.Errorf("Close took %s", took)
	}
	tags, errs := r.get()
	if diff := cmp.Diff(upTo(n), tags); diff != "" {
		t.Errorf("tags reported (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"_PURGE_QUEUE": n}, errs); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

func TestProducerStopsAtAPermanentFailure(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 1)
		p, r := producer(t, addr)
		produce := func(from, to int, value string) (refused error) {
			for i := from; i < to && refused == nil; i++ {
				refused = p.Produce(message(topic, "key", value+fmt.Sprint(i)), int64(i))
			}
			return refused
		}
		if err := produce(0, 10, ""); err != nil {
			t.Fatal(err)
		}
		flush(t, p)
		// The topic accepts 1 MiB, and noise cannot be compressed.
		noise := make([]byte, 1500<<10)
		rand.Read(noise)
		if err := produce(10, 11, string(noise)); err != nil {
			t.Fatal(err)
		}
		// These are refused, or accepted and reported as failed.
		_ = produce(11, 20, "")
		flush(t, p)
		if err := produce(20, 21, ""); Code(err) == "" || Code(err) == "OTHER" {
			t.Errorf("Produce after a failure for good: %v", err)
		}
		if got := len(testenv.ReadAll(t, addr, topic)); got != 10 {
			t.Errorf("%d records in the topic, want the 10 before the refused one", got)
		}
		if _, errs := r.get(); errs[""] != 10 || errs["MSG_SIZE_TOO_LARGE"] == 0 {
			t.Errorf("reports: %v", errs)
		}
	})
}

func TestProducerReportsAMissingTopic(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		p, r := producer(t, addr)
		if err := p.Produce(message("no-such-topic", "k", "v"), 1); err != nil {
			t.Fatal(err)
		}
		flush(t, p)
		if _, errs := r.get(); errs["_UNKNOWN_TOPIC"]+errs["UNKNOWN_TOPIC_OR_PARTITION"] != 1 {
			t.Errorf("reports: %v", errs)
		}
	})
}

func TestProducerSurvivesAnOutage(t *testing.T) {
	leaks(t)
	k := testenv.StartKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 3)
	p, r := producer(t, k.Addr)
	all := messages(topic, 3000, 10)
	for i, m := range all {
		switch i {
		case 1000:
			k.Kill()
		case 2000:
			if err := k.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Produce(m, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, p)
	tags, errs := r.get()
	if diff := cmp.Diff(upTo(len(all)), tags); diff != "" {
		t.Errorf("tags reported (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"": len(all)}, errs); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
	if got := len(testenv.ReadAll(t, k.Addr, topic)); got != len(all) {
		t.Errorf("%d records in the topic, want %d, each once", got, len(all))
	}
}
