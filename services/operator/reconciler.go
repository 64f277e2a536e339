package operator

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/lag/config"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// collector is a lag.Collector, or a scripted one in tests.
type collector interface {
	prometheus.Collector
	// Run polls the cluster until ctx ends.
	Run(ctx context.Context) error
	// Snapshot returns the last poll that succeeded, or nil.
	Snapshot() *lag.Snapshot
	// Err returns why the last poll failed, or nil.
	Err() error
	// Polled receives a value after each poll.
	Polled() <-chan struct{}
	// Want sets the objectives of groups, by the group's name. The groups are polled too.
	Want(objectives map[string][]lag.Objective)
	// Resume tells what an earlier leader knew of a group. It is called before Run.
	Resume(group string, rhythm time.Duration, standing []lag.Standing)
}

// watchedCluster is a Kafka cluster that the operator watches.
type watchedCluster struct {
	config.Cluster
	collector
	// strimzi is nil if the configuration names no KafkaTopics for this cluster.
	strimzi *strimzi
	// begun is when this process became the leader.
	begun time.Time
	// topics are the KafkaTopics as of the last poll, by the name of the topic in Kafka.
	topics atomic.Pointer[map[string]kafkaTopic]
}

// reconciler keeps the status of each ConsumerGroup up to date with the last poll of its cluster.
// It never sends a request to Kafka itself.
type reconciler struct {
	client client.Client
	events events.EventRecorder
	// clusters are the Kafka clusters by name.
	clusters map[string]*watchedCluster
	// now is the clock. Tests replace it.
	now func() time.Time

	// mu guards groups.
	mu     sync.Mutex
	groups map[types.NamespacedName]*declared
}

// declared is what the operator remembers of an existing ConsumerGroup.
type declared struct {
	spec v1alpha1.ConsumerGroupSpec
	// since is when the collector received this spec.
	since time.Time
	// written is when the status was last written.
	written time.Time
	// complete is when everything that the status is about could last be read.
	complete time.Time
	// bareSince is when records without a committed offset were first seen. It is zero if there are
	// none.
	bareSince time.Time
	// limiter limits the Events of a group that flaps.
	limiter *rate.Limiter
}

// lead is what only the leader does. It polls the clusters, serves their series, and runs
// controller, until ctx ends.
func (r *reconciler) lead(
	ctx context.Context, log *slog.Logger, reg *prometheus.Registry, controller func(context.Context) error,
) error {
	log.Info("this replica leads")
	if err := r.declareAll(ctx); err != nil {
		return err
	}
	for _, name := range r.names() {
		if err := reg.Register(r.clusters[name].collector); err != nil {
			return fmt.Errorf("register the series of cluster %s: %w", name, err)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return controller(ctx) })
	for _, c := range r.clusters {
		if c.strimzi != nil {
			g.Go(func() error { return c.strimzi.cache.Start(ctx) })
		}
		g.Go(func() error {
			c.strimzi.sync(ctx)
			return c.Run(ctx)
		})
	}
	return g.Wait()
}

// names returns the names of the clusters, sorted.
func (r *reconciler) names() []string { return slices.Sorted(maps.Keys(r.clusters)) }

// declareAll remembers all ConsumerGroups, so that the first poll looks for all of them, and knows
// where the last leader saw them stand still.
func (r *reconciler) declareAll(ctx context.Context) error {
	var all v1alpha1.ConsumerGroupList
	if err := r.client.List(ctx, &all); err != nil {
		return fmt.Errorf("list the ConsumerGroups: %w", err)
	}
	for i := range all.Items {
		cg := &all.Items[i]
		r.declare(cg)
		if c := r.clusters[cg.Spec.Cluster]; c != nil {
			rhythm := time.Duration(cg.Status.RhythmSeconds) * time.Second
			c.Resume(cg.Spec.Group, rhythm, resumed(cg.Status.Standing))
		}
	}
	return nil
}

// polls is a source that queues the ConsumerGroups of a cluster after each of its polls.
func (r *reconciler) polls(c *watchedCluster) source.Source {
	type requests = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return source.Func(func(ctx context.Context, queue requests) error {
		c.begun = r.now()
		// Like the goroutines of all sources, this one ends with the controller.
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-c.Polled():
				}
				topics, err := c.strimzi.topics(ctx, r.now())
				if err != nil {
					c.strimzi.log.Warn("the KafkaTopics could not be read", "err", err)
				}
				c.topics.Store(&topics)
				for _, key := range r.groupsIn(c.Name) {
					queue.Add(reconcile.Request{NamespacedName: key})
				}
			}
		}()
		return nil
	})
}

// Reconcile computes the status of one ConsumerGroup, and writes it if that is worth a write.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var cg v1alpha1.ConsumerGroup
	err := r.client.Get(ctx, req.NamespacedName, &cg)
	if apierrors.IsNotFound(err) || err == nil && !cg.DeletionTimestamp.IsZero() {
		r.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get the ConsumerGroup: %w", err)
	}
	d, groups := r.declare(&cg)
	in, ok := r.inputs(&cg, d)
	if !ok {
		// The next poll queues it again.
		return reconcile.Result{}, nil
	}
	before := cg.DeepCopy()
	status, bareSince := newStatus(in)
	cg.Status = status
	r.update(req.NamespacedName, func(d *declared) { d.bareSince = bareSince })
	if !due(&before.Status, &cg.Status, in.now.Sub(d.written), groups) {
		return reconcile.Result{}, nil
	}
	// The status continues that of one version, so it must not overwrite that of another.
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	err = r.client.Status().Patch(ctx, &cg, patch)
	switch {
	case apierrors.IsConflict(err):
		// The cache does not have the newest version yet. This process may have written that
		// itself.
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil
	case err != nil:
		return reconcile.Result{}, client.IgnoreNotFound(fmt.Errorf("write the status: %w", err))
	}
	r.update(req.NamespacedName, func(d *declared) { d.written = in.now })
	r.recordEvents(&cg, before.Status.Conditions, d.limiter, in.now)
	return reconcile.Result{}, nil
}

// inputs collects what the status is computed from. It returns false if the status should stay as
// it is for now.
func (r *reconciler) inputs(cg *v1alpha1.ConsumerGroup, d declared) (inputs, bool) {
	in := inputs{cg: cg, now: r.now(), configured: r.names(), bareSince: d.bareSince}
	c := r.clusters[cg.Spec.Cluster]
	if c == nil {
		return in, true
	}
	in.snapshot, in.interval = c.Snapshot(), c.Interval
	if topics := c.topics.Load(); topics != nil {
		in.strimzi = *topics
	}
	// A broker that restarts makes a poll or two fail, in whole or in part. That is not worth a
	// report.
	grace := 3 * c.Interval
	last := c.begun
	if in.snapshot != nil {
		last = in.snapshot.Time
	}
	if err := c.Err(); err != nil && in.now.Sub(last) > grace {
		in.unreachable = fmt.Sprintf("cluster %s has not been readable since %s: %s; see the operator's log",
			c.Name, last.UTC().Format(time.RFC3339), cause(err))
		return in, true
	}
	if in.snapshot == nil || in.snapshot.Time.Before(d.since) {
		// The poll began before the collector knew of the group, so it did not look for it.
		return in, false
	}
	if in.complete() {
		r.update(client.ObjectKeyFromObject(cg), func(d *declared) { d.complete = in.now })
		return in, true
	}
	complete := d.complete
	for _, t := range []time.Time{c.begun, d.since} {
		if t.After(complete) {
			complete = t
		}
	}
	return in, in.now.Sub(complete) > grace
}

// declare remembers a ConsumerGroup and returns how many there are. If it is new or changed, its
// collector receives the new objectives.
func (r *reconciler) declare(cg *v1alpha1.ConsumerGroup) (d declared, groups int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := client.ObjectKeyFromObject(cg)
	known := r.groups[key]
	if known == nil {
		known = &declared{limiter: rate.NewLimiter(rate.Every(time.Minute), 10)}
		if t := cg.Status.LastPollTime; t != nil {
			known.written = t.Time
		}
		r.groups[key] = known
	}
	if !equality.Semantic.DeepEqual(known.spec, cg.Spec) {
		// The cluster differs if the ConsumerGroup was deleted and recreated.
		other := known.spec.Cluster
		known.spec = *cg.Spec.DeepCopy()
		r.want(other)
		r.want(cg.Spec.Cluster)
		known.since = r.now()
	}
	return *known, len(r.groups)
}

// forget removes a ConsumerGroup that is deleted, and its objective.
func (r *reconciler) forget(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.groups[key]; d != nil {
		delete(r.groups, key)
		r.want(d.spec.Cluster)
	}
}

// want passes the objectives of a cluster's ConsumerGroups to its collector. Several ConsumerGroups
// may name one group. The caller holds mu.
func (r *reconciler) want(name string) {
	c := r.clusters[name]
	if c == nil {
		return
	}
	objectives := map[string][]lag.Objective{}
	for _, d := range r.groups {
		if d.spec.Cluster != name {
			continue
		}
		o := lag.Objective{Age: time.Duration(d.spec.Objective.MaxLagSeconds) * time.Second}
		for _, topic := range d.spec.Topics {
			o.Topics = append(o.Topics, string(topic))
		}
		objectives[d.spec.Group] = append(objectives[d.spec.Group], o)
	}
	c.Want(objectives)
}

// update edits what is remembered of a ConsumerGroup, if it still exists.
func (r *reconciler) update(key types.NamespacedName, edit func(*declared)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.groups[key]; d != nil {
		edit(d)
	}
}

// groupsIn returns the ConsumerGroups of a cluster.
func (r *reconciler) groupsIn(cluster string) (keys []types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, d := range r.groups {
		if d.spec.Cluster == cluster {
			keys = append(keys, key)
		}
	}
	return keys
}

// recordEvents records an Event for each condition whose status or reason has changed. A condition
// that is new and True needs none. Conditions that change for the same reason share an Event.
func (r *reconciler) recordEvents(
	cg *v1alpha1.ConsumerGroup, before []metav1.Condition, limiter *rate.Limiter, now time.Time,
) {
	recorded := map[string]bool{}
	for _, c := range cg.Status.Conditions {
		old := meta.FindStatusCondition(before, c.Type)
		if old == nil && c.Status == metav1.ConditionTrue ||
			old != nil && old.Status == c.Status && old.Reason == c.Reason ||
			recorded[c.Reason] || !limiter.AllowN(now, 1) {
			continue
		}
		recorded[c.Reason] = true
		kind := corev1.EventTypeWarning
		if c.Status == metav1.ConditionTrue && c.Reason != fallingBehind && c.Reason != rewound {
			kind = corev1.EventTypeNormal
		}
		r.events.Eventf(cg, nil, kind, c.Reason, c.Type, "%s", note(c.Message))
	}
}

// note cuts a message to the length that the API server accepts in an Event.
func note(message string) string {
	const limit = 1024
	if len(message) <= limit {
		return message
	}
	return strings.ToValidUTF8(message[:limit-3], "") + "..."
}
