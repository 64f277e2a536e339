package lag

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topicPartition is a partition of a topic. The ID tells a topic from one of the same name that was
// deleted before.
type topicPartition struct {
	topic     string
	id        [16]byte
	partition int32
}

// compare orders partitions by topic and number.
func (p topicPartition) compare(q topicPartition) int {
	return cmp.Or(strings.Compare(p.topic, q.topic), cmp.Compare(p.partition, q.partition))
}

// topicLogs is a topic as metadata describes it, with the bounds of its logs.
type topicLogs struct {
	id [16]byte
	// logs are its partitions by number.
	logs map[int32]logBounds
}

// logBounds are the bounds of a partition's log.
type logBounds struct {
	// start is the first offset of the log, stable its last stable offset, end its high watermark.
	start, stable, end int64
	Replication
	// err is set if a leader did not respond. The bounds are then meaningless.
	err error
}

// published returns the topic as a snapshot of the poll that began at start shows it. open is when
// the first open transactions of partitions began.
func (t *topicLogs) published(name string, start time.Time, open map[topicPartition]*appendTime) *Topic {
	out := &Topic{
		Name: name, Ready: len(t.logs) > 0, Count: len(t.logs), Partitions: make([]TopicPartition, 0, len(t.logs)),
	}
	for _, number := range slices.Sorted(maps.Keys(t.logs)) {
		log := t.logs[number]
		if log.err != nil {
			out.Ready = false
			continue
		}
		p := TopicPartition{
			Number: number, Start: log.start, Stable: log.stable, End: log.end, Replication: log.Replication,
		}
		if began := open[topicPartition{name, t.id, number}]; began != nil {
			p.Open, p.OpenUnknown = max(0, start.Sub(began.at)), !began.known
		}
		out.Partitions = append(out.Partitions, p)
	}
	return out
}

// readTopics reads the bounds of the topics' logs, once for all groups, and the IDs of the brokers.
// A topic that does not exist is absent, without an error. err is set only if no broker responded.
func readTopics(
	ctx context.Context, c *client, names []string,
) (found map[string]*topicLogs, brokers []int32, errs []*ReadError, err error) {
	request := func() kmsg.Request {
		req := kmsg.NewPtrMetadataRequest()
		// An empty list asks for no topic, nil would ask for all of them.
		req.Topics = make([]kmsg.MetadataRequestTopic, 0, len(names))
		for _, name := range names {
			t := kmsg.NewMetadataRequestTopic()
			t.Topic = &name
			req.Topics = append(req.Topics, t)
		}
		return req
	}
	shard := c.anyBroker(ctx, request)[0]
	if shard.Err != nil {
		return nil, nil, nil, &ReadError{API: "Metadata", Err: shard.Err}
	}
	resp := shard.Resp.(*kmsg.MetadataResponse)
	for _, b := range resp.Brokers {
		brokers = append(brokers, b.NodeID)
	}
	slices.Sort(brokers)

	found = make(map[string]*topicLogs)
	var partitions []topicPartition
	// replication has the same indices as partitions.
	var replication []Replication
	for _, t := range resp.Topics {
		if t.Topic == nil {
			// Only a topic that was asked for by ID has no name. None was.
			continue
		}
		name := *t.Topic
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil:
			errs = append(errs, &ReadError{API: "Metadata", Topic: name, Err: err})
			continue
		}
		found[name] = &topicLogs{t.TopicID, make(map[int32]logBounds, len(t.Partitions))}
		for _, p := range t.Partitions {
			partitions = append(partitions, topicPartition{name, t.TopicID, p.Partition})
			preferred := len(p.Replicas) > 0 && p.Replicas[0] == p.Leader
			replication = append(replication, Replication{p.Leader, preferred, len(p.Replicas), len(p.ISR)})
		}
	}

	bounds := readBounds(ctx, c, partitions)
	responded := len(partitions) == 0
	// One error for each topic is enough.
	failed := make(map[string]bool)
	for i, p := range partitions {
		log := bounds[i]
		log.Replication = replication[i]
		switch {
		case errors.Is(log.err, kerr.UnknownTopicOrPartition):
			// The topic was deleted after metadata was read.
			responded = true
			continue
		case log.err == nil:
			responded = true
		case !failed[p.topic]:
			failed[p.topic] = true
			errs = append(errs, &ReadError{API: "ListOffsets", Topic: p.topic, Err: log.err})
		}
		found[p.topic].logs[p.partition] = log
	}
	if !responded {
		return nil, nil, nil, errs[len(errs)-1]
	}
	maps.DeleteFunc(found, func(_ string, t *topicLogs) bool { return len(t.logs) == 0 })
	return found, brokers, errs, nil
}

// readBounds reads the bounds of partitions' logs. The result has the same indices.
func readBounds(ctx context.Context, c *client, partitions []topicPartition) []logBounds {
	starts := make([]offsetQuery, len(partitions))
	ends := make([]offsetQuery, len(partitions))
	for i, p := range partitions {
		starts[i] = offsetQuery{p, timeStart}
		ends[i] = offsetQuery{p, timeEnd}
	}
	var wg sync.WaitGroup
	var start, end []offsetResult
	wg.Go(func() { start = listOffsets(ctx, c, readUncommitted, starts) })
	wg.Go(func() { end = listOffsets(ctx, c, readUncommitted, ends) })
	wg.Wait()
	// The last stable offset is read after the end. In the other order, every record that arrives
	// in between would look like one of an open transaction.
	stable := listOffsets(ctx, c, readCommitted, ends)

	bounds := make([]logBounds, len(partitions))
	for i := range partitions {
		bounds[i] = logBounds{
			start: start[i].offset, stable: stable[i].offset, end: max(end[i].offset, stable[i].offset),
			err: cmp.Or(start[i].err, end[i].err, stable[i].err),
		}
	}
	return bounds
}

// offsetQuery asks for the first record of a partition whose timestamp is not before time.
type offsetQuery struct {
	topicPartition
	// time is in milliseconds since 1970, or timeEnd or timeStart.
	time int64
}

// Kafka gives these times a meaning of their own: the log's end and its first offset.
const (
	timeEnd   = -1
	timeStart = -2
)

// offsetResult is the response to an offsetQuery.
type offsetResult struct {
	// offset and time are those of the record, or -1 if there is none. time is in milliseconds
	// since 1970.
	offset, time int64
	err          error
}

// Isolation levels of ListOffsets. With readCommitted the end is the last stable offset.
const (
	readUncommitted = int8(0)
	readCommitted   = int8(1)
)

// partitionKey is what a response names a partition by: it has no topic ID.
type partitionKey struct {
	topic     string
	partition int32
}

// listOffsets sends queries and returns their results, with the same indices. Kafka allows a
// partition once in a request, so there are as many requests as the busiest partition has queries.
func listOffsets(ctx context.Context, c *client, isolation int8, queries []offsetQuery) []offsetResult {
	results := make([]offsetResult, len(queries))
	// A batch is one request: the index of each partition's query.
	var batches []map[partitionKey]int
	for i, q := range queries {
		results[i].err = errNotInResponse
		key := partitionKey{q.topic, q.partition}
		free := slices.IndexFunc(batches, func(b map[partitionKey]int) bool { _, taken := b[key]; return !taken })
		if free < 0 {
			free = len(batches)
			batches = append(batches, make(map[partitionKey]int, len(queries)))
		}
		batches[free][key] = i
	}
	var wg sync.WaitGroup
	for _, batch := range batches {
		wg.Go(func() { listBatch(ctx, c, isolation, queries, batch, results) })
	}
	wg.Wait()
	return results
}

// listBatch sends the queries of one batch and stores their results. No other batch has the same
// indices, so batches may run concurrently.
func listBatch(
	ctx context.Context, c *client, isolation int8,
	queries []offsetQuery, batch map[partitionKey]int, results []offsetResult,
) {
	byTopic := make(map[string][]kmsg.ListOffsetsRequestTopicPartition)
	for key, i := range batch {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = key.partition, queries[i].time
		byTopic[key.topic] = append(byTopic[key.topic], p)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.IsolationLevel = isolation
	req.TimeoutMillis = int32(c.limit.Milliseconds())
	for name, partitions := range byTopic {
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic, t.Partitions = name, partitions
		req.Topics = append(req.Topics, t)
	}
	for _, shard := range c.all(ctx, req) {
		if shard.Err != nil {
			for _, t := range shard.Req.(*kmsg.ListOffsetsRequest).Topics {
				for _, p := range t.Partitions {
					results[batch[partitionKey{t.Topic, p.Partition}]].err = shard.Err
				}
			}
			continue
		}
		for _, t := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics {
			for _, p := range t.Partitions {
				if i, asked := batch[partitionKey{t.Topic, p.Partition}]; asked {
					results[i] = offsetResult{p.Offset, p.Timestamp, kerr.ErrorForCode(p.ErrorCode)}
				}
			}
		}
	}
}
