package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"ordersystem.dev/services/e2e/manifests/schemas"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/lag/config"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// api is a real API server, and a namespace of the test's own in it.
type api struct {
	client.WithWatch
	kube      *rest.Config
	namespace string
}

// crds installs the CRDs. That of ConsumerGroups is installed as it is in this repository. They are
// never deleted, because that would delete the objects of others.
var crds = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := schemas.Install(ctx); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "kubectl", "apply", "--server-side", "--force-conflicts",
		"--filename", filepath.Join("..", "..", schemas.ConsumerGroup)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("apply the CRD: %w\n%s", err, out)
	}
	return nil
})

// Connect is called once, and before any test runs: it sets the log of the libraries for the whole process.
var connected, errConnected = Connect(slog.New(slog.DiscardHandler))

func newAPI(t *testing.T) *api {
	t.Helper()
	testenv.RequireProgram(t, "kubectl", "kubectl")
	testenv.RequireCluster(t)
	testenv.Require(t, crds())
	if errConnected != nil {
		t.Fatal(errConnected)
	}
	kube := rest.CopyConfig(connected)
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), clientgoscheme.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	kube.QPS = -1
	c, err := client.NewWithWatch(kube, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	a := &api{WithWatch: c, kube: kube, namespace: "operator-" + uuid.NewString()[:8]}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: a.namespace}}
	a.create(t, namespace)
	t.Cleanup(func() {
		if err := c.Delete(context.Background(), namespace); err != nil {
			t.Error(err)
		}
	})
	return a
}

func (a *api) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := a.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// consumerGroup creates a ConsumerGroup of the group readers.
func (a *api) consumerGroup(t *testing.T, name string, topics ...v1alpha1.TopicName) *v1alpha1.ConsumerGroup {
	t.Helper()
	cg := consumerGroup(topics...)
	cg.ObjectMeta = metav1.ObjectMeta{Name: name, Namespace: a.namespace}
	a.create(t, cg)
	return cg
}

// get reads a ConsumerGroup again.
func (a *api) get(t *testing.T, cg *v1alpha1.ConsumerGroup) *v1alpha1.ConsumerGroup {
	t.Helper()
	if err := a.Get(t.Context(), client.ObjectKeyFromObject(cg), cg); err != nil {
		t.Fatal(err)
	}
	return cg
}

// is waits until a condition has the Status/Reason.
func (a *api) is(t *testing.T, cg *v1alpha1.ConsumerGroup, condition, want string) {
	t.Helper()
	await(t, func() error {
		if got := conditionOf(a.get(t, cg), condition); got != want {
			return fmt.Errorf("%s is %s, want %s", condition, got, want)
		}
		return nil
	})
}

// conditionOf returns a condition as Status/Reason. It is empty if there is none.
func conditionOf(cg *v1alpha1.ConsumerGroup, condition string) string {
	c := meta.FindStatusCondition(cg.Status.Conditions, condition)
	if c == nil {
		return ""
	}
	return string(c.Status) + "/" + c.Reason
}

func await(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// script is a collector whose polls find what the test provides.
type script struct {
	polled chan struct{}
	// running is closed once the collector runs, which happens only in the leader.
	running chan struct{}

	mu         sync.Mutex
	snapshot   *lag.Snapshot
	err        error
	objectives map[string][]lag.Objective
}

func newScript() *script {
	return &script{polled: make(chan struct{}, 1), running: make(chan struct{})}
}

func (s *script) poll(snapshot *lag.Snapshot, err error) {
	s.mu.Lock()
	if err == nil {
		s.snapshot = snapshot
	}
	s.err = err
	s.mu.Unlock()
	select {
	case s.polled <- struct{}{}:
	default:
	}
}

// finds ends a poll that read topics just now.
func (s *script) finds(topics map[string][]lag.Partition) {
	snapshot := snapshotOf(topics)
	snapshot.Time = time.Now()
	s.poll(snapshot, nil)
}

func (s *script) Run(ctx context.Context) error {
	close(s.running)
	<-ctx.Done()
	return nil
}

func (s *script) Polled() <-chan struct{}          { return s.polled }
func (s *script) Describe(chan<- *prometheus.Desc) {}

func (s *script) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(
		prometheus.NewDesc("kafka_consumergroup_lag", "", nil, nil), prometheus.GaugeValue, 1,
	)
}

func (s *script) Snapshot() *lag.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot
}

func (s *script) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *script) Want(objectives map[string][]lag.Objective) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objectives = objectives
}

func (s *script) Resume(string, time.Duration, []lag.Standing) {}

func (s *script) wanted() map[string][]lag.Objective {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objectives
}

// replica is an operator that runs.
type replica struct {
	// ops is the URL of its operations endpoints.
	ops   string
	ended chan error
	// stop ends it, waits, and returns its error.
	stop func() error
}

func (a *api) config() Config {
	return Config{Namespace: a.namespace, Config: config.Config{
		OpsAddr:         env.Addr{Value: "127.0.0.1:0"},
		WatchNamespaces: []string{a.namespace}, Interval: 5 * time.Second,
		Clusters: []config.Cluster{{Config: lag.Config{Name: "main", Interval: 5 * time.Second}}},
	}}
}

// start runs an operator whose collector is s, or a real one.
func start(t *testing.T, cfg Config, log *slog.Logger, kube *rest.Config, s *script) *replica {
	t.Helper()
	open := func(c lag.Config) (collector, error) { return lag.New(c, log) }
	if s != nil {
		open = func(lag.Config) (collector, error) { return s, nil }
	}
	ctx, cancel := context.WithCancel(context.Background())
	addr, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() { ended <- run(ctx, cfg, log, kube, func(ops net.Addr) { addr <- ops }, open) }()
	var once sync.Once
	var err error
	r := &replica{ended: ended, stop: func() error {
		once.Do(func() { cancel(); err = <-ended })
		return err
	}}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	select {
	case ops := <-addr:
		r.ops = "http://" + ops.String()
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	await(t, func() error {
		if code, text := r.http(t, "/readyz"); code != http.StatusOK {
			return fmt.Errorf("readyz: %d %s", code, text)
		}
		return nil
	})
	return r
}

func (r *replica) http(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get(r.ops + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func (s *script) leads(t *testing.T) {
	t.Helper()
	select {
	case <-s.running:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not lead")
	}
}

func TestValidation(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const name = "a cluster's name, as in the operator's configuration, has only lower case letters"
	const topic = "a topic's name has only letters, digits, '.', '_' and '-', and is neither '.' nor '..'"
	type spec = v1alpha1.ConsumerGroupSpec
	for what, c := range map[string]struct {
		change func(*spec)
		// want is a part of the error. It is empty if the API server accepts the object.
		want string
	}{
		"as it is":              {func(*spec) {}, ""},
		"no topics":             {func(s *spec) { s.Topics = nil }, ""},
		"any group's name":      {func(s *spec) { s.Group = "Größe & Co. / 1" }, ""},
		"a long group's name":   {func(s *spec) { s.Group = strings.Repeat("g", 255) }, ""},
		"too long a group's":    {func(s *spec) { s.Group = strings.Repeat("g", 256) }, "spec.group: Too long"},
		"no group":              {func(s *spec) { s.Group = "" }, "spec.group in body should be at least 1 chars long"},
		"no cluster":            {func(s *spec) { s.Cluster = "" }, name},
		"a cluster's address":   {func(s *spec) { s.Cluster = "kafka:9092" }, name},
		"a cluster in capitals": {func(s *spec) { s.Cluster = "Main" }, name},
		"a cluster with -":      {func(s *spec) { s.Cluster = "main-" }, name},
		"too long a cluster's":  {func(s *spec) { s.Cluster = strings.Repeat("c", 64) }, "spec.cluster: Too long"},
		"any topic's name": {func(s *spec) {
			s.Topics = []v1alpha1.TopicName{"a.B_c-9", "...", v1alpha1.TopicName(strings.Repeat("t", 249))}
		}, ""},
		"a topic's blank": {func(s *spec) { s.Topics = []v1alpha1.TopicName{"a", "b c"} }, topic},
		"a topic .":       {func(s *spec) { s.Topics = []v1alpha1.TopicName{"."} }, topic},
		"a topic ..":      {func(s *spec) { s.Topics = []v1alpha1.TopicName{".."} }, topic},
		"an empty topic":  {func(s *spec) { s.Topics = []v1alpha1.TopicName{""} }, "at least 1 chars long"},
		"too long a topic's": {
			func(s *spec) { s.Topics = []v1alpha1.TopicName{v1alpha1.TopicName(strings.Repeat("t", 250))} },
			"Too long",
		},
		"a topic twice": {
			func(s *spec) { s.Topics = []v1alpha1.TopicName{"a", "b", "a"} }, `spec.topics[2]: Duplicate value: "a"`,
		},
		"too many topics": {func(s *spec) {
			for i := range 101 {
				s.Topics = append(s.Topics, v1alpha1.TopicName(fmt.Sprintf("t%d", i)))
			}
		}, "spec.topics: Too many"},
		"an objective of 0": {
			func(s *spec) { s.Objective.MaxLagSeconds = 0 }, "should be greater than or equal to 1",
		},
		"an objective of a week": {func(s *spec) { s.Objective.MaxLagSeconds = 604800 }, ""},
		"an objective of over a week": {
			func(s *spec) { s.Objective.MaxLagSeconds = 604801 }, "should be less than or equal to 604800",
		},
	} {
		cg := consumerGroup()
		cg.ObjectMeta = metav1.ObjectMeta{GenerateName: "v-", Namespace: a.namespace}
		c.change(&cg.Spec)
		refused(t, what, a.Create(t.Context(), cg), c.want)
	}

	cg := a.consumerGroup(t, "changing", "a")
	for what, c := range map[string]struct {
		change func(*spec)
		want   string
	}{
		"another group": {
			func(s *spec) { s.Group = "other" },
			`spec.group: Invalid value: "other": it cannot be changed: delete this ConsumerGroup, ` +
				`and create one for the other group`,
		},
		"another cluster": {
			func(s *spec) { s.Cluster = "other" },
			`spec.cluster: Invalid value: "other": it cannot be changed: delete this ConsumerGroup, ` +
				`and create one in the other cluster`,
		},
		"another objective": {func(s *spec) { s.Objective.MaxLagSeconds = 60 }, ""},
		"other topics":      {func(s *spec) { s.Topics = []v1alpha1.TopicName{"b"} }, ""},
	} {
		changed := a.get(t, cg).DeepCopy()
		c.change(&changed.Spec)
		refused(t, what, a.Update(t.Context(), changed), c.want)
	}
}

func refused(t *testing.T, what string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: the API server returns %v, want %q", what, err, want)
	}
}

// Polls lead to a status, which kubectl shows. Events report transitions and nothing else.
func TestStatusAndEvents(t *testing.T) {
	t.Parallel()
	a, s := newAPI(t), newScript()
	r := start(t, a.config(), testLog(t), a.kube, s)
	s.leads(t)
	cg := a.consumerGroup(t, "orders", "a")
	await(t, func() error {
		want := map[string][]lag.Objective{"readers": {{Age: 10 * time.Second, Topics: []string{"a"}}}}
		if diff := cmp.Diff(want, s.wanted()); diff != "" {
			return fmt.Errorf("the collector's objectives (-want +got):\n%s", diff)
		}
		return nil
	})
	s.finds(map[string][]lag.Partition{"a": {ok(0), ok(1)}})
	a.is(t, cg, v1alpha1.Consuming, "True/Reading")
	got := strings.Fields(kubectl(t, a, "get", "cg", "orders", "--no-headers"))
	if !slices.Equal(got[:len(got)-1], strings.Fields("orders readers Stable 1 0 0 10 True True")) {
		t.Errorf("kubectl shows %v", got)
	}

	// A change of the numbers alone makes no Event.
	for _, records := range []int64{40, 41, 42} {
		s.finds(map[string][]lag.Partition{"a": {ok(0), behind(1, records, 2*time.Minute, lag.StatusStalled)}})
		a.is(t, cg, v1alpha1.Consuming, "False/Stalled")
	}
	want := "NAME     GROUP     STATE    MEMBERS   LAG   SECONDS   OBJECTIVE   WITHIN   CONSUMING   " +
		"WHY       WORST TOPIC   PARTITION   PROTOCOL   CLUSTER   AGE\n" +
		"orders   readers   Stable   1         40    120       10          False    False       " +
		"Stalled   a             1           consumer   main      "
	if got := kubectl(t, a, "get", "consumergroups", "-o", "wide"); !strings.HasPrefix(got, want) {
		t.Errorf("kubectl shows\n%s\nwant\n%s", got, want)
	}
	s.finds(map[string][]lag.Partition{"a": {ok(0), ok(1)}})
	a.is(t, cg, v1alpha1.Consuming, "True/Reading")

	var recorded []string
	await(t, func() error {
		var events eventsv1.EventList
		if err := a.List(t.Context(), &events, client.InNamespace(a.namespace)); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(events.Items, func(a, b eventsv1.Event) int { return a.EventTime.Compare(b.EventTime.Time) })
		recorded = nil
		for _, e := range events.Items {
			if e.Regarding.Kind == "ConsumerGroup" {
				recorded = append(recorded, fmt.Sprintf("%s %s %s %s", e.Type, e.Reason, e.Action, e.Regarding.Name))
			}
		}
		if len(recorded) < 4 {
			return fmt.Errorf("events are %q", recorded)
		}
		return nil
	})
	if diff := cmp.Diff([]string{"Warning Stalled Consuming orders", "Warning ObjectiveMissed WithinObjective orders",
		"Normal Reading Consuming orders", "Normal WithinObjective WithinObjective orders"}, recorded); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// The operator corrects what somebody else writes into the status.
	cg.Status.Conditions[0].Status, cg.Status.Conditions[0].Reason = "False", "Nonsense"
	if err := a.Status().Update(t.Context(), cg); err != nil {
		t.Fatal(err)
	}
	a.is(t, cg, v1alpha1.Consuming, "True/Reading")

	if cg.Finalizers != nil {
		t.Errorf("it has finalizers: %v", cg.Finalizers)
	}
	if err := a.Delete(t.Context(), cg); err != nil {
		t.Fatal(err)
	}
	await(t, func() error {
		if objectives := s.wanted(); len(objectives) > 0 {
			return fmt.Errorf("the collector still wants %v", objectives)
		}
		return nil
	})
	if code, text := r.http(t, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d %s", code, text)
	}
}

func kubectl(t *testing.T, a *api, args ...string) string {
	t.Helper()
	args = append([]string{"--namespace", a.namespace}, args...)
	cmd := exec.CommandContext(t.Context(), "kubectl", args...)
	// It warns of the copies of the CRD that other tests install, under groups that come behind this one's.
	var warnings bytes.Buffer
	cmd.Stderr = &warnings
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s%s", args, err, out, &warnings)
	}
	return string(out)
}

// bench is a reconciler with a clock of its own, so that minutes pass at once. Its API server is
// real.
type bench struct {
	*api
	*script
	r      *reconciler
	time   time.Time
	events []string
}

func newBench(a *api) *bench {
	b := &bench{api: a, script: newScript(), time: time.Now()}
	b.restart()
	return b
}

// restart makes the reconciler of another process, which remembers nothing.
func (b *bench) restart() {
	b.r = &reconciler{
		client: b.WithWatch, events: b, now: func() time.Time { return b.time },
		groups: map[types.NamespacedName]*declared{},
		clusters: map[string]*watchedCluster{
			"main": {
				Cluster:   config.Cluster{Config: lag.Config{Name: "main", Interval: 5 * time.Second}},
				collector: b.script,
				begun:     b.time,
			},
		},
	}
}

func (b *bench) Eventf(_, _ runtime.Object, kind, reason, _, note string, args ...any) {
	b.events = append(b.events, kind+" "+reason)
}

// reconcile reconciles cg after a poll that found s at the clock's time. A nil s is no poll.
func (b *bench) reconcile(
	t *testing.T, cg *v1alpha1.ConsumerGroup, s *lag.Snapshot,
) (reconcile.Result, *v1alpha1.ConsumerGroup) {
	t.Helper()
	if s != nil {
		s.Time = b.time
		b.poll(s, nil)
	}
	result, err := b.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(cg)})
	if err != nil {
		t.Fatal(err)
	}
	return result, b.get(t, cg)
}

func TestWritesAreFew(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders")
	writes := func(minutes int, records func(poll int) int64) (n int) {
		for i := range minutes * 12 {
			b.time = b.time.Add(5 * time.Second)
			before := b.get(t, cg).ResourceVersion
			p := behind(0, records(i), time.Second, lag.StatusOK)
			_, cg = b.reconcile(t, cg, snapshotOf(map[string][]lag.Partition{"a": {p}}))
			if cg.ResourceVersion != before {
				n++
			}
		}
		return n
	}
	writes(1, func(int) int64 { return 1 })
	if n := writes(4, func(int) int64 { return 1 }); n < 4 || n > 5 {
		t.Errorf(
			"%d writes in 4 idle minutes: want one a minute, to recognise a status that is no longer kept", n,
		)
	}
	if n := writes(2, func(poll int) int64 { return int64(poll) }); n < 11 || n > 12 {
		t.Errorf("%d writes in 2 minutes with other numbers each 5 s: want one each 10 s", n)
	}
	if len(b.events) > 0 {
		t.Errorf("events: %q", b.events)
	}
}

// A status that was made from a version which is no longer the last is not written: the queue comes
// back with the new one.
func TestConflict(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders")
	b.reconcile(t, cg, snapshotOf(map[string][]lag.Partition{"a": {ok(0)}}))
	b.r.client = interceptor.NewClient(b.WithWatch, interceptor.Funcs{
		Get: func(
			ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption,
		) error {
			err := c.Get(ctx, key, o, opts...)
			other := o.DeepCopyObject().(*v1alpha1.ConsumerGroup)
			other.Spec.Objective.MaxLagSeconds = 3600
			return errors.Join(err, c.Update(ctx, other))
		},
	})
	b.time = b.time.Add(5 * time.Second)
	stalled := func() *lag.Snapshot {
		return snapshotOf(map[string][]lag.Partition{"a": {behind(0, 9, time.Minute, lag.StatusStalled)}})
	}
	result, cg := b.reconcile(t, cg, stalled())
	if result.RequeueAfter == 0 || conditionOf(cg, v1alpha1.Consuming) != "True/Reading" || b.events != nil {
		t.Errorf("again after %v; %s; events %q", result.RequeueAfter, conditionOf(cg, v1alpha1.Consuming), b.events)
	}
	b.r.client = b.WithWatch
	// This passes the objective to the collector. It counts from the next poll on.
	b.reconcile(t, cg, nil)
	b.time = b.time.Add(5 * time.Second)
	_, cg = b.reconcile(t, cg, stalled())
	if conditionOf(cg, v1alpha1.Consuming) != "False/Stalled" ||
		conditionOf(cg, v1alpha1.WithinObjective) != "True/WithinObjective" || cg.Status.ObservedGeneration != 2 {
		t.Errorf("%+v", cg.Status)
	}
	if diff := cmp.Diff([]string{"Warning Stalled"}, b.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// A process that has just started does not know yet whether a group moves. It leaves the condition
// as it was, and announces no recovery.
func TestRestartLeavesWhatIsNotKnown(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders")
	stuck := func(status lag.Status, since time.Time) *lag.Snapshot {
		p := behind(0, 40, 5*time.Minute, status)
		p.LastProgress, p.Since = time.Time{}, since
		return snapshotOf(map[string][]lag.Partition{"a": {p}})
	}
	_, cg = b.reconcile(t, cg, stuck(lag.StatusStopped, b.time.Add(-time.Hour)))
	if got := conditionOf(cg, v1alpha1.Consuming); got != "False/Stopped" {
		t.Fatal(got)
	}
	changed := meta.FindStatusCondition(cg.Status.Conditions, v1alpha1.Consuming).LastTransitionTime
	b.events = nil
	b.restart()
	begun := b.time
	for ; b.time.Sub(begun) < 3*time.Minute; b.time = b.time.Add(5 * time.Second) {
		status := lag.StatusOK
		if b.time.Sub(begun) >= time.Minute {
			status = lag.StatusStopped
		}
		_, cg = b.reconcile(t, cg, stuck(status, begun))
		c := meta.FindStatusCondition(cg.Status.Conditions, v1alpha1.Consuming)
		if got := conditionOf(cg, v1alpha1.Consuming); got != "False/Stopped" || !c.LastTransitionTime.Equal(&changed) {
			t.Fatalf("%v after the restart it is %s since %v", b.time.Sub(begun), got, c.LastTransitionTime)
		}
	}
	if b.events != nil {
		t.Errorf("events: %q", b.events)
	}
}

// A single poll that fails changes no status. A cluster that stays unreachable does, and so does a
// topic without a leader.
func TestClusterGoesAndComesBack(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders")
	fine := map[string][]lag.Partition{"a": {ok(0)}}
	_, cg = b.reconcile(t, cg, nil)
	if cg.Status.Conditions != nil {
		t.Fatalf("before the first poll: %+v", cg.Status)
	}
	_, cg = b.reconcile(t, cg, snapshotOf(fine))
	polled := cg.Status.LastPollTime
	for i, want := range []string{
		"True/Reading", "True/Reading", "True/Reading", "Unknown/ClusterUnreachable", "Unknown/ClusterUnreachable",
	} {
		b.time = b.time.Add(5 * time.Second)
		b.poll(nil, &lag.ReadError{API: "ListGroups", Err: errors.New("dial tcp: connection refused")})
		if _, cg = b.reconcile(t, cg, nil); conditionOf(cg, v1alpha1.Consuming) != want {
			t.Errorf("after %d failed polls: %s, want %s", i+1, conditionOf(cg, v1alpha1.Consuming), want)
		}
	}
	if cg.Status.Lag != nil || cg.Status.State != "" || !cg.Status.LastPollTime.Equal(polled) {
		t.Errorf("it still shows numbers: %+v", cg.Status)
	}
	message := meta.FindStatusCondition(cg.Status.Conditions, v1alpha1.Consuming).Message
	want := "cluster main has not been readable since " + polled.UTC().Format(time.RFC3339) +
		": ListGroups: CONNECTION; see the operator's log"
	if message != want {
		t.Errorf("the message is %q, want %q", message, want)
	}
	b.time = b.time.Add(5 * time.Second)
	if _, cg = b.reconcile(t, cg, snapshotOf(fine)); conditionOf(cg, v1alpha1.Consuming) != "True/Reading" {
		t.Errorf("after it came back: %s", conditionOf(cg, v1alpha1.Consuming))
	}
	for i, want := range []string{"True/AllReady", "True/AllReady", "True/AllReady", "False/NotReady"} {
		b.time = b.time.Add(5 * time.Second)
		s := snapshotOf(fine)
		s.Topics["a"].Ready = false
		if _, cg = b.reconcile(t, cg, s); conditionOf(cg, v1alpha1.TopicsReady) != want {
			t.Errorf("after %d polls without a leader: %s, want %s", i+1, conditionOf(cg, v1alpha1.TopicsReady), want)
		}
	}
	wantEvents := []string{
		"Warning ClusterUnreachable", "Normal Reading", "Normal WithinObjective", "Normal AllReady",
		"Warning Unreadable", "Warning NotReady",
	}
	if diff := cmp.Diff(wantEvents, b.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// A poll that began before the collector knew of a group has not looked for it.
func TestNotFoundOnlyAfterItWasLookedFor(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders")
	empty := func() *lag.Snapshot { return &lag.Snapshot{Time: b.time} }
	early := empty()
	b.time = b.time.Add(time.Second)
	b.poll(early, nil)
	if _, cg = b.reconcile(t, cg, nil); cg.Status.Conditions != nil {
		t.Errorf("%+v", cg.Status)
	}
	b.time = b.time.Add(time.Second)
	if _, cg = b.reconcile(t, cg, empty()); conditionOf(cg, v1alpha1.Consuming) != "False/NotFound" {
		t.Errorf("%+v", cg.Status)
	}
}

// A consumer commits for the first time in a partition some time after the first record is there.
func TestNoCommitIsGivenAMinute(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders")
	none := lag.Partition{Number: 1, Committed: -1, Status: lag.StatusNoCommit, Close: -1}
	for _, c := range []struct {
		polls     int
		partition lag.Partition
		want      string
	}{
		{1, ok(1), "True/Reading"},
		{12, none, "True/Reading"},
		{1, none, "False/NoCommit"},
		{1, ok(1), "True/Reading"},
		{12, none, "True/Reading"},
		{1, none, "False/NoCommit"},
	} {
		for i := range c.polls {
			b.time = b.time.Add(5 * time.Second)
			_, cg = b.reconcile(t, cg, snapshotOf(map[string][]lag.Partition{"a": {ok(0), c.partition}}))
			if conditionOf(cg, v1alpha1.Consuming) != c.want {
				t.Fatalf("after %d polls it is %s, want %s", i+1, conditionOf(cg, v1alpha1.Consuming), c.want)
			}
		}
	}
}

// A ConsumerGroup that is deleted gets no status and has no objective, even while somebody's
// finalizer still holds it.
func TestDeletedButHeld(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders", "a")
	cg.Finalizers = []string{"test.invalid/held"}
	if err := b.Update(t.Context(), cg); err != nil {
		t.Fatal(err)
	}
	b.reconcile(t, cg, nil)
	if err := b.Delete(t.Context(), cg); err != nil {
		t.Fatal(err)
	}
	if _, cg = b.reconcile(t, cg, snapshotOf(map[string][]lag.Partition{"a": {ok(0)}})); cg.Status.Conditions != nil {
		t.Errorf("it still gets a status: %+v", cg.Status)
	}
	if objectives := b.wanted(); len(objectives) > 0 {
		t.Errorf("the collector still wants %v", objectives)
	}
	cg.Finalizers = nil
	if err := b.Update(t.Context(), cg); err != nil {
		t.Fatal(err)
	}
}

// A group that flaps causes fewer Events than transitions.
func TestEventsAreFew(t *testing.T) {
	t.Parallel()
	b := newBench(newAPI(t))
	cg := b.consumerGroup(t, "orders")
	for i := range 10 * 12 { // ten minutes
		b.time = b.time.Add(5 * time.Second)
		_, cg = b.reconcile(
			t, cg,
			snapshotOf(map[string][]lag.Partition{"a": {behind(0, 1, time.Duration(i%2)*time.Minute, lag.StatusOK)}}),
		)
		want := []string{"True/WithinObjective", "False/ObjectiveMissed"}[i%2]
		if got := conditionOf(cg, v1alpha1.WithinObjective); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	if n := len(b.events); n < 15 || n > 20 {
		t.Errorf("%d events of 120 transitions in ten minutes", n)
	}
}

// Several ConsumerGroups may name one group, in whatever namespaces: each objective counts, and
// leaves with its ConsumerGroup.
func TestObjectives(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	b := newBench(a)
	strict, lenient := consumerGroup("a", "b"), consumerGroup("b", "c")
	lenient.Spec.Objective.MaxLagSeconds = 60
	other := consumerGroup("d")
	other.Spec.Cluster = "elsewhere"
	for name, cg := range map[string]*v1alpha1.ConsumerGroup{"strict": strict, "lenient": lenient, "other": other} {
		cg.ObjectMeta = metav1.ObjectMeta{Name: name, Namespace: a.namespace}
		a.create(t, cg)
		b.reconcile(t, cg, nil)
	}
	wanted := func(want ...lag.Objective) {
		t.Helper()
		inAnyOrder := cmpopts.SortSlices(func(a, b lag.Objective) bool { return a.Age < b.Age })
		if diff := cmp.Diff(map[string][]lag.Objective{"readers": want}, b.wanted(), inAnyOrder); diff != "" {
			t.Errorf("objectives (-want +got):\n%s", diff)
		}
	}
	strictly := lag.Objective{Age: 10 * time.Second, Topics: []string{"a", "b"}}
	leniently := lag.Objective{Age: time.Minute, Topics: []string{"b", "c"}}
	wanted(strictly, leniently)
	if err := a.Delete(t.Context(), strict); err != nil {
		t.Fatal(err)
	}
	deleted := reconcile.Request{NamespacedName: client.ObjectKeyFromObject(strict)}
	if _, err := b.r.Reconcile(t.Context(), deleted); err != nil {
		t.Fatal(err)
	}
	wanted(leniently)
	lenient.Spec.Objective.MaxLagSeconds = 5
	if err := a.Update(t.Context(), lenient); err != nil {
		t.Fatal(err)
	}
	b.reconcile(t, lenient, nil)
	leniently.Age = 5 * time.Second
	wanted(leniently)
	b.reconcile(t, other, nil)
	if got := conditionOf(a.get(t, other), v1alpha1.Consuming); got != "Unknown/UnknownCluster" {
		t.Errorf("in another cluster: %s", got)
	}
}

// Of two replicas one polls, and both are ready. When the first stops, the second continues at once
// where it was.
func TestLeaderChange(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	first, second := newScript(), newScript()
	log := &testenv.Lines{}
	one := start(t, a.config(), slog.New(slog.NewTextHandler(log, nil)), a.kube, first)
	first.leads(t)
	two := start(t, a.config(), testLog(t), a.kube, second)
	cg := a.consumerGroup(t, "orders")
	await(t, func() error {
		if first.wanted() == nil {
			return errors.New("the leader has not seen the ConsumerGroup")
		}
		return nil
	})
	first.finds(map[string][]lag.Partition{"a": {behind(0, 9, time.Hour, lag.StatusStalled)}})
	a.is(t, cg, v1alpha1.Consuming, "False/Stalled")
	version := cg.ResourceVersion
	shows := func(r *replica) bool {
		_, text := r.http(t, "/metrics")
		if !strings.Contains(text, "\nprocess_start_time_seconds ") || !strings.Contains(text, "\nservice_ready 1") {
			t.Errorf("a replica does not show itself:\n%s", text)
		}
		return strings.Contains(text, "\nkafka_consumergroup_lag ")
	}
	if !shows(one) || shows(two) {
		t.Errorf("series of groups are at the leader: %v, at the other: %v", shows(one), shows(two))
	}

	begin := time.Now()
	if err := one.stop(); err != nil {
		t.Fatal(err)
	}
	second.leads(t)
	if text := log.String(); strings.Contains(text, "level=WARN") || strings.Contains(text, "level=ERROR") {
		t.Errorf("the log of a replica that stops in order is alarming:\n%s", text)
	}
	// A lease that is not released lasts 15 s.
	if took := time.Since(begin); took > 12*time.Second {
		t.Errorf("the other leads after %v: the lease was not released", took)
	}
	if o := second.wanted(); len(o["readers"]) != 1 {
		t.Errorf("its first poll looks for %v", o)
	}
	// It cannot know yet that the partition is stalled.
	p := behind(0, 9, time.Hour, lag.StatusOK)
	p.LastProgress, p.Since = time.Time{}, time.Now()
	s := snapshotOf(map[string][]lag.Partition{"a": {p}})
	s.Time = time.Now()
	second.poll(s, nil)
	// It writes the status once, because the worst partition is no longer stalled.
	await(t, func() error {
		if a.get(t, cg).ResourceVersion == version {
			return errors.New("the second has not written the status")
		}
		return nil
	})
	if got := conditionOf(cg, v1alpha1.Consuming); got != "False/Stalled" {
		t.Errorf("after the change it is %s", got)
	}
	if !shows(two) {
		t.Error("the new leader does not show the series")
	}
}

// Where Strimzi's CRD is installed, KafkaTopics decide whether topics are ready.
func TestKafkaTopics(t *testing.T) {
	t.Parallel()
	a, s := newAPI(t), newScript()
	cfg := a.config()
	cfg.Clusters[0].KafkaTopics = config.KafkaTopics{Namespace: a.namespace, Cluster: "main"}
	topic := func(name, topicName, cluster string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "kafka.strimzi.io/v1", "kind": "KafkaTopic",
			"metadata": map[string]any{
				"name": name, "namespace": a.namespace, "labels": map[string]any{"strimzi.io/cluster": cluster},
			},
			"spec": map[string]any{"topicName": topicName, "partitions": int64(1)},
		}}
		a.create(t, o)
		return o
	}
	ready := func(o *unstructured.Unstructured, status, reason, message string) {
		o.Object["status"] = map[string]any{"conditions": []any{map[string]any{
			"type": "Ready", "status": status, "reason": reason, "message": message,
			"lastTransitionTime": "2026-03-01T12:00:00Z"}}}
		if err := a.Status().Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	good, bad, elsewhere, double := topic("a", "a", "main"), topic("bee", "b", "main"), topic("c", "c", "other"), topic(
		"a-again", "a", "main",
	)
	ready(good, "True", "", "")
	ready(bad, "False", "NotSupported", "Decreasing partitions not supported")
	ready(elsewhere, "False", "KafkaError", "of another cluster")
	ready(double, "False", "ResourceConflict", "Managed by a")

	start(t, cfg, testLog(t), a.kube, s)
	s.leads(t)
	cg := a.consumerGroup(t, "orders")
	await(t, func() error {
		s.finds(map[string][]lag.Partition{"a": {ok(0)}, "b": {ok(0)}, "c": {ok(0)}})
		if got := conditionOf(a.get(t, cg), v1alpha1.TopicsReady); got != "False/NotSupported" {
			return errors.New(got)
		}
		return nil
	})
	want := []v1alpha1.TopicStatus{
		{Name: "a", Ready: "True", Source: "KafkaTopic", Lag: new(int64(0)), LagSeconds: new(int64(0))},
		{
			Name: "b", Ready: "False", Source: "KafkaTopic", Reason: "NotSupported",
			Message: "KafkaTopic bee is not ready: Decreasing partitions not supported", Lag: new(int64(0)),
			LagSeconds: new(int64(0)),
		},
		{Name: "c", Ready: "True", Source: "Kafka", Lag: new(int64(0)), LagSeconds: new(int64(0))},
	}
	if diff := cmp.Diff(want, cg.Status.Topics); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	ready(bad, "True", "", "")
	await(t, func() error {
		s.finds(map[string][]lag.Partition{"a": {ok(0)}, "b": {ok(0)}, "c": {ok(0)}})
		if got := conditionOf(a.get(t, cg), v1alpha1.TopicsReady); got != "True/AllReady" {
			return errors.New(got)
		}
		return nil
	})
}

// Of several KafkaTopics for one topic, the one that Strimzi serves counts, in whatever order they
// come.
func TestSeveralKafkaTopicsOfOneTopic(t *testing.T) {
	t.Parallel()
	object := func(name, status string) unstructured.Unstructured {
		return unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"topicName": "a"},
			"status": map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": status}}},
		}}
	}
	served, double := object("served", "True"), object("double", "False")
	for _, objects := range [][]unstructured.Unstructured{{served, double}, {double, served}} {
		if got := byTopic(objects)["a"]; got.object != "served" || got.ready != metav1.ConditionTrue {
			t.Errorf("%+v", got)
		}
	}
}

// Where Strimzi's CRD is not installed, the operator does not wait for it.
func TestNoKafkaTopics(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var log strings.Builder
	k8s, err := newKubernetes(a.config(), testLog(t), a.kube)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newStrimzi(
		config.KafkaTopics{Namespace: a.namespace, Cluster: "main"}, a.kube, k8s.GetHTTPClient(), k8s.GetRESTMapper(),
		slog.New(slog.NewTextHandler(&log, nil)),
	)
	if err != nil {
		t.Fatal(err)
	}
	s.kind = schema.GroupKind{Group: "kafka.strimzi.io", Kind: "NoSuchTopic"}
	asked := &countingMapper{RESTMapper: s.mapper}
	s.mapper = asked
	now := time.Now()
	begin := time.Now()
	s.sync(t.Context())
	// These are the polls of ten minutes.
	for range 100 {
		if topics, err := s.topics(t.Context(), now); topics != nil || err != nil {
			t.Fatalf("%v, %v", topics, err)
		}
		now = now.Add(6 * time.Second)
	}
	// sync would wait for 5 s if it waited for the CRD.
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("it waited for %v", took)
	}
	n := strings.Count(log.String(), "KafkaTopics are not installed")
	if n != 1 || asked.times < 10 || asked.times > 11 {
		t.Errorf("it looks %d times, and logs it %d times:\n%s", asked.times, n, &log)
	}
	// Now Strimzi has been installed.
	s.kind.Kind = "KafkaTopic"
	if !s.exists(now.Add(time.Minute)) {
		t.Error("it did not look again")
	}
	var none *strimzi
	if topics, err := none.topics(t.Context(), now); topics != nil || err != nil {
		t.Errorf("without KafkaTopics in the configuration: %v, %v", topics, err)
	}
}

type countingMapper struct {
	meta.RESTMapper
	times int
}

func (m *countingMapper) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	m.times++
	return m.RESTMapper.RESTMapping(kind, versions...)
}

// With the rules that the chart gives the operator, the API server refuses it nothing.
func TestLeastRBAC(t *testing.T) {
	t.Parallel()
	a, s := newAPI(t), newScript()
	named := metav1.ObjectMeta{Name: "lag-operator", Namespace: a.namespace}
	a.create(t, &corev1.ServiceAccount{ObjectMeta: named})
	a.create(t, &rbacv1.Role{ObjectMeta: named, Rules: []rbacv1.PolicyRule{
		{
			APIGroups: []string{"ordersystem.dev"}, Resources: []string{"consumergroups"},
			Verbs: []string{"get", "list", "watch"},
		},
		{
			APIGroups: []string{"ordersystem.dev"}, Resources: []string{"consumergroups/status"},
			Verbs: []string{"patch"},
		},
		{
			APIGroups: []string{"kafka.strimzi.io"}, Resources: []string{"kafkatopics"},
			Verbs: []string{"get", "list", "watch"},
		},
		{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create"}},
		{
			APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"},
			ResourceNames: []string{"lag-operator"}, Verbs: []string{"get", "update"},
		},
	}})
	a.create(t, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "lag-operator", Namespace: a.namespace},
		RoleRef:  rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: "lag-operator"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "lag-operator", Namespace: a.namespace}}})
	kube := rest.CopyConfig(a.kube)
	kube.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + a.namespace + ":lag-operator",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + a.namespace, "system:authenticated"}}
	cfg := a.config()
	cfg.Clusters[0].KafkaTopics = config.KafkaTopics{Namespace: a.namespace, Cluster: "main"}
	log := &testenv.Lines{}
	r := start(t, cfg, slog.New(slog.NewTextHandler(log, nil)), kube, s)
	s.leads(t)
	cg := a.consumerGroup(t, "orders", "a")
	await(t, func() error {
		s.finds(map[string][]lag.Partition{"a": {behind(0, 9, time.Hour, lag.StatusStalled)}})
		if got := conditionOf(a.get(t, cg), v1alpha1.Consuming); got != "False/Stalled" {
			return fmt.Errorf("%q\n%s", got, log)
		}
		return nil
	})
	await(t, func() error {
		out := kubectl(t, a, "get", "events")
		if !strings.Contains(out, "Stalled") || !strings.Contains(out, "LeaderElection") {
			return errors.New("events are\n" + out)
		}
		return nil
	})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if text := log.String(); strings.Contains(strings.ToLower(text), "forbidden") {
		t.Errorf("it was refused something:\n%s", text)
	}
	if lease := kubectl(t, a, "get", "lease", "lag-operator", "-o", "jsonpath={.spec.holderIdentity}"); lease != "" {
		t.Errorf("the lease is still held by %q", lease)
	}
}

// Without an API server the operator ends with an error.
func TestNoAPIServer(t *testing.T) {
	t.Parallel()
	cfg := Config{Config: config.Config{OpsAddr: env.Addr{Value: "127.0.0.1:0"}}, Namespace: "orders"}
	err := run(t.Context(), cfg, testLog(t), &rest.Config{Host: "127.0.0.1:1"}, nil,
		func(lag.Config) (collector, error) { return newScript(), nil })
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error is %v", err)
	}
}

// The generated files are committed as the generators write them.
func TestGeneratedFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", "sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0",
		"object", "crd", "paths=./api/v1alpha1", "output:crd:dir="+dir, "output:object:dir="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for made, committed := range map[string]string{
		"zz_generated.deepcopy.go":            "api/v1alpha1/zz_generated.deepcopy.go",
		"ordersystem.dev_consumergroups.yaml": filepath.Join("..", "..", schemas.ConsumerGroup),
	} {
		want, err := os.ReadFile(filepath.Join(dir, made))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(committed)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what `make generate` writes (-want +got):\n%s", committed, diff)
		}
	}
}
