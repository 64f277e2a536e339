// Package operator keeps the status of ConsumerGroups, a Kubernetes resource, up to date with what
// package lag reads of consumer groups in Kafka.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcluster "sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/leaderelection"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/lag/config"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// Connect returns how to reach the API server: as the file in KUBECONFIG describes it, or as a pod
// does. The libraries that talk to it have one log in the whole process, which is log from now on.
func Connect(log *slog.Logger) (*rest.Config, error) {
	klog.SetSlogLogger(log)
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
	if name := os.Getenv("KUBECONFIG"); name != "" {
		kube, err := clientcmd.BuildConfigFromFlags("", name)
		if err != nil {
			return nil, fmt.Errorf("read KUBECONFIG=%s: %w", name, err)
		}
		return kube, nil
	}
	kube, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: set KUBECONFIG, or run in a pod: %w", err)
	}
	return kube, nil
}

// Run runs the operator until ctx ends. It returns an error if it loses the leadership. If started
// is not nil, it is called with the address of the operations endpoints once that is bound.
func Run(ctx context.Context, cfg Config, log *slog.Logger, kube *rest.Config, started func(ops net.Addr)) error {
	open := func(c lag.Config) (collector, error) { return lag.New(c, log) }
	return run(ctx, cfg, log, kube, started, open)
}

// run is Run with collectors that open returns: tests replace them.
func run(
	ctx context.Context, cfg Config, log *slog.Logger, kube *rest.Config,
	started func(ops net.Addr), open func(lag.Config) (collector, error),
) error {
	ops, err := web.Listen(cfg.OpsAddr)
	if err != nil {
		return err
	}
	defer ops.Close()

	kube = rest.CopyConfig(kube)
	// The operator paces its writes itself, and the API server shares its time fairly among
	// clients.
	kube.QPS = -1
	k8s, err := newKubernetes(cfg, log, kube)
	if err != nil {
		return err
	}
	r := &reconciler{
		client:   k8s.GetClient(),
		events:   k8s.GetEventRecorder("lag-operator"),
		clusters: map[string]*watchedCluster{},
		now:      time.Now,
		groups:   map[types.NamespacedName]*declared{},
	}
	for _, c := range cfg.Clusters {
		k := &watchedCluster{Cluster: c}
		if k.collector, err = open(c.Config); err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		if c.KafkaTopics != (config.KafkaTopics{}) {
			k.strimzi, err = newStrimzi(c.KafkaTopics, kube, k8s.GetHTTPClient(), k8s.GetRESTMapper(), log)
			if err != nil {
				return err
			}
		}
		r.clusters[c.Name] = k
	}
	ctrl, err := newController(r, k8s, log)
	if err != nil {
		return err
	}
	lock, err := leaderelection.NewResourceLock(kube, k8s, leaderelection.Options{
		LeaderElection:          true,
		LeaderElectionID:        leaseName,
		LeaderElectionNamespace: cfg.Namespace,
		RenewDeadline:           renewDeadline,
	})
	if err != nil {
		return fmt.Errorf("prepare the lease: %w", err)
	}
	// All replicas watch the ConsumerGroups, so that one that is ready can lead at once.
	if _, err := k8s.GetCache().GetInformer(ctx, &v1alpha1.ConsumerGroup{}); err != nil {
		if meta.IsNoMatchError(err) {
			return fmt.Errorf(
				"the CRD of ConsumerGroups is not installed (the chart does it with crds.enabled): %w", err,
			)
		}
		return fmt.Errorf("watch ConsumerGroups: %w", err)
	}

	// A Kafka cluster that cannot be reached does not make the operator unready. The operator is
	// there to report it, and its Deployment must be able to roll out meanwhile.
	var synced atomic.Bool
	ready := func() error {
		if !synced.Load() {
			return errors.New("the API server has not yet returned all ConsumerGroups")
		}
		return nil
	}
	reg := prometheus.NewRegistry()
	endpoints := web.Ops{Ready: ready, Registry: reg, More: []prometheus.Gatherer{ctrlmetrics.Registry}}

	if started != nil {
		started(ops.Addr())
	}
	log.Info("listening", "ops", ops.Addr().String())
	g, ctx := errgroup.WithContext(ctx)
	// The endpoints and the cache of the API server's objects outlive the leader's work.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g.Go(func() error {
		defer stop()
		if !k8s.GetCache().WaitForCacheSync(ctx) {
			return nil
		}
		synced.Store(true)
		defer synced.Store(false)
		return elect(ctx, lock, func(ctx context.Context) error { return r.lead(ctx, log, reg, ctrl.Start) })
	})
	g.Go(func() error { return k8s.Start(serving) })
	g.Go(func() error { return web.ServeOps(serving, log, ops, endpoints.Handler()) })
	err = g.Wait()
	log.Info("stopped")
	return err
}

// newKubernetes returns the client, the cache and the event recorder for the API server.
func newKubernetes(cfg Config, log *slog.Logger, kube *rest.Config) (ctrlcluster.Cluster, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	namespaces := map[string]cache.Config{}
	for _, n := range cfg.WatchNamespaces {
		namespaces[n] = cache.Config{}
	}
	k8s, err := ctrlcluster.New(kube, func(o *ctrlcluster.Options) {
		o.Scheme = scheme
		o.Logger = logr.FromSlogHandler(log.Handler())
		o.Cache.DefaultNamespaces = namespaces
		o.Cache.DefaultTransform = cache.TransformStripManagedFields()
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return k8s, nil
}

// newController returns a controller that reconciles a ConsumerGroup when it changes, and after
// each poll of its cluster.
func newController(r *reconciler, k8s ctrlcluster.Cluster, log *slog.Logger) (controller.Controller, error) {
	c, err := controller.NewUnmanaged("consumergroup", controller.Options{
		Reconciler: r,
		Logger:     logr.FromSlogHandler(log.Handler()),
		// There is only one in a process, but tests run two operators in theirs.
		SkipNameValidation: new(true),
	})
	if err != nil {
		return nil, fmt.Errorf("make the controller: %w", err)
	}
	object, enqueue := client.Object(&v1alpha1.ConsumerGroup{}), &handler.EnqueueRequestForObject{}
	errs := []error{c.Watch(source.Kind(k8s.GetCache(), object, enqueue))}
	for _, k := range r.clusters {
		errs = append(errs, c.Watch(r.polls(k)))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("make the controller: %w", err)
	}
	return c, nil
}
