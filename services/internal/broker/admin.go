package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"golang.org/x/sync/errgroup"
)

// adminTimeout bounds one look-up: an answer takes milliseconds, and without one Kafka counts as unreachable.
const adminTimeout = 5 * time.Second

// TopicInfo is what a client has to know about a topic. A topic that is made anew has another ID.
type TopicInfo struct {
	ID         string
	Partitions int32
}

// Admin looks topics and their bounds up. It is safe for concurrent use.
type Admin struct {
	// An admin client alone never hands out its errors (a refused password shows as a time-out, and its queue of events grows), so it
	// rides on a producer that produces nothing.
	carrier *kafka.Producer
	client  *kafka.AdminClient
	brokers string
	log     *slog.Logger
	logs    *logs
	trouble *trouble
	done    chan struct{}
}

// NewAdmin makes an admin client, whether or not Kafka can be reached.
func NewAdmin(cfg Config, log *slog.Logger) (*Admin, error) {
	logs := newLogs(log)
	settings, err := cfg.client(logs.settings(kafka.ConfigMap{
		"queue.buffering.max.messages": 1,
		"go.events.channel.size":       10,
		"go.produce.channel.size":      0,
	}))
	var carrier *kafka.Producer
	if err == nil {
		carrier, err = kafka.NewProducer(settings)
	}
	if err != nil {
		logs.close()
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	a := &Admin{carrier: carrier, brokers: cfg.Brokers, log: log, logs: logs, done: make(chan struct{})}
	a.trouble = &trouble{log: log, brokers: cfg.Brokers}
	go func() {
		defer close(a.done)
		for event := range carrier.Events() {
			if e, ok := event.(kafka.Error); ok {
				a.trouble.report(e)
			}
		}
	}()
	if a.client, err = kafka.NewAdminClientFromProducer(carrier); err != nil {
		a.Close()
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	return a, nil
}

// Close ends the client; no look-up may be under way.
func (a *Admin) Close() {
	a.carrier.Close()
	a.logs.close()
	<-a.done
}

// Topics looks topics up. Together with a *MissingTopicsError it returns those that exist.
func (a *Admin) Topics(ctx context.Context, names ...string) (map[string]TopicInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	result, err := a.client.DescribeTopics(ctx, kafka.NewTopicCollectionOfTopicNames(names), kafka.SetAdminRequestTimeout(adminTimeout))
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", a.unreachable(err))
	}
	a.trouble.over()
	found := make(map[string]TopicInfo, len(names))
	var missing []string
	for _, d := range result.TopicDescriptions {
		switch {
		case d.Error.Code() == kafka.ErrNoError:
			found[d.Name] = TopicInfo{ID: d.TopicID.String(), Partitions: int32(len(d.Partitions))}
		case is(d.Error, kafka.ErrUnknownTopicOrPart, kafka.ErrUnknownTopic):
			missing = append(missing, d.Name)
		default:
			return nil, fmt.Errorf("describe topic %s: %w", d.Name, explain(d.Error))
		}
	}
	if missing != nil {
		slices.Sort(missing)
		return found, &MissingTopicsError{Names: missing}
	}
	return found, nil
}

// Bounds looks up the first offset of each partition of some topics, and the one after its last that a reader of committed records
// can get.
func (a *Admin) Bounds(ctx context.Context, topics ...string) (first, end map[Partition]int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	infos, err := a.Topics(ctx, topics...)
	if err != nil {
		return nil, nil, err
	}
	lookup, ctx := errgroup.WithContext(ctx)
	lookup.Go(func() (err error) { first, err = a.offsets(ctx, infos, kafka.EarliestOffsetSpec); return })
	lookup.Go(func() (err error) { end, err = a.offsets(ctx, infos, kafka.LatestOffsetSpec); return })
	if err := lookup.Wait(); err != nil {
		return nil, nil, err
	}
	return first, end, nil
}

// offsets lists one offset for each partition. A partition that has no leader at the moment is asked again until ctx ends.
func (a *Admin) offsets(ctx context.Context, infos map[string]TopicInfo, spec kafka.OffsetSpec) (map[Partition]int64, error) {
	offsets := make(map[Partition]int64)
	for {
		ask := make(map[kafka.TopicPartition]kafka.OffsetSpec)
		for name, info := range infos {
			for n := range info.Partitions {
				if _, ok := offsets[Partition{Topic: name, TopicID: info.ID, Number: n}]; !ok {
					ask[kafka.TopicPartition{Topic: &name, Partition: n}] = spec
				}
			}
		}
		if len(ask) == 0 {
			return offsets, nil
		}
		// Committed on both sides: up to an offset behind an open transaction a reader would wait for ever.
		result, err := a.client.ListOffsets(ctx, ask, kafka.SetAdminIsolationLevel(kafka.IsolationLevelReadCommitted),
			kafka.SetAdminRequestTimeout(adminTimeout))
		if err != nil {
			return nil, fmt.Errorf("list offsets: %w", a.unreachable(err))
		}
		for tp, info := range result.ResultInfos {
			switch {
			case info.Error.Code() == kafka.ErrNoError:
				offsets[Partition{Topic: *tp.Topic, TopicID: infos[*tp.Topic].ID, Number: tp.Partition}] = int64(info.Offset)
			case is(info.Error, kafka.ErrLeaderNotAvailable, kafka.ErrNotLeaderForPartition, kafka.ErrUnknownTopicOrPart, kafka.ErrReplicaNotAvailable,
				kafka.ErrOffsetNotAvailable):
				err = info.Error
			default:
				return nil, fmt.Errorf("list offsets of %s/%d: %w", *tp.Topic, tp.Partition, explain(info.Error))
			}
		}
		if err != nil {
			if !sleep(ctx, 100*time.Millisecond) {
				return nil, fmt.Errorf("list offsets: %w", explain(err))
			}
		}
	}
}

// AwaitTopics returns when all topics exist, or with ctx's error. Each look-up's outcome goes to state (if not nil), nil at the end; the
// log has a line only when it changes.
func (a *Admin) AwaitTopics(ctx context.Context, state func(err error), names ...string) (map[string]TopicInfo, error) {
	last := ""
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		infos, err := a.Topics(ctx, names...)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("await topics: %w", context.Cause(ctx))
		}
		if state != nil {
			state(err)
		}
		if err == nil {
			if last != "" {
				a.log.Info("all topics exist", "topics", names)
			}
			return infos, nil
		}
		if err.Error() != last {
			last, wait = err.Error(), 100*time.Millisecond
			if missing, ok := errors.AsType[*MissingTopicsError](err); ok {
				a.log.Warn("waiting for topics: missing on a reachable broker; create them by declaration", "missing", missing.Names)
			} else {
				a.log.Warn("waiting for Kafka", "err", err)
			}
		}
		if !sleep(ctx, wait) {
			return nil, fmt.Errorf("await topics: %w", context.Cause(ctx))
		}
	}
}

// unreachable tells a broker that does not answer from one that answers with an error, and adds the reason that the client met.
func (a *Admin) unreachable(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) &&
		!is(err, kafka.ErrTimedOut, kafka.ErrTransport, kafka.ErrAllBrokersDown, kafka.ErrResolve, kafka.ErrRequestTimedOut, kafka.ErrDestroy) {
		return explain(err)
	}
	return &UnreachableError{Brokers: a.brokers, Err: cmp.Or(a.trouble.reason(), explain(err))}
}

// sleep waits, and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
