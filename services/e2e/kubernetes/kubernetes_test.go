// Package kubernetes tests the chart as it is installed: on a real cluster, with the images as they
// are built, beside a real Kafka with TLS and ACLs as strimzi/ declares it.
//
// The cluster is the one of KUBECONFIG. TEST_IMAGE_LOAD is a shell command that brings the local
// Docker daemon's images "$@" into it, for kind TEST_IMAGE_LOAD='kind load docker-image --name
// orders "$@"'. TEST_JAVA_BASE and TEST_POSTGRES_BASE are the bases of the test's images of Kafka and
// PostgreSQL, if not the Dockerfiles'.
package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
)

// installation is the release and everything that it needs.
type installation struct {
	*cluster
	strimzi     *strimzi
	cart, order *service
	prometheus  *prometheus
	// watched is the time since which no alert may have been pending.
	watched time.Time
	// before lists the objects that were there before the release.
	before []string
	// secrets lists the Secrets that Strimzi wrote later.
	secrets []string
	// placed is an order that must be found at the end.
	placed ack
}

// service is Cart or Order, as the test reaches it.
type service struct {
	name     string
	port     int
	api, ops string // URLs
}

func (s *service) selector() string {
	return "app.kubernetes.io/instance=orders,app.kubernetes.io/component=" + s.name
}

// step is a part of a story, which begins where the one before ended.
type step struct {
	name string
	do   func(*testing.T)
}

// tell takes the steps of a story, and logs how long each took. The first that fails ends it.
func tell(t *testing.T, story []step) {
	t.Helper()
	for _, s := range story {
		begin := time.Now()
		if !t.Run(s.name, s.do) {
			t.Fatal("the rest needs what this step leaves")
		}
		t.Logf("%5.1f s: %s", time.Since(begin).Seconds(), s.name)
	}
}

// The steps are one story: each begins where the one before ended.
func TestInstallation(t *testing.T) {
	c := newCluster(t)
	i := &installation{cluster: c, strimzi: newStrimzi(t, c), cart: &service{name: "cart", port: 5000},
		order: &service{name: "order", port: 7000}}
	i.strimzi.prepareKafka(t)
	i.strimzi.startKafka(t)
	i.strimzi.allow(t)
	i.before = i.objects(t)
	tell(t, []step{
		{"the chart installs before anything that it needs", i.install},
		{"pods wait for the Secrets of their users", i.waitForSecrets},
		{"pods start by themselves when the Secrets are there", i.startWithSecrets},
		{"services are not ready without their topics and say which", i.waitForTopics},
		{"services are ready within a second of their topics and their pods at the next probe", i.readyWithTopics},
		{"helm test passes", i.helmTest},
		{"the Postman requests pass through kubectl port-forward", i.postman},
		{"users may do what they need and nothing else",
			func(t *testing.T) { usersMayDoWhatTheyNeedAndNothingElse(t, i.strimzi) }},
		{"the lag operator sees a group that keeps its objective", i.installLagOperator},
		{"another replica leads when the leader goes, and no alert is pending", i.loseLeader},
		{"status, Event and alert report a consumer that stops, and its recovery", i.stopConsumer},
		{"no order is lost when pods are deleted and the release is upgraded", i.disturbPods},
		{"no order is lost when the broker is deleted and comes back", i.disturbBroker},
		{"renewed certificates are used without a restart", i.renewCertificates},
		{"an Order store whose volume is gone is rebuilt from Kafka", i.rebuild},
		{"a missing right is named, and nothing is lost over it", i.missRights},
		{"the lag operator came through all that", i.lagIsRightAtTheEnd},
		{"uninstalling the lag operator leaves what was declared", i.uninstallLagOperator},
		{"uninstalling leaves the data and what is not the release's", i.uninstall},
		{"installed again it goes on where it was", i.installAgain},
		{"Pod Security warned of nothing", i.noWarnings},
	})
}

func (i *installation) install(t *testing.T) {
	i.helm(t, "install", "orders", "charts/orders")
}

func (i *installation) waitForSecrets(t *testing.T) {
	for _, s := range []*service{i.cart, i.order} {
		want := fmt.Sprintf("secret %q not found", s.name)
		eventually(t, 30*time.Second, "the pod waits: "+want, func() (bool, string) {
			waiting := i.kubectl(t, "get", "pods", "-l", s.selector(), "-o",
				"jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}")
			events := i.kubectl(t, "get", "events", "--field-selector", "reason=FailedMount", "-o",
				`jsonpath={range .items[*]}{.message}{"\n"}{end}`)
			return waiting == "ContainerCreating" && strings.Contains(events, want), waiting + "\n" + events
		})
	}
}

func (i *installation) startWithSecrets(t *testing.T) {
	i.secrets = i.strimzi.writeSecrets(t)
	begin := time.Now()
	for _, s := range []*service{i.cart, i.order} {
		i.kubectl(t, "wait", "pods", "-l", s.selector(), "--for=jsonpath={.status.phase}=Running", "--timeout=2m")
		t.Logf("%s runs %s after the Secrets", s.name, time.Since(begin).Round(100*time.Millisecond))
		addresses := i.forward("service/orders-"+s.name, s.port, s.port+1)
		s.api, s.ops = "http://"+addresses[0], "http://"+addresses[1]
	}
}

func (i *installation) waitForTopics(t *testing.T) {
	i.notReady(t, i.cart, "missing topics: order-created-topic, order-updated-topic")
	i.notReady(t, i.order, "missing topics: order-created-topic, order-dead-letter-topic, order-updated-topic")
	i.strimzi.createTopics(t, contract.TopicCreated)
	i.notReady(t, i.cart, "missing topics: order-updated-topic")
	i.notReady(t, i.order, "missing topics: order-dead-letter-topic, order-updated-topic")
}

// notReady waits until a service reports that it is not ready for this reason, and Kubernetes knows
// it too.
func (i *installation) notReady(t *testing.T, s *service, why string) {
	t.Helper()
	eventually(t, time.Minute, s.name+" says that it is not ready: "+why, func() (bool, string) {
		got, err := send(t.Context(), http.MethodGet, s.ops+"/readyz", "")
		ready := i.kubectl(t, "get", "pods", "-l", s.selector(), "-o",
			`jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		return err == nil && got.status == http.StatusServiceUnavailable && strings.Contains(got.body, why) &&
				ready == "False",
			fmt.Sprintf("%d %q %v, Ready is %s", got.status, got.body, err, ready)
	})
}

func (i *installation) readyWithTopics(t *testing.T) {
	changes := i.watch(t, "pods", "-l", "app.kubernetes.io/instance=orders",
		"-o", `jsonpath={.metadata.labels.app\.kubernetes\.io/component} `+
			`{.status.conditions[?(@.type=="Ready")].status}{"\n"}`)
	// From here on, kubectl watches.
	now := []string{(<-changes).line, (<-changes).line}
	slices.Sort(now)
	if want := []string{"cart False", "order False"}; !slices.Equal(now, want) {
		t.Fatalf("the pods are %q, want %q", now, want)
	}
	i.strimzi.createTopics(t, contract.TopicUpdated, contract.TopicDeadLetter)
	begin := time.Now()
	for ready, timeout := 0, time.After(time.Minute); ready < 2; {
		select {
		case <-timeout:
			t.Fatal("the pods are not ready a minute after their topics")
		case change := <-changes:
			if name, is, _ := strings.Cut(change.line, " "); is == "True" {
				ready++
				t.Logf("%s is ready %s after its topics", name, change.at.Sub(begin).Round(time.Millisecond))
			}
		}
	}
	// A busy machine may be late to show topics to a service, and to probe it. What lies between is the service's.
	const within = 2 * time.Second
	for s, ready := range map[*service]string{i.cart: "cart is ready", i.order: "caught up with the topics"} {
		i.logs(t, s, ready)
		if took := i.loggedAt(t, s, ready).Sub(i.loggedAt(t, s, "all topics exist")); took > within {
			t.Errorf("%s is ready %s after it saw its topics, want at most %s", s.name, took, within)
		}
	}
	i.strimzi.topicsAreReady(t)
	// docs/kubernetes.md waits for these conditions.
	i.kubectl(t, "wait", "kafka/orders", "--for=condition=Ready", "--timeout=1m")
	i.kubectl(t, "wait", "kafkatopics,kafkausers", "-l", "strimzi.io/cluster=orders", "--for=condition=Ready",
		"--timeout=1m")
}

func (i *installation) helmTest(t *testing.T) {
	t.Log(i.helm(t, "test", "orders", "--timeout=2m"))
}

func (i *installation) postman(t *testing.T) {
	i.run(t, "docs/postman/run.sh", i.cart.api, i.order.api, "--color", "off")
}

func (i *installation) disturbPods(t *testing.T) {
	l := i.startLoad(t, "pods")
	for _, disturb := range []struct {
		what string
		do   func()
	}{
		{"Cart ends in order", func() { i.kubectl(t, "delete", "pods", "-l", i.cart.selector()) }},
		{"Order ends in order", func() { i.kubectl(t, "delete", "pods", "-l", i.order.selector()) }},
		{"Cart is killed", func() { i.kubectl(t, "delete", "pods", "-l", i.cart.selector(), "--grace-period=1") }},
		{"the release is upgraded, one service after the other", func() {
			i.upgrade(t, "--set", "cart.logLevel=debug", "--set", "order.podAnnotations.changed=yes")
		}},
		{"the release is rolled back", func() { i.helm(t, "rollback", "orders") }},
	} {
		begin, before := time.Now(), l.count()
		disturb.do()
		i.rollout(t)
		at := l.count()
		t.Logf("%s: %d acknowledgements until all was ready after %s", disturb.what, at-before,
			time.Since(begin).Round(100*time.Millisecond))
		eventually(t, 30*time.Second, "more orders are acknowledged",
			func() (bool, string) { return l.count() > at+20, fmt.Sprint(l.count()) })
	}
	acked := l.end()
	t.Logf("%d acknowledgements", len(acked))
	i.placed = acked[len(acked)-1]
	i.nothingIsLost(t, acked)
}

// upgrade upgrades the release as docs/operations.md says: Order keeps its pod until Cart is ready.
func (i *installation) upgrade(t *testing.T, flags ...string) {
	t.Helper()
	pods := func(s *service) string { return i.kubectl(t, "get", "pods", "-l", s.selector(), "-o", "name") }
	cart, order := pods(i.cart), pods(i.order)
	i.kubectl(t, "rollout", "pause", "deployment/orders-order")
	i.helm(t, append([]string{"upgrade", "orders", "charts/orders"}, flags...)...)
	i.kubectl(t, "rollout", "status", "deployment/orders-cart", "--timeout=2m")
	if now := pods(i.cart); now == cart {
		t.Errorf("Cart still has %s", now)
	}
	if now := pods(i.order); now != order {
		t.Errorf("Order had %s and has %s before its rollout is resumed", order, now)
	}
	i.kubectl(t, "rollout", "resume", "deployment/orders-order")
	i.kubectl(t, "rollout", "status", "deployment/orders-order", "--timeout=2m")
	if now := pods(i.order); now == order {
		t.Errorf("Order still has %s", now)
	}
}

// rollout waits until all wanted pods of the services run and are ready.
func (i *installation) rollout(t *testing.T) {
	t.Helper()
	for _, s := range []*service{i.cart, i.order} {
		i.kubectl(t, "rollout", "status", "deployment/orders-"+s.name, "--timeout=2m")
	}
	i.reconnect()
}

func (i *installation) disturbBroker(t *testing.T) {
	l := i.startLoad(t, "broker")
	eventually(t, 30*time.Second, "orders are acknowledged",
		func() (bool, string) { return l.count() > 20, fmt.Sprint(l.count()) })
	i.strimzi.stopKafka(t)
	at := l.count()
	accepts := func(what string) {
		before := l.count()
		eventually(t, 30*time.Second, what,
			func() (bool, string) { return l.count() > before+100, fmt.Sprint(l.count()) })
	}
	accepts("Cart accepts orders without Kafka")
	i.kubectl(t, "delete", "pods", "-l", i.cart.selector())
	i.rollout(t)
	accepts("a new pod of Cart accepts orders without Kafka")
	for _, s := range []*service{i.cart, i.order} {
		got := respond(t, func() (reply, error) { return send(t.Context(), http.MethodGet, s.ops+"/readyz", "") })
		if got.status != http.StatusOK {
			t.Errorf("%s is not ready without Kafka: %d %s", s.name, got.status, got.body)
		}
	}
	waiting := ack{"waiting", 1, "new"}
	i.accepts(t, waiting)
	away := l.count() - at
	i.strimzi.startKafka(t)
	begin := time.Now()
	i.finds(t, waiting)
	// The longest pauses are 5 s between the relay's attempts and 2 s between connections of a Kafka
	// client. The limit leaves the rest to slow machines.
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %s until an order that waited for the broker was in Order", took)
	} else {
		t.Logf("what waited is in Order %s after the broker is back", took.Round(100*time.Millisecond))
	}
	acked := append(l.end(), waiting)
	t.Logf("%d acknowledgements, of which %d without Kafka", len(acked), away)
	i.nothingIsLost(t, acked)
}

// renewCertificates writes new certificates into the users' Secrets. Strimzi does so some time
// before the old ones expire.
func (i *installation) renewCertificates(t *testing.T) {
	pods := i.kubectl(t, "get", "pods", "-o", "name")
	l := i.startLoad(t, "renewed")
	i.strimzi.writeSecrets(t)
	for _, s := range []*service{i.cart, i.order} {
		eventually(t, 30*time.Second, s.name+" uses them", func() (bool, string) {
			// Without a change of the pods, the kubelet takes up to a minute and a half to update the
			// files. At one change, it may not know the new Secrets yet.
			i.kubectl(t, "annotate", "pods", "--all", "--overwrite", fmt.Sprint("e2e/look=", time.Now().UnixNano()))
			return i.logged(t, s, "the TLS files have changed: all clients are recreated")
		})
	}
	at := l.count()
	eventually(t, 30*time.Second, "orders are acknowledged",
		func() (bool, string) { return l.count() > at+20, fmt.Sprint(l.count()) })
	i.nothingIsLost(t, l.end())
	if now := i.kubectl(t, "get", "pods", "-o", "name"); now != pods {
		t.Errorf("the pods were\n%sand are\n%s", pods, now)
	}
}

// rebuild deletes Order's store as docs/operations.md says.
func (i *installation) rebuild(t *testing.T) {
	i.kubectl(t, "scale", "deployment/orders-order", "--replicas=0")
	i.kubectl(t, "wait", "pods", "-l", i.order.selector(), "--for=delete", "--timeout=1m")
	i.kubectl(t, "delete", "pvc", "orders-order")
	i.kubectl(t, "scale", "deployment/orders-order", "--replicas=1")
	i.helm(t, "upgrade", "orders", "charts/orders")
	i.rollout(t)
	i.finds(t, i.placed)
}

// missRights revokes rights of the services while they work, and grants them again.
func (i *installation) missRights(t *testing.T) {
	order := ack{"rights", 1, "new"}
	i.accepts(t, order)
	i.finds(t, order)
	update := func() {
		order.version++
		order.status = fmt.Sprintf("status-%d", order.version)
		i.accepts(t, order)
	}

	writeUpdated := newACL("topic", contract.TopicUpdated, "Write")
	takeID := newACL("transactionalId", contract.TransactionalIDsRelay[1], "Write")
	i.strimzi.revoke(t, "cart", writeUpdated)
	update()
	i.logs(t, i.cart, "no permission on the topic: a producer needs the ACL Write")
	i.strimzi.revoke(t, "cart", takeID)
	i.logs(t, i.cart, "no permission on the transactional ID")
	i.strimzi.grant(t, "cart", writeUpdated)
	i.strimzi.grant(t, "cart", takeID)
	i.finds(t, order)

	readGroup := newACL("group", contract.GroupOrder, "Read")
	i.strimzi.revoke(t, "order", readGroup)
	i.logs(t, i.order, "no permission on the consumer group: a member needs the ACL Read")
	update()
	i.kubectl(t, "delete", "pods", "-l", i.order.selector())
	i.notReady(t, i.order, "no permission on the consumer group: a member needs the ACL Read")
	i.strimzi.grant(t, "order", readGroup)
	i.rollout(t)
	i.finds(t, order)

	writeLetters := newACL("topic", contract.TopicDeadLetter, "Write")
	i.strimzi.revoke(t, "order", writeLetters)
	i.strimzi.produce(t, contract.TopicCreated, order.order, "no order")
	i.logs(t, i.order, "no permission on the topic: a producer needs the ACL Write")
	update()
	// The bad record before it delays nothing.
	i.finds(t, order)
	i.strimzi.grant(t, "order", writeLetters)
	eventually(t, 30*time.Second, "the dead letter is written", func() (bool, string) {
		letters := i.strimzi.read(t, contract.TopicDeadLetter)
		return len(letters) == 1 && string(letters[0].Value) == "no order", fmt.Sprint(letters)
	})
}

// accepts checks that Cart accepts a creation or an update.
func (i *installation) accepts(t *testing.T, a ack) {
	t.Helper()
	got := respond(t, func() (reply, error) { return i.change(t.Context(), a) })
	if got.status != http.StatusOK || got.version != a.version {
		t.Fatalf("%+v got %d, version %d: %s", a, got.status, got.version, got.body)
	}
}

// logs waits until a service has logged a text.
func (i *installation) logs(t *testing.T, s *service, what string) {
	t.Helper()
	eventually(t, 30*time.Second, s.name+" logs "+what, func() (bool, string) { return i.logged(t, s, what) })
}

// logged reports whether a service has logged a text, and the end of its log.
func (i *installation) logged(t *testing.T, s *service, what string) (is bool, end string) {
	t.Helper()
	log := i.log(t, s)
	return strings.Contains(log, what), log[max(0, len(log)-2000):]
}

// loggedAt returns when a service has first logged a message.
func (i *installation) loggedAt(t *testing.T, s *service, message string) time.Time {
	t.Helper()
	for line := range strings.Lines(i.log(t, s)) {
		var entry struct {
			Time time.Time
			Msg  string
		}
		// Not all lines have to be JSON.
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == message {
			return entry.Time
		}
	}
	t.Fatalf("%s has not logged %q", s.name, message)
	return time.Time{}
}

func (i *installation) log(t *testing.T, s *service) string {
	t.Helper()
	return i.kubectl(t, "logs", "deployment/orders-"+s.name, "--tail=-1")
}

func (i *installation) uninstall(t *testing.T) {
	i.helm(t, "uninstall", "orders", "--wait")
	want := slices.Clone(i.before)
	for _, name := range i.secrets {
		want = append(want, "secret/"+name)
	}
	want = append(want, "persistentvolumeclaim/orders-cart", "persistentvolumeclaim/orders-order")
	slices.Sort(want)
	eventually(t, time.Minute, "all else of the release is gone", func() (bool, string) {
		got := i.objects(t)
		more := slices.DeleteFunc(slices.Clone(got), func(name string) bool { return slices.Contains(want, name) })
		less := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return slices.Contains(got, name) })
		return len(more)+len(less) == 0, fmt.Sprintf("left %q, gone %q", more, less)
	})
}

// installAgain installs the release again and checks that both services have kept their data.
func (i *installation) installAgain(t *testing.T) {
	i.install(t)
	i.rollout(t)
	i.finds(t, i.placed)
	// Cart repeats the response of that time to the request of that time.
	i.accepts(t, i.placed)
	next := ack{i.placed.order, i.placed.version + 1, "installed again"}
	i.accepts(t, next)
	i.finds(t, next)
}

func (i *installation) noWarnings(t *testing.T) {
	if len(i.warnings) > 0 {
		t.Errorf("kubectl and helm said: %q", i.warnings)
	}
	if _, err := i.try(t.Context(), "", "kubectl", "-n", i.namespace, "create", "deployment", "careless",
		"--image=careless", "--dry-run=server"); err != nil {
		t.Fatal(err)
	}
	if len(i.warnings) == 0 {
		t.Error("a careless deployment caused no warning either")
	}
}
