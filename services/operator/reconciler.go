package operator

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// collector is a lag.Collector, or what a test puts in its place.
type collector interface {
	prometheus.Collector
	Run(ctx context.Context) error
	Snapshot() *lag.Snapshot
	Err() error
	Polled() <-chan struct{}
	Want(objectives map[string][]lag.Objective)
}

// cluster is a Kafka cluster that is being watched.
type cluster struct {
	Cluster
	collector
	strimzi *strimzi                              // nil: nobody to ask
	begun   time.Time                             // when this process began to lead
	topics  atomic.Pointer[map[string]kafkaTopic] // as of the last poll
}

// reconciler keeps the status of each ConsumerGroup at what its cluster's last poll saw. It never asks Kafka itself.
type reconciler struct {
	client   client.Client
	events   events.EventRecorder
	clusters map[string]*cluster
	names    []string // of the clusters, sorted
	now      func() time.Time

	mu     sync.Mutex
	groups map[types.NamespacedName]*declared
}

// declared is a ConsumerGroup that there is.
type declared struct {
	spec      v1alpha1.ConsumerGroupSpec
	since     time.Time // when its collector was told of it
	written   time.Time // when its status was last written
	read      time.Time // when all that its status is about could last be read
	bareSince time.Time // since when it has records without a commit
	news      *rate.Limiter
}

// Reconcile brings one status up to date, if that is worth a write.
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
	view, ok := r.view(&cg, d)
	if !ok {
		return reconcile.Result{}, nil // the next poll comes back to it
	}
	before := cg.DeepCopy()
	var bareSince time.Time
	cg.Status, bareSince = view.observe(&cg)
	r.update(req.NamespacedName, func(d *declared) { d.bareSince = bareSince })
	if !due(&before.Status, &cg.Status, view.now.Sub(d.written), groups) {
		return reconcile.Result{}, nil
	}
	// With the version that the status was made from: conditions go on from those before them.
	err = r.client.Status().Patch(ctx, &cg, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsConflict(err): // somebody wrote it after the cache last heard of it, perhaps this process
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil
	case err != nil:
		return reconcile.Result{}, client.IgnoreNotFound(fmt.Errorf("write the status: %w", err))
	}
	r.update(req.NamespacedName, func(d *declared) { d.written = view.now })
	r.tell(&cg, before.Status.Conditions, d.news, view.now)
	return reconcile.Result{}, nil
}

// view collects what the status is made of; false while it is better left as it is.
func (r *reconciler) view(cg *v1alpha1.ConsumerGroup, d declared) (view, bool) {
	v := view{now: r.now(), configured: r.names, bareSince: d.bareSince}
	c := r.clusters[cg.Spec.Cluster]
	if c == nil {
		return v, true
	}
	v.snapshot, v.interval = c.Snapshot(), c.Interval
	if topics := c.topics.Load(); topics != nil {
		v.strimzi = *topics
	}
	// A broker that restarts costs a poll or two, all of it or what that broker leads. That is no news.
	grace := 3 * c.Interval
	last := c.begun
	if v.snapshot != nil {
		last = v.snapshot.Time
	}
	if err := c.Err(); err != nil && v.now.Sub(last) > grace {
		v.unreachable = fmt.Sprintf("cluster %s could not be read since %s: %s; the operator's log says more", c.Name, last.UTC().Format(time.RFC3339), cause(err))
		return v, true
	}
	if v.snapshot == nil || v.snapshot.Time.Before(d.since) { // the poll began before the collector knew of the group
		return v, false
	}
	if v.complete(cg) {
		r.update(client.ObjectKeyFromObject(cg), func(d *declared) { d.read = v.now })
		return v, true
	}
	for _, t := range []time.Time{c.begun, d.since} {
		if t.After(d.read) {
			d.read = t
		}
	}
	return v, v.now.Sub(d.read) > grace
}

// declare remembers a ConsumerGroup, tells its collector if it is new or changed, and returns how many there are.
func (r *reconciler) declare(cg *v1alpha1.ConsumerGroup) (d declared, groups int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := client.ObjectKeyFromObject(cg)
	known := r.groups[key]
	if known == nil {
		known = &declared{news: rate.NewLimiter(rate.Every(time.Minute), 10)} // a group that flaps tells less and less
		if t := cg.Status.LastPollTime; t != nil {
			known.written = t.Time
		}
		r.groups[key] = known
	}
	if !equality.Semantic.DeepEqual(known.spec, cg.Spec) {
		other := known.spec.Cluster // of one that was deleted and made anew
		known.spec = *cg.Spec.DeepCopy()
		r.want(other)
		r.want(cg.Spec.Cluster)
		known.since = r.now()
	}
	return *known, len(r.groups)
}

func (r *reconciler) forget(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.groups[key]; d != nil {
		delete(r.groups, key)
		r.want(d.spec.Cluster)
	}
}

func (r *reconciler) update(key types.NamespacedName, change func(*declared)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.groups[key]; d != nil {
		change(d)
	}
}

// want tells a collector what the ConsumerGroups of its cluster are about. Several may name one group.
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

// declareAll makes the first poll look for all that there is.
func (r *reconciler) declareAll(ctx context.Context) error {
	var all v1alpha1.ConsumerGroupList
	if err := r.client.List(ctx, &all); err != nil {
		return fmt.Errorf("list the ConsumerGroups: %w", err)
	}
	for i := range all.Items {
		r.declare(&all.Items[i])
	}
	return nil
}

// polls queues a cluster's ConsumerGroups after each of its polls.
func (r *reconciler) polls(c *cluster) source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		c.begun = r.now()
		go func() { // ends with the controller, as every source's
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
				for _, key := range r.of(c.Name) {
					queue.Add(reconcile.Request{NamespacedName: key})
				}
			}
		}()
		return nil
	})
}

func (r *reconciler) of(cluster string) (keys []types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, d := range r.groups {
		if d.spec.Cluster == cluster {
			keys = append(keys, key)
		}
	}
	return keys
}

// tell makes an Event of each condition that changed; of a new one only if it is not as it should be.
func (r *reconciler) tell(cg *v1alpha1.ConsumerGroup, before []metav1.Condition, news *rate.Limiter, now time.Time) {
	told := map[string]bool{} // conditions that change for one reason are one piece of news
	for _, c := range cg.Status.Conditions {
		old := meta.FindStatusCondition(before, c.Type)
		if old == nil && c.Status == metav1.ConditionTrue || old != nil && old.Status == c.Status && old.Reason == c.Reason ||
			told[c.Reason] || !news.AllowN(now, 1) {
			continue
		}
		told[c.Reason] = true
		kind := corev1.EventTypeWarning
		if c.Status == metav1.ConditionTrue && c.Reason != fallingBehind && c.Reason != rewound {
			kind = corev1.EventTypeNormal
		}
		r.events.Eventf(cg, nil, kind, c.Reason, c.Type, "%s", note(c.Message))
	}
}

// note cuts a message to what the API server takes in an Event.
func note(message string) string {
	const limit = 1024
	if len(message) <= limit {
		return message
	}
	return strings.ToValidUTF8(message[:limit-3], "") + "..."
}
