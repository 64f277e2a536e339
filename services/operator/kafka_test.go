package operator

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

// A group that is only discovered has metrics. With a ConsumerGroup it has a status and an
// objective too. When that is deleted, it has only the metrics again.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	a, kafka := newAPI(t), testenv.Fake(t)
	for i := range 5 {
		testenv.Produce(
			t, kafka, contract.Message{Topic: contract.TopicDeadLetter, Key: []byte("k"), Value: fmt.Append(nil, i)},
		)
	}
	partition := testenv.ReadAll(t, kafka, contract.TopicDeadLetter)[0].Partition
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(kafka))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	for _, group := range []string{"readers", "others"} {
		offsets := kadm.Offsets{}
		offsets.AddOffset(contract.TopicDeadLetter, partition, 2, -1)
		if err := admin.CommitAllOffsets(t.Context(), group, offsets); err != nil {
			t.Fatal(err)
		}
	}
	cfg := a.config()
	cfg.Clusters[0].Config = lag.Config{
		Name: "main", Interval: time.Second, Groups: regexp.MustCompile("^(?:readers)$"),
		Kafka: kafkaconfig.Client{Brokers: []string{kafka}},
	}
	r := start(t, cfg, testLog(t), a.kube, nil)
	shows := func(series string, want bool) {
		t.Helper()
		await(t, func() error {
			if _, text := r.http(t, "/metrics"); strings.Contains(text, "\n"+series) != want {
				return fmt.Errorf("%s is among the metrics: %v", series, !want)
			}
			return nil
		})
	}
	const labels = `{consumergroup="readers",kafka_cluster="main",partition="%d",topic="%s"}`
	lagOf := fmt.Sprintf("kafka_consumergroup_lag"+labels+" 3", partition, contract.TopicDeadLetter)
	const objective = `kafka_consumergroup_objective_seconds{consumergroup="readers",kafka_cluster="main"} 10`
	shows(lagOf, true)
	shows(objective, false)
	shows(`kafka_consumergroup_lag{consumergroup="others"`, false)

	cg := a.consumerGroup(t, "readers")
	a.is(t, cg, v1alpha1.TopicsReady, "True/AllReady")
	if cg.Status.Lag == nil || *cg.Status.Lag != 3 || cg.Status.State != "Empty" || *cg.Status.Members != 0 ||
		len(cg.Status.Topics) != 1 {
		t.Errorf("%+v", cg.Status)
	}
	shows(objective, true)
	if err := a.Delete(t.Context(), cg); err != nil {
		t.Fatal(err)
	}
	shows(objective, false)
	shows(lagOf, true)
}

// The next leader continues where the last one stopped. What stands still for it, too, is stopped in
// its first poll, so an alert on the series goes on counting, and the condition does not change.
func TestTheNextLeaderContinues(t *testing.T) {
	t.Parallel()
	a, kafka := newAPI(t), testenv.Fake(t)
	fiveMinutesAgo := time.Now().Add(-5 * time.Minute).Truncate(time.Second)
	client, err := kgo.NewClient(kgo.SeedBrokers(kafka), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	created, err := admin.CreateTopics(t.Context(), 3, 1, nil, "a")
	if err := errors.Join(err, created.Error()); err != nil {
		t.Fatal(err)
	}
	offsets := kadm.Offsets{}
	for p := range int32(3) {
		for range 10 {
			r := &kgo.Record{Topic: "a", Partition: p, Timestamp: fiveMinutesAgo, Value: []byte("v")}
			if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		offsets.AddOffset("a", p, 5, -1)
	}
	if err := admin.CommitAllOffsets(t.Context(), "readers", offsets); err != nil {
		t.Fatal(err)
	}

	// The last leader saw partition 0 and 1 stand still for three minutes. Since then the group has
	// moved in partition 1.
	cg := a.consumerGroup(t, "readers", "a")
	before := newScript()
	last := start(t, a.config(), testLog(t), a.kube, before)
	before.leads(t)
	await(t, func() error {
		if len(before.wanted()) == 0 {
			return errors.New("the collector has no objectives")
		}
		return nil
	})
	stood := func(number int32, committed int64) lag.Partition {
		return lag.Partition{
			Number: number, Committed: committed, Records: 5, Age: 5 * time.Minute, Status: lag.StatusStopped,
			Since: fiveMinutesAgo, Unmoved: fiveMinutesAgo, Close: -1,
		}
	}
	before.finds(map[string][]lag.Partition{"a": {stood(0, 5), stood(1, 4), ok(2)}})
	a.is(t, cg, v1alpha1.Consuming, "False/Stopped")
	changed := meta.FindStatusCondition(cg.Status.Conditions, v1alpha1.Consuming).LastTransitionTime
	if err := last.stop(); err != nil {
		t.Fatal(err)
	}

	cfg := a.config()
	cfg.Clusters[0].Config = lag.Config{
		Name: "main", Interval: time.Second, Kafka: kafkaconfig.Client{Brokers: []string{kafka}},
	}
	next := start(t, cfg, testLog(t), a.kube, nil)
	status := regexp.MustCompile(`\nkafka_consumergroup_partition_status\{.*status="(?:ok|stopped)",topic="a"} \d`)
	await(t, func() error {
		_, text := next.http(t, "/metrics")
		shown := status.FindAllString(text, -1)
		if len(shown) == 0 {
			return errors.New("no statuses")
		}
		if !strings.HasSuffix(shown[0], `status="ok",topic="a"} 2`) ||
			!strings.HasSuffix(shown[1], `status="stopped",topic="a"} 1`) {
			t.Errorf("the first poll shows%v, want one partition stopped", shown)
		}
		return nil
	})
	await(t, func() error {
		if n := len(a.get(t, cg).Status.Standing); n != 1 {
			return fmt.Errorf("%d partitions stand still", n)
		}
		return nil
	})
	want := v1alpha1.StandingPartition{Topic: "a", Partition: 0, Offset: 5, Since: metav1.NewTime(fiveMinutesAgo)}
	if got := cg.Status.Standing[0]; got != want {
		t.Errorf("it stands still as %+v, want %+v", got, want)
	}
	c := meta.FindStatusCondition(cg.Status.Conditions, v1alpha1.Consuming)
	if conditionOf(cg, v1alpha1.Consuming) != "False/Stopped" || !c.LastTransitionTime.Equal(&changed) {
		t.Errorf("it is %s since %v, want Stopped since %v", conditionOf(cg, v1alpha1.Consuming),
			c.LastTransitionTime, changed)
	}
}

// An operator whose Kafka cannot be reached is ready all the same, and reports what is wrong.
func TestUnreachableKafka(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	cfg := a.config()
	cfg.Clusters[0].Config = lag.Config{
		Name: "main", Interval: time.Second, Kafka: kafkaconfig.Client{Brokers: []string{"127.0.0.1:1"}},
	}
	// start waits until it is ready.
	r := start(t, cfg, testLog(t), a.kube, nil)
	cg := a.consumerGroup(t, "orders", "a")
	a.is(t, cg, v1alpha1.Consuming, "Unknown/ClusterUnreachable")
	if _, text := r.http(t, "/metrics"); !strings.Contains(text, "\nlag_collector_up{kafka_cluster=\"main\"} 0") {
		t.Errorf("the metrics do not show it:\n%s", text)
	}
}

// A leader whose lease another replica holds ends with an error, so that it is started again. Two
// leaders would write in turns.
func TestLostLease(t *testing.T) {
	t.Parallel()
	a, s := newAPI(t), newScript()
	r := start(t, a.config(), testLog(t), a.kube, s)
	s.leads(t)
	var lease coordinationv1.Lease
	if err := a.Get(t.Context(), types.NamespacedName{Namespace: a.namespace, Name: leaseName}, &lease); err != nil {
		t.Fatal(err)
	}
	held := lease.DeepCopy()
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = new("another"), new(metav1.NowMicro())
	if err := a.Patch(t.Context(), &lease, client.MergeFrom(held)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-r.ended:
		if !errors.Is(err, errLeaseLost) {
			t.Errorf("it ends with %v", err)
		}
		r.ended <- nil
	case <-time.After(30 * time.Second):
		t.Error("it still runs")
	}
}
