package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// producer returns a producer that has taken a transactional ID of its own.
func producer(t testing.TB, addr string) *Producer {
	t.Helper()
	return producerAs(t, config(addr), rand.Text())
}

// producerAs returns a producer that has taken the transactional ID.
func producerAs(t testing.TB, cfg Config, transactionalID string) *Producer {
	t.Helper()
	p, err := NewProducer(cfg, transactionalID, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Fence(inTime(t)); err != nil {
		t.Fatal(err)
	}
	return p
}

// inTime returns a context that ends when Kafka has had enough time for any of these tests.
func inTime(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func publish(t testing.TB, p *Producer, messages ...contract.Message) {
	t.Helper()
	if _, err := p.Publish(inTime(t), messages); err != nil {
		t.Fatal(err)
	}
}

// readable reads a topic until it has so many records. They can be read when the markers of their transaction
// are there, which is a moment after Publish.
func readable(t testing.TB, addr, topic string, n int) []testenv.Record {
	t.Helper()
	for ctx := inTime(t); ; {
		if records := testenv.ReadAll(t, addr, topic); len(records) >= n || ctx.Err() != nil {
			return records
		}
	}
}

func TestProducerKeepsOrder(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		topic := testenv.NewTopic(t, addr, 12)
		p := producer(t, addr)
		for page := range slices.Chunk(messages(topic, 5000, 50), 700) {
			publish(t, p, page...)
		}
		p.Close()

		last := make(map[string]int)
		where := make(map[string]int32)
		records := readable(t, addr, topic, 5000)
		for _, record := range records {
			key, version := string(record.Key), 0
			fmt.Sscan(string(record.Value), &version)
			if version < last[key] || where[key] != record.Partition && last[key] > 0 {
				t.Fatalf("%s: %d after %d, partition %d after %d",
					key, version, last[key], record.Partition, where[key])
			}
			last[key], where[key] = version, record.Partition
		}
		if len(last) != 50 || len(records) != 5000 {
			t.Errorf("%d keys and %d records in the topic, want 50 and 5000", len(last), len(records))
		}
	})
}

func TestProducerWritesWhatItIsGivenWhereJavaWould(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 12)
		all := []contract.Message{
			{Topic: topic, Key: []byte("order-1"), Value: []byte("{}"), Headers: []contract.Header{
				{Key: "ce_id", Value: []byte("1")}, {Key: "empty", Value: []byte{}},
			}},
			{Topic: topic, Key: []byte("bestellung-äöü"), Value: []byte{}},
			{Topic: topic, Key: []byte("tombstone"), Value: nil},
		}
		p := producer(t, addr)
		for _, m := range all {
			publish(t, p, m)
			// The default of franz-go is murmur2, as in Java.
			testenv.Produce(t, addr, m)
		}
		got := readable(t, addr, topic, 6)
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
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		publish(t, producer(t, addr), message(contract.TopicDeadLetter, "large", strings.Repeat("x", 2<<20-1000)))
	})
}

// A page may be larger than the queue of the client.
func TestProducerWaitsWhileItsQueueIsFull(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 3)
		publish(t, producer(t, addr), messages(topic, 30_000, 10)...)
		if got := len(readable(t, addr, topic, 30_000)); got != 30_000 {
			t.Errorf("%d records in the topic, want 30000", got)
		}
	})
}

// None of a transaction's messages is seen if one of them cannot be published.
func TestProducerPublishesAllOrNone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 1)
		p := producer(t, addr)
		publish(t, p, messages(topic, 10, 1)...)
		// The topic accepts 1 MiB, and noise cannot be compressed.
		noise := make([]byte, 1500<<10)
		rand.Read(noise)
		_, err := p.Publish(inTime(t), []contract.Message{
			message(topic, "key", "before"), message(topic, "key", string(noise)), message(topic, "key", "behind"),
		})
		if Code(err) != "MSG_SIZE_TOO_LARGE" {
			t.Errorf("Publish of a message that is too large: %v", err)
		}
		p.Close()
		// The transaction ends when another producer takes the ID.
		publish(t, producerAs(t, config(addr), p.id), message(topic, "key", "last"))
		records := readable(t, addr, topic, 11)
		if len(records) != 11 || string(records[10].Value) != "last" {
			t.Errorf("%d records in the topic, want 10 and the last", len(records))
		}
	})
}

func TestProducerReportsAMissingTopic(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		_, err := producer(t, addr).Publish(inTime(t), []contract.Message{message("no-such-topic", "k", "v")})
		if code := Code(err); code != "_UNKNOWN_TOPIC" && code != "UNKNOWN_TOPIC_OR_PARTITION" {
			t.Errorf("Publish to a topic that does not exist: %v", err)
		}
	})
}

// A producer that has lost its transactional ID cannot publish, whatever it has sent already.
func TestProducerIsFenced(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 1)
		first := producer(t, addr)
		publish(t, first, message(topic, "key", "1"))
		second := producerAs(t, config(addr), first.id)
		publish(t, second, message(topic, "key", "2"))
		_, err := first.Publish(inTime(t), []contract.Message{message(topic, "key", "late")})
		if !errors.Is(err, ErrProducerFenced) || !strings.Contains(err.Error(), first.id) {
			t.Errorf("Publish of the first producer: %v, want ErrProducerFenced with the ID", err)
		}
		publish(t, second, message(topic, "key", "3"))
		var got []string
		for _, r := range readable(t, addr, topic, 3) {
			got = append(got, string(r.Value))
		}
		if diff := cmp.Diff([]string{"1", "2", "3"}, got); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
	})
}

func TestProducerSurvivesAnOutage(t *testing.T) {
	leaks(t)
	k := testenv.StartKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 3)
	p := producer(t, k.Addr)
	all := messages(topic, 3000, 10)
	publish(t, p, all[:1000]...)
	k.Kill()
	published := make(chan error, 1)
	ctx := inTime(t)
	go func() {
		_, err := p.Publish(ctx, all[1000:2000])
		published <- err
	}()
	if err := k.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	// After a long start of the broker the transaction has timed out, and begins again.
	if err := <-published; err != nil {
		p.Close()
		p = producerAs(t, config(k.Addr), p.id)
		publish(t, p, all[1000:2000]...)
	}
	publish(t, p, all[2000:]...)
	if got := len(readable(t, k.Addr, topic, len(all))); got != len(all) {
		t.Errorf("%d records in the topic, want %d, each once", got, len(all))
	}
}

func TestProducerEndsWithItsContext(t *testing.T) {
	leaks(t)
	p, err := NewProducer(config(deadAddr(t)), "id", logger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Fence(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Fence with a dead broker: %v", err)
	}
}
