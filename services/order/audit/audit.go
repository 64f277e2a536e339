// Package audit finds out which orders a topic holds by reading the topic itself.
//
// It keeps what it has read in an index on disk, so that an audit reads only what is new. Audits
// that come together share one read.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
)

const (
	// boundsTimeout is how long the look-up of a topic's bounds may take.
	boundsTimeout = 5 * time.Second
	// defaultSlotTimeout is how long an audit waits until one of MaxResults is closed. It is long
	// enough for a client that reads nothing to lose its place: see Result.Wanted.
	defaultSlotTimeout = 10 * time.Second
	// defaultStallTimeout is how long a read may go on without a record.
	defaultStallTimeout = 15 * time.Second
)

// MaxResults is how many results may be open at once. Each has buffers, and may keep an index on disk that was
// replaced.
const MaxResults = 4

// BoundsFunc returns the first offset of each partition of the topics, and the one after the last.
type BoundsFunc func(ctx context.Context, topics ...string) (first, end map[broker.Partition]int64, err error)

// ReadFunc passes the records between two offsets of each partition to apply, in batches that are
// valid only during the call.
type ReadFunc func(
	ctx context.Context, from, to map[broker.Partition]int64,
	apply func(context.Context, []broker.Record) error,
) error

// Source is where an Auditor reads topics.
type Source struct {
	Bounds BoundsFunc
	Read   ReadFunc
	// Replaced returns the partitions whose log is not the one that was read.
	Replaced func(ctx context.Context, read map[broker.Partition]broker.Progress) ([]broker.Partition, error)
	// Withheld returns a *broker.WithheldError if an open transaction keeps a topic from being read
	// to its end.
	Withheld func(ctx context.Context, topics ...string) error
}

// Kafka returns the Source that reads Kafka's topics. Its names are without the prefix of the installation.
func Kafka(cfg broker.Config, admin *broker.Admin, log *slog.Logger) Source {
	return Source{
		Bounds: func(ctx context.Context, topics ...string) (first, end map[broker.Partition]int64, err error) {
			return admin.Bounds(ctx, cfg.Names(topics)...)
		},
		Replaced: admin.Replaced,
		Withheld: func(ctx context.Context, topics ...string) error {
			return admin.Withheld(ctx, cfg.Names(topics)...)
		},
		Read: func(
			ctx context.Context, from, to map[broker.Partition]int64,
			apply func(context.Context, []broker.Record) error,
		) error {
			return broker.ReadTo(ctx, cfg, log, cfg.Name(contract.GroupAudit), from, to, apply)
		},
	}
}

// Auditor audits topics. It is safe for concurrent use.
type Auditor struct {
	dir     string
	lock    *sqldb.Lock
	limit   int64
	source  Source
	metrics *metrics
	log     *slog.Logger

	slotTimeout  time.Duration
	stallTimeout time.Duration

	// ctx is the context of the reads, because a read belongs to all audits that wait for it.
	ctx  context.Context
	stop context.CancelFunc

	// slots has a value for each open result.
	slots chan struct{}

	mu      sync.Mutex
	readers map[string]*reader // by topic
	// waiting is how many audits wait for a slot. wanted has ended while any does.
	waiting int
	wanted  context.Context
	want    context.CancelFunc
}

// New returns an Auditor that keeps its indexes in dir. They take limit bytes together at most; with 0, as
// many as the disk has. New deletes what an earlier run left there, because the topics may have been
// recreated since. It waits for the end of another process that has indexes in dir, as [sqldb.Open] does.
func New(
	ctx context.Context, dir string, limit int64, source Source, reg prometheus.Registerer, log *slog.Logger,
) (*Auditor, error) {
	lock, err := sqldb.TakeLock(ctx, dir, log)
	if err != nil {
		return nil, fmt.Errorf("lock DATA_DIR (%s), which no other Order may have: %w", filepath.Dir(dir), err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("remove old audit indexes: %w", err), lock.Release())
	}
	a := &Auditor{
		dir: dir, lock: lock, limit: limit, source: source, metrics: newMetrics(reg), log: log,
		slotTimeout: defaultSlotTimeout, stallTimeout: defaultStallTimeout,
		slots: make(chan struct{}, MaxResults), readers: map[string]*reader{},
	}
	a.ctx, a.stop = context.WithCancel(context.Background())
	a.wanted, a.want = context.WithCancel(context.Background())
	return a, nil
}

// Close ends the reads and removes the indexes. All results must be closed before.
func (a *Auditor) Close() error {
	a.stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, r := range a.readers {
		errs = append(errs, r.close())
	}
	return errors.Join(append(errs, os.RemoveAll(a.dir), a.lock.Release())...)
}

// Audit returns the orders of the topic up to the end that it has now, or to a later one. With
// fresh it reads all of the topic again. The caller must close the result. When ctx ends, the error
// is or wraps the cause of ctx.
func (a *Auditor) Audit(ctx context.Context, topic string, fresh bool) (*Result, error) {
	r := a.readerOf(topic)
	first, end, err := a.look(ctx, r, topic)
	if err != nil {
		return nil, unreadable(ctx, topic, err)
	}
	ix, err := r.upTo(ctx, first, end, fresh)
	if errors.Is(err, ErrStalled) {
		err = a.whyStalled(ctx, topic)
	}
	if err != nil {
		return nil, unreadable(ctx, topic, err)
	}
	if err := a.takeSlot(ctx); err != nil {
		r.release(ix)
		return nil, err
	}
	v, err := ix.catalog.view()
	if err != nil {
		<-a.slots
		r.release(ix)
		return nil, unreadable(ctx, topic, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return &Result{
		Topic: topic, Orders: v.orders, Wanted: a.wanted, view: v,
		release: func(broken bool) {
			<-a.slots
			r.note(ix, broken)
			r.release(ix)
		},
	}, nil
}

// look returns the bounds of the topic. It also compares the index with the topic.
func (a *Auditor) look(
	ctx context.Context, r *reader, topic string,
) (first, end map[broker.Partition]int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, boundsTimeout)
	defer cancel()
	if first, end, err = a.source.Bounds(ctx, topic); err != nil {
		return nil, nil, err
	}
	return first, end, r.compare(ctx, first, a.source.Replaced)
}

// whyStalled returns ErrStalled, with its reason if an open transaction withholds records.
func (a *Auditor) whyStalled(ctx context.Context, topic string) error {
	err := a.source.Withheld(ctx, topic)
	if _, withheld := errors.AsType[*broker.WithheldError](err); withheld {
		return fmt.Errorf("%w: %w", ErrStalled, err)
	}
	return ErrStalled
}

// takeSlot waits for a slot, and lets the open results know that it does. It returns ErrBusy when
// there is none in time.
func (a *Auditor) takeSlot(ctx context.Context) error {
	select {
	case a.slots <- struct{}{}:
		return nil
	default:
	}
	a.countWaiting(1)
	defer a.countWaiting(-1)
	timeout := time.NewTimer(a.slotTimeout)
	defer timeout.Stop()
	select {
	case a.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timeout.C:
		return ErrBusy
	}
}

// countWaiting adds to the number of audits that wait for a slot.
func (a *Auditor) countWaiting(more int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting += more; a.waiting > 0 {
		a.want()
	} else {
		a.wanted, a.want = context.WithCancel(context.Background())
	}
}

// Shed removes the indexes that nothing uses. The next audit reads its topic from the start. A store on
// the same volume calls it when it needs the room.
func (a *Auditor) Shed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.readers {
		r.mu.Lock()
		// A reading that needs more room than there is ends by itself.
		if r.running == nil && r.current != nil {
			a.log.Warn("the index of an audit is removed: the store needs its room", "topic", r.topic)
			r.shed()
		}
		r.mu.Unlock()
	}
}

// readerOf returns the reader of a topic.
func (a *Auditor) readerOf(topic string) *reader {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.readers[topic]
	if r == nil {
		r = &reader{
			topic: topic, dir: a.dir, limit: a.limit, read: a.source.Read, stallTimeout: a.stallTimeout,
			metrics: a.metrics, log: a.log,
		}
		r.ctx, r.stop = context.WithCancel(a.ctx)
		a.readers[topic] = r
	}
	return r
}
