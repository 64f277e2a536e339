package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"ordersystem.dev/services/internal/broker"
)

// reader keeps the index of one topic. One reading at a time brings it forward.
type reader struct {
	// ctx is the context of the readings. stop ends it, and is called with the lock held.
	ctx  context.Context
	stop context.CancelFunc

	topic        string
	dir          string
	limit        int64
	read         ReadFunc
	stallTimeout time.Duration
	metrics      *metrics
	log          *slog.Logger

	wg sync.WaitGroup // the running reading

	mu      sync.Mutex
	current *index   // nil at first
	running *reading // or nil
	// waiting starts when running has ended. It is nil when there is none.
	waiting *reading
	// files counts the indexes created so far, for the names of their files.
	files int
}

// reading is one read of a topic. Its fields are under the reader's lock. first, end and fresh do
// not change once it runs.
type reading struct {
	first, end map[broker.Partition]int64
	// fresh reads everything, not only what is new.
	fresh bool
	// replaced reports whether Kafka was found to have lost records after it began.
	replaced bool
	// callers counts the audits that wait for it.
	callers int
	cancel  context.CancelCauseFunc

	// done is closed once index and err are set.
	done chan struct{}
	// index has everything below end. Each caller holds a reference to it.
	index *index
	err   error
}

// serves reports whether a running reading is good enough for one more audit. One whose last caller
// has left is about to fail. One that began before records were deleted or lost may have read them.
func (rd *reading) serves(first, end map[broker.Partition]int64, fresh bool) bool {
	if rd.callers == 0 || rd.replaced || (fresh && !rd.fresh) {
		return false
	}
	for p, want := range end {
		if to, ok := rd.end[p]; !ok || to < want || rd.first[p] < first[p] {
			return false
		}
	}
	return true
}

// extend makes a reading that does not run yet go as far as one more audit wants. Partitions that
// the topic no longer has, because it was recreated, are dropped.
func (rd *reading) extend(first, end map[broker.Partition]int64, fresh bool) {
	rd.fresh = rd.fresh || fresh
	further := maps.Clone(end)
	for p := range further {
		further[p] = max(further[p], rd.end[p])
	}
	rd.first, rd.end = first, further
}

// close ends the running reading and removes the index.
func (r *reader) close() error {
	r.mu.Lock()
	// With the lock held, so that no reading starts after it.
	r.stop()
	r.mu.Unlock()
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		return nil
	}
	ix := r.current
	r.current = nil
	return ix.close()
}

// compare finds out whether Kafka still has the log that is in the current index.
func (r *reader) compare(
	ctx context.Context, first map[broker.Partition]int64,
	replaced func(context.Context, map[broker.Partition]broker.Progress) ([]broker.Partition, error),
) error {
	r.mu.Lock()
	ix := r.current
	var read map[broker.Partition]broker.Progress
	if ix != nil && ix.valid(first) {
		read = maps.Clone(ix.read)
	}
	r.mu.Unlock()
	if len(read) == 0 {
		return nil
	}
	lost, err := replaced(ctx, read)
	if err == nil && len(lost) > 0 {
		r.log.Warn("Kafka has lost records that an audit has read: the topic is read again", "topic", r.topic)
		r.mu.Lock()
		defer r.mu.Unlock()
		ix.replaced = true
		if r.running != nil {
			r.running.replaced = true
		}
	}
	return err
}

// upTo returns an index that has everything below end. The caller must release it.
//
// A running reading serves an audit whose end it will reach. Any other audit waits for the next
// reading, which goes as far as the furthest of those who wait for it. So no audit waits for more
// than two.
func (r *reader) upTo(
	ctx context.Context, first, end map[broker.Partition]int64, fresh bool,
) (*index, error) {
	r.mu.Lock()
	if !fresh && r.current != nil && r.current.covers(first, end) {
		defer r.mu.Unlock()
		r.current.refs++
		return r.current, nil
	}
	rd := r.running
	if rd == nil || !rd.serves(first, end, fresh) {
		if r.waiting == nil {
			r.waiting = &reading{done: make(chan struct{})}
		}
		rd = r.waiting
		rd.extend(first, end, fresh)
	}
	rd.callers++
	if r.running == nil {
		r.startWaiting()
	}
	r.mu.Unlock()

	select {
	case <-rd.done:
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-rd.done:
		return rd.index, rd.err
	default:
	}
	rd.callers--
	if rd.callers == 0 && rd == r.waiting {
		r.waiting = nil
	} else if rd.callers == 0 {
		rd.cancel(context.Canceled)
	}
	return nil, context.Cause(ctx)
}

// startWaiting runs the reading that waits, if there is one. The caller holds the lock.
func (r *reader) startWaiting() {
	rd := r.waiting
	r.running, r.waiting = rd, nil
	if rd == nil {
		return
	}
	if err := r.ctx.Err(); err != nil {
		r.running, rd.err = nil, err
		close(rd.done)
		return
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	rd.cancel = cancel
	r.wg.Go(func() {
		defer cancel(nil)
		ix, err := r.run(ctx, cancel, rd)
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case err == nil:
			ix.refs += rd.callers
			r.install(ix)
			rd.index = ix
		case ix != nil && ix != r.current:
			r.remove(ix)
		case errors.Is(err, ErrNoRoom):
			r.shed()
		}
		rd.err = err
		close(rd.done)
		r.startWaiting()
	})
}

// run brings an index to the end of the reading. When it fails, the index that it returns has what
// was read so far; it is nil when there is none. cancel ends ctx.
func (r *reader) run(ctx context.Context, cancel context.CancelCauseFunc, rd *reading) (*index, error) {
	ix, err := r.indexFor(rd)
	if err != nil {
		return nil, err
	}
	from, to := map[broker.Partition]int64{}, map[broker.Partition]int64{}
	r.mu.Lock()
	for p, end := range rd.end {
		if next := max(ix.read[p].Next, rd.first[p]); next < end {
			from[p], to[p] = next, end
		}
	}
	r.mu.Unlock()
	if len(to) > 0 {
		if err := r.readInto(ctx, cancel, ix, from, to); err != nil {
			return ix, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Between the last record and the end there are only gaps.
	for p, end := range rd.end {
		at := ix.progress(p)
		at.Next = max(at.Next, end)
		ix.read[p] = at
	}
	return ix, nil
}

// readInto reads from Kafka into the index. It gives up with ErrStalled when no record comes for
// stallTimeout. The time that the index takes for the records does not count.
func (r *reader) readInto(
	ctx context.Context, cancel context.CancelCauseFunc, ix *index, from, to map[broker.Partition]int64,
) error {
	r.metrics.reads.Inc()
	byNumber := map[int32]broker.Partition{}
	for p := range to {
		byNumber[p.Number] = p
	}
	stall := time.AfterFunc(r.stallTimeout, func() { cancel(ErrStalled) })
	defer stall.Stop()
	err := r.read(ctx, from, to, func(_ context.Context, records []broker.Record) error {
		stall.Stop()
		defer stall.Reset(r.stallTimeout)
		unusable, err := ix.add(records)
		if err != nil {
			r.note(ix, true)
			return err
		}
		r.metrics.records.Add(float64(len(records)))
		r.metrics.unusable.Add(float64(unusable))
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := range records {
			p := byNumber[records[i].Partition]
			at := ix.progress(p)
			at.Pass(&records[i])
			at.Next = records[i].Offset + 1
			ix.read[p] = at
		}
		return nil
	})
	return causeOf(ctx, err)
}

// indexFor returns the index that a reading goes on with. It is a new one when everything is to be
// read, when the topic was recreated, or when records were deleted from it.
//
// A new index that replaces no usable one becomes the current index at once. So the next reading
// goes on where this one ends, even if it fails.
func (r *reader) indexFor(rd *reading) (*index, error) {
	var topicID string
	for p := range rd.end {
		topicID = p.TopicID
	}
	r.mu.Lock()
	current := r.current
	// While a reading begins, an audit that ends may find the index broken.
	usable := current != nil && current.valid(rd.first)
	r.files++
	path := filepath.Join(r.dir, r.topic+"-"+strconv.Itoa(r.files))
	r.mu.Unlock()
	if usable && !rd.fresh {
		return current, nil
	}
	ix, err := newIndex(path, r.limit, topicID, rd.first)
	if err != nil {
		return nil, fmt.Errorf("make an index: %w", roomError(err))
	}
	if !usable {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.install(ix)
	}
	return ix, nil
}

// install makes ix the current index. The one before it is removed when its last user has released
// it. The caller holds the lock.
func (r *reader) install(ix *index) {
	old := r.current
	if old == ix {
		return
	}
	r.current = ix
	ix.refs++
	if old != nil {
		r.drop(old)
	}
}

// shed gives up the current index. It is removed when its last user has released it. The caller holds
// the lock, and no reading uses the index.
func (r *reader) shed() {
	if ix := r.current; ix != nil {
		r.current = nil
		r.drop(ix)
	}
}

// note notes whether an index is broken. The next reading makes a new one then.
func (r *reader) note(ix *index, broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ix.broken = ix.broken || broken
}

// release gives an index back that upTo returned.
func (r *reader) release(ix *index) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(ix)
}

// drop takes one reference from the index. The caller holds the lock.
func (r *reader) drop(ix *index) {
	if ix.refs--; ix.refs == 0 {
		r.remove(ix)
	}
}

// remove deletes an index that nothing uses.
func (r *reader) remove(ix *index) {
	if err := ix.close(); err != nil {
		r.log.Warn("remove an audit index", "path", ix.path, "err", err)
	}
}
