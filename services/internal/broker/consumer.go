package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/contract"
)

// pollWait is how long one call into librdkafka, which knows no context, may block.
const pollWait = 100 * time.Millisecond

// Partition is a partition of one topic, not of whatever bears its name: a topic made anew has another ID.
type Partition struct {
	Topic   string
	TopicID string // Kafka's UUID
	Number  int32
}

// Record is a message as it was read.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Time       time.Time
	Key, Value []byte
	Headers    []contract.Header
}

// Handler keeps records and positions together, in one store. Its methods are called by one goroutine, and never at once.
type Handler interface {
	// Assigned returns the offset to read next for each partition. It is the only truth: what Kafka has committed is not asked.
	Assigned(ctx context.Context, ps []Partition) (map[Partition]int64, error)
	// Revoked says that partitions are no longer this member's. What was read of them and not applied is dropped.
	Revoked(ps []Partition)
	// Apply stores a batch with its positions, all or nothing. On ErrFenced the consumer gives its partitions back and joins anew; on any
	// other error it pauses, stays a member, and comes again with the same batch, less the partitions revoked meanwhile. The batch
	// must not be changed. At shutdown ctx outlives Run's by a few seconds.
	Apply(ctx context.Context, b Batch) error
}

// Batch is what was read since the last one.
type Batch struct {
	Records []Record // in order per partition
	// Next is the position after the batch, for each partition that moved. Also the end of a partition moves it, over what compaction and
	// transactions left empty, so a batch may have no records.
	Next map[Partition]int64
}

// ConsumerConfig says what is read as which group.
type ConsumerConfig struct {
	Group      string
	Topics     []string
	MaxRecords int           // in a batch, 1000 by default
	MaxBytes   int           // of keys and values in a batch, 8 MiB by default; a batch has one record at least
	TopicCheck time.Duration // how often topics are looked up, to see when one was made anew; 5 s by default
	MaxSilence time.Duration // how long Apply may take before Kafka gives the partitions to others; 5 min by default
}

// Consumer is a member of a group (KIP-848, so Kafka 4.0 or later). It lives in sessions: when it is fenced, when its client fails for
// good, when a topic is made anew or the TLS files have changed, it closes its client and joins with a new one.
type Consumer struct {
	cfg     Config
	cc      ConsumerConfig
	admin   *Admin
	log     *slog.Logger
	trouble *trouble

	rebalances atomic.Int64
	assigned   atomic.Int64
	polled     atomic.Int64 // Unix time in nanoseconds
	failure    atomic.Pointer[error]

	lagMu sync.Mutex
	lag   map[Partition]int64 // what is not there is not known
	lagAt time.Time
}

// NewConsumer makes a consumer; Run joins the group. The admin tells the topics' IDs.
func NewConsumer(cfg Config, cc ConsumerConfig, admin *Admin, log *slog.Logger) *Consumer {
	if cc.MaxRecords == 0 {
		cc.MaxRecords = 1000
	}
	if cc.MaxBytes == 0 {
		cc.MaxBytes = 8 << 20
	}
	if cc.TopicCheck == 0 {
		cc.TopicCheck = 5 * time.Second
	}
	if cc.MaxSilence == 0 {
		cc.MaxSilence = 5 * time.Minute
	}
	log = log.With("group", cc.Group)
	return &Consumer{cfg: cfg, cc: cc, admin: admin, log: log, trouble: &trouble{log: log, brokers: cfg.BrokerList()}}
}

// Rebalances counts changes of this member's partitions.
func (c *Consumer) Rebalances() int64 { return c.rebalances.Load() }

// Assigned is how many partitions this member has.
func (c *Consumer) Assigned() int { return int(c.assigned.Load()) }

// LastPoll is when it last asked for records; zero before the first time.
func (c *Consumer) LastPoll() time.Time {
	if at := c.polled.Load(); at > 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// Lag is how many records are ahead of what was applied, as the client knows it from its last fetches. It knows nothing, and says so by
// leaving partitions out, of what it has not fetched yet, while it is paused or the broker is away, and when there is no Config.Stats.
func (c *Consumer) Lag() map[Partition]int64 {
	c.lagMu.Lock()
	defer c.lagMu.Unlock()
	if c.cfg.Stats == nil || time.Since(c.lagAt) > 3*c.cfg.Stats.every {
		return nil
	}
	return maps.Clone(c.lag)
}

func (c *Consumer) setLag(lag map[Partition]int64) {
	c.lagMu.Lock()
	defer c.lagMu.Unlock()
	c.lag, c.lagAt = lag, time.Now()
}

// Err is what keeps the consumer from its work at the moment, nil when nothing does.
func (c *Consumer) Err() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return c.trouble.reason()
}

func (c *Consumer) fails(err error) { c.failure.Store(&err) }
func (c *Consumer) works()          { c.failure.Store(nil) }

// Run consumes until ctx ends, then finishes the batch in hand.
func (c *Consumer) Run(ctx context.Context, h Handler) {
	// The batch in hand gets some time after ctx has ended.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		sleep(work, closeTimeout)
		cancel()
	})()

	last := ""
	for wait := time.Duration(0); ; wait = min(max(2*wait, 100*time.Millisecond), 5*time.Second) {
		if !sleep(ctx, wait) {
			return
		}
		s, err := c.join(h)
		if err == nil {
			s.run(ctx, work)
			err = s.end
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errRenewed) { // no failure, and the Admin has logged it
			wait = 0
			continue
		}
		if s != nil && s.applied {
			wait, last = 0, ""
		}
		c.fails(err)
		if err.Error() != last {
			last = err.Error()
			c.log.Warn("consumer joins anew", "reason", err)
		}
	}
}

// session is one client's life. All but the watch runs on Run's goroutine: librdkafka allows one that polls and closes.
type session struct {
	*Consumer
	client  *kafka.Consumer
	renewed <-chan struct{} // closed when the TLS files have changed
	logs    *logs
	handler Handler
	work    context.Context

	parts   map[place]*part
	fill    Batch // being collected
	bytes   int   // in fill
	hand    Batch // being applied
	paused  bool
	closing bool
	applied bool  // at least one batch: this session was of use
	end     error // why the session is over

	changed chan error // from the watch
	mu      sync.Mutex
	ids     map[string]string // by topic, as of its last assignment
}

// part is an assigned partition.
type part struct {
	id   Partition
	next int64 // what comes next, after all that is collected
}

func (c *Consumer) join(h Handler) (*session, error) {
	s := &session{
		Consumer: c, logs: newLogs(c.log), handler: h,
		parts: make(map[place]*part), changed: make(chan error, 1), ids: make(map[string]string),
	}
	s.fill.Next = make(map[Partition]int64)
	settings, renewed, err := c.cfg.client(s.logs.settings(kafka.ConfigMap{
		"group.id":             c.cc.Group,
		"group.protocol":       "consumer",
		"max.poll.interval.ms": int(c.cc.MaxSilence.Milliseconds()),
		"auto.offset.reset":    "earliest", // only when the store's offset is no longer in the log
		"isolation.level":      "read_committed",
		"enable.partition.eof": true,
		// The commit is a hint for whoever watches the lag: stored after Apply, sent in the background.
		"enable.auto.commit":       true,
		"auto.commit.interval.ms":  1000,
		"enable.auto.offset.store": false,
		// Bounds what waits in memory; with a small queue the pause after it was full has to be short.
		"queued.max.messages.kbytes": 16 << 10,
		"fetch.queue.backoff.ms":     20,
		"fetch.error.backoff.ms":     100,
		"fetch.wait.max.ms":          100, // a partition assigned or resumed meanwhile waits for the running fetch
		"statistics.interval.ms":     c.cfg.Stats.millis(),
	}))
	if err == nil {
		s.renewed = renewed
		s.client, err = kafka.NewConsumer(settings)
	}
	if err != nil {
		s.logs.close()
		return nil, fmt.Errorf("make consumer: %w", err)
	}
	c.cfg.Stats.next(kindConsumer)
	return s, nil
}

func (s *session) run(ctx, work context.Context) {
	s.work = work
	watch, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(watch) })
	defer watching.Wait()
	defer stop()
	defer s.close()

	if err := s.client.SubscribeTopics(s.cc.Topics, s.rebalance); err != nil {
		s.end = fmt.Errorf("subscribe: %w", explain(err))
	}
	for s.end == nil && ctx.Err() == nil {
		s.look()
		s.collect()
		if s.end == nil && len(s.fill.Next) > 0 {
			s.apply(ctx)
		}
	}
}

// collect polls until there is nothing more at hand or the batch is full.
func (s *session) collect() {
	wait := pollWait
	for s.end == nil && len(s.fill.Records) < s.cc.MaxRecords && s.bytes < s.cc.MaxBytes && s.poll(wait) {
		wait = 0
	}
}

// poll takes one event, and says whether there was one and the session goes on.
func (s *session) poll(wait time.Duration) bool {
	if wait > 0 { // not for each record
		s.polled.Store(time.Now().UnixNano())
	}
	event := s.client.Poll(int(wait.Milliseconds()))
	switch e := event.(type) {
	case nil:
		s.look()
		return false
	case *kafka.Message:
		if p := s.parts[place{*e.TopicPartition.Topic, e.TopicPartition.Partition}]; p != nil {
			s.add(p, record(e))
		}
	case kafka.PartitionEOF:
		if p := s.parts[place{*e.Topic, e.Partition}]; p != nil {
			s.trouble.over()
			if int64(e.Offset) > p.next {
				p.next = int64(e.Offset)
				s.fill.Next[p.id] = p.next
			}
		}
	case kafka.OffsetsCommitted:
		if e.Error != nil && !is(e.Error, kafka.ErrNoOffset) {
			s.log.Debug("commit", "err", e.Error) // a hint only, and the next one says the same
		}
	case *kafka.Stats:
		s.report(e)
	case kafka.Error:
		if e.IsFatal() || is(e, kafka.ErrGroupAuthorizationFailed) { // which is fatal only where the group may be described
			s.end = explain(e)
		} else {
			s.trouble.report(e)
		}
	}
	return s.end == nil
}

// errRenewed ends a session that is to go on with a client of the new TLS files.
var errRenewed = errors.New("the TLS files have changed")

// look takes what the watch and the Admin have to say.
func (s *session) look() {
	select {
	case s.end = <-s.changed:
	case <-s.renewed:
		s.end = errRenewed
	default:
	}
}

// report takes the client's statistics. While it is paused, or has lost the broker, it fetches nothing: the lag that it still tells
// would be that of before.
func (s *session) report(e *kafka.Stats) {
	now, err := s.cfg.Stats.take(kindConsumer, e.String())
	if err != nil {
		s.log.Error("statistics of the consumer", "err", err)
		return
	}
	lag, connected := make(map[Partition]int64, len(s.parts)), now.connected()
	for at, p := range s.parts {
		if in, ok := now.Topics[at.topic].Partitions[at.number]; ok && in.Lag >= 0 && connected[in.Broker] && !s.paused {
			lag[p.id] = in.Lag
		}
	}
	s.setLag(lag)
}

func (s *session) add(p *part, r Record) {
	if r.Offset < p.next {
		// The log is shorter than the store's position: it lost its end. What is in it now has to be read, duplicates do no harm.
		s.log.Error("the partition went back: records were lost in Kafka", "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "expected", p.next)
	}
	s.fill.Records = append(s.fill.Records, r)
	s.bytes += len(r.Key) + len(r.Value)
	p.next = r.Offset + 1
	s.fill.Next[p.id] = p.next
}

// apply hands the collected batch to the handler until it is stored, the partitions in it are gone, or the session or ctx ends.
func (s *session) apply(ctx context.Context) {
	s.hand, s.fill, s.bytes = s.fill, Batch{Next: make(map[Partition]int64, len(s.parts))}, 0
	for wait := 100 * time.Millisecond; len(s.hand.Next) > 0; wait = min(2*wait, 5*time.Second) {
		err := s.handler.Apply(s.work, s.hand)
		if err == nil {
			s.applied = true
			s.works()
			s.trouble.over()
			s.store(s.hand.Next)
			break
		}
		if errors.Is(err, ErrFenced) {
			s.end = err
			return
		}
		s.fails(err)
		if ctx.Err() != nil {
			s.log.Warn("shutdown with a batch not applied: it is read again at the next start", "err", err)
			return
		}
		s.log.Warn("apply batch: trying again", "err", err, "records", len(s.hand.Records), "wait", wait)
		s.pause()
		// Polling keeps the membership. What still arrives is collected behind the batch in hand.
		for until := time.Now().Add(wait); ctx.Err() == nil && len(s.hand.Next) > 0; {
			left := time.Until(until)
			if left <= 0 {
				break
			}
			if s.poll(min(left, pollWait)); s.end != nil {
				return
			}
		}
	}
	s.hand = Batch{}
	s.resume()
}

func (s *session) pause() {
	if !s.paused {
		s.paused = true
		s.setLag(nil)
		s.must("pause", s.client.Pause(s.places()))
	}
}

func (s *session) resume() {
	if s.paused {
		s.paused = false
		s.must("resume", s.client.Resume(s.places()))
	}
}

// must ends the session on an error that would leave the client in an unknown state.
func (s *session) must(what string, err error) {
	if err != nil && s.end == nil {
		s.end = fmt.Errorf("%s: %w", what, explain(err))
	}
}

func (s *session) places() []kafka.TopicPartition {
	var tps []kafka.TopicPartition
	for at := range s.parts {
		tps = append(tps, kafka.TopicPartition{Topic: &at.topic, Partition: at.number})
	}
	return tps
}

// store leaves the hint for the background commit.
func (s *session) store(next map[Partition]int64) {
	tps := make([]kafka.TopicPartition, 0, len(next))
	for p, offset := range next {
		tps = append(tps, kafka.TopicPartition{Topic: &p.Topic, Partition: p.Number, Offset: kafka.Offset(offset)})
	}
	if _, err := s.client.StoreOffsets(tps); err != nil {
		s.log.Debug("store offsets", "err", err) // a partition is on its way out
	}
}

// rebalance is called by librdkafka within Poll and Close. It always assigns by itself: without that the wrapper would, and report an
// error to a channel that nobody made, which blocks for ever.
func (s *session) rebalance(client *kafka.Consumer, event kafka.Event) error {
	switch e := event.(type) {
	case kafka.AssignedPartitions:
		s.rebalances.Add(1)
		if s.end == nil && !s.closing {
			s.end = s.assign(e.Partitions) // each with the offset to start from
		}
		err := client.IncrementalAssign(e.Partitions)
		if s.end != nil || s.closing {
			return nil // it only had to be acknowledged
		}
		if err != nil {
			s.end = fmt.Errorf("assign: %w", explain(err))
			return nil
		}
		if s.paused {
			s.must("pause", client.Pause(e.Partitions))
		} else { // librdkafka remembers when it was paused, revoked, and comes back
			s.must("resume", client.Resume(e.Partitions))
		}
		// A partition in which nothing happens would show no commit at all.
		hint := make(map[Partition]int64)
		for _, tp := range e.Partitions {
			p := s.parts[place{*tp.Topic, tp.Partition}]
			hint[p.id] = p.next
		}
		s.store(hint)
		s.trouble.over()
		s.works()
	case kafka.RevokedPartitions:
		s.rebalances.Add(1)
		if !s.closing {
			s.revoke(e.Partitions, client.AssignmentLost())
		}
		if err := client.IncrementalUnassign(e.Partitions); err != nil && !s.closing {
			s.must("unassign", err)
		}
	}
	return nil
}

// assign asks the topics' IDs of Kafka and the offsets of the handler, and sets them in tps.
func (s *session) assign(tps []kafka.TopicPartition) error {
	infos, err := s.admin.Topics(s.work, s.cc.Topics...)
	if missing, ok := errors.AsType[*MissingTopicsError](err); ok && infos != nil {
		err = nil
		for _, tp := range tps {
			if slices.Contains(missing.Names, *tp.Topic) {
				err = missing
			}
		}
	}
	if err != nil {
		return fmt.Errorf("look up assigned topics: %w", err)
	}
	ids := make([]Partition, len(tps))
	for i, tp := range tps {
		ids[i] = Partition{Topic: *tp.Topic, TopicID: infos[*tp.Topic].ID, Number: tp.Partition}
	}
	offsets, err := s.handler.Assigned(s.work, ids)
	if err != nil {
		return fmt.Errorf("load positions: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range ids {
		tps[i].Offset = kafka.Offset(offsets[p])
		s.parts[place{p.Topic, p.Number}] = &part{id: p, next: offsets[p]}
		s.ids[p.Topic] = p.TopicID
	}
	s.assigned.Store(int64(len(s.parts)))
	s.log.Info("partitions assigned", "partitions", len(ids), "now", len(s.parts))
	return nil
}

func (s *session) revoke(tps []kafka.TopicPartition, lost bool) {
	var gone []Partition
	for _, tp := range tps {
		at := place{*tp.Topic, tp.Partition}
		if p := s.parts[at]; p != nil {
			delete(s.parts, at)
			gone = append(gone, p.id)
		}
	}
	if len(gone) == 0 {
		return
	}
	s.fill, s.hand = s.fill.without(gone), s.hand.without(gone)
	s.lagMu.Lock()
	for _, p := range gone {
		delete(s.lag, p)
	}
	s.lagMu.Unlock()
	s.assigned.Store(int64(len(s.parts)))
	s.handler.Revoked(gone)
	s.log.Info("partitions revoked", "partitions", len(gone), "now", len(s.parts), "lost", lost)
}

// without leaves the batch alone and returns one that lacks some partitions.
func (b Batch) without(gone []Partition) Batch {
	next := maps.Clone(b.Next)
	maps.DeleteFunc(next, func(p Partition, _ int64) bool { return slices.Contains(gone, p) })
	if len(next) == len(b.Next) {
		return b
	}
	var kept []Record
	for _, r := range b.Records {
		if !slices.ContainsFunc(gone, func(p Partition) bool { return p.Topic == r.Topic && p.Number == r.Partition }) {
			kept = append(kept, r)
		}
	}
	return Batch{Records: kept, Next: next}
}

// close gives everything back and leaves the group. Close commits the hints, which can take long when the coordinator is gone, so it may
// be left behind: nothing else uses the client then.
func (s *session) close() {
	s.closing = true
	if len(s.parts) > 0 {
		var gone []Partition
		for _, p := range s.parts {
			gone = append(gone, p.id)
		}
		s.handler.Revoked(gone)
	}
	s.assigned.Store(0)
	s.setLag(nil)
	s.cfg.Stats.next(kindConsumer)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if err := s.client.Close(); err != nil {
			s.log.Error("close consumer", "err", err)
		}
		s.logs.close()
	}()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
		s.log.Warn("the consumer did not leave its group in time; Kafka will notice by itself")
	}
}

// watch looks whether a topic was made anew: its offsets begin at 0 again, and librdkafka alone would go on at the old ones.
func (s *session) watch(ctx context.Context) {
	gone := ""
	for sleep(ctx, s.cc.TopicCheck) {
		infos, err := s.admin.Topics(ctx, s.cc.Topics...)
		missing, ok := errors.AsType[*MissingTopicsError](err)
		switch {
		case ok && missing.Error() != gone:
			gone = missing.Error()
			s.log.Error("topics to consume do not exist", "missing", missing.Names)
		case err == nil:
			gone = ""
			s.trouble.over() // in a quiet topic nothing else tells that an outage is over
		}
		s.mu.Lock()
		known := maps.Clone(s.ids)
		s.mu.Unlock()
		for name, info := range infos {
			if id := known[name]; id != "" && id != info.ID {
				s.changed <- fmt.Errorf("topic %s was made anew: its ID was %s and is %s", name, id, info.ID)
				return
			}
		}
	}
}
