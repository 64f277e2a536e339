// Package operator keeps ConsumerGroups, the Kubernetes resource, at what package lag sees of consumer groups, those in Kafka.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
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
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// Connect says how to reach the API server: as KUBECONFIG says, or as a pod does. The libraries that talk to it have one log for the whole
// process; that is log from here on.
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

// Run is the operator until ctx ends, or until it is the leader no longer. started, if not nil, is told the address once it is bound.
func Run(ctx context.Context, cfg Config, log *slog.Logger, kube *rest.Config, started func(ops net.Addr)) error {
	return run(ctx, cfg, log, kube, started, func(c lag.Config) (collector, error) { return lag.New(c, log) })
}

func run(ctx context.Context, cfg Config, log *slog.Logger, kube *rest.Config, started func(ops net.Addr), open func(lag.Config) (collector, error)) error {
	ops, err := web.Listen(cfg.OpsAddr)
	if err != nil {
		return err
	}
	defer ops.Close()

	kube = rest.CopyConfig(kube)
	kube.QPS = -1 // the writes are paced here, and the API server paces all its clients fairly
	mgr, err := newManager(cfg, log, kube)
	if err != nil {
		return err
	}
	r := &reconciler{
		client:   mgr.GetClient(),
		events:   mgr.GetEventRecorder("lag-operator"),
		clusters: map[string]*cluster{},
		now:      time.Now,
		groups:   map[types.NamespacedName]*declared{},
	}
	controller := builder.ControllerManagedBy(mgr).For(&v1alpha1.ConsumerGroup{})
	for _, c := range cfg.Clusters {
		k := &cluster{Cluster: c}
		if k.collector, err = open(c.Config); err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		if c.KafkaTopics != (KafkaTopics{}) {
			if k.strimzi, err = newStrimzi(c.KafkaTopics, kube, mgr.GetHTTPClient(), mgr.GetRESTMapper(), log); err != nil {
				return err
			}
		}
		r.clusters[c.Name] = k
		controller.WatchesRawSource(r.polls(k))
	}
	r.names = slices.Sorted(maps.Keys(r.clusters))
	if err := controller.Complete(r); err != nil {
		return fmt.Errorf("make the controller: %w", err)
	}
	// Here already, so that a replica is ready only when it could lead at once.
	if _, err := mgr.GetCache().GetInformer(ctx, &v1alpha1.ConsumerGroup{}); err != nil {
		if meta.IsNoMatchError(err) {
			return fmt.Errorf("the CRD of ConsumerGroups is not installed (the chart does it with crds.enabled): %w", err)
		}
		return fmt.Errorf("watch ConsumerGroups: %w", err)
	}

	reg := prometheus.NewRegistry()
	lead := func(ctx context.Context) error { return r.lead(ctx, reg, log) }
	var synced atomic.Bool
	if err := errors.Join(
		mgr.Add(everyReplica(func(ctx context.Context) error {
			synced.Store(true) // the manager gets here when its cache is
			<-ctx.Done()
			synced.Store(false)
			return nil
		})),
		mgr.Add(manager.RunnableFunc(lead)),
	); err != nil {
		return err
	}
	// A Kafka that cannot be reached does not make the operator unready: that is what it is there to tell, and a Deployment that
	// waits for a broker could not be rolled out when it matters.
	ready := func() error {
		if !synced.Load() {
			return errors.New("the API server has not yet shown all ConsumerGroups")
		}
		return nil
	}

	if started != nil {
		started(ops.Addr())
	}
	log.Info("lag-operator is listening", "ops", ops.Addr().String())
	g, stop := errgroup.WithContext(ctx)
	opsCtx, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOps()
	g.Go(func() error {
		defer stopOps()
		return mgr.Start(stop)
	})
	g.Go(func() error {
		return web.Serve(opsCtx, log, ops, web.Ops{Ready: ready, Registry: reg, More: []prometheus.Gatherer{ctrlmetrics.Registry}}.Handler())
	})
	err = g.Wait()
	log.Info("lag-operator has stopped")
	return err
}

// newManager makes controller-runtime's manager, without the servers that it could have: all that is served is served by web.Ops.
func newManager(cfg Config, log *slog.Logger, kube *rest.Config) (manager.Manager, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	namespaces := map[string]cache.Config{}
	for _, n := range cfg.WatchNamespaces {
		namespaces[n] = cache.Config{}
	}
	mgr, err := manager.New(kube, manager.Options{
		Scheme:                  scheme,
		Logger:                  logr.FromSlogHandler(quiet{log.Handler()}),
		Cache:                   cache.Options{DefaultNamespaces: namespaces, DefaultTransform: cache.TransformStripManagedFields()},
		Metrics:                 metricsserver.Options{BindAddress: "0"},
		LeaderElection:          true,
		LeaderElectionID:        "lag-operator",
		LeaderElectionNamespace: cfg.Namespace,
		// The other replica goes on at once. It is safe: the process ends after the manager.
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       new(10 * time.Second),
		Controller:                    ctrlconfig.Controller{SkipNameValidation: new(true)}, // there is one; tests run two managers in a process
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return mgr, nil
}

// lead is what only the leader does: it polls the clusters and shows their series.
func (r *reconciler) lead(ctx context.Context, reg *prometheus.Registry, log *slog.Logger) error {
	log.Info("this replica leads")
	if err := r.declareAll(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range r.names {
		c := r.clusters[name]
		if err := reg.Register(c.collector); err != nil {
			return fmt.Errorf("register the series of cluster %s: %w", name, err)
		}
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

// everyReplica is a part of the manager that does not wait until the replica leads.
type everyReplica func(context.Context) error

func (f everyReplica) Start(ctx context.Context) error { return f(ctx) }
func (everyReplica) NeedLeaderElection() bool          { return false }

// quiet drops what controller-runtime reports as an error at the end of each leader: that, told to stop, it leads no longer. Who loses the
// lease otherwise ends by that error.
type quiet struct{ slog.Handler }

func (h quiet) Handle(ctx context.Context, r slog.Record) error {
	expected := false
	r.Attrs(func(a slog.Attr) bool {
		err, is := a.Value.Any().(error)
		expected = is && err.Error() == "leader election lost"
		return !expected
	})
	if expected {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{h.Handler.WithAttrs(attrs)} }
func (h quiet) WithGroup(name string) slog.Handler       { return quiet{h.Handler.WithGroup(name)} }
