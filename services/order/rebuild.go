package order

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/rebuild"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/order/audit"
	"ordersystem.dev/services/order/fold"
)

const (
	// rebuildReport is the time between two lines of the response.
	rebuildReport = time.Second
	// fewOffsets is how many offsets a round reads at most if it is to be the last one before the offsets are
	// locked. Few more come meanwhile.
	fewOffsets = 1000
	// mostRounds is how many rounds there are at most: under a high load each one may have more to read.
	mostRounds = 10
	// lastPatience is how long Kafka may take for the last records while the offsets are locked. Other members
	// wait for the lock for 2 s, and PostgreSQL ends a transaction that is idle for 3 s.
	lastPatience = 2 * time.Second
	// mostLate is how often the last step may be late.
	mostLate = 3
)

var (
	// errLate means that the last step was not possible in time. It may be a little later.
	errLate = fmt.Errorf("the last step was late %d times", mostLate)
	// errKafkaLate means that the last records have not come while the offsets were locked.
	errKafkaLate = fmt.Errorf("%w: Kafka has not given the last records within %s", errLate, lastPatience)
)

// rebuilder compares the view with the topics, and can make it what they have. It reads the topics from
// their first offsets into a shadow of the view, while all else goes on. At the end it locks the offsets of
// all partitions, reads what is missing up to exactly those, and compares or swaps. The offsets stay as they
// are, so no member of the group has to notice.
type rebuilder struct {
	store   *store
	catchUp *catchUp
	waiters *waiters
	// bounds and read are those of Kafka, for topics by its names.
	bounds  audit.BoundsFunc
	read    audit.ReadFunc
	command *web.Command
	log     *slog.Logger
}

// newRebuilder returns one.
func newRebuilder(
	s *store, c *catchUp, w *waiters, bounds audit.BoundsFunc, read audit.ReadFunc, log *slog.Logger,
) *rebuilder {
	return &rebuilder{
		store: s, catchUp: c, waiters: w, bounds: bounds, read: read, log: log,
		command: web.NewCommand("the view is being rebuilt already"),
	}
}

// ServeHTTP does what the parameters say. See package rebuild for the response.
func (b *rebuilder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, err error) { web.Problem{Status: status, Text: err.Error() + "\n"}.Write(w, r) }
	o, err := rebuild.ParseOptions(r.URL.RawQuery)
	if err == nil && r.ContentLength != 0 {
		err = errors.New("there is a body: the parameters go into the URL")
	}
	if err != nil {
		refuse(http.StatusBadRequest, err)
		return
	}
	if err := b.catchUp.ready(); err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	response, begun := b.command.Begin(w, r)
	if !begun {
		return
	}
	defer response.End()
	ctx := response.Context()
	sh, err := newShadow(ctx, b.store.db)
	switch {
	case errors.Is(err, errClaimed):
		refuse(http.StatusConflict, err)
		return
	case err != nil:
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	defer func() {
		if err := sh.close(ctx); err != nil {
			b.log.Warn("the shadow of the view stays until the next rebuild", "err", err)
		}
	}()
	b.log.Info("rebuilding the view beside the live one: POST /rebuild", "swap", o.Swap, "drop", o.Drop)
	begin := time.Now()
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(response)
	lines.SetEscapeHTML(false)
	// An error here means that the client has gone, which ends ctx.
	say := func(l rebuild.Line) { _ = lines.Encode(l) }
	result, err := b.rebuild(ctx, sh, o, say)
	if err != nil {
		b.log.Warn("the view is not rebuilt", "seconds", time.Since(begin).Seconds(), "err", err)
		say(rebuild.Line{Error: err.Error()})
		return
	}
	b.log.Info("the view is compared with the topics", "orders", result.Orders, "differing", result.Differ(),
		"swapped", result.Swapped, "seconds", time.Since(begin).Seconds())
	say(rebuild.Line{Result: result})
}

// rebuild fills the shadow, and compares it with the view or swaps it in. Meanwhile it says how far it is.
func (b *rebuilder) rebuild(
	ctx context.Context, sh *shadow, o rebuild.Options, say func(rebuild.Line),
) (*rebuild.Result, error) {
	working, done := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer done()
	reporting.Go(func() {
		for backoff.Sleep(working, rebuildReport) {
			say(rebuild.Line{Progress: &rebuild.Progress{Read: sh.passed.Load(), Of: sh.known.Load()}})
		}
	})
	if err := b.begin(ctx, sh, o); err != nil {
		return nil, err
	}
	for late := 1; ; late++ {
		if err := b.fill(ctx, sh); err != nil {
			return nil, err
		}
		result, err := b.finish(ctx, sh, o)
		if !errors.Is(err, errLate) || late == mostLate {
			return result, err
		}
	}
}

// begin finds out where to read, and whether there is room.
func (b *rebuilder) begin(ctx context.Context, sh *shadow, o rebuild.Options) error {
	space, err := b.store.db.Space(ctx)
	if err != nil {
		return err
	}
	// The shadow becomes as large as the view. A swap may write as much once more before it takes effect.
	needed := space.Used
	if o.Swap {
		needed *= 2
	}
	if space.Left < needed {
		return fmt.Errorf("the volume has %d MiB left, and a second view may need %d", space.Left>>20, needed>>20)
	}
	if o.Drop {
		// Compaction may have removed what the view has read in favour of what it has not.
		if err := awaitEnd(ctx, b.store, b.bounds); err != nil {
			return err
		}
	}
	at, err := b.store.offsets(ctx)
	if err != nil {
		return err
	}
	first, end, err := b.bounds(ctx, b.store.topics...)
	if err != nil {
		return err
	}
	return sh.begin(at, first, end)
}

// fill reads the topics into the shadow until that is nearly as far as the live view. A batch that no reader
// can read is waited for, until ctx ends.
func (b *rebuilder) fill(ctx context.Context, sh *shadow) error {
	for range mostRounds {
		at, err := b.store.offsets(ctx)
		if err != nil {
			return err
		}
		missing, err := sh.missing(at)
		if err != nil {
			return err
		}
		known := sh.known.Add(missing)
		if err := b.read(ctx, sh.read, at, sh.add); err != nil {
			return err
		}
		sh.read = at
		// Not every offset has a record.
		sh.passed.Store(known)
		if missing <= fewOffsets {
			return nil
		}
	}
	return nil
}

// finish compares the view with the shadow, and may swap it, in one transaction. It returns errLate if the
// locks or the last records do not come in time.
func (b *rebuilder) finish(ctx context.Context, sh *shadow, o rebuild.Options) (*rebuild.Result, error) {
	var result *rebuild.Result
	err := b.store.db.LongTx(ctx, longest, func(tx *sqldb.Tx) (err error) {
		result, err = b.finishIn(ctx, tx, sh, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	if result.Swapped {
		b.waiters.wakeAll()
	}
	return result, nil
}

// finishIn does the work of finish in its transaction. It may run again, although it reads Kafka: that
// changes nothing.
func (b *rebuilder) finishIn(
	ctx context.Context, tx *sqldb.Tx, sh *shadow, o rebuild.Options,
) (*rebuild.Result, error) {
	if err := sh.hold(tx); err != nil {
		return nil, err
	}
	at, err := lockAllOffsets(tx)
	if sqldb.IsUnavailable(err) {
		// A member that stalls in a batch has locked some of them.
		err = fmt.Errorf("%w: %w", errLate, err)
	}
	if err != nil {
		return nil, err
	}
	unusable, err := b.readLast(ctx, tx, sh, at)
	if err != nil {
		return nil, err
	}
	found, err := compare(tx, o.Swap)
	if err != nil {
		return nil, err
	}
	found.Unusable = sh.unusable + unusable
	if o.Swap && found.Differ() > 0 {
		room, err := tx.Room()
		if err != nil {
			return nil, err
		}
		if found.Refused = found.refusal(o, room); found.Refused == "" {
			if err := found.swap(tx); err != nil {
				return nil, err
			}
			found.Swapped = true
		}
	}
	// The lock holds no member up that gets a partition for the first time, whose orders the shadow lacks.
	now, err := lockAllOffsets(tx)
	if err != nil {
		return nil, err
	}
	if !maps.Equal(at, now) {
		return nil, errPartitions
	}
	return &found.Result, nil
}

// readLast brings what is missing up to the offsets at into the shadow, or returns errKafkaLate. It returns how
// many of these records take no effect.
func (b *rebuilder) readLast(
	ctx context.Context, tx *sqldb.Tx, sh *shadow, at map[broker.Partition]int64,
) (unusable int64, err error) {
	if _, err := sh.missing(at); err != nil {
		return 0, err
	}
	patient, cancel := context.WithTimeoutCause(ctx, lastPatience, errKafkaLate)
	defer cancel()
	err = b.read(patient, sh.read, at, func(_ context.Context, records []broker.Record) error {
		some, err := addIn(tx, fold.Decode(records))
		unusable += some
		return err
	})
	if err != nil && errors.Is(context.Cause(patient), errKafkaLate) {
		err = errKafkaLate
	}
	return unusable, err
}
