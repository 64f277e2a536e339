package lag

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topic is what metadata says of one: its partitions, each with its log as far as its leader answers.
type topic struct {
	id   [16]byte
	logs map[int32]logBounds
}

// logBounds are a partition's offsets.
type logBounds struct {
	start, stable, end int64
	Replication
	err error
}

// topics reads the bounds of topics' logs, each once for all groups, and says which brokers there are. A topic that does not exist is
// missing in the result, without an error.
func (r *reader) topics(ctx context.Context, names []string) (found map[string]*topic, brokers []int32, errs []*ReadError, err error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = make([]kmsg.MetadataRequestTopic, 0, len(names)) // not nil, which means all
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &name
		req.Topics = append(req.Topics, t)
	}
	shard := r.askAny(ctx, req)[0]
	if shard.Err != nil {
		return nil, nil, nil, &ReadError{API: "Metadata", Err: shard.Err}
	}
	resp := shard.Resp.(*kmsg.MetadataResponse)
	for _, b := range resp.Brokers {
		brokers = append(brokers, b.NodeID)
	}
	slices.Sort(brokers)
	found = make(map[string]*topic)
	var queries []query
	var replication []Replication // of each
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue // no topic that was asked for
		}
		name := *t.Topic
		switch err := kerr.ErrorForCode(t.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil:
			errs = append(errs, &ReadError{API: "Metadata", Topic: name, Err: err})
			continue
		}
		found[name] = &topic{t.TopicID, make(map[int32]logBounds, len(t.Partitions))}
		for _, p := range t.Partitions {
			queries = append(queries, query{place{name, t.TopicID, p.Partition}, timeEnd})
			preferred := len(p.Replicas) > 0 && p.Replicas[0] == p.Leader
			replication = append(replication, Replication{p.Leader, preferred, len(p.Replicas), len(p.ISR)})
		}
	}

	// Start and end go first: an end that was read after the last stable offset would make every new record look like one of an open
	// transaction.
	starts := slices.Clone(queries)
	for i := range starts {
		starts[i].time = timeStart
	}
	var wg sync.WaitGroup
	var start, end []answer
	wg.Go(func() { start = r.offsets(ctx, readUncommitted, starts) })
	wg.Go(func() { end = r.offsets(ctx, readUncommitted, queries) })
	wg.Wait()
	stable := r.offsets(ctx, readCommitted, queries)

	answered := len(queries) == 0
	told := make(map[string]bool)
	for i, q := range queries {
		log := logBounds{
			start: start[i].offset, stable: stable[i].offset, end: max(end[i].offset, stable[i].offset),
			Replication: replication[i], err: cmp.Or(start[i].err, end[i].err, stable[i].err),
		}
		switch {
		case errors.Is(log.err, kerr.UnknownTopicOrPartition): // deleted since
			answered = true
			continue
		case log.err == nil:
			answered = true
		case !told[q.topic]: // once for a topic
			told[q.topic] = true
			errs = append(errs, &ReadError{API: "ListOffsets", Topic: q.topic, Err: log.err})
		}
		found[q.topic].logs[q.partition] = log
	}
	if !answered {
		return nil, nil, nil, errs[len(errs)-1]
	}
	maps.DeleteFunc(found, func(_ string, t *topic) bool { return len(t.logs) == 0 })
	return found, brokers, errs, nil
}

const (
	readUncommitted = int8(0)
	readCommitted   = int8(1)
)

// offsets answers each query. Kafka takes a partition once in a request, so there are as many as one has queries.
func (r *reader) offsets(ctx context.Context, isolation int8, queries []query) []answer {
	answers := make([]answer, len(queries))
	type key struct {
		topic     string
		partition int32
	}
	var lanes []map[key]int
	for i, q := range queries {
		answers[i].err = errNoAnswer
		k := key{q.topic, q.partition}
		lane := slices.IndexFunc(lanes, func(l map[key]int) bool { _, taken := l[k]; return !taken })
		if lane < 0 {
			lane = len(lanes)
			lanes = append(lanes, make(map[key]int, len(queries)))
		}
		lanes[lane][k] = i
	}
	var wg sync.WaitGroup
	for _, lane := range lanes {
		wg.Go(func() {
			byTopic := make(map[string][]kmsg.ListOffsetsRequestTopicPartition)
			for k, i := range lane {
				p := kmsg.NewListOffsetsRequestTopicPartition()
				p.Partition, p.Timestamp = k.partition, queries[i].time
				byTopic[k.topic] = append(byTopic[k.topic], p)
			}
			req := kmsg.NewPtrListOffsetsRequest()
			req.IsolationLevel = isolation
			req.TimeoutMillis = int32(r.step.Milliseconds())
			for name, partitions := range byTopic {
				t := kmsg.NewListOffsetsRequestTopic()
				t.Topic, t.Partitions = name, partitions
				req.Topics = append(req.Topics, t)
			}
			for _, shard := range r.ask(ctx, req) {
				if shard.Err != nil {
					for _, t := range shard.Req.(*kmsg.ListOffsetsRequest).Topics {
						for _, p := range t.Partitions {
							answers[lane[key{t.Topic, p.Partition}]].err = shard.Err
						}
					}
					continue
				}
				for _, t := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics {
					for _, p := range t.Partitions {
						if i, asked := lane[key{t.Topic, p.Partition}]; asked {
							answers[i] = answer{p.Offset, p.Timestamp, kerr.ErrorForCode(p.ErrorCode)}
						}
					}
				}
			}
		})
	}
	wg.Wait()
	return answers
}
