package testenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
)

// Record is a record of a topic, read by a client that the services do not use.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	// Time is the broker's for topics with LogAppendTime, else the producer's.
	Time    time.Time
	Key     []byte
	Value   []byte
	Headers []contract.Header
}

// ioPatience limits each exchange with a broker. Only a test that fails waits that long.
const ioPatience = 2 * time.Minute

// ReadAll returns all committed records that a topic holds now, ordered by partition and offset.
func ReadAll(t testing.TB, addr, topic string) []Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ioPatience)
	defer cancel()
	records, err := Read(ctx, addr, topic)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// Read is [ReadAll] with a context and an error. The options are for brokers that need more than an
// address, such as credentials.
//
// It fetches control records too and leaves them out of the result. Without them a partition that
// ends with the marker of a transaction would never seem to end.
func Read(ctx context.Context, addr, topic string, opts ...kgo.Opt) ([]Record, error) {
	left, start, err := bounds(ctx, addr, topic, opts)
	if err != nil {
		return nil, fmt.Errorf("read the bounds of topic %s: %w", topic, err)
	}
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(addr),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: start}),
	}, opts...)...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var records []Record
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read topic %s, partitions left and their ends %v: %w", topic, left, err)
		}
		for r := range fetches.RecordsAll() {
			end, wanted := left[r.Partition]
			if wanted && r.Offset < end && !r.Attrs.IsControl() {
				records = append(records, newRecord(r))
			}
			if wanted && r.Offset >= end-1 {
				delete(left, r.Partition)
			}
		}
	}
	slices.SortStableFunc(records, func(a, b Record) int { return cmp.Compare(a.Partition, b.Partition) })
	return records, nil
}

// Tail has the records that were in some topics at any time since it was started, also those that compaction
// has removed meanwhile, unless that came sooner than the Tail.
type Tail struct {
	t      testing.TB
	addr   string
	topics []string

	mu   sync.Mutex
	read map[place]Record
}

// place is where a record is.
type place struct {
	topic     string
	partition int32
	offset    int64
}

// StartTail reads topics from their start until the test ends, as their records come.
func StartTail(t testing.TB, addr string, topics ...string) *Tail {
	t.Helper()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(addr), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	if err != nil {
		t.Fatal(err)
	}
	tail := &Tail{t: t, addr: addr, topics: topics, read: make(map[place]Record)}
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			fetches := client.PollFetches(context.Background())
			if fetches.IsClientClosed() {
				return
			}
			// Errors pass: while Kafka is away, the client tries again.
			for r := range fetches.RecordsAll() {
				tail.add(newRecord(r))
			}
		}
	})
	t.Cleanup(func() {
		client.Close()
		reading.Wait()
	})
	return tail
}

func (l *Tail) add(r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read[place{r.Topic, r.Partition, r.Offset}] = r
}

// Seen returns how many records it has read so far.
func (l *Tail) Seen() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.read)
}

// Records returns the committed records that it has read so far and those that the topics hold now, ordered by
// topic, partition and offset.
func (l *Tail) Records() []Record {
	l.t.Helper()
	for _, topic := range l.topics {
		for _, r := range ReadAll(l.t, l.addr, topic) {
			l.add(r)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Values(l.read), func(a, b Record) int {
		return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition),
			cmp.Compare(a.Offset, b.Offset))
	})
}

// bounds returns the end of each partition that is not empty, and the offset at which to start.
func bounds(
	ctx context.Context, addr, topic string, opts []kgo.Opt,
) (ends map[int32]int64, starts map[int32]kgo.Offset, err error) {
	admin, err := kadm.NewOptClient(append([]kgo.Opt{kgo.SeedBrokers(addr)}, opts...)...)
	if err != nil {
		return nil, nil, err
	}
	defer admin.Close()
	first, err := list(ctx, admin.ListStartOffsets, topic)
	if err != nil {
		return nil, nil, err
	}
	ends, err = list(ctx, admin.ListCommittedOffsets, topic)
	if err != nil {
		return nil, nil, err
	}
	starts = make(map[int32]kgo.Offset)
	for p, offset := range first {
		if ends[p] <= offset {
			delete(ends, p)
			continue
		}
		starts[p] = kgo.NewOffset().At(offset)
	}
	return ends, starts, nil
}

// list asks for one kind of offset of each partition.
func list(
	ctx context.Context, ask func(context.Context, ...string) (kadm.ListedOffsets, error), topic string,
) (map[int32]int64, error) {
	listed, err := ask(ctx, topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, err
	}
	offsets := make(map[int32]int64)
	for p, o := range listed[topic] {
		offsets[p] = o.Offset
	}
	return offsets, nil
}

// HighWatermarks returns the high watermark of each partition of a topic.
func HighWatermarks(t testing.TB, addr, topic string) map[int32]int64 {
	t.Helper()
	var ends map[int32]int64
	withAdmin(t, addr, "list the ends of topic "+topic, func(ctx context.Context, admin *kadm.Client) (err error) {
		ends, err = list(ctx, admin.ListEndOffsets, topic)
		return err
	})
	return ends
}

// DeleteRecords deletes the records of some partitions of a topic before these offsets. Kafka
// refuses that for topics that are only compacted.
func DeleteRecords(t testing.TB, addr, topic string, before map[int32]int64) {
	t.Helper()
	offsets := make(kadm.Offsets)
	for p, at := range before {
		offsets.AddOffset(topic, p, at, -1)
	}
	withAdmin(t, addr, "delete records of topic "+topic, func(ctx context.Context, admin *kadm.Client) error {
		deleted, err := admin.DeleteRecords(ctx, offsets)
		return errors.Join(err, deleted.Error())
	})
}

// AddPartition adds a partition to a topic.
func AddPartition(t testing.TB, addr, topic string) {
	t.Helper()
	withAdmin(t, addr, "add a partition", func(ctx context.Context, admin *kadm.Client) error {
		results, err := admin.CreatePartitions(ctx, 1, topic)
		return errors.Join(err, results.Error())
	})
}

// withAdmin calls do with an admin client, and names the error by what was being done.
func withAdmin(t testing.TB, addr, what string, do func(ctx context.Context, admin *kadm.Client) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ioPatience)
	defer cancel()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := do(ctx, admin); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// newRecord copies what the tests compare. It ignores what only the client knows.
func newRecord(r *kgo.Record) Record {
	record := Record{
		Topic:     r.Topic,
		Partition: r.Partition,
		Offset:    r.Offset,
		Time:      r.Timestamp,
		Key:       r.Key,
		Value:     r.Value,
	}
	for _, h := range r.Headers {
		record.Headers = append(record.Headers, contract.Header{Key: h.Key, Value: h.Value})
	}
	return record
}

// Produce writes messages as any other producer would, and returns the records. It chooses
// partitions by key as Java's clients do (murmur2) and checks nothing. A nil value is a tombstone.
func Produce(t testing.TB, addr string, messages ...contract.Message) []Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ioPatience)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var batch []*kgo.Record
	for _, m := range messages {
		r := &kgo.Record{Topic: m.Topic, Key: m.Key, Value: m.Value}
		for _, h := range m.Headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
		batch = append(batch, r)
	}
	if err := client.ProduceSync(ctx, batch...).FirstErr(); err != nil {
		t.Fatalf("produce %d records: %v", len(batch), err)
	}
	var written []Record
	for _, r := range batch {
		written = append(written, newRecord(r))
	}
	return written
}

// CommittedOffsets returns the offsets that a consumer group has committed, by topic and partition.
func CommittedOffsets(t testing.TB, addr, group string) map[string]map[int32]int64 {
	t.Helper()
	var offsets map[string]map[int32]int64
	withAdmin(t, addr, "fetch the offsets of group "+group, func(ctx context.Context, admin *kadm.Client) (err error) {
		offsets, err = fetchOffsets(ctx, admin, group)
		return err
	})
	return offsets
}

// fetchOffsets returns the group's offsets by topic and partition, none for a group that does not exist. It
// waits for the group's coordinator: a broker makes the topic behind it only at the first request.
func fetchOffsets(ctx context.Context, admin *kadm.Client, group string) (map[string]map[int32]int64, error) {
	for {
		fetched, err := admin.FetchOffsets(ctx, group)
		if err == nil {
			err = fetched.Error()
		}
		switch {
		case errors.Is(err, kerr.GroupIDNotFound):
			return map[string]map[int32]int64{}, nil
		case err == nil:
			offsets := make(map[string]map[int32]int64)
			for topic, partitions := range fetched {
				offsets[topic] = make(map[int32]int64)
				for p, o := range partitions {
					offsets[topic][p] = o.At
				}
			}
			return offsets, nil
		case !kerr.IsRetriable(err):
			return nil, err
		}
		if !backoff.Sleep(ctx, 50*time.Millisecond) {
			return nil, err
		}
	}
}
