package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/internal/backoff"
)

// pollWait is how long one call into librdkafka may block. librdkafka does not know contexts.
const pollWait = 100 * time.Millisecond

// longApply is how long the session polls at most while a batch is applied. A handler that hangs must show:
// LastPoll stands still then, and Kafka gives the partitions to another member after MaxSilence.
const longApply = time.Second

// errReconnected ends a session when Kafka is back after all brokers were away. They may have come
// back with another log, of which the positions know nothing. If their leader epochs went back too,
// this client would not even read it. So the next session checks the positions.
var errReconnected = errors.New("Kafka is back: its log may be another one")

// errReadable ends a session when a partition can be read that could not be. What was mended may have
// brought another log, such as that of another replica. So the next session checks the position.
var errReadable = errors.New("a partition can be read again: its log may be another one")

// errOutOfRange ends a session whose position is not in the log any more: the log has lost its end,
// or its start was deleted. The next session compares the positions with the log.
var errOutOfRange = errors.New("the log does not have the offset to read")

// session is one client from joining the group to leaving it. Everything but the watch of topics and
// Apply runs on one goroutine: librdkafka allows only one that polls and closes. While a batch is applied,
// the next one is collected.
type session struct {
	*membership
	client *kafka.Consumer
	// renewed is closed when the TLS files have changed.
	renewed <-chan struct{}
	logs    *logs
	handler Handler
	// work is the context of the handler's calls. It outlives that of the session.
	work       context.Context
	assignment *assignment

	// fill is the batch that is being collected, and bytes the size of its keys and values.
	fill  Batch
	bytes int
	// rescued is what librdkafka could not read, as far as it is not in fill yet. It may have no
	// records. Its partition is rescuedAt, or nil when there is nothing.
	rescued   finding
	rescuedAt *position
	examiner  examiner
	// cause is an error of the client that no examination has explained yet, or nil.
	cause error
	// hand is the batch that is being applied, or that could not be.
	hand Batch
	// applying gets the result of Apply for it. It is nil when nothing is being applied. begun is when that began.
	applying chan error
	begun    time.Time
	// failed is the last result.
	failed  error
	closing bool
	// applied reports whether a batch was applied, so that this session was of use.
	applied bool
	// end is why the session is over.
	end error
	// stray is why the session is over once what it has collected is applied.
	stray error
	// changed has room for one error, of the watch.
	changed chan error
}

// runSession joins the group and consumes until ctx ends or the session does. It returns why the
// session is over, and reports whether a batch was applied in it.
func runSession(ctx, work context.Context, m *membership, h Handler) (useful bool, err error) {
	s, err := newSession(work, m, h)
	if err != nil {
		return false, err
	}
	s.run(ctx)
	return s.applied, s.end
}

// newSession makes a session and its client. The client joins the group when it subscribes.
func newSession(work context.Context, m *membership, h Handler) (*session, error) {
	s := &session{
		membership: m, logs: newLogs(m.log), handler: h, work: work, changed: make(chan error, 1),
		examiner: examiner{cfg: m.cfg},
	}
	s.fill.Next = make(map[Partition]int64)
	settings, renewed, err := clientSettings(m.cfg, s.logs.settings(fetchSettings(kafka.ConfigMap{
		"group.id":       m.cc.Group,
		"group.protocol": "consumer",
		// A member has the partitions of the same numbers of all topics.
		"group.remote.assignor": "range",
		"max.poll.interval.ms":  int(m.cc.MaxSilence.Milliseconds()),
		// An offset of the store that the log does not have is never skipped silently: see
		// errOutOfRange.
		"auto.offset.reset":    "error",
		"isolation.level":      "read_committed",
		"enable.partition.eof": true,
		// The commit is only a hint for tools that show the lag. Its offset is set after Apply and
		// sent in the background.
		"enable.auto.commit":       true,
		"auto.commit.interval.ms":  1000,
		"enable.auto.offset.store": false,
		// This bounds what waits in memory. With a small queue, the pause after it was full has to
		// be short.
		"queued.max.messages.kbytes": 16 << 10,
		"fetch.queue.backoff.ms":     20,
		"fetch.error.backoff.ms":     100,
		// A partition that is assigned or resumed during a fetch waits until that fetch returns.
		"fetch.wait.max.ms":      100,
		"statistics.interval.ms": m.cfg.Stats.millis(),
	})))
	if err == nil {
		s.renewed = renewed
		s.client, err = kafka.NewConsumer(settings)
	}
	if err != nil {
		s.logs.close()
		return nil, fmt.Errorf("make consumer: %w", err)
	}
	s.assignment = newAssignment(work, m, s.client, h)
	m.cfg.Stats.open(kindConsumer, s.client.String())
	m.lost.Store(false)
	return s, nil
}

func (s *session) run(ctx context.Context) {
	watched, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(watched) })
	defer watching.Wait()
	defer stop()
	defer s.close()

	if err := s.client.SubscribeTopics(s.cc.Topics, s.rebalance); err != nil {
		s.end = fmt.Errorf("subscribe: %w", explain(err))
	}
	for s.end == nil && ctx.Err() == nil {
		s.look()
		s.collect(pollWait)
		if s.end == nil && (len(s.fill.Next) > 0 || s.due()) {
			s.apply(ctx)
		}
		if s.stray != nil {
			s.settle(ctx)
			s.fail(s.stray)
		}
	}
}

// watch lets the session end when one of its topics was recreated.
func (s *session) watch(ctx context.Context) {
	if err := watchTopics(ctx, s.membership, s.assignment.topicIDs); err != nil {
		s.changed <- err
	}
}

// look ends the session if the watch or the Admin demands it. From time to time it examines
// partitions again that cannot be read.
func (s *session) look() {
	select {
	case s.end = <-s.changed:
	case <-s.renewed:
		s.end = errRenewed
	default:
		switch {
		case !s.examiner.due():
		case s.cause != nil:
			s.examine()
		case len(s.assignment.offsets(true)) > 0:
			s.examineStopped()
		}
	}
}

// fail ends the session, if nothing else has ended it before.
func (s *session) fail(err error) {
	if s.end == nil {
		s.end = err
	}
}

// sought notes the result of a seek. librdkafka refuses one of a partition that it has given up, as it may soon
// behind a damaged batch, and the session has to end. What was read instead of the batch is applied first, so the
// next session begins behind it. It would meet the same batch otherwise.
func (s *session) sought(err error) {
	if is(err, kafka.ErrState) {
		s.stray = err
		return
	}
	s.fail(err)
}

// collect polls until no more records are ready or the batch is full. It waits that long for the first one.
func (s *session) collect(wait time.Duration) {
	for s.end == nil && len(s.fill.Records) < s.cc.MaxRecords && s.bytes < s.cc.MaxBytes && s.next(wait) {
		wait = 0
	}
}

// next takes a record that was rescued, or polls. It reports whether there may be more.
func (s *session) next(wait time.Duration) bool {
	p := s.rescuedAt
	switch {
	case p == nil:
		return s.poll(wait)
	case s.assignment.positions[s.rescued.at] != p:
		// It was revoked meanwhile.
		s.rescued, s.rescuedAt = finding{}, nil
	default:
		if len(s.rescued.records) > 0 {
			s.add(p, s.rescued.records[0])
			s.rescued.records = s.rescued.records[1:]
		}
		if len(s.rescued.records) == 0 {
			p.next = s.rescued.next
			s.fill.Next[p.id] = p.next
			s.sought(s.assignment.seek(p))
			s.rescued, s.rescuedAt = finding{}, nil
		}
	}
	return s.end == nil
}

// poll handles one event. It reports whether there was one and the session goes on.
func (s *session) poll(wait time.Duration) bool {
	// The time is taken once a batch: once a record is too expensive.
	if wait > 0 {
		s.polled.Store(time.Now().UnixNano())
	}
	event := s.client.Poll(int(wait.Milliseconds()))
	switch e := event.(type) {
	case nil:
		s.look()
		return false
	case *kafka.Message:
		if s.lost.Load() {
			s.end = errReconnected
			return false
		}
		// What follows a refused seek may be of any offset.
		if p := s.assignment.position(e.TopicPartition); p != nil && s.stray == nil {
			s.add(p, record(e))
		}
	case kafka.PartitionEOF:
		if p := s.assignment.position(kafka.TopicPartition(e)); p != nil && s.stray == nil {
			s.trouble.over()
			if s.lost.Load() {
				s.end = errReconnected
			} else if int64(e.Offset) > p.next {
				p.next = int64(e.Offset)
				s.fill.Next[p.id] = p.next
			}
		}
	case kafka.OffsetsCommitted:
		// The commit is only a hint, and the next one brings what this one did not.
		if e.Error != nil && !is(e.Error, kafka.ErrNoOffset) {
			s.log.Debug("commit", "err", e.Error)
		}
	case *kafka.Stats:
		s.report(e)
	case kafka.Error:
		// A missing permission on the group is fatal to librdkafka only where the group may be
		// described.
		if e.IsFatal() || is(e, kafka.ErrGroupAuthorizationFailed) {
			s.end = explain(e)
		} else if is(e, kafka.ErrAutoOffsetReset) {
			s.locate()
		} else if aboutBatch(e) || is(e, kafka.ErrTopicAuthorizationFailed) {
			s.cause = e
			s.examine()
		} else {
			s.trouble.report(e)
			if is(e, kafka.ErrAllBrokersDown) && len(s.assignment.positions) > 0 {
				s.lost.Store(true)
			}
		}
	}
	return s.end == nil
}

// locate finds out why a log does not have the offset that librdkafka wanted to read. The session ends with
// errOutOfRange if it is a position of the handler. Else librdkafka has strayed, as it may behind a damaged batch,
// and is brought back. Or the log has lost its end and has grown past the positions again: then the seek fails,
// because librdkafka has given the partition up, and that ends the session too.
func (s *session) locate() {
	first, end, err := s.admin.Bounds(s.work, s.cc.Topics...)
	if err != nil {
		s.fail(err)
		return
	}
	for _, p := range s.assignment.positions {
		if p.next < first[p.id] || p.next > end[p.id] {
			s.fail(errOutOfRange)
			return
		}
	}
	s.sought(s.assignment.seekAll())
}

// examine finds out which partitions the cause is about, and reads what librdkafka cannot.
func (s *session) examine() {
	if s.rescuedAt != nil || s.assignment.paused {
		// look examines them later. A client that is paused drops what it has read.
		return
	}
	cause := s.cause
	found, err := s.examiner.examine(s.work, s.assignment.offsets(false), aboutBatch(cause))
	s.trouble.examined(err)
	for _, f := range found {
		p := s.assignment.positions[f.at]
		switch {
		case f.err != nil:
			s.trouble.unread(f.at, f.err)
			s.fail(s.assignment.stop(p))
		case f.next > 0:
			s.rescued, s.rescuedAt = f, p
		}
	}
	if readsOn(cause) {
		s.sought(s.assignment.seekAll())
	}
	if err != nil {
		return
	}
	s.cause = nil
	if !aboutBatch(cause) && len(s.assignment.offsets(true)) == 0 {
		s.trouble.report(cause)
	}
}

// examineStopped ends the session when a partition can be read again that could not be.
func (s *session) examineStopped() {
	found, err := s.examiner.examine(s.work, s.assignment.offsets(true), false)
	s.trouble.examined(err)
	for _, f := range found {
		if f.err != nil {
			s.trouble.unread(f.at, f.err)
			continue
		}
		s.trouble.read(f.at)
		s.fail(errReadable)
	}
}

// add puts a record into the batch that is being collected.
func (s *session) add(p *position, r Record) {
	s.fill.Records = append(s.fill.Records, r)
	s.bytes += r.size()
	p.next = r.Offset + 1
	s.fill.Next[p.id] = p.next
}

// report takes the lag from the client's statistics.
func (s *session) report(e *kafka.Stats) {
	now, err := s.cfg.Stats.take(kindConsumer, e.String())
	if err != nil {
		s.log.Error("statistics of the consumer", "err", err)
		return
	}
	s.setLag(s.assignment.lag(now, time.Now()))
}

// apply hands the collected batch to the handler, as soon as that has stored the one before.
func (s *session) apply(ctx context.Context) {
	s.settle(ctx)
	if s.end != nil || ctx.Err() != nil {
		return
	}
	// What has come meanwhile goes with it.
	s.collect(0)
	if s.end != nil || len(s.fill.Next) == 0 {
		return
	}
	s.hand, s.fill, s.bytes = s.fill, Batch{Next: make(map[Partition]int64, len(s.assignment.positions))}, 0
	s.begin()
}

// begin begins to apply the batch in hand.
func (s *session) begin() {
	hand, result := s.hand, make(chan error, 1)
	s.applying, s.begun = result, time.Now()
	go func() { result <- s.handler.Apply(s.work, hand) }()
}

// due reports whether the batch in hand has been tried, or that takes so long that nothing may be polled meanwhile.
func (s *session) due() bool {
	if len(s.hand.Next) == 0 {
		return false
	}
	return s.applying == nil || len(s.applying) > 0 || time.Since(s.begun) > longApply
}

// await waits until nothing is being applied. If the batch in hand is stored, there is none afterwards.
func (s *session) await() {
	if s.applying == nil {
		return
	}
	s.failed, s.applying = <-s.applying, nil
	if s.failed == nil {
		s.applied = true
		s.works()
		if !s.lost.Load() {
			// The records came from Kafka, but maybe before it was lost.
			s.trouble.over()
		}
		s.assignment.storeHint(s.hand.Next)
		s.hand = Batch{}
	}
}

// settle waits for the batch in hand. If it could not be applied, settle tries again until it is stored, its
// partitions are revoked, or the session or ctx ends.
func (s *session) settle(ctx context.Context) {
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for s.await(); len(s.hand.Next) > 0; s.await() {
		if errors.Is(s.failed, ErrFenced) {
			s.end = s.failed
			return
		}
		s.fails(s.failed)
		if ctx.Err() != nil {
			return
		}
		wait := retry.Next()
		s.log.Warn("apply batch: trying again", "err", s.failed, "records", len(s.hand.Records), "wait", wait)
		s.fail(s.assignment.pause())
		s.pollFor(ctx, wait)
		if s.end != nil {
			return
		}
		if len(s.hand.Next) > 0 {
			s.begin()
		}
	}
	s.hand = Batch{}
	s.fail(s.assignment.resume())
}

// pollFor polls for some time, which keeps the membership. Records that still arrive are collected
// behind the batch in hand. It returns early when that batch has no partition left.
func (s *session) pollFor(ctx context.Context, d time.Duration) {
	for until := time.Now().Add(d); ctx.Err() == nil && s.end == nil && len(s.hand.Next) > 0; {
		left := time.Until(until)
		if left <= 0 {
			return
		}
		s.poll(min(left, pollWait))
	}
}

// rebalance is called by librdkafka within Poll and Close. It always assigns or unassigns itself.
// Otherwise the wrapper does so and sends its error to a channel that does not exist, which blocks
// for ever.
func (s *session) rebalance(client *kafka.Consumer, event kafka.Event) error {
	// Whoever has the partitions next finds what this member has stored of them.
	s.await()
	switch e := event.(type) {
	case kafka.AssignedPartitions:
		s.rebalances.Add(1)
		if s.end != nil || s.closing {
			// The partitions only have to be acknowledged: the session gives them back at once.
			_ = client.IncrementalAssign(e.Partitions)
			return nil
		}
		if err := s.assignment.add(e.Partitions); err != nil {
			s.end = err
			return nil
		}
		s.trouble.over()
		s.works()
	case kafka.RevokedPartitions:
		s.rebalances.Add(1)
		for _, tp := range e.Partitions {
			s.trouble.forget(topicPartition{*tp.Topic, tp.Partition})
		}
		if !s.closing {
			gone := s.assignment.remove(e.Partitions, client.AssignmentLost())
			s.drop(gone)
		}
		if err := client.IncrementalUnassign(e.Partitions); err != nil && !s.closing {
			s.fail(fmt.Errorf("unassign: %w", explain(err)))
		}
	}
	return nil
}

// drop takes partitions out of what is collected and of the batch in hand.
func (s *session) drop(gone []Partition) {
	s.fill, s.hand = s.fill.without(gone), s.hand.without(gone)
	s.bytes = 0
	for i := range s.fill.Records {
		s.bytes += s.fill.Records[i].size()
	}
}

// close gives all partitions back and leaves the group. Closing the client commits the hints, which
// can take long when the coordinator is gone. So it may be left behind: nothing uses the client any
// more.
func (s *session) close() {
	s.closing = true
	s.await()
	if s.end == nil && len(s.hand.Next) > 0 {
		s.log.Warn("shutdown with a batch not applied: it is read again at the next start", "err", s.failed)
	}
	s.trouble.forget(slices.Collect(maps.Keys(s.assignment.positions))...)
	s.assignment.end()
	s.cfg.Stats.close(kindConsumer, s.client.String())
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
