package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/internal/testenv"
)

// read returns the offsets that ReadTo reads, by partition.
func read(t testing.TB, addr string, from, to map[Partition]int64) (map[int32][]int64, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got := make(map[int32][]int64)
	err := ReadTo(ctx, config(addr), logger(t), "reader", from, to, func(_ context.Context, records []Record) error {
		for _, r := range records {
			got[r.Partition] = append(got[r.Partition], r.Offset)
		}
		return nil
	})
	return got, err
}

func bounds(t testing.TB, addr, topic string) (id string, first, end map[Partition]int64) {
	t.Helper()
	first, end, err := patientAdmin(t, config(addr)).Bounds(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for p := range end {
		id = p.TopicID
	}
	return id, first, end
}

func TestReadToKeepsToItsBounds(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		topic := testenv.NewTopic(t, addr, 2)
		for n := range int32(2) {
			// The offset 5 is the marker.
			transaction(t, addr, topic, n, true, "0", "1", "2", "3", "4")
		}
		// The offset 7 is the marker.
		transaction(t, addr, topic, 1, true, "6")
		id, _, _ := bounds(t, addr, topic)
		at := func(n int32) Partition { return Partition{topic, id, n} }
		for _, test := range []struct {
			name     string
			from, to map[Partition]int64
			want     map[int32][]int64
		}{
			{
				// In partition 1 the next record, at 6, follows right after the gap.
				"all", nil, map[Partition]int64{at(0): 6, at(1): 6},
				map[int32][]int64{0: {0, 1, 2, 3, 4}, 1: {0, 1, 2, 3, 4}},
			},
			{
				"a part", map[Partition]int64{at(0): 1, at(1): 4}, map[Partition]int64{at(0): 3, at(1): 5},
				map[int32][]int64{0: {1, 2}, 1: {4}},
			},
			{
				"nothing", map[Partition]int64{at(0): 3, at(1): 5}, map[Partition]int64{at(0): 3, at(1): 4},
				map[int32][]int64{},
			},
			{"no partition", nil, nil, map[int32][]int64{}},
			{"one partition", nil, map[Partition]int64{at(1): 1}, map[int32][]int64{1: {0}}},
			{"only a marker", map[Partition]int64{at(0): 5}, map[Partition]int64{at(0): 6}, map[int32][]int64{}},
		} {
			got, err := read(t, addr, test.from, test.to)
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.name, diff)
			}
		}
		if got := testenv.CommittedOffsets(t, addr, "reader"); len(got) != 0 {
			t.Errorf("it committed %v", got)
		}
	})
}

// After an election the new leader may not know yet how far the log is committed. The end that it
// shows then is not the end.
func TestReadToReadsOnWhenTheHighWatermarkLags(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "topic"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	addr := cluster.ListenAddrs()[0]
	testenv.Produce(t, addr, messages("topic", 10, 1)...)
	cluster.ControlKey(kmsg.Fetch.Int16(), func(request kmsg.Request) (kmsg.Response, error, bool) {
		fetch := request.(*kmsg.FetchRequest)
		if len(fetch.Topics) == 0 {
			return nil, nil, false
		}
		response := fetch.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = fetch.Topics[0].Topic, fetch.Topics[0].TopicID
		partition := kmsg.NewFetchResponseTopicPartition()
		partition.HighWatermark, partition.LastStableOffset, partition.RecordBatches = 5, 5, []byte{}
		topic.Partitions = append(topic.Partitions, partition)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
	to := map[Partition]int64{{"topic", "", 0}: 10}
	got, err := read(t, addr, map[Partition]int64{{"topic", "", 0}: 5}, to)
	if diff := cmp.Diff(map[int32][]int64{0: {5, 6, 7, 8, 9}}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// A log that is shorter than it should be is never taken for read to its end, nor waited for.
func TestReadToEndsWhenTheLogIsTooShort(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 2)
		for n := range int32(2) {
			transaction(t, addr, topic, n, true, "0", "1")
		}
		id, _, _ := bounds(t, addr, topic)
		for name, test := range map[string]struct{ from, to map[Partition]int64 }{
			"the end lies behind the log": {nil, map[Partition]int64{{topic, id, 0}: 3, {topic, id, 1}: 4}},
			"the offset lies behind the log": {
				map[Partition]int64{{topic, id, 0}: 4}, map[Partition]int64{{topic, id, 0}: 6},
			},
		} {
			if _, err := read(t, addr, test.from, test.to); !errors.Is(err, ErrTruncated) {
				t.Errorf("%s: %v, want %v", name, err, ErrTruncated)
			}
		}
	})
}

// The log has all offsets again when the reader comes to know of the loss, but it has other records.
// The client knows it before all that it has read is handed out.
func TestReadToEndsWhenTheLogLostItsEndAndGrewAgain(t *testing.T) {
	t.Parallel()
	cluster, told := truncating(t, "topic")
	addr := cluster.ListenAddrs()[0]
	testenv.Produce(t, addr, messages("topic", 2, 1)...)
	// The last two records cannot be read before the loss.
	var lost atomic.Bool
	cluster.ControlKey(kmsg.Fetch.Int16(), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		fetch := request.(*kmsg.FetchRequest)
		if lost.Load() || len(fetch.Topics) == 0 || fetch.Topics[0].Partitions[0].FetchOffset < 10 {
			fetch.MaxBytes = 1
			return nil, nil, false
		}
		response := fetch.ResponseKind().(*kmsg.FetchResponse)
		topic, partition := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
		topic.Topic, topic.TopicID = fetch.Topics[0].Topic, fetch.Topics[0].TopicID
		partition.HighWatermark, partition.LastStableOffset, partition.RecordBatches = 12, 12, []byte{}
		topic.Partitions = append(topic.Partitions, partition)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
	to := map[Partition]int64{{"topic", "", 0}: 12}
	err := ReadTo(t.Context(), config(addr), logger(t), "reader", nil, to, func(_ context.Context, rs []Record) error {
		if rs[len(rs)-1].Offset == 9 && !lost.Load() {
			if err := cluster.MoveTopicPartition("topic", 0, 1); err != nil {
				return err
			}
			lost.Store(true)
			<-told
		}
		return nil
	})
	if !errors.Is(err, ErrTruncated) {
		t.Errorf("ReadTo: %v, want %v", err, ErrTruncated)
	}
}

func TestReadToEndsOverGaps(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 3)
		transaction(t, addr, topic, 0, false, "aborted", "aborted")
		transaction(t, addr, topic, 1, true, "v")
		transaction(t, addr, topic, 1, false, "aborted", "aborted")
		_, first, end := bounds(t, addr, topic)
		got, err := read(t, addr, first, end)
		if diff := cmp.Diff(map[int32][]int64{1: {0}}, got); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	})
}

func TestReadToSkipsWhatRetentionTook(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := newTopic(t, addr, 1)
		testenv.Produce(t, addr, messages(topic, 10, 1)...)
		testenv.DeleteRecords(t, addr, topic, map[int32]int64{0: 7})
		_, _, end := bounds(t, addr, topic)
		got, err := read(t, addr, nil, end)
		if diff := cmp.Diff(map[int32][]int64{0: {7, 8, 9}}, got); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	})
}

func TestReadToGivesAllOfManyRecordsInOrder(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 12)
		const n = 20_000
		testenv.Produce(t, addr, messages(topic, n, 100)...)
		_, first, end := bounds(t, addr, topic)
		next := maps.Clone(first)
		count := 0
		apply := func(_ context.Context, records []Record) error {
			if len(records) == 0 || len(records) > readBatch {
				return fmt.Errorf("a batch of %d", len(records))
			}
			for p := range end {
				for _, r := range records {
					if r.Partition == p.Number {
						if r.Offset != next[p] {
							return fmt.Errorf("partition %d: offset %d, want %d", r.Partition, r.Offset, next[p])
						}
						next[p]++
					}
				}
			}
			count += len(records)
			return nil
		}
		err := ReadTo(t.Context(), config(addr), logger(t), "reader", first, end, apply)
		if err != nil || count != n {
			t.Errorf("%d records, want %d; %v", count, n, err)
		}
	})
}

func TestReadToEndsWithAnError(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		topic := testenv.NewTopic(t, addr, 1)
		testenv.Produce(t, addr, messages(topic, 5000, 1)...)
		_, first, end := bounds(t, addr, topic)

		broken := errors.New("broken")
		calls := 0
		apply := func(context.Context, []Record) error { calls++; return broken }
		err := ReadTo(t.Context(), config(addr), logger(t), "reader", first, end, apply)
		if !errors.Is(err, broken) || calls != 1 {
			t.Errorf("apply failed: %v, after %d calls", err, calls)
		}

		_, err = read(t, addr, nil, map[Partition]int64{{"no-such-topic", "", 0}: 1})
		if err == nil {
			t.Error("no error for a missing topic")
		}
		_, err = read(t, addr, nil, map[Partition]int64{{topic, "", 7}: 1})
		if err == nil {
			t.Error("no error for a missing partition")
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := ReadTo(ctx, config(deadAddr(t)), logger(t), "reader", nil, map[Partition]int64{{"topic", "", 0}: 1}, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Kafka away: %v", err)
	}
}
