package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
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

// Admin looks topics and their bounds up. It is safe for concurrent use. It also watches the TLS files for all clients of its Config.
type Admin struct {
	cfg  Config
	log  *slog.Logger
	mu   sync.RWMutex // a look-up keeps its client from being closed
	conn *connection

	stop     context.CancelFunc // ends watching
	watching sync.WaitGroup
}

// connection is one client's life.
type connection struct {
	// An admin client alone never hands out its errors (a refused password shows as a time-out, and its queue of events grows), so it
	// rides on a producer that produces nothing.
	carrier *kafka.Producer
	client  *kafka.AdminClient
	files   *pems
	logs    *logs
	trouble *trouble
	done    chan struct{}
}

// NewAdmin makes an admin client, whether or not Kafka can be reached.
func NewAdmin(cfg Config, log *slog.Logger) (*Admin, error) {
	files, err := cfg.currentFiles()
	if err != nil {
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	conn, err := connect(cfg, files, log, &trouble{log: log, brokers: cfg.BrokerList()})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &Admin{cfg: cfg, log: log, conn: conn, stop: stop}
	if cfg.files != nil {
		a.watching.Go(func() { a.watch(ctx) })
	}
	return a, nil
}

func connect(cfg Config, files *pems, log *slog.Logger, trouble *trouble) (*connection, error) {
	c := &connection{files: files, logs: newLogs(log), trouble: trouble, done: make(chan struct{})}
	var err error
	c.carrier, err = kafka.NewProducer(cfg.clientWith(files, c.logs.settings(kafka.ConfigMap{
		"queue.buffering.max.messages": 1,
		"go.events.channel.size":       10,
		"go.produce.channel.size":      0,
	})))
	if err != nil {
		c.logs.close()
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	go func() {
		defer close(c.done)
		for event := range c.carrier.Events() {
			if e, ok := event.(kafka.Error); ok {
				c.trouble.report(e)
			}
		}
	}()
	if c.client, err = kafka.NewAdminClientFromProducer(c.carrier); err != nil {
		c.close()
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	return c, nil
}

func (c *connection) close() {
	c.carrier.Close()
	c.logs.close()
	<-c.done
}

// Close ends the client; no look-up may be under way.
func (a *Admin) Close() {
	a.stop()
	a.watching.Wait()
	a.conn.close()
}

// watch reads the TLS files from time to time. Changed ones are in use once Kafka has answered a client that has them: until then the
// clients that there are go on, be it that a file is half written, or that the brokers do not know the new authority yet.
// One broker's answer decides for all: while the roll of an authority is half done, clients may give up working connections to brokers
// that do not know the new files yet.
func (a *Admin) watch(ctx context.Context) {
	said := ""
	for sleep(ctx, tlsCheck) {
		wrong := ""
		files, err := a.cfg.files.read()
		if err != nil {
			if wrong = err.Error(); wrong != said {
				a.log.Error("the TLS files cannot be used: clients go on with the former ones until they are put right", "err", err)
			}
		} else if !files.same(a.conn.files) {
			if err := a.renew(ctx, files); err != nil && ctx.Err() == nil {
				if wrong = files.CA + files.Cert; wrong != said { // the error's wording changes
					a.log.Warn("the TLS files have changed, and Kafka does not answer with them: clients go on with the former ones until it does",
						"cert", a.cfg.Cert, "ca", a.cfg.CA, "err", err)
				}
			}
		} else if said != "" {
			a.log.Info("the TLS files are again those in use")
		}
		said = wrong
	}
}

// renew tries the files, and puts them to use.
func (a *Admin) renew(ctx context.Context, files *pems) error {
	trouble := &trouble{log: slog.New(slog.DiscardHandler), brokers: a.cfg.BrokerList()}
	next, err := connect(a.cfg, files, a.log, trouble)
	if err != nil {
		return err
	}
	asked, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	if _, err := next.client.DescribeCluster(asked, kafka.SetAdminRequestTimeout(adminTimeout)); err != nil {
		defer next.close()
		return next.unreachable(err)
	}
	trouble.to(a.log)
	a.log.Info("the TLS files have changed: every client is made anew", "cert", a.cfg.Cert, "expires", files.expires(), "ca", a.cfg.CA)
	a.cfg.files.use(files)
	a.mu.Lock() // waits for look-ups
	former := a.conn
	a.conn = next
	a.mu.Unlock()
	former.close()
	return nil
}

// Topics looks topics up. Together with a *MissingTopicsError it returns those that exist.
func (a *Admin) Topics(ctx context.Context, names ...string) (map[string]TopicInfo, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	result, err := a.conn.client.DescribeTopics(ctx, kafka.NewTopicCollectionOfTopicNames(names), kafka.SetAdminRequestTimeout(adminTimeout))
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", a.conn.unreachable(err))
	}
	a.conn.trouble.over()
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
	a.mu.RLock()
	defer a.mu.RUnlock()
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
		result, err := a.conn.client.ListOffsets(ctx, ask, kafka.SetAdminIsolationLevel(kafka.IsolationLevelReadCommitted),
			kafka.SetAdminRequestTimeout(adminTimeout))
		if err != nil {
			return nil, fmt.Errorf("list offsets: %w", a.conn.unreachable(err))
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
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
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
func (c *connection) unreachable(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) &&
		!is(err, kafka.ErrTimedOut, kafka.ErrTransport, kafka.ErrAllBrokersDown, kafka.ErrResolve, kafka.ErrRequestTimedOut, kafka.ErrDestroy) {
		return explain(err)
	}
	return &UnreachableError{Brokers: c.trouble.brokers, Err: cmp.Or(c.trouble.reason(), explain(err))}
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
