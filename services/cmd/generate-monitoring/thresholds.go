package main

import (
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// runbooks is the folder of the alerts' runbooks. Each is named as its alert. A fork changes it
// here.
const runbooks = "https://github.com/ordersystem/ordersystem/blob/main/docs/runbooks/"

// Prometheus writes durations in its own units, "1d" for a day.
const (
	minute = model.Duration(time.Minute)
	hour   = model.Duration(time.Hour)
	day    = 24 * hour
)

// The thresholds at which an alert fires and its panel draws a line.
const (
	// target is the part of the time that a group should be within its objective.
	target = 0.99

	// A burn rate of 1 uses up in 30 days what the target leaves. fastBurn uses it up in two days,
	// slowBurn in five and steadyBurn in ten.
	fastBurn   = 14.4
	slowBurn   = 6
	steadyBurn = 3

	// headroomLow is the part of the log before a group's first unread record.
	headroomLow = 0.1
	// collectorOld is the age in seconds of the collector's last poll of a cluster.
	collectorOld = 120
	// authKeysOld is the age in seconds of the keys of the tokens' issuer: six times as old as they should get.
	authKeysOld = 1800
	// certificateEnds and certificateEndsSoon are the seconds before the end of an API's certificate. Whoever
	// issues them renews them earlier, cert-manager after two thirds of their time.
	certificateEnds     = 7 * 24 * 3600
	certificateEndsSoon = 24 * 3600
	// outboxOld is how long, in seconds, an order waits for Kafka.
	outboxOld = 60
	// withheldLong is how long, in seconds, a transaction withholds records. Cart's end after 10 s at
	// the latest, and a broker ends those of a dead producer within 10 s more.
	withheldLong = 60
	// transactionHangs is how long, in seconds, no transaction is open in order: brokers allow a
	// timeout of 15 min (transaction.max.timeout.ms), and look every 10 s for those that are over.
	transactionHangs = 960
)

const (
	// evaluation is the interval of all rules, whatever Prometheus' own: the recorded ratios count
	// evaluations.
	evaluation = model.Duration(30 * time.Second)

	// handover is how long a change of the collector's leader takes at most: the lease runs out in
	// 15 s, and the next leader polls, is scraped, and learns within a minute what no ConsumerGroup
	// told it.
	handover = 5 * minute / 2

	// standstillLong is how long a group that reads nothing may be outside its objective. Such a group
	// is recognised after a minute, so the page comes after five to six, as that of ServiceNotReady.
	standstillLong = 4 * minute

	// remembered is how long a series that ended still counts as missing. A day: a page of the
	// night lasts until the morning.
	remembered = day
)

// Alerts have these labels and never a pod's. Another leader of the collector therefore neither
// fires an alert nor doubles it. The namespace is that of the collector or the service:
// Alertmanager's routes for a namespace match on it.
const (
	byCluster = "namespace, kafka_cluster"
	byGroup   = byCluster + ", consumergroup"
	byTopic   = byGroup + ", topic"
	// byLog is for a partition of a topic, whoever reads it.
	byLog = byCluster + ", topic, partition"

	// releaseLabel is the release of a service, which the chart's PodMonitor takes from its pods. Two releases
	// in one namespace have the same jobs. Prometheus may have got a service's metrics without it.
	releaseLabel = "app_kubernetes_io_instance"
	byRelease    = "namespace, " + releaseLabel
	byService    = byRelease + ", job"
)

const (
	// breached is 1 while a group is outside its objective. It has no gap when the leader changes.
	breached   = "consumergroup:kafka_consumergroup_objective_breached:max"
	lastPolled = "lag_collector_last_success_timestamp_seconds"
)

// budget is the part of the time that a group may be outside its objective.
var budget = fmt.Sprintf("%.2g", 1-target)

// runbook returns the address of an alert's runbook.
func runbook(alert string) string { return runbooks + alert + ".md" }

// outside returns the name of the recorded part of a window that a group was outside its objective.
func outside(window model.Duration) string {
	return "consumergroup:kafka_consumergroup_objective_breached:ratio_" + window.String()
}

// withoutPosition selects the groups that have an objective, and its seconds, and a commit in no
// topic. A group whose topics never had a record has nothing to commit and is left out. So is a
// group whose topics cannot be read. A dashboard passes label matchers in braces to choose groups.
func withoutPosition(matchers string) string {
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
) == 0`, byGroup, matchers, byTopic, byCluster)
}
