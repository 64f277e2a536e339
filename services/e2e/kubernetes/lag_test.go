package kubernetes

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// group is the ConsumerGroup of k8s/consumer-groups.
const group = "consumergroup/order-service"

// installLagOperator also starts Prometheus for the steps after it.
func (i *installation) installLagOperator(t *testing.T) {
	// The CRD belongs to the whole cluster: another test or an earlier run may have left it.
	i.helm(t, "install", "lag-operator", "charts/lag-operator", "--take-ownership")
	i.kubectl(t, "rollout", "status", "deployment/lag-operator", "--timeout=2m")
	i.kubectl(t, "apply", "--filename", "k8s/consumer-groups/order-service.yaml", "--namespace", i.namespace)
	i.prometheus = startPrometheus(t, i.cluster, "charts/orders", "charts/lag-operator")
	for _, condition := range []string{"TopicsReady", "Consuming", "WithinObjective"} {
		i.kubectl(t, "wait", group, "--for=condition="+condition, "--timeout=30s")
	}
	i.shows(t, []string{"NAME", "GROUP", "STATE", "MEMBERS", "LAG", "SECONDS", "OBJECTIVE", "WITHIN", "CONSUMING"},
		[]string{"order-service", "order-service", "Stable", "1", "0", "0", "30", "True", "True"})
	i.measures(t, `count(up{job="lag-operator"} == 1)`, 2)
	// The metrics come from the leader.
	i.measures(t, `count(lag_collector_up == 1)`, 1)
	i.measures(t, `count(up{job=~"cart|order"} == 1)`, 2)
	i.measures(t, `sum by (kubernetes_pod_name) `+
		`(kafka_server_replicamanager_leadercount{strimzi_io_cluster="orders"} > bool 0)`, 1)
	i.watched = time.Now()
}

// shows waits until `kubectl get consumergroups` prints these columns. It ignores the last one, the
// age.
func (i *installation) shows(t *testing.T, header, row []string) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("kubectl shows %q", row), func() (bool, string) {
		lines := strings.Split(i.kubectl(t, "get", "consumergroups"), "\n")
		names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
		return slices.Equal(names[:len(names)-1], header) && slices.Equal(values[:len(values)-1], row),
			strings.Join(lines, "\n")
	})
}

// measures waits until an expression has this value.
func (i *installation) measures(t *testing.T, expression string, want float64) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("%s is %v", expression, want), func() (bool, string) {
		got, is := i.prometheus.value(t, expression)
		return is && got == want, fmt.Sprint(i.prometheus.query(t, expression))
	})
}

// loseLeader deletes the leader while orders are placed.
func (i *installation) loseLeader(t *testing.T) {
	leader := func() string {
		holder := i.kubectl(t, "get", "lease", "lag-operator", "--output", "jsonpath={.spec.holderIdentity}")
		pod, _, _ := strings.Cut(holder, "_")
		return pod
	}
	before := leader()
	// A template with {range} would print no changes.
	conditions := i.watch(t, group, "--output",
		`jsonpath={.status.conditions[*].status} {.status.conditions[*].type}{"\n"}`)
	// Kubectl watches from here on.
	changes := []event{<-conditions}
	l := i.startLoad(t, "leader")
	begin := time.Now()
	i.kubectl(t, "delete", "pod", before, "--grace-period=1")
	eventually(t, time.Minute, "another one leads and has read the groups", func() (bool, string) {
		now := leader()
		value, is := i.prometheus.value(t, fmt.Sprintf(`lag_collector_up{pod=%q}`, now))
		return now != before && is && value == 1,
			fmt.Sprintf("%s after %s, %v", now, before, i.prometheus.query(t, "lag_collector_up"))
	})
	t.Logf("%s: another one leads and has read the groups", time.Since(begin).Round(100*time.Millisecond))
	begin = time.Now()
	eventually(t, time.Minute, "the status is of a poll of its own", func() (bool, string) {
		at := i.kubectl(t, "get", group, "--output", "jsonpath={.status.lastPollTime}")
		poll, err := time.Parse(time.RFC3339, at)
		return err == nil && poll.After(begin), at
	})
	i.nothingIsLost(t, l.end())
	i.measures(t, `sum(kafka_consumergroup_lag{consumergroup="order-service"})`, 0)
	for len(conditions) > 0 {
		changes = append(changes, <-conditions)
	}
	for _, change := range changes {
		if !strings.HasPrefix(change.line, "True True True ") {
			t.Errorf("%s: %s, want True of all throughout", change.at.Format(time.TimeOnly), change.line)
		}
	}
	if len(changes) < 2 {
		t.Error("no change of the status was seen")
	}
	i.noAlerts(t, `alertname=~"ConsumerGroup.*|LagSeriesDropped"`, i.watched)
}

// noAlerts checks that no such alert was even pending since then.
func (i *installation) noAlerts(t *testing.T, alerts string, since time.Time) {
	t.Helper()
	for name := range i.prometheus.query(t,
		fmt.Sprintf("last_over_time(ALERTS{%s}[%dms])", alerts, time.Since(since).Milliseconds())) {
		t.Errorf("there was an alert: %s", name)
	}
}

// stopConsumer stops Order while orders are placed, and starts it again.
func (i *installation) stopConsumer(t *testing.T) {
	i.kubectl(t, "scale", "deployment/orders-order", "--replicas=0")
	i.kubectl(t, "wait", "pods", "-l", i.order.selector(), "--for=delete", "--timeout=1m")
	const orders = 5
	begin := time.Now()
	for n := range orders {
		i.accepts(t, ack{fmt.Sprintf("unread-%d", n), 1, "new"})
	}
	// Transaction markers have offsets too.
	i.measures(t, fmt.Sprintf(`sum(kafka_consumergroup_lag{consumergroup="order-service"}) >= bool %d`, orders), 1)
	i.becomes(t, "WithinObjective", "False", 45*time.Second)
	t.Logf("%s: the objective is missed", time.Since(begin).Round(time.Second))
	i.becomes(t, "Consuming", "False", time.Minute)
	t.Logf("%s: %s", time.Since(begin).Round(time.Second), i.kubectl(t, "get", "consumergroups", "--output=wide"))
	if reason := i.kubectl(t, "get", group, "--output",
		`jsonpath={.status.conditions[?(@.type=="Consuming")].reason}`); reason != "Stopped" {
		t.Errorf("the reason is %q, want Stopped", reason)
	}
	var age float64
	// A slow scrape leaves no value for a moment.
	eventually(t, 30*time.Second, "the age of the first unread record is known", func() (is bool, state string) {
		age, is = i.prometheus.value(t, `max(kafka_consumergroup_lag_seconds{consumergroup="order-service"})`)
		return is, ""
	})
	if age < 55 || age > time.Since(begin).Seconds()+1 {
		t.Errorf("the first unread record is %.1f s old, want about %.1f", age, time.Since(begin).Seconds())
	}
	const alert = `ALERTS{alertname="ConsumerGroupStopped",consumergroup="order-service"}`
	eventually(t, 30*time.Second, "the alert knows", func() (bool, string) {
		holds, pending := i.prometheus.holds(t, "ConsumerGroupStopped"), i.prometheus.query(t, alert)
		return len(holds) > 0 && len(pending) > 0, fmt.Sprintf("its expression is %v, %v", holds, pending)
	})
	i.hasEvent(t, "Warning Stopped")

	begin = time.Now()
	i.kubectl(t, "scale", "deployment/orders-order", "--replicas=1")
	i.rollout(t)
	i.becomes(t, "Consuming", "True", 30*time.Second)
	i.becomes(t, "WithinObjective", "True", 30*time.Second)
	i.measures(t, `sum(kafka_consumergroup_lag{consumergroup="order-service"})`, 0)
	i.measures(t, `max(kafka_consumergroup_lag_seconds{consumergroup="order-service"})`, 0)
	t.Logf("%s: it consumes again", time.Since(begin).Round(time.Second))
	eventually(t, 30*time.Second, "the alert is over", func() (bool, string) {
		holds, pending := i.prometheus.holds(t, "ConsumerGroupStopped"), i.prometheus.query(t, alert)
		return len(holds)+len(pending) == 0, fmt.Sprintf("its expression is %v, %v", holds, pending)
	})
	i.hasEvent(t, "Normal Reading")
	i.watched = time.Now()
}

// becomes waits until a condition has this status.
func (i *installation) becomes(t *testing.T, condition, status string, within time.Duration) {
	t.Helper()
	eventually(t, within, condition+" is "+status, func() (bool, string) {
		conditions := i.kubectl(t, "get", group, "--output",
			`jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\n"}{end}`)
		return strings.Contains(conditions, condition+"="+status+" "), conditions
	})
}

// hasEvent waits for an Event about the group, given as its type and reason.
func (i *installation) hasEvent(t *testing.T, event string) {
	t.Helper()
	eventually(t, 15*time.Second, "there is an Event "+event, func() (bool, string) {
		events := i.kubectl(t, "get", "events", "--field-selector", "involvedObject.kind=ConsumerGroup",
			"--output", `jsonpath={range .items[*]}{.type} {.reason} {.message}{"\n"}{end}`)
		return strings.Contains("\n"+events, "\n"+event+" "), events
	})
}

// lagIsRightAtTheEnd runs after all disturbances of pods, broker, certificates and rights. The
// operator has not restarted, and its lag is right again. Only the rebuild of Order's store is
// worth an alert, because it read the topics again from the start.
func (i *installation) lagIsRightAtTheEnd(t *testing.T) {
	i.measures(t, `sum(kafka_consumergroup_lag{consumergroup="order-service"})`, 0)
	i.becomes(t, "Consuming", "True", 30*time.Second)
	i.becomes(t, "WithinObjective", "True", 30*time.Second)
	i.noAlerts(t, `alertname=~"ConsumerGroup.*|Lag.*",alertname!="ConsumerGroupRewound"`, i.watched)
	if restarts := i.kubectl(t, "get", "pods", "-l", "app.kubernetes.io/name=lag-operator", "--output",
		"jsonpath={.items[*].status.containerStatuses[*].restartCount}"); restarts != "0 0" {
		t.Errorf("the operator's restarts are %q, want none", restarts)
	}
}

// uninstallLagOperator checks that the ConsumerGroup is still there, and removes the operator. The
// steps after it find nothing of it.
func (i *installation) uninstallLagOperator(t *testing.T) {
	i.helm(t, "uninstall", "lag-operator", "--wait")
	i.kubectl(t, "delete", group)
	i.kubectl(t, "delete", "lease", "lag-operator")
}
