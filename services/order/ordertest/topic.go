package ordertest

import (
	"context"
	"maps"
	"slices"
	"sync"

	"ordersystem.dev/services/internal/broker"
)

// Topic is a Kafka topic in memory with two partitions. A test can hold its reads up and let them
// fail. The fields may be set before the first read.
type Topic struct {
	// BatchSize is how many records a batch of a read has at most.
	BatchSize int
	// Gap is how many offsets at the end of each partition have no record.
	Gap int64
	// Fails has the error of a read after its first batch, by the read's number.
	Fails map[int]error
	// Begun receives a value at the beginning of each read.
	Begun chan struct{}

	mu      sync.Mutex
	id      string
	records map[int32][]broker.Record
	first   map[int32]int64
	counts  []int
	gate    chan struct{}
	lastCtx context.Context
}

// NewTopic returns a topic that holds these records.
func NewTopic(records ...broker.Record) *Topic {
	tp := &Topic{
		BatchSize: 10, Fails: map[int]error{}, Begun: make(chan struct{}, 10_000),
		id: "id-1", records: map[int32][]broker.Record{},
	}
	tp.Add(records...)
	return tp
}

// Add appends records. Those whose keys have the same length come into the same partition.
func (tp *Topic) Add(records ...broker.Record) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for _, r := range records {
		r.Partition = int32(len(r.Key) % 2)
		r.Offset = int64(len(tp.records[r.Partition]))
		tp.records[r.Partition] = append(tp.records[r.Partition], r)
	}
}

// Recreate deletes the topic and creates an empty one of the same name.
func (tp *Topic) Recreate() {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.id, tp.records, tp.first = tp.id+"+", map[int32][]broker.Record{}, nil
}

// DeleteRecords deletes all records, as Kafka's request of that name does: offsets go on.
func (tp *Topic) DeleteRecords() {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.first = map[int32]int64{}
	for n, records := range tp.records {
		tp.first[n] = int64(len(records))
	}
}

// HoldReads makes every read wait before each batch until the returned channel is closed.
func (tp *Topic) HoldReads() (gate chan struct{}) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.gate = make(chan struct{})
	return tp.gate
}

// Bounds does what broker.Admin.Bounds does, for one topic.
func (tp *Topic) Bounds(_ context.Context, names ...string) (first, end map[broker.Partition]int64, err error) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	first, end = map[broker.Partition]int64{}, map[broker.Partition]int64{}
	for n := range int32(2) {
		p := broker.Partition{Topic: names[0], TopicID: tp.id, Number: n}
		first[p], end[p] = tp.first[n], int64(len(tp.records[n]))+tp.Gap
	}
	return first, end, nil
}

// Read does what broker.ReadTo does.
func (tp *Topic) Read(
	ctx context.Context, from, to map[broker.Partition]int64,
	apply func(context.Context, []broker.Record) error,
) error {
	tp.mu.Lock()
	number, gate := len(tp.counts), tp.gate
	tp.counts = append(tp.counts, 0)
	tp.lastCtx = ctx
	records := maps.Clone(tp.records)
	tp.mu.Unlock()
	tp.Begun <- struct{}{}
	for p, end := range to {
		all := records[p.Number]
		for batch := range slices.Chunk(all[from[p]:min(end, int64(len(all)))], tp.BatchSize) {
			if gate != nil {
				select {
				case <-gate:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := apply(ctx, batch); err != nil {
				return err
			}
			tp.mu.Lock()
			tp.counts[number] += len(batch)
			tp.mu.Unlock()
			if err := tp.Fails[number]; err != nil {
				return err
			}
		}
	}
	return nil
}

// Replaced does what broker.Admin.Replaced does. The log is the one that was read, except that a
// recreated topic has other partitions.
func (tp *Topic) Replaced(
	context.Context, map[broker.Partition]broker.Progress,
) ([]broker.Partition, error) {
	return nil, nil
}

// Withheld does what broker.Admin.Withheld does. No transaction is open.
func (tp *Topic) Withheld(context.Context, ...string) error { return nil }

// Counts returns how many records each read has handed out so far.
func (tp *Topic) Counts() []int {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return slices.Clone(tp.counts)
}

// LastRead returns the context of the last read.
func (tp *Topic) LastRead() context.Context {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.lastCtx
}
