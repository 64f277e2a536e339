package testenv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

// onBoth runs a test on the fake and on a real broker.
func onBoth(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("fake", func(t *testing.T) { test(t, Fake(t)) })
	t.Run("real", func(t *testing.T) { test(t, SharedKafka(t).Addr) })
}

func TestMain(m *testing.M) { Main(m) }

func TestReadAll(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		topic := NewTopic(t, addr, 3)
		if got := ReadAll(t, addr, topic); len(got) != 0 {
			t.Errorf("an empty topic holds %d records", len(got))
		}
		var messages []contract.Message
		for i := range 200 {
			m := message(topic, fmt.Sprint("key", i%20), fmt.Sprint("value", i))
			m.Headers = []contract.Header{{Key: "n", Value: []byte{byte(i)}}, {Key: "n", Value: []byte("again")}}
			messages = append(messages, m)
		}
		messages = append(messages, contract.Message{Topic: topic, Key: []byte("key1")}, message(topic, "key2", ""))
		want := byPartition(Produce(t, addr, messages...))
		if diff := cmp.Diff(want, ReadAll(t, addr, topic), ignoreTime); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
	})
}

// What is gone meanwhile was seen before.
func TestTail(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		topic := "tail-" + uuid.NewString()
		if err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{{Name: topic, Partitions: 1}},
			1); err != nil {
			t.Fatal(err)
		}
		tail := StartTail(t, addr, topic)
		want := Produce(t, addr, message(topic, "a", "deleted"), message(topic, "a", "kept"))
		for deadline := time.Now().Add(ioPatience); tail.Seen() < 2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it has seen %d records", tail.Seen())
			}
		}
		transact(t, addr, message(topic, "a", "aborted"), kgo.TryAbort)
		DeleteRecords(t, addr, topic, map[int32]int64{0: 1})
		want = append(want, Produce(t, addr, message(topic, "b", "last"))...)
		if diff := cmp.Diff(want, tail.Records(), ignoreTime); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
	})
}

func TestReadAllWithGaps(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		// The broker deletes no records of a compacted topic.
		topic := "gaps-" + uuid.NewString()
		if err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{{Name: topic, Partitions: 1}},
			1); err != nil {
			t.Fatal(err)
		}
		Produce(t, addr, message(topic, "a", "deleted"), message(topic, "a", "kept"))
		DeleteRecords(t, addr, topic, map[int32]int64{0: 1})
		transact(t, addr, message(topic, "a", "aborted"), kgo.TryAbort)
		transact(t, addr, message(topic, "a", "committed"), kgo.TryCommit)

		// The topic ends with the marker of the last transaction.
		var got []string
		for _, r := range ReadAll(t, addr, topic) {
			got = append(got, fmt.Sprint(r.Offset, " ", string(r.Value)))
		}
		if diff := cmp.Diff([]string{"1 kept", "4 committed"}, got); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
	})
}

func TestReadMissingTopic(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		if got, err := Read(t.Context(), addr, "no-such-topic"); err == nil {
			t.Errorf("read %d records of a topic that is missing", len(got))
		}
	})
}

// The keys and hashes come from Kafka's own test of murmur2.
func TestProducePartitions(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		const partitions = 12
		topic := NewTopic(t, addr, partitions)
		for key, hash := range map[string]int32{
			"21":                       -973932308,
			"foobar":                   -790332482,
			"a-little-bit-long-string": -985981536,
		} {
			want := (hash & 0x7fffffff) % partitions
			if got := Produce(t, addr, message(topic, key, "v"))[0].Partition; got != want {
				t.Errorf("key %s is in partition %d, want %d", key, got, want)
			}
		}
	})
}

func TestCommittedOffsets(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		topic := NewTopic(t, addr, 2)
		if got := CommittedOffsets(t, addr, topic+"-group"); len(got) != 0 {
			t.Errorf("a group that never was has committed %v", got)
		}
		commit(t, addr, topic+"-group", topic, 1, 5)
		want := map[string]map[int32]int64{topic: {1: 5}}
		if diff := cmp.Diff(want, CommittedOffsets(t, addr, topic+"-group")); diff != "" {
			t.Errorf("offsets (-want +got):\n%s", diff)
		}
	})
}

// Topics have LogAppendTime: the producer's time and the broker's differ.
var ignoreTime = cmpopts.IgnoreFields(Record{}, "Time")

func message(topic, key, value string) contract.Message {
	return contract.Message{Topic: topic, Key: []byte(key), Value: []byte(value)}
}

func byPartition(records []Record) []Record {
	return slices.SortedStableFunc(slices.Values(records),
		func(a, b Record) int { return int(a.Partition - b.Partition) })
}

func adminOf(t *testing.T, addr string) *kadm.Client {
	t.Helper()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	return admin
}

func commit(t *testing.T, addr, group, topic string, partition int32, offset int64) {
	t.Helper()
	offsets := make(kadm.Offsets)
	offsets.AddOffset(topic, partition, offset, -1)
	if err := adminOf(t, addr).CommitAllOffsets(t.Context(), group, offsets); err != nil {
		t.Fatal(err)
	}
}

func transact(t *testing.T, addr string, m contract.Message, end kgo.TransactionEndTry) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.TransactionalID(m.Topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	err = errors.Join(client.BeginTransaction(),
		client.ProduceSync(t.Context(), &kgo.Record{Topic: m.Topic, Key: m.Key, Value: m.Value}).FirstErr(),
		client.EndTransaction(context.WithoutCancel(t.Context()), end))
	if err != nil {
		t.Fatal(err)
	}
}
