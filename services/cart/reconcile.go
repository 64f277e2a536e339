package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
)

// conflictsShown is how many order IDs the error of a conflict has.
const conflictsShown = 10

// topicCheck is the time between two looks at the topics.
const topicCheck = 5 * time.Second

var errComparing = errors.New("comparing the store with the topics")

// conflictError means that orders were accepted by this store, and other versions of them were
// published by another one. Nothing can decide which are right.
type conflictError struct{ orders []string }

func (e *conflictError) Error() string {
	shown := e.orders[:min(len(e.orders), conflictsShown)]
	return fmt.Sprintf("%d orders were changed here and by another Cart since this store was copied: "+
		"nothing is published until that is decided (docs/operations.md, Restore a backup of Cart): %s",
		len(e.orders), strings.Join(shown, ", "))
}

// reconciler brings the store in line with what others have published, before the relay publishes.
// The store may be an old copy, from a backup; then the topics have versions that it lacks. Or another
// Cart has published since.
type reconciler struct {
	kafka broker.Config
	admin *broker.Admin
	store *store
	log   *slog.Logger
	lost  prometheus.Counter
	// partitions is how many each order topic has.
	partitions *prometheus.GaugeVec

	// mu is held while the store is compared with the topics.
	mu sync.Mutex
	// counted has the published positions and the starts of logs before which records were counted as
	// lost.
	counted map[broker.Partition]int64
	// logged is how many partitions each topic had when that was last logged.
	logged map[string]int
	// seen has the ends of the partitions as they were when somebody last looked.
	seen map[broker.Partition]int64

	// whole is closed once the store is rebuilt.
	whole chan struct{}
	// begun is closed when the store is compared with the topics for the first time, here or by another
	// replica.
	begun chan struct{}
	begin func()
	// done is closed when the store agrees with the topics for the first time.
	done     chan struct{}
	end      func()
	conflict atomic.Pointer[conflictError]
}

func newReconciler(
	kafka broker.Config, admin *broker.Admin, s *store, log *slog.Logger, reg prometheus.Registerer,
) *reconciler {
	r := &reconciler{
		kafka: kafka, admin: admin, store: s, log: log,
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cart_published_records_lost_total",
			Help: "Offsets that Cart has published and that Kafka has lost or deleted: the records, and the markers " +
				"of their transactions.",
		}),
		partitions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cart_topic_partitions",
			Help: "How many partitions an order topic has. It must never change.",
		}, []string{"topic"}),
		counted: make(map[broker.Partition]int64), logged: make(map[string]int),
		whole: make(chan struct{}), begun: make(chan struct{}), done: make(chan struct{}),
	}
	r.begin = sync.OnceFunc(func() { close(r.begun) })
	r.end = sync.OnceFunc(func() { close(r.done) })
	reg.MustRegister(r.lost, r.partitions)
	return r
}

// err returns a *conflictError if there is a conflict, or nil. What becomes of it is up to the replica that
// publishes.
func (r *reconciler) err() error {
	if conflict := r.conflict.Load(); conflict != nil && r.store.box.Leads() {
		return conflict
	}
	return nil
}

// compared returns nil once the store agrees with the topics for the first time.
func (r *reconciler) compared() error {
	select {
	case <-r.done:
		return nil
	default:
		return fmt.Errorf("%w: that needs Kafka; try again later", errComparing)
	}
}

// awaitPublished waits until Kafka has the outbox up to a message, and calls say again and again meanwhile. It
// returns a *conflictError if the store may not be published.
func (r *reconciler) awaitPublished(ctx context.Context, message int64, say func(waits string)) error {
	for {
		published, err := r.store.box.Published(ctx, message)
		if err != nil || published {
			return err
		}
		if err := r.err(); err != nil {
			return err
		}
		say("; the relay has not published them yet")
		if !backoff.Sleep(ctx, republishPoll) {
			return context.Cause(ctx)
		}
	}
}

// run reads what the topics have behind the published positions of the store, and adopts it. No
// other Cart may publish meanwhile: the relay has taken the transactional ID. It returns a
// *conflictError if the store has an order that it cannot adopt.
func (r *reconciler) run(ctx context.Context) error {
	select {
	case <-r.whole:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r.begin()
	r.mu.Lock()
	defer r.mu.Unlock()
	first, end, err := r.admin.Bounds(ctx, orderTopics(r.kafka)...)
	if err != nil {
		return err
	}
	from, err := r.start(ctx, end)
	if err != nil {
		return err
	}
	r.seen = end
	r.deleted(from, first)
	found, err := r.adopt(ctx, from, end)
	if err != nil {
		return err
	}
	r.conflict.Store(found)
	if found != nil {
		return found
	}
	if err := r.store.setPublished(ctx, end); err != nil {
		return err
	}
	r.countPartitions(end)
	clear(r.counted)
	r.end()
	return nil
}

// start returns where to begin in each partition. A store that an earlier release made has no
// positions yet: it begins at the end.
func (r *reconciler) start(ctx context.Context, end map[broker.Partition]int64) (map[broker.Partition]int64, error) {
	published, err := r.store.publishedPositions(ctx)
	if err != nil || len(published) == 0 {
		return end, err
	}
	from := make(map[broker.Partition]int64, len(end))
	for p, next := range published {
		from[p] = min(next, end[p])
		r.isLost(p, max(next, r.seen[p]), end)
	}
	return from, nil
}

// isLost reports whether the log of a partition does not reach up to next any more. It logs and counts
// the loss once, although a comparison that fails begins again.
func (r *reconciler) isLost(p broker.Partition, next int64, end map[broker.Partition]int64) bool {
	last, same := end[p]
	if next <= last {
		return false
	}
	if next > r.counted[p] {
		r.counted[p] = next
		r.lost.Add(float64(next - last))
		r.log.Error("Kafka has lost records that were published: Order and a rebuilt Cart lack them",
			"topic", p.Topic, "partition", p.Number, "published", next, "end", last,
			"topic_recreated", !same, "next", "docs/runbooks/CartRecordsLost.md")
	}
	return true
}

// deleted logs and counts the records that were deleted from the topics before this store has read
// them.
func (r *reconciler) deleted(from, first map[broker.Partition]int64) {
	for p, at := range first {
		if at <= from[p] || r.counted[p] == at {
			continue
		}
		r.counted[p] = at
		r.lost.Add(float64(at - from[p]))
		r.log.Error("records were deleted from Kafka before they were read: their orders are missing here, and can "+
			"be created again",
			"topic", p.Topic, "partition", p.Number, "offset", from[p], "first", at,
			"next", "docs/runbooks/CartRecordsLost.md")
	}
}

// watch looks at the topics from time to time, until ctx ends. Of several replicas, the one that publishes
// does.
func (r *reconciler) watch(ctx context.Context) error {
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil
	}
	for backoff.Sleep(ctx, topicCheck) {
		if !r.store.box.Leads() {
			continue
		}
		// The relay and the readiness show what is wrong with Kafka or the store.
		if err := r.look(ctx); err != nil {
			r.log.Debug("look at the topics", "err", err)
		}
	}
	return nil
}

// look notices what has happened to the topics since they were last seen. Without it, only the next
// start would, by positions that the relay has moved meanwhile.
func (r *reconciler) look(ctx context.Context) error {
	if !r.mu.TryLock() {
		// run looks.
		return nil
	}
	defer r.mu.Unlock()
	_, end, err := r.admin.Bounds(ctx, orderTopics(r.kafka)...)
	if err != nil {
		return err
	}
	r.countPartitions(end)
	// positions are where the next comparison begins. It finds what is this store's own.
	positions, recreated := make(map[broker.Partition]int64), make(map[string]bool)
	for p, next := range r.seen {
		if last, same := end[p]; same && r.isLost(p, next, end) {
			positions[p] = last
		} else if !same {
			recreated[p.Topic] = true
			r.isLost(p, next, end)
		}
	}
	for p := range end {
		if recreated[p.Topic] {
			positions[p] = 0
		}
	}
	if len(positions) > 0 {
		if err := r.store.setPublished(ctx, positions); err != nil {
			return err
		}
		clear(r.counted)
	}
	r.seen = end
	return nil
}

// countPartitions logs a topic that has another number of partitions than it had, or than is declared.
func (r *reconciler) countPartitions(end map[broker.Partition]int64) {
	count := make(map[string]int)
	for p := range end {
		count[p.Topic]++
	}
	for _, topic := range contract.Topics() {
		name := r.kafka.Name(topic.Name)
		n, ok := count[name]
		if !ok || n == r.logged[name] {
			continue
		}
		r.logged[name] = n
		r.partitions.WithLabelValues(name).Set(float64(n))
		if n != topic.Partitions {
			r.log.Error("an order topic does not have the declared number of partitions: if partitions were added, "+
				"the versions of one order are in two of them, and consumers of both can see them out of order",
				"topic", name, "partitions", n, "declared", topic.Partitions,
				"next", "docs/runbooks/CartTopicPartitions.md")
		}
	}
}

// adopt reads from there to the end, and returns the conflicts, or nil.
func (r *reconciler) adopt(ctx context.Context, from, end map[broker.Partition]int64) (*conflictError, error) {
	var conflicts []string
	// overtaken are the orders that end with an older version than they have, as far as the topics are read.
	overtaken := make(map[string]bool)
	records, adopted, begin := 0, 0, time.Now()
	take := func(ctx context.Context, batch []broker.Record) error {
		// A record that holds no event takes nothing from a store that is whole.
		events, _ := decodeBatch(batch, r.log)
		n, found, older, err := r.store.adopt(ctx, events)
		records, adopted, conflicts = records+len(batch), adopted+n, append(conflicts, found...)
		for _, e := range events {
			if e.Type == contract.TypeUpdated {
				delete(overtaken, e.Order.OrderID)
			}
		}
		for _, id := range older {
			overtaken[id] = true
		}
		return err
	}
	// Readiness shows only the first comparison: see awaitAgreement. Later ones hold up no request.
	silent := func(error) {}
	err := newHoldUps(r.kafka, r.admin, r.log).during(ctx, errComparing, silent, func() error {
		return broker.ReadTo(ctx, r.kafka, r.log, r.kafka.Name(contract.GroupRebuild), from, end, take)
	})
	if err != nil {
		return nil, err
	}
	if len(conflicts) > 0 {
		slices.Sort(conflicts)
		return &conflictError{slices.Compact(conflicts)}, nil
	}
	if err := r.publishLast(ctx, slices.Sorted(maps.Keys(overtaken))); err != nil {
		return nil, err
	}
	if records > 0 {
		r.log.Info("the store agrees with the topics", "records_behind_it", records, "orders_adopted", adopted,
			"seconds", time.Since(begin).Seconds())
	}
	return nil, nil
}

// publishLast puts the newest version of orders into the outbox once more, because the topics end with an older
// one, which compaction would keep. That happens when a relay begins before Kafka shows it what its predecessor
// has published: it publishes a part of that again, and the next relay finds the rest in the topics already.
func (r *reconciler) publishLast(ctx context.Context, orders []string) error {
	for ids := range slices.Chunk(orders, republishOrders) {
		r.log.Warn("the topics end with an older version of some orders: their newest one is published again",
			"orders", len(orders), "order_ids", ids[:min(len(ids), conflictsShown)])
		// The backlog may be full: that is no reason to leave these out.
		everything := room{events: math.MaxInt64, bytes: math.MaxInt64}
		_, roomy, err := r.store.repeatOrders(ctx, ids, everything, time.Now(), continueTrace(""))
		if err == nil && !roomy {
			err = errNearlyFull
		}
		if err != nil {
			return fmt.Errorf("publish %d orders again: %w", len(ids), err)
		}
	}
	return nil
}
