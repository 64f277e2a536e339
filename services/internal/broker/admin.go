package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/backoff"
)

const (
	// adminTimeout bounds one look-up. A response takes milliseconds; without one, Kafka counts as
	// unreachable.
	adminTimeout = 5 * time.Second

	// tlsCheck is the time between two readings of the TLS files. Only polling sees every way in
	// which files are replaced: Kubernetes replaces a symbolic link two levels above them.
	tlsCheck = 2 * time.Second
)

// TopicInfo is what a client has to know about a topic.
type TopicInfo struct {
	// ID is Kafka's UUID. A topic that is deleted and created again gets another one.
	ID         string
	Partitions int32
}

// Admin looks up topics and their bounds. It is safe for concurrent use. It also watches the TLS
// files for all clients of its Config.
type Admin struct {
	cfg Config
	log *slog.Logger
	// timeout bounds one look-up.
	timeout time.Duration
	// mu is read-locked during a look-up, so that its client is not closed.
	mu     sync.RWMutex
	client *adminClient

	stopWatch context.CancelFunc
	watching  sync.WaitGroup
}

// NewAdmin returns an admin client, whether or not Kafka can be reached.
func NewAdmin(cfg Config, log *slog.Logger) (*Admin, error) {
	files, err := currentFiles(cfg)
	if err != nil {
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	client, err := newAdminClient(cfg, files, log, &trouble{log: log, brokers: cfg.BrokerList()})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &Admin{cfg: cfg, log: log, timeout: adminTimeout, client: client, stopWatch: stop}
	if cfg.files != nil {
		a.watching.Go(func() { a.watch(ctx) })
	}
	return a, nil
}

// Close ends the client. No look-up may be running.
func (a *Admin) Close() {
	a.stopWatch()
	a.watching.Wait()
	a.client.close()
}

// watch reads the TLS files every tlsCheck. Changed files are put to use after Kafka has accepted a
// client that uses them. Until then the present clients go on: a file may be half written, or the
// brokers may not know the new authority yet.
//
// One broker's response decides for all. While a new authority is being rolled out, a client may
// therefore drop a connection that works, and reconnect to a broker that does not trust its new
// certificate yet.
func (a *Admin) watch(ctx context.Context) {
	// logged names the problem that has a line in the log already.
	logged := ""
	for backoff.Sleep(ctx, tlsCheck) {
		problem := ""
		files, err := readFiles(a.cfg.Client)
		if err != nil {
			if problem = err.Error(); problem != logged {
				a.log.Error("the TLS files cannot be used: clients go on with the former ones until they are put right",
					"err", err)
			}
		} else if !files.same(a.client.files) {
			if err := a.renew(ctx, files); err != nil && ctx.Err() == nil {
				// The files name the problem, because the text of the error varies.
				if problem = files.CA + files.Cert; problem != logged {
					a.log.Warn("the TLS files have changed, and Kafka does not accept them: "+
						"clients go on with the former ones until it does",
						"cert", a.cfg.Cert, "ca", a.cfg.CA, "err", err)
				}
			}
		} else if logged != "" {
			a.log.Info("the TLS files are again those in use")
		}
		logged = problem
	}
}

// renew tries the files with a client of their own, and puts them to use if Kafka accepts them.
func (a *Admin) renew(ctx context.Context, files *pems) error {
	trouble := &trouble{log: slog.New(slog.DiscardHandler), brokers: a.cfg.BrokerList()}
	next, err := newAdminClient(a.cfg, files, a.log, trouble)
	if err != nil {
		return err
	}
	asked, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if _, err := next.admin.DescribeCluster(asked, kafka.SetAdminRequestTimeout(a.timeout)); err != nil {
		defer next.close()
		return next.explained(err)
	}
	trouble.setLog(a.log)
	a.log.Info("the TLS files have changed: all clients are recreated",
		"cert", a.cfg.Cert, "expires", files.expires(), "ca", a.cfg.CA)
	a.cfg.files.use(files)
	// The lock waits for running look-ups.
	a.mu.Lock()
	former := a.client
	a.client = next
	a.mu.Unlock()
	former.close()
	return nil
}

// AwaitTopics returns when all topics exist, or with the error of ctx. The result of each look-up
// goes to state if that is not nil: an error, and nil at the end. A line is logged only when the
// result changes.
func (a *Admin) AwaitTopics(
	ctx context.Context, state func(err error), names ...string,
) (map[string]TopicInfo, error) {
	logged := ""
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 250 * time.Millisecond}
	for {
		infos, err := a.Topics(ctx, names...)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("await topics: %w", context.Cause(ctx))
		}
		if state != nil {
			state(err)
		}
		if err == nil {
			if logged != "" {
				a.log.Info("all topics exist", "topics", names)
			}
			return infos, nil
		}
		if err.Error() != logged {
			logged = err.Error()
			retry.Reset()
			if missing, ok := errors.AsType[*MissingTopicsError](err); ok {
				a.log.Warn("waiting for topics: missing on a reachable broker; create them by declaration",
					"missing", missing.Names)
			} else {
				a.log.Warn("waiting for Kafka", "err", err)
			}
		}
		if !retry.Wait(ctx) {
			return nil, fmt.Errorf("await topics: %w", context.Cause(ctx))
		}
	}
}

// Bounds returns the first offset of each partition of the topics, and its high watermark, which is
// the offset after its last record. While a transaction is open, readers cannot get the records from
// its beginning on: see Withheld.
func (a *Admin) Bounds(ctx context.Context, topics ...string) (first, end map[Partition]int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	infos, err := a.Topics(ctx, topics...)
	if err != nil {
		return nil, nil, err
	}
	lookup, ctx := errgroup.WithContext(ctx)
	lookup.Go(func() (err error) {
		first, err = a.offsets(ctx, everyPartition(infos, kafka.EarliestOffsetSpec), allRecords)
		return
	})
	lookup.Go(func() (err error) {
		end, err = a.offsets(ctx, everyPartition(infos, kafka.LatestOffsetSpec), allRecords)
		return
	})
	if err := lookup.Wait(); err != nil {
		return nil, nil, err
	}
	return first, end, nil
}

// WithheldError means that open transactions withhold records from readers of committed records.
// Transactions that are in order end within moments. One that hangs has lost its producer.
type WithheldError struct {
	// Topic and Partition are where most is withheld, and Offsets is how many offsets that is.
	Topic     string
	Partition int32
	Offsets   int64
	// Others is the number of other partitions with open transactions.
	Others int
}

func (e *WithheldError) Error() string {
	text := fmt.Sprintf("waiting for an open transaction on %s/%d: %d offsets are withheld",
		e.Topic, e.Partition, e.Offsets)
	if e.Others > 0 {
		text += fmt.Sprintf(", as on %d more partitions", e.Others)
	}
	return text
}

// FindHanging is the next step when a transaction stays open, for logs.
const FindHanging = "kafka-transactions.sh find-hanging lists transactions without a producer, and abort ends one"

// Withheld returns a *WithheldError if records of the topics are withheld at present, and nil if
// none are.
func (a *Admin) Withheld(ctx context.Context, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	infos, err := a.Topics(ctx, topics...)
	if err != nil {
		return err
	}
	// In this order: what is appended in between does not count as withheld.
	end, err := a.offsets(ctx, everyPartition(infos, kafka.LatestOffsetSpec), allRecords)
	if err != nil {
		return err
	}
	stable, err := a.offsets(ctx, everyPartition(infos, kafka.LatestOffsetSpec), committedRecords)
	if err != nil {
		return err
	}
	var most *WithheldError
	partitions := 0
	for p := range end {
		n := end[p] - stable[p]
		if n <= 0 {
			continue
		}
		partitions++
		if most == nil || n > most.Offsets {
			most = &WithheldError{Topic: p.Topic, Partition: p.Number, Offsets: n}
		}
	}
	if most == nil {
		return nil
	}
	most.Others = partitions - 1
	return most
}

// Replaced returns the partitions whose log is not the one that was read, because Kafka lost its end:
// a broker was restored from an old copy, or a replica that lagged became leader. The log is then
// shorter, or has new records at offsets that were read.
//
// New records are newer than all that was read. This needs topics with LogAppendTime. Leader epochs
// do not show it: a restored broker counts them from its copy again.
func (a *Admin) Replaced(ctx context.Context, read map[Partition]Progress) ([]Partition, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	ends, newer := make(map[Partition]kafka.OffsetSpec), make(map[Partition]kafka.OffsetSpec)
	for p, r := range read {
		ends[p] = kafka.LatestOffsetSpec
		if r.Last >= 0 {
			newer[p] = kafka.NewOffsetSpecForTimestamp(r.Newest.UnixMilli() + 1)
		}
	}
	if err := a.refresh(ctx); err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	var end, first map[Partition]int64
	lookup, ctx := errgroup.WithContext(ctx)
	lookup.Go(func() (err error) { end, err = a.offsets(ctx, ends, allRecords); return })
	lookup.Go(func() (err error) { first, err = a.offsets(ctx, newer, allRecords); return })
	if err := lookup.Wait(); err != nil {
		return nil, err
	}
	var replaced []Partition
	for p, r := range read {
		// Without a newer record, the offset is -1.
		at, ok := first[p]
		if end[p] < r.Next || ok && at >= 0 && at <= r.Last {
			replaced = append(replaced, p)
		}
	}
	return replaced, nil
}

func (a *Admin) refresh(ctx context.Context) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.client.refresh(ctx)
}

// Topics looks up topics. With a *MissingTopicsError it also returns those that exist.
func (a *Admin) Topics(ctx context.Context, names ...string) (map[string]TopicInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if err := a.refresh(ctx); err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	result, err := a.client.admin.DescribeTopics(ctx, kafka.NewTopicCollectionOfTopicNames(names),
		kafka.SetAdminRequestTimeout(a.timeout))
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", a.client.explained(err))
	}
	a.client.trouble.over()
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

// The end of a partition is its high watermark for a reader of all records, and its last stable
// offset for a reader of committed ones.
const (
	allRecords       = kafka.IsolationLevelReadUncommitted
	committedRecords = kafka.IsolationLevelReadCommitted
)

// everyPartition returns the same specification for each partition of the topics.
func everyPartition(infos map[string]TopicInfo, spec kafka.OffsetSpec) map[Partition]kafka.OffsetSpec {
	specs := make(map[Partition]kafka.OffsetSpec)
	for name, info := range infos {
		for n := range info.Partitions {
			specs[Partition{Topic: name, TopicID: info.ID, Number: n}] = spec
		}
	}
	return specs
}

// offsets lists one offset for each partition. It asks again, until ctx ends, for a partition that
// has no leader at the moment.
func (a *Admin) offsets(
	ctx context.Context, specs map[Partition]kafka.OffsetSpec, level kafka.IsolationLevel,
) (map[Partition]int64, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	offsets, asked := make(map[Partition]int64), make(map[topicPartition]Partition)
	for p := range specs {
		asked[topicPartition{p.Topic, p.Number}] = p
	}
	for {
		ask := make(map[kafka.TopicPartition]kafka.OffsetSpec)
		for p, spec := range specs {
			if _, ok := offsets[p]; !ok {
				ask[kafka.TopicPartition{Topic: &p.Topic, Partition: p.Number}] = spec
			}
		}
		if len(ask) == 0 {
			return offsets, nil
		}
		result, err := a.client.admin.ListOffsets(ctx, ask,
			kafka.SetAdminIsolationLevel(level), kafka.SetAdminRequestTimeout(a.timeout))
		if err != nil {
			return nil, fmt.Errorf("list offsets: %w", a.client.explained(err))
		}
		for tp, info := range result.ResultInfos {
			switch {
			case info.Error.Code() == kafka.ErrNoError:
				offsets[asked[topicPartition{*tp.Topic, tp.Partition}]] = int64(info.Offset)
			case is(info.Error, kafka.ErrLeaderNotAvailable, kafka.ErrNotLeaderForPartition,
				kafka.ErrUnknownTopicOrPart, kafka.ErrReplicaNotAvailable, kafka.ErrOffsetNotAvailable):
				err = info.Error
			default:
				return nil, fmt.Errorf("list offsets of %s/%d: %w", *tp.Topic, tp.Partition, explain(info.Error))
			}
		}
		if err != nil && !backoff.Sleep(ctx, 100*time.Millisecond) {
			return nil, fmt.Errorf("list offsets: %w", explain(err))
		}
	}
}
