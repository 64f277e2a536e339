package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// runbooks is where an alert's page is, named as the alert. A fork changes it here.
const runbooks = "https://github.com/ordersystem/ordersystem/blob/main/docs/runbooks/"

// Where an alert fires and its panel draws a line.
const (
	target       = 0.99 // of the time a group is to be within its objective
	fastBurn     = 14.4 // times the pace that uses up in 30 days what the target leaves: all of it in two days
	slowBurn     = 6    // in five days
	steadyBurn   = 3    // in ten days
	headroomLow  = 0.1  // of the log lies before the first unread record
	collectorOld = 120  // seconds since the collector last read a cluster
	outboxOld    = 60   // seconds that an order waits for Kafka
)

// evaluation is how often the rules are evaluated, whatever Prometheus' own interval: the ratios below count evaluations.
const evaluation = 30 * time.Second

// remembered is how long what had data before is missed when it has none: a day, so that a night's page lasts until the morning.
const remembered = 24 * time.Hour

// lately is what of a series is known though it has ended.
func lately(metric string, window time.Duration) string {
	return fmt.Sprintf("last_over_time(%s[%s])", metric, shortDuration(window))
}

// An alert has these labels and never a pod's, so that another leader of the collector neither fires nor doubles it. The namespace is
// the collector's or the service's: what Alertmanager's routes of a namespace look for.
const (
	byCluster = "namespace, kafka_cluster"
	byGroup   = byCluster + ", consumergroup"
	byTopic   = byGroup + ", topic"
)

const (
	// breached is 1 while a group is outside of its objective, without a gap when the leader changes.
	breached   = "consumergroup:kafka_consumergroup_objective_breached:max"
	lastPolled = "lag_collector_last_success_timestamp_seconds"
)

type rule struct {
	Record        string            `yaml:"record,omitempty"`
	Alert         string            `yaml:"alert,omitempty"`
	Expr          string            `yaml:"expr"`
	For           string            `yaml:"for,omitempty"`
	KeepFiringFor string            `yaml:"keep_firing_for,omitempty"`
	Labels        map[string]string `yaml:"labels,omitempty"`
	Annotations   map[string]string `yaml:"annotations,omitempty"`
}

type ruleGroup struct {
	Name     string `yaml:"name"`
	Interval string `yaml:"interval"`
	Rules    []rule `yaml:"rules"`
}

func rulesYAML() ([]byte, error) {
	var spec struct {
		Groups []ruleGroup `yaml:"groups"`
	}
	spec.Groups = ruleGroups()
	var b bytes.Buffer
	b.WriteString("# Made by `make generate` from services/cmd/generate-monitoring; its tests are in tests/.\n")
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	err := encoder.Encode(struct {
		APIVersion string            `yaml:"apiVersion"`
		Kind       string            `yaml:"kind"`
		Metadata   map[string]string `yaml:"metadata"`
		Spec       any               `yaml:"spec"`
	}{"monitoring.coreos.com/v1", "PrometheusRule", map[string]string{"name": "orders"}, spec})
	return b.Bytes(), err
}

// severities: critical wakes somebody, because users wait or data is going; warning is for working hours.
const (
	critical = "critical"
	warning  = "warning"
)

// alert returns a rule whose runbook is named as it is. The cause tells rules of one alert apart.
func alert(name, severity, cause, expr, wait, keep, summary, description string) rule {
	labels := map[string]string{"severity": severity}
	if cause != "" {
		labels["cause"] = cause
	}
	return rule{
		Alert: name, Expr: strings.TrimSpace(expr), For: wait, KeepFiringFor: keep, Labels: labels,
		Annotations: map[string]string{"summary": summary, "description": description, "runbook_url": runbook(name)},
	}
}

func runbook(alert string) string { return runbooks + alert + ".md" }

func ruleGroups() []ruleGroup {
	interval := shortDuration(evaluation)
	return []ruleGroup{
		{"consumergroup-objective", interval, objectiveRules()},
		{"consumergroup", interval, groupRules()},
		{"lag-collector", interval, collectorRules()},
		{"services", interval, serviceRules()},
	}
}

// outside names the recorded part of a window that a group was outside of its objective.
func outside(window time.Duration) string {
	return "consumergroup:kafka_consumergroup_objective_breached:ratio_" + shortDuration(window)
}

// burns says that the budget goes factor times as fast as it may, over a long window and still now.
func burns(factor float64, long, short time.Duration) string {
	limit := fmt.Sprintf("> %g * %s", factor, budget)
	return fmt.Sprintf("(%s %s and %s %s)", outside(long), limit, outside(short), limit)
}

// budget is the part of the time that a group may be outside of its objective.
var budget = fmt.Sprintf("%.2g", 1-target)

// objectiveRules wake somebody for what users feel: they read old data, for longer than was agreed.
func objectiveRules() []rule {
	rules := []rule{{Record: breached, Expr: fmt.Sprintf("max by (%s) (kafka_consumergroup_objective_breached)", byGroup)}}
	for _, window := range []time.Duration{5 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour, 24 * time.Hour} {
		// Of the whole window, not of the samples in it: a group's first minute must not count as an hour.
		expr := fmt.Sprintf("sum_over_time(%s[%s]) / %d", breached, shortDuration(window), window/evaluation)
		rules = append(rules, rule{Record: outside(window), Expr: expr})
	}
	const group = "Consumer group {{ $labels.consumergroup }} ({{ $labels.kafka_cluster }})"
	return append(rules,
		alert("ConsumerGroupObjectiveBurnFast", critical, "",
			burns(fastBurn, time.Hour, 5*time.Minute), "", "5m",
			group+" reads too late, and goes on to.",
			group+" was outside of its objective for {{ $value | humanizePercentage }} of the last hour; what the month allows is gone in two days. "+
				"`kubectl get consumergroups -A` says how late it is, and whether it reads at all."),
		alert("ConsumerGroupObjectiveBurnSlow", warning, "",
			burns(slowBurn, 6*time.Hour, 30*time.Minute)+"\nor\n"+burns(steadyBurn, 24*time.Hour, 2*time.Hour), "15m", "15m",
			group+" reads too late, again and again.",
			group+" was outside of its objective for {{ $value | humanizePercentage }} of the last hours; what the month allows is gone in days. "+
				"The dashboard \"Consumer lag\" shows when, and whether more came in or less was read then."),
	)
}

// losing returns an alert on data that is going. It wakes somebody only for a group that somebody declared: what others left behind, a
// console or a test, can wait until the morning. The objective is that of the last hour, so that another leader of the collector does not
// make a warning of a page.
func losing(name, cause, expr, wait, keep, summary, description string) []rule {
	declared := fmt.Sprintf("on (%[1]s) max by (%[1]s) (%[2]s)", byGroup, lately("kafka_consumergroup_objective_seconds", time.Hour))
	expr = strings.TrimSpace(expr)
	return []rule{
		alert(name, critical, cause, expr+"\nand "+declared, wait, keep, summary, description),
		alert(name, warning, cause, expr+"\nunless "+declared, wait, keep, summary, description),
	}
}

// withoutPosition are the groups with an objective, and the seconds of it, that have a commit in no topic. A group whose topics have never
// had a record has nothing to commit, and is left out; so is one whose topics cannot be read. The labels choose groups, for a dashboard.
func withoutPosition(labels string) string {
	return fmt.Sprintf(`
max by (%[1]s) (kafka_consumergroup_objective_seconds%[2]s)
unless on (%[1]s)
max by (%[1]s) (kafka_consumergroup_topic_lag%[2]s or kafka_consumergroup_current_offset%[2]s)
unless on (%[1]s)
max by (%[1]s) (
  max by (%[3]s) (kafka_consumergroup_uncommitted_partitions%[2]s)
  * on (%[4]s, topic) group_left ()
  max by (%[4]s, topic) (kafka_topic_partition_current_offset)
  or
  max by (%[3]s) (kafka_consumergroup_uncommitted_partitions%[2]s)
) == 0`, byGroup, labels, byTopic, byCluster)
}

// groupRules name causes, before users feel them where that is possible.
func groupRules() []rule {
	const (
		group = "Consumer group {{ $labels.consumergroup }} ({{ $labels.kafka_cluster }})"
		where = group + ", topic {{ $labels.topic }}"
	)
	status := func(s string) string {
		return fmt.Sprintf(`max by (%s) (kafka_consumergroup_partition_status{status="%s"}) > 0`, byTopic, s)
	}
	rules := []rule{
		// A new leader of the collector knows of no standstill for a minute: the alert is kept through that.
		alert("ConsumerGroupStalled", warning, "", status("stalled"), "2m", "5m",
			where+": its consumers stand still.",
			where+": in {{ $value }} partitions there are unread records and a consumer that does not move. Look at the consumer's log; a restart frees one that hangs."),
		alert("ConsumerGroupStopped", warning, "", status("stopped"), "5m", "5m",
			where+": nobody reads it.",
			where+": in {{ $value }} partitions there are unread records and no consumer. Start it again, or delete the group if it is not needed any more."),
		alert("ConsumerGroupRewound", warning, "",
			fmt.Sprintf("sum by (%s) (increase(kafka_consumergroup_offset_rewinds_total[15m])) > 0", byTopic), "", "",
			where+": its position went back.",
			where+`: its position went back about {{ printf "%.0f" $value }} times in the last 15 minutes, in all partitions together, so records are read again. If nobody reset it, look for consumers that commit what they lost.`),
		alert("ConsumerGroupWithoutPosition", warning, "", withoutPosition(""), "15m", "5m",
			group+" has an objective and no position.",
			group+" should be at most {{ $value | humanizeDuration }} behind, and has committed in no topic, so nobody can tell. See that its name is right in the ConsumerGroup, that it runs, and that it commits."),
	}
	return slices.Concat(rules,
		losing("ConsumerGroupRecordsLost", "deleted",
			fmt.Sprintf("sum by (%s) (increase(kafka_consumergroup_records_lost_total[1h])) > 0", byTopic), "", "",
			where+": records were deleted before it read them.",
			where+`: retention deleted {{ printf "%.0f" $value }} records in the last hour that the group had not read. Make the topic's retention longer first, then the consumer faster.`),
		losing("ConsumerGroupRecordsLost", "outside", status("lost"), "1m", "5m",
			where+": its position is outside of the log.",
			where+": in {{ $value }} partitions the position is before the log's first record, or behind its last. See that the consumer goes on, and from where."),
		// A log's start above 0 is proof that something is deleted from it: a compacted topic keeps it at 0 for ever. A group that was
		// further behind a quarter of an hour ago is gaining, and left alone. Below 0 it is too late, and ConsumerGroupRecordsLost.
		losing("ConsumerGroupRetentionHeadroomLow", "", fmt.Sprintf(`
min by (%[1]s) (
  min by (%[1]s, partition) (kafka_consumergroup_retention_headroom_ratio) >= 0 < %[2]g
  and
  min by (%[1]s, partition) (kafka_consumergroup_retention_headroom_ratio)
    <= min by (%[1]s, partition) (kafka_consumergroup_retention_headroom_ratio offset 15m)
  and on (%[3]s, topic, partition)
  max by (%[3]s, topic, partition) (kafka_topic_partition_oldest_offset) > 0
)`, byTopic, headroomLow, byCluster), "5m", "15m",
			where+": retention is about to delete what it has not read.",
			where+": only {{ $value | humanizePercentage }} of the log lie before the first unread record, and the group is not gaining. Make the topic's retention longer now."),
	)
}

// collectorRules fire when the others cannot.
func collectorRules() []rule {
	const where = "Kafka cluster {{ $labels.kafka_cluster }}"
	// The causes that take over from "old" when it forgets remember less, so that a page does not end while nothing is known.
	const before = remembered - time.Hour
	return []rule{
		alert("LagCollectorNoData", critical, "old",
			fmt.Sprintf("time() - max by (%s) (%s) > %d", byCluster, lately(lastPolled, remembered), collectorOld), "1m", "",
			where+": consumer lag is not known.",
			where+": its consumer groups were last read {{ $value | humanizeDuration }} ago, so no alert on them can fire. `kubectl logs -n {{ $labels.namespace }} -l app.kubernetes.io/name=lag-operator --tail=-1` says why."),
		alert("LagCollectorNoData", critical, "never",
			fmt.Sprintf("max by (%[1]s) (lag_collector_up) == 0\nunless\nmax by (%[1]s) (%[2]s)", byCluster, lately(lastPolled, before)), "2m", "",
			where+": consumer lag is not known.",
			where+": the lag operator has started and could not read it once (lag_collector_up is {{ $value }}). Its log says why: address, certificates or rights."),
		alert("LagCollectorNoData", critical, "absent",
			fmt.Sprintf("absent_over_time(%s[%s])\nunless on ()\nmax(lag_collector_up)", lastPolled, shortDuration(before)), "5m", "",
			"Consumer lag is not known.",
			"Prometheus has no data of the lag operator, for a day or since it began (absent: {{ $value }}). See that it is installed, runs and is scraped: `kubectl get pods,podmonitors -A -l app.kubernetes.io/name=lag-operator`."),
		alert("LagSeriesDropped", warning, "",
			fmt.Sprintf("sum by (%s) (increase(lag_collector_series_dropped_total[15m])) > 0", byCluster), "5m", "",
			where+": some groups have no metrics.",
			where+`: the polls of the last 15 minutes left out {{ printf "%.0f" $value }} series to keep to maxSeries, so some groups are not watched. Raise it, or discover fewer groups.`),
	}
}

func serviceRules() []rule {
	const where = "{{ $labels.job }}"
	return []rule{
		alert("ServiceNotReady", critical, "", fmt.Sprintf(`
sum by (namespace, job) (service_ready) == 0
or
max by (namespace, job) (%s) * 0
unless on (namespace, job)
max by (namespace, job) (service_ready)`, lately("service_ready", remembered)), "5m", "",
			where+" serves nobody.",
			"{{ $value }} instances of "+where+" are ready. /readyz of a pod, and its log, say what is missing."),
		alert("OutboxOld", critical, "",
			fmt.Sprintf("max by (namespace, job) (cart_outbox_oldest_seconds or order_outbox_oldest_seconds) > %d", outboxOld), "2m", "",
			where+" cannot publish.",
			"What "+where+" accepted has waited for Kafka for {{ $value | humanizeDuration }}; lag does not show it. See whether Kafka is there, and what the relay logs."),
		alert("DeliveryFailing", warning, "",
			"sum by (namespace, job, code) (increase(cart_delivery_failures_total[5m]) or increase(order_delivery_failures_total[5m])) > 0", "5m", "",
			where+": Kafka refuses its messages.",
			`{{ printf "%.0f" $value }} messages of `+where+" were refused in the last 5 minutes with {{ $labels.code }}. They are sent again, in order, so everything behind them waits."),
		alert("OrderDeadLetters", warning, "",
			"sum by (namespace, reason) (increase(order_dead_letters_total[15m])) > 0", "", "",
			"Records that are no orders: {{ $labels.reason }}.",
			`{{ printf "%.0f" $value }} records in the last 15 minutes held no order ({{ $labels.reason }}) and are in order-dead-letter-topic. Find who wrote them; the orders around them are not delayed.`),
	}
}

// shortDuration is d as Prometheus writes it.
func shortDuration(d time.Duration) string {
	for _, unit := range []struct {
		name string
		d    time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
		if d%unit.d == 0 {
			return fmt.Sprintf("%d%s", d/unit.d, unit.name)
		}
	}
	return fmt.Sprintf("%ds", int(d.Seconds()))
}
