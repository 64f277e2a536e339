package order

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

const (
	kafkaPatience = 5 * time.Second  // until Kafka has told where a topic ends
	stallAfter    = 15 * time.Second // without a record, a read of a topic is given up
	answersAtOnce = 4                // each holds a connection to its index, and an index that was replaced; the pool has no fewer
)

var errStalled = errors.New("nothing comes from Kafka")

// auditor tells what a topic holds, from reading the topic itself. What it has read it keeps in an index, so that a request reads
// only what is new; callers that come together share one read.
type auditor struct {
	dir        string
	stallAfter time.Duration
	metrics    *metrics
	log        *slog.Logger

	bounds boundsFunc
	read   func(ctx context.Context, from, to map[broker.Partition]int64, apply func(context.Context, []broker.Record) error) error

	ctx  context.Context // of the reads: they belong to all their callers
	stop context.CancelFunc
	wg   sync.WaitGroup

	answers chan struct{} // a place for each answer being written

	mu     sync.Mutex
	topics map[string]*audited
	files  int // made so far, for their names
}

// boundsFunc is broker.Admin.Bounds: where topics begin and end.
type boundsFunc func(ctx context.Context, topics ...string) (first, end map[broker.Partition]int64, err error)

// audited is a topic's index and who is bringing it forward.
type audited struct {
	name    string
	index   *index
	running *reading
	waiting *reading // starts when running has ended
}

// reading is one read of a topic. Its fields are under the auditor's lock, and fixed once it runs, except callers.
type reading struct {
	first, end map[broker.Partition]int64
	fresh      bool // everything, not only what is new
	callers    int
	cancel     context.CancelCauseFunc
	done       chan struct{} // closed once index and err are set
	index      *index
	err        error
}

// newAuditor removes what an earlier run has left: the topics may have been made anew since.
func newAuditor(dir string, cfg broker.Config, admin *broker.Admin, m *metrics, log *slog.Logger) (*auditor, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("remove old audit indexes: %w", err)
	}
	a := &auditor{dir: dir, stallAfter: stallAfter, metrics: m, log: log, topics: map[string]*audited{}, bounds: admin.Bounds, answers: make(chan struct{}, answersAtOnce)}
	a.read = func(ctx context.Context, from, to map[broker.Partition]int64, apply func(context.Context, []broker.Record) error) error {
		return broker.ReadTo(ctx, cfg, log, contract.GroupAudit, from, to, apply)
	}
	a.ctx, a.stop = context.WithCancel(context.Background())
	return a, nil
}

// close ends the reads and removes the indexes.
func (a *auditor) close() error {
	a.mu.Lock()
	a.stop() // under the lock: no read starts after it
	a.mu.Unlock()
	a.wg.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, t := range a.topics {
		if t.index != nil {
			errs = append(errs, t.index.close())
			t.index = nil
		}
	}
	return errors.Join(append(errs, os.RemoveAll(a.dir))...)
}

// snapshot returns the topic's orders up to the end that it has now, or to a later one. With fresh, all of it is read again.
func (a *auditor) snapshot(ctx context.Context, topic string, fresh bool) (*snapshot, error) {
	asked, cancel := context.WithTimeout(ctx, kafkaPatience)
	first, end, err := a.bounds(asked, topic)
	cancel()
	if err != nil {
		return nil, a.unreadable(topic, err)
	}
	ix, err := a.upTo(ctx, topic, first, end, fresh)
	if err != nil {
		return nil, a.unreadable(topic, err)
	}
	select {
	case a.answers <- struct{}{}:
	case <-ctx.Done():
		a.release(ix)
		return nil, a.unreadable(topic, context.Cause(ctx))
	case <-time.After(kafkaPatience):
		a.release(ix)
		return nil, problem{http.StatusServiceUnavailable, "Too many audits are being answered; try again later.", kafkaPatience}
	}
	leave := func() {
		<-a.answers
		a.release(ix)
	}
	tx, err := ix.db.Read.BeginTx(ctx, nil)
	if err != nil {
		leave()
		return nil, fmt.Errorf("read the audit's index: %w", err)
	}
	s := &snapshot{topic: topic, tx: tx, close: func() {
		_ = tx.Rollback() // it was only read
		leave()
	}}
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM orders").Scan(&s.orders); err != nil {
		s.close()
		return nil, fmt.Errorf("count the audit's index: %w", err)
	}
	return s, nil
}

// unreadable is the answer when Kafka does not say what the topic holds.
func (a *auditor) unreadable(topic string, err error) error {
	text := "The topic cannot be read now; the Order service's log says why."
	if e, ok := errors.AsType[*broker.MissingTopicsError](err); ok {
		text = "The topic cannot be read: " + e.Error() + "."
	} else if _, ok := errors.AsType[*broker.UnreachableError](err); ok || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errStalled) {
		text = "The topic cannot be read: Kafka is unreachable."
	}
	if !errors.Is(err, context.Canceled) { // the client has gone, or the service stops
		a.log.Warn("audit", "topic", topic, "err", err)
	}
	return problem{http.StatusServiceUnavailable, text, kafkaPatience}
}

// upTo returns an index that has everything below end; the caller releases it.
//
// A read under way serves a caller whose end it will reach. Any other caller waits for the next read, which goes as far as the
// furthest of those who wait for it: nobody waits for more than two.
func (a *auditor) upTo(ctx context.Context, topic string, first, end map[broker.Partition]int64, fresh bool) (*index, error) {
	a.mu.Lock()
	t := a.topics[topic]
	if t == nil {
		t = &audited{name: topic}
		a.topics[topic] = t
	}
	if !fresh && t.index != nil && t.index.covers(end) {
		defer a.mu.Unlock()
		t.index.refs++
		return t.index, nil
	}
	r := t.running
	if r == nil || !r.serves(end, fresh) {
		if t.waiting == nil {
			t.waiting = &reading{done: make(chan struct{})}
		}
		r = t.waiting
		r.extend(first, end, fresh)
	}
	r.callers++
	if t.running == nil {
		a.start(t)
	}
	a.mu.Unlock()

	select {
	case <-r.done:
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-r.done:
		return r.index, r.err
	default:
	}
	if r.callers--; r.callers == 0 { // nobody is left who wants it
		if r == t.waiting {
			t.waiting = nil
		} else {
			r.cancel(context.Canceled)
		}
	}
	return nil, context.Cause(ctx)
}

// serves says whether a read under way is good enough for another caller. One that its last caller has left is about to fail.
func (r *reading) serves(end map[broker.Partition]int64, fresh bool) bool {
	if r.callers == 0 || (fresh && !r.fresh) {
		return false
	}
	for p, last := range end {
		if to, ok := r.end[p]; !ok || to < last {
			return false
		}
	}
	return true
}

// extend makes a read that has not begun go as far as another caller wants.
func (r *reading) extend(first, end map[broker.Partition]int64, fresh bool) {
	r.fresh = r.fresh || fresh
	further := maps.Clone(end)
	for p := range further { // of a topic made anew meanwhile, the old partitions drop out
		further[p] = max(further[p], r.end[p])
	}
	r.first, r.end = first, further
}

// start runs the reading that waits, if there is one. It is called with the lock held.
func (a *auditor) start(t *audited) {
	r := t.waiting
	t.running, t.waiting = r, nil
	if r == nil {
		return
	}
	if a.ctx.Err() != nil {
		t.running, r.err = nil, a.ctx.Err()
		close(r.done)
		return
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	r.cancel = cancel
	a.wg.Go(func() {
		defer cancel(nil)
		ix, err := a.run(ctx, cancel, t, r)
		a.mu.Lock()
		defer a.mu.Unlock()
		switch {
		case err == nil:
			ix.refs += r.callers
			a.install(t, ix)
			r.index = ix
		case ix != nil && ix != t.index:
			a.remove(ix)
		}
		r.err = err
		close(r.done)
		a.start(t)
	})
}

// run brings an index to the reading's end. When it fails, the index that it returns has what was read so far.
func (a *auditor) run(ctx context.Context, cancel context.CancelCauseFunc, t *audited, r *reading) (*index, error) {
	ix, err := a.indexFor(ctx, t, r)
	if err != nil {
		return nil, err
	}
	from, to := map[broker.Partition]int64{}, map[broker.Partition]int64{}
	byNumber := map[int32]broker.Partition{}
	for p, last := range r.end {
		byNumber[p.Number] = p
		if next := max(ix.next[p], r.first[p]); next < last {
			from[p], to[p] = next, last
		}
	}
	if len(to) > 0 {
		a.metrics.auditReads.Inc()
		stall := time.AfterFunc(a.stallAfter, func() { cancel(errStalled) })
		defer stall.Stop()
		err = a.read(ctx, from, to, func(ctx context.Context, records []broker.Record) error {
			stall.Reset(a.stallAfter)
			unusable, err := ix.add(ctx, records)
			if err != nil {
				return err
			}
			a.metrics.auditRecords.Add(float64(len(records)))
			a.metrics.auditUnusable.Add(float64(unusable))
			a.mu.Lock()
			defer a.mu.Unlock()
			for i := range records {
				ix.next[byNumber[records[i].Partition]] = records[i].Offset + 1
			}
			return nil
		})
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if err != nil {
			return ix, fmt.Errorf("read topic %s: %w", t.name, err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for p, last := range r.end { // what is between the last record and the end are gaps
		ix.next[p] = max(ix.next[p], last)
	}
	return ix, nil
}

// indexFor returns the index that a reading goes on with: the topic's, or a new one when everything is to be read or the topic was
// made anew. A new one that is not asked for in place of a good one takes its place at once, so that a caller who gives up early
// leaves the next one less to read.
func (a *auditor) indexFor(ctx context.Context, t *audited, r *reading) (*index, error) {
	var topicID string
	for p := range r.end {
		topicID = p.TopicID
	}
	a.mu.Lock()
	current := t.index
	a.files++
	path := filepath.Join(a.dir, t.name+"-"+strconv.Itoa(a.files)+".db")
	a.mu.Unlock()
	usable := current != nil && current.topicID == topicID
	if usable && !r.fresh {
		return current, nil
	}
	ix, err := newIndex(ctx, path, topicID, a.log)
	if err != nil {
		return nil, fmt.Errorf("make an index: %w", err)
	}
	if !usable {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.install(t, ix)
	}
	return ix, nil
}

// install makes ix the topic's index; the old one goes when its last reader has released it. It is called with the lock held.
func (a *auditor) install(t *audited, ix *index) {
	old := t.index
	if old == ix {
		return
	}
	t.index = ix
	ix.refs++
	if old != nil {
		if old.refs--; old.refs == 0 {
			a.remove(old)
		}
	}
}

func (a *auditor) release(ix *index) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ix.refs--; ix.refs == 0 {
		a.remove(ix)
	}
}

func (a *auditor) remove(ix *index) {
	if err := ix.close(); err != nil {
		a.log.Warn("remove an audit index", "path", ix.path, "err", err)
	}
}
