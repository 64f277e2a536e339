package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/contract"
)

// What the alerts' texts call their subject.
const (
	groupName   = "Consumer group {{ $labels.consumergroup }} ({{ $labels.kafka_cluster }})"
	topicName   = groupName + ", topic {{ $labels.topic }}"
	clusterName = "Kafka cluster {{ $labels.kafka_cluster }}"
	jobName     = "{{ $labels.job }}{{ with $labels." + releaseLabel + " }} (release {{ . }}){{ end }}"
)

// Severities. A critical alert wakes somebody: users wait, or data is being lost. A warning is for
// working hours.
const (
	critical = "critical"
	warning  = "warning"
)

// rulesYAML returns all rules as a PrometheusRule of the Prometheus operator.
func rulesYAML() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Made by `make generate` from services/cmd/generate-monitoring; its tests are in tests/.\n")
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	err := encoder.Encode(struct {
		APIVersion string             `yaml:"apiVersion"`
		Kind       string             `yaml:"kind"`
		Metadata   map[string]string  `yaml:"metadata"`
		Spec       rulefmt.RuleGroups `yaml:"spec"`
	}{
		"monitoring.coreos.com/v1", "PrometheusRule", map[string]string{"name": "orders"},
		rulefmt.RuleGroups{Groups: ruleGroups()},
	})
	return b.Bytes(), err
}

// ruleGroups returns every rule. Those of one group are evaluated one after the other.
func ruleGroups() []rulefmt.RuleGroup {
	return []rulefmt.RuleGroup{
		{Name: "consumergroup-objective", Interval: evaluation, Rules: objectiveRules()},
		{Name: "consumergroup", Interval: evaluation, Rules: groupRules()},
		{Name: "lag-collector", Interval: evaluation, Rules: collectorRules()},
		{Name: "services", Interval: evaluation, Rules: serviceRules()},
		{Name: "kafka", Interval: evaluation, Rules: kafkaRules()},
	}
}

// objectiveRules fire on what users feel: they read older data than was agreed.
func objectiveRules() []rulefmt.Rule {
	rules := []rulefmt.Rule{{
		Record: breached,
		Expr:   fmt.Sprintf("max by (%s) (kafka_consumergroup_objective_breached)", byGroup),
	}}
	for _, window := range []model.Duration{5 * minute, 30 * minute, hour, 2 * hour, 6 * hour, day} {
		// The sum is divided by the whole window, not by the samples in it: a group's first minute
		// must not count as an hour.
		expr := fmt.Sprintf("sum_over_time(%s[%s]) / %d", breached, window, window/evaluation)
		rules = append(rules, rulefmt.Rule{Record: outside(window), Expr: expr})
	}
	return append(rules,
		alertRule(critical, "", rulefmt.Rule{
			Alert:         "ConsumerGroupObjectiveBurnFast",
			Expr:          burns(fastBurn, hour, 5*minute),
			KeepFiringFor: 5 * minute,
			Annotations: texts(groupName+" reads too late, and has not recovered.",
				groupName+" was outside its objective for {{ $value | humanizePercentage }} of the last hour. "+
					"At this rate the month's budget is used up in two days. "+
					"`kubectl get consumergroups -A` shows how late it is and whether it reads at all."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert:         "ConsumerGroupObjectiveBurnSlow",
			Expr:          burns(slowBurn, 6*hour, 30*minute) + "\nor\n" + burns(steadyBurn, day, 2*hour),
			For:           15 * minute,
			KeepFiringFor: 15 * minute,
			Annotations: texts(groupName+" repeatedly reads too late.",
				groupName+" was outside its objective for {{ $value | humanizePercentage }} of the last hours. "+
					"At this rate the month's budget is used up in days. "+
					"The dashboard \"Consumer lag\" shows when, and whether more records arrived or fewer were read."),
		}),
	)
}

// groupRules name causes, where possible before users feel them.
func groupRules() []rulefmt.Rule {
	rules := []rulefmt.Rule{
		alertRule(warning, "", rulefmt.Rule{
			Alert: "ConsumerGroupRewound",
			Expr:  fmt.Sprintf("sum by (%s) (increase(kafka_consumergroup_offset_rewinds_total[15m])) > 0", byTopic),
			Annotations: texts(topicName+": its position went back.",
				topicName+": its position went back about "+`{{ printf "%.0f" $value }}`+" times "+
					"in the last 15 minutes, in all partitions together, so records are read again. "+
					"If nobody reset it on purpose, look for consumers that commit partitions that they have lost."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert:         "ConsumerGroupWithoutPosition",
			Expr:          withoutPosition(""),
			For:           15 * minute,
			KeepFiringFor: 5 * minute,
			Annotations: texts(groupName+" has an objective and no position.",
				groupName+" should be at most {{ $value | humanizeDuration }} behind, "+
					"but has committed in no topic, so its lag is unknown. "+
					"Check that its name in the ConsumerGroup is right, that it runs, and that it commits."),
		}),
	}
	return slices.Concat(
		standstill("stalled", rulefmt.Rule{
			Alert: "ConsumerGroupStalled",
			For:   2 * minute,
			Annotations: texts(topicName+": its consumers make no progress.",
				topicName+": {{ $value }} partitions have unread records and a consumer that makes no progress. "+
					"Look at the consumer's log. A restart frees a consumer that hangs."),
		}),
		standstill("stopped", rulefmt.Rule{
			Alert: "ConsumerGroupStopped",
			For:   5 * minute,
			Annotations: texts(topicName+": no consumer reads it.",
				topicName+": {{ $value }} partitions have unread records and no consumer. "+
					"Start the consumer again. "+
					"If it runs without being a member (Flink, Spark, assign), look at its log."),
		}),
		rules,
		withholding(),
		losing("deleted", rulefmt.Rule{
			Alert: "ConsumerGroupRecordsLost",
			Expr:  fmt.Sprintf("sum by (%s) (increase(kafka_consumergroup_records_lost_total[1h])) > 0", byTopic),
			Annotations: texts(topicName+": records were deleted before it read them.",
				topicName+": retention deleted "+`{{ printf "%.0f" $value }}`+" records in the last hour "+
					"that the group had not read. "+
					"Make the topic's retention longer first, then the consumer faster."),
		}),
		losing("outside", rulefmt.Rule{
			Alert:         "ConsumerGroupRecordsLost",
			Expr:          status("lost") + " > 0",
			For:           minute,
			KeepFiringFor: 5 * minute,
			Annotations: texts(topicName+": its position is outside the log.",
				topicName+": in {{ $value }} partitions the position is before the first record of the log "+
					"or after the last. Check whether the consumer continues, and from which position."),
		}),
		losing("", rulefmt.Rule{
			Alert:         "ConsumerGroupRetentionHeadroomLow",
			Expr:          headroomFalls(),
			For:           5 * minute,
			KeepFiringFor: 15 * minute,
			Annotations: texts(topicName+": retention is about to delete what it has not read.",
				topicName+": only {{ $value | humanizePercentage }} of the log lies before the first unread record, "+
					"and the group is not catching up. Make the topic's retention longer now."),
		}),
	)
}

// collectorRules fire when no other rule on lag can: the lag is not known.
func collectorRules() []rulefmt.Rule {
	// When "old" forgets a cluster, another cause must take over, or a page would end while nothing
	// is known. The other causes therefore remember less.
	const before = remembered - hour
	return []rulefmt.Rule{
		alertRule(critical, "old", rulefmt.Rule{
			Alert: "LagCollectorNoData",
			Expr: fmt.Sprintf("time() - max by (%s) (%s) > %d",
				byCluster, lately(lastPolled, remembered), collectorOld),
			For: minute,
			Annotations: texts(clusterName+": consumer lag is not known.",
				clusterName+": its consumer groups were last read {{ $value | humanizeDuration }} ago, "+
					"so no alert on them can fire. "+
					"`kubectl logs -n {{ $labels.namespace }} -l app.kubernetes.io/name=lag-operator --tail=-1` "+
					"shows why."),
		}),
		alertRule(critical, "never", rulefmt.Rule{
			Alert: "LagCollectorNoData",
			Expr: fmt.Sprintf("max by (%[1]s) (lag_collector_up) == 0\nunless\nmax by (%[1]s) (%[2]s)",
				byCluster, lately(lastPolled, before)),
			For: 2 * minute,
			Annotations: texts(clusterName+": consumer lag is not known.",
				clusterName+": the lag operator has never read it since it started "+
					"(lag_collector_up is {{ $value }}). Its log shows why: address, certificates or rights."),
		}),
		alertRule(critical, "absent", rulefmt.Rule{
			Alert: "LagCollectorNoData",
			Expr:  fmt.Sprintf("absent_over_time(%s[%s])\nunless on ()\nmax(lag_collector_up)", lastPolled, before),
			For:   5 * minute,
			Annotations: texts("Consumer lag is not known.",
				"Prometheus has had no data of the lag operator for a day, or never (absent: {{ $value }}). "+
					"Check that it is installed, runs and is scraped: "+
					"`kubectl get pods,podmonitors -A -l app.kubernetes.io/name=lag-operator`."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "LagSeriesDropped",
			Expr:  fmt.Sprintf("sum by (%s) (increase(lag_collector_series_dropped_total[15m])) > 0", byCluster),
			For:   5 * minute,
			Annotations: texts(clusterName+": some groups have no metrics.",
				clusterName+": the polls of the last 15 minutes left out "+`{{ printf "%.0f" $value }}`+" series "+
					"to keep to maxSeries, so some groups are not watched. Raise it, or discover fewer groups."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "LagCollectorUnauthorized",
			Expr: fmt.Sprintf("max by (%s, api, consumergroup, topic) (lag_collector_unauthorized) > 0",
				byCluster),
			For:           10 * minute,
			KeepFiringFor: 5 * minute,
			Annotations: texts(clusterName+": the lag collector may not read a part.",
				clusterName+": Kafka has refused {{ $labels.api }}"+
					"{{ with $labels.consumergroup }} of group {{ . }}{{ end }}"+
					"{{ with $labels.topic }} of topic {{ . }}{{ end }} "+
					"(lag_collector_unauthorized is {{ $value }}), so that part is not watched. "+
					"Allow the collector's user to Describe it."),
		}),
	}
}

// certificateEnding returns a rule on the certificate of an API that nobody renews.
func certificateEnding(severity string, within int) rulefmt.Rule {
	return alertRule(severity, "", rulefmt.Rule{
		Alert: "CertificateExpiring",
		Expr: fmt.Sprintf("min by (%s) (http_certificate_not_after_timestamp_seconds) - time() < %d",
			byService, within),
		For: 5 * minute,
		Annotations: texts("The certificate of "+jobName+" expires.",
			"The certificate of the API of "+jobName+" expires in {{ $value | humanizeDuration }}. "+
				"Clients refuse it then. The service takes a renewed one without a restart."),
	})
}

// serviceRules fire on what Cart and Order report of themselves.
func serviceRules() []rulefmt.Rule {
	return []rulefmt.Rule{
		certificateEnding(critical, certificateEndsSoon),
		certificateEnding(warning, certificateEnds),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "ServiceNotReady",
			// A series without the release that ended may only have got the label: any pod of the job stands for it.
			Expr: fmt.Sprintf(`
sum by (%[1]s) (service_ready) == 0
or
max by (%[1]s) (%[2]s) * 0
unless on (%[1]s)
max by (%[1]s) (service_ready)
or
max by (namespace, job) (%[3]s) * 0
unless on (namespace, job)
max by (namespace, job) (service_ready)`, byService,
				lately("service_ready{"+releaseLabel+`!=""}`, remembered),
				lately("service_ready{"+releaseLabel+`=""}`, remembered)),
			For: 5 * minute,
			Annotations: texts(jobName+" has no ready instance.",
				"{{ $value }} instances of "+jobName+" are ready. "+
					"/readyz of a pod and its log show what is missing."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "DatabaseDown",
			Expr:  fmt.Sprintf("count by (%s) ((cart_database_up or order_database_up) == 0)", byService),
			For:   minute,
			Annotations: texts(jobName+" cannot use its database.",
				"{{ $value }} instances of "+jobName+" cannot use its database, and respond with 503. "+
					"No restart mends that. The log of a pod has the reason."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "AuthKeysOld",
			// 0 is a pod that has never read them. It is not ready.
			Expr: fmt.Sprintf("time() - min by (%s) (auth_keys_read_timestamp_seconds > 0) > %d",
				byService, authKeysOld),
			For: minute,
			Annotations: texts(jobName+" cannot read the keys of its tokens' issuer.",
				jobName+" read the issuer's keys {{ $value | humanizeDuration }} ago, and should every 5 minutes. "+
					"Tokens of a new key are refused with 503, and a key that the issuer has withdrawn still counts."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "OutboxOld",
			Expr: fmt.Sprintf("max by (%s) "+
				"(cart_outbox_oldest_seconds or order_outbox_oldest_seconds) > %d", byService, outboxOld),
			For: 2 * minute,
			Annotations: texts(jobName+" cannot publish.",
				"Messages that "+jobName+" accepted have waited for Kafka for {{ $value | humanizeDuration }}. "+
					"Lag does not show them. Check whether Kafka is reachable, and what the relay logs."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "StoreNearlyFull",
			Expr: fmt.Sprintf(`
min by (%s) (
  cart_store_left_bytes / (cart_store_left_bytes + cart_store_bytes)
  or
  order_store_left_bytes / (order_store_left_bytes + order_store_bytes)
) < 0.2`, byService),
			For: 5 * minute,
			Annotations: texts("The volume of "+jobName+" is nearly full.",
				"{{ $value | humanizePercentage }} of what the store of "+jobName+" can hold is left. "+
					"At 0 it takes no more orders. Bring Kafka back if messages wait for it, or grow the volume."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "DeliveryFailing",
			Expr: fmt.Sprintf("sum by (%s, code) "+
				"(increase(cart_delivery_failures_total[5m]) or increase(order_delivery_failures_total[5m])) > 0",
				byService),
			For: 5 * minute,
			Annotations: texts(jobName+": Kafka refuses its messages.",
				`{{ printf "%.0f" $value }}`+" messages of "+jobName+
					" were refused in the last 5 minutes with {{ $labels.code }}. "+
					"They are sent again, in order, so everything behind them waits."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "OrderRecordsWithheld",
			Expr:  fmt.Sprintf("max by (%s, topic, partition) (order_withheld_seconds) > %d", byRelease, withheldLong),
			For:   minute,
			Annotations: texts("An open transaction withholds orders.",
				"On {{ $labels.topic }}/{{ $labels.partition }} a transaction has been open for "+
					"{{ $value | humanizeDuration }}. Order cannot read what is behind it. "+
					"Find its producer, or abort the transaction."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "OrderConsumerFailing",
			// One fault, such as a database that is away, pages once, however many pods it keeps.
			Expr: fmt.Sprintf("sum by (%s) (order_consumer_failing) > 0", byRelease),
			For:  2 * minute,
			Annotations: texts("Order cannot read on.",
				"Something has kept {{ $value }} of Order's pods from reading a partition, or from storing what "+
					"they have read, for 2 minutes (order_consumer_failing). "+
					"Their logs have the reason: a permission, a damaged batch, Kafka, the volume or the database."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "OrderGroupShared",
			Expr:  fmt.Sprintf("max by (%s) (order_partitions_elsewhere) > 0", byRelease),
			For:   minute,
			Annotations: texts("Another consumer has joined Order's group.",
				`{{ printf "%.0f" $value }}`+" partitions of the order topics are read by other members of the group "+
					"order-service. Order is not ready, because its store lacks what they read. "+
					"/readyz names them."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "OrderLogReplaced",
			Expr:  counted(byRelease, "order_logs_replaced_total", hour) + " > 0",
			Annotations: texts("Kafka has lost records of the order topics.",
				`{{ printf "%.0f" $value }}`+" partitions were found to be another log than the one that "+
					"Order had read. "+
					"Order has begun to read them again. Orders that Kafka lost are in the stores only."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "OrderRecordsDeleted",
			Expr:  counted(byRelease, "order_records_deleted_total", hour) + " > 0",
			Annotations: texts("Records of the order topics were deleted before Order had read them.",
				`{{ printf "%.0f" $value }}`+" offsets were deleted unread, so look-ups of their orders are 404. "+
					"The orders are in Cart's store. Do not delete its volume."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "CartRecordsLost",
			Expr:  counted(byRelease, "cart_published_records_lost_total", hour) + " > 0",
			Annotations: texts("Kafka has lost records that Cart had published.",
				`{{ printf "%.0f" $value }}`+" offsets that Cart had published are gone from the order topics. "+
					"The orders are in the stores only. Do not delete a volume."),
		}),
		alertRule(critical, "", rulefmt.Rule{
			Alert: "CartOrdersInDoubt",
			Expr:  counted(byRelease, "cart_orders_in_doubt_total", hour) + " > 0",
			Annotations: texts("A rebuilt Cart may lack orders.",
				`{{ printf "%.0f" $value }}`+" orders may be missing, or be at an old version: "+
					"records that are no events have their keys. Cart's log names them."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "CartTopicPartitions",
			Expr:  fmt.Sprintf("max by (%s, topic) (cart_topic_partitions) != %d", byRelease, orderPartitions()),
			Annotations: texts("{{ $labels.topic }} has another number of partitions than it must.",
				`{{ $labels.topic }} has {{ printf "%.0f" $value }} partitions. If some were added, the versions of `+
					"one order are in two of them, and a consumer can see them out of order. "+
					"Cart and Order are not harmed."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "OrderDeadLetters",
			Expr:  counted(byRelease+", reason", "order_dead_letters_total", 15*minute) + " > 0",
			Annotations: texts("Records that are no orders: {{ $labels.reason }}.",
				`{{ printf "%.0f" $value }}`+" records in the last 15 minutes held no order ({{ $labels.reason }}) "+
					"and are in order-dead-letter-topic. "+
					"Find the producer that wrote them. The orders around them are not delayed."),
		}),
	}
}

// status returns the number of a topic's partitions in a status. While the collector's leader changes
// it is what the former leader saw last: an alert that is pending must not begin again.
func status(s string) string {
	return fmt.Sprintf("max by (%s) (%s)",
		byTopic, lately(fmt.Sprintf(`kafka_consumergroup_partition_status{status="%s"}`, s), handover))
}

// standstill returns a rule on partitions that are not read, once as critical and once as a warning.
// It is critical once the group is outside its objective: users wait, and waiting longer changes
// nothing, as it may for a group that catches up. A group without an objective never pages.
func standstill(s string, r rulefmt.Rule) []rulefmt.Rule {
	late := fmt.Sprintf("on (%s) %s > 0", byGroup, lately(breached, handover))
	page, note := r, r
	page.Expr, page.For = status(s)+" > 0\nand "+late, standstillLong
	note.Expr = status(s) + " > 0\nunless " + late
	page.KeepFiringFor, note.KeepFiringFor = 5*minute, 5*minute
	return []rulefmt.Rule{alertRule(critical, "", page), alertRule(warning, "", note)}
}

// withholding returns the rules on transactions that stay open. Groups that read committed records get
// nothing behind them, and have no lag: so neither a status nor an objective shows it. It is critical
// for a group with an objective that waits longer than that allows. A group that has committed beyond
// the transaction's beginning reads uncommitted records and does not wait. Where the Order service
// reports that it waits, OrderRecordsWithheld pages: one fault pages once.
func withholding() []rulefmt.Rule {
	age := fmt.Sprintf(`(
  max by (%s) (kafka_topic_partition_open_txn_seconds)
  unless on (topic, partition) max by (topic, partition) (%s) > 0
)`, byLog, lately("order_withheld_seconds", handover))
	// The strictest objective of the groups that wait for the partition.
	page := fmt.Sprintf(`
%[1]s > %[2]d
> on (%[3]s)
min by (%[3]s) (
  0 * (
    max by (%[4]s, partition) (kafka_consumergroup_current_offset)
    <= on (%[3]s) group_left ()
    (
      max by (%[3]s) (kafka_topic_partition_current_offset)
      - max by (%[3]s) (kafka_topic_partition_open_txn_records)
    )
  )
  + on (%[5]s) group_left ()
  max by (%[5]s) (%[6]s)
)`, age, withheldLong, byLog, byTopic, byGroup, lately("kafka_consumergroup_objective_seconds", hour))
	r := rulefmt.Rule{
		Alert:         "TransactionHanging",
		For:           minute,
		KeepFiringFor: 5 * minute,
		Annotations: texts("{{ $labels.topic }} ({{ $labels.kafka_cluster }}): a transaction stays open.",
			"On {{ $labels.topic }}/{{ $labels.partition }} ({{ $labels.kafka_cluster }}) a transaction has been "+
				"open for {{ $value | humanizeDuration }}. Groups that read committed records get nothing behind it, "+
				"and their lag stays 0. Find its producer, or abort the transaction."),
	}
	note := r
	r.Expr = page
	note.Expr = fmt.Sprintf("%s > %d\nunless%s", age, transactionHangs, page)
	return []rulefmt.Rule{alertRule(critical, "", r), alertRule(warning, "", note)}
}

// losing returns a rule on data that is being lost, once as critical and once as a warning. It is
// critical only for a group with a declared objective: a group that a console or a test left behind
// can wait until the morning. The objective counts if it was there in the last hour, so that a new
// leader of the collector does not turn a page into a warning.
func losing(cause string, r rulefmt.Rule) []rulefmt.Rule {
	declared := fmt.Sprintf("on (%[1]s) max by (%[1]s) (%[2]s)",
		byGroup, lately("kafka_consumergroup_objective_seconds", hour))
	page, note := r, r
	page.Expr = strings.TrimSpace(r.Expr) + "\nand " + declared
	note.Expr = strings.TrimSpace(r.Expr) + "\nunless " + declared
	return []rulefmt.Rule{alertRule(critical, cause, page), alertRule(warning, cause, note)}
}

// kafkaRules fire on what brokers report. What clients suffer has alerts of its own: these name the cause, or
// come before it.
func kafkaRules() []rulefmt.Rule {
	const byBrokers = "namespace, strimzi_io_cluster"
	return []rulefmt.Rule{
		alertRule(critical, "partitions", rulefmt.Rule{
			Alert: "KafkaPartitionsUnwritable",
			// Only the leader of a partition counts it, and only the active controller those without a leader, also
			// if no broker is left.
			Expr: fmt.Sprintf(`
(
  sum by (%[1]s) (kafka_server_replicamanager_underminisrpartitioncount)
  or
  0 * max by (%[1]s) (kafka_controller_kafkacontroller_offlinepartitionscount)
)
+ on (%[1]s)
max by (%[1]s) (kafka_controller_kafkacontroller_offlinepartitionscount)
> 0`, byBrokers),
			For: 2 * minute,
			Annotations: texts("Kafka {{ $labels.strimzi_io_cluster }} takes no messages for some partitions.",
				"{{ $value }} partitions of Kafka {{ $labels.strimzi_io_cluster }} have no leader, or fewer in-sync "+
					"replicas than min.insync.replicas. What is written to them waits."),
		}),
		alertRule(critical, "controllers", rulefmt.Rule{
			Alert: "KafkaPartitionsUnwritable",
			// Without a majority of controllers the counts above stay as they were.
			Expr: fmt.Sprintf("sum by (%s) (kafka_controller_kafkacontroller_activecontrollercount) == 0", byBrokers),
			For:  2 * minute,
			Annotations: texts("Kafka {{ $labels.strimzi_io_cluster }} has no active controller.",
				"Kafka {{ $labels.strimzi_io_cluster }} has {{ $value }} active controllers. No leader can be chosen "+
					"and no replica left out, so what is written to partitions of lost brokers waits."),
		}),
		alertRule(warning, "", rulefmt.Rule{
			Alert: "KafkaUnderReplicated",
			Expr:  fmt.Sprintf("sum by (%s) (kafka_server_replicamanager_underreplicatedpartitions) > 0", byBrokers),
			// Longer than a broker takes to restart and to read what it has missed.
			For: 15 * minute,
			Annotations: texts("Kafka {{ $labels.strimzi_io_cluster }} lacks replicas.",
				"{{ $value }} partitions of Kafka {{ $labels.strimzi_io_cluster }} have a replica that is not in "+
					"sync. The loss of another broker stops writes to them."),
		}),
	}
}

// alertRule completes an alert rule with its severity, its cause and the address of its runbook.
// The cause distinguishes rules of the same alert; it may be empty.
func alertRule(severity, cause string, r rulefmt.Rule) rulefmt.Rule {
	r.Expr = strings.TrimSpace(r.Expr)
	r.Labels = map[string]string{"severity": severity}
	if cause != "" {
		r.Labels["cause"] = cause
	}
	r.Annotations = maps.Clone(r.Annotations)
	r.Annotations["runbook_url"] = runbook(r.Alert)
	return r
}

// texts returns the annotations that people read first.
func texts(summary, description string) map[string]string {
	return map[string]string{"summary": summary, "description": description}
}

// burns is true while the budget is used up factor times as fast as it may be, over the long window
// and still over the short one.
func burns(factor float64, long, short model.Duration) string {
	limit := fmt.Sprintf("> %g * %s", factor, budget)
	return fmt.Sprintf("(%s %s and %s %s)", outside(long), limit, outside(short), limit)
}

// headroomFalls selects topics of which retention is about to delete records that a group has not
// read. A group that was further behind 15 minutes ago is gaining, and is left out. So is a topic
// whose log starts at 0: nothing is deleted from it, as from a compacted topic. Headroom below 0 is
// too late and belongs to ConsumerGroupRecordsLost.
func headroomFalls() string {
	return fmt.Sprintf(`
min by (%[1]s) (
  min by (%[1]s, partition) (kafka_consumergroup_retention_headroom_ratio) >= 0 < %[2]g
  and
  min by (%[1]s, partition) (kafka_consumergroup_retention_headroom_ratio)
    <= min by (%[1]s, partition) (kafka_consumergroup_retention_headroom_ratio offset 15m)
  and on (%[3]s, topic, partition)
  max by (%[3]s, topic, partition) (kafka_topic_partition_oldest_offset) > 0
)`, byTopic, headroomLow, byCluster)
}

// counted returns how much a counter has grown within a window, summed by these labels. A service may
// count before it is scraped for the first time, as when it catches up after a restart. increase does not
// see that, so the whole value of a series that began within the window counts.
//
// It is for what happens once. What happens again and again, as a refused message does, increase sees
// soon enough. The lag collector counts only what changes between two polls.
func counted(by, counter string, window model.Duration) string {
	return fmt.Sprintf("sum by (%[1]s) ((%[2]s unless %[2]s offset %[3]s) or increase(%[2]s[%[3]s]))",
		by, counter, window)
}

// orderPartitions returns how many partitions an order topic has.
func orderPartitions() int {
	topics := contract.Topics()
	created := slices.IndexFunc(topics, func(t contract.Topic) bool { return t.Name == contract.TopicCreated })
	return topics[created].Partitions
}

// lately returns the last value of each series of a metric within a window, also of one that ended.
func lately(metric string, window model.Duration) string {
	return fmt.Sprintf("last_over_time(%s[%s])", metric, window)
}
