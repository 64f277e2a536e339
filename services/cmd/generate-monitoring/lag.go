package main

import (
	"fmt"
)

// What the viewer chose. Series are always aggregated over the collector's pods: while the leader changes there are two.
const (
	ofCluster = `kafka_cluster=~"$kafka_cluster"`
	ofGroup   = ofCluster + `,consumergroup=~"$consumergroup"`
	ofTopic   = ofGroup + `,topic=~"$topic"`
)

// lagDashboard says first whether all is fine, then in seconds how late each group is, then why.
func lagDashboard() dashboard {
	const (
		clusterGroup = "kafka_cluster, consumergroup"
		groupTopic   = clusterGroup + ", topic"
		group        = "{{consumergroup}}"
		groupOfTopic = "{{consumergroup}} {{topic}}"
	)
	perPartition := func(metric string) string {
		return fmt.Sprintf("max by (%s, partition) (%s{%s})", groupTopic, metric, ofTopic)
	}
	// The ten partitions that are furthest behind, and what else is known of them.
	worst := fmt.Sprintf("topk(10, %s > 0)", perPartition("kafka_consumergroup_lag_seconds"))
	ofWorst := func(metric string) string {
		return fmt.Sprintf("%s and on (%s, partition) %s", perPartition(metric), groupTopic, worst)
	}
	statuses := func(status string) string {
		return fmt.Sprintf(`max by (%s, status) (kafka_consumergroup_partition_status{%s,status=~"%s"})`, groupTopic, ofTopic, status)
	}
	backlog := fmt.Sprintf("max by (%s) (kafka_consumergroup_topic_lag{%s})", groupTopic, ofTopic)
	seconds := fmt.Sprintf("max by (%s) (kafka_consumergroup_topic_max_lag_seconds{%s})", clusterGroup, ofTopic)
	objective := fmt.Sprintf("max by (%s) (kafka_consumergroup_objective_seconds{%s})", clusterGroup, ofGroup)

	return dashboard{
		name: "consumer-lag", title: "Consumer lag",
		about:     "How late each consumer group reads: in seconds first, since 1,000 records are nothing or a day. From the lag operator, which asks the brokers, so it knows of groups whose consumers are gone too.",
		variables: []variable{kafkaCluster, consumerGroup, topic},
		rows: []row{
			{"Is it fine?", []panel{
				{
					kind: "stat", title: "Furthest behind", width: 4, unit: "s", about: "Age of the oldest record that a group has not read, of the worst group and partition. 0: everything is read.",
					queries: []query{{expr: fmt.Sprintf("max(%s)", seconds)}},
				},
				{
					kind: "stat", title: "Of its objective", width: 4, unit: "percentunit", alert: "ConsumerGroupObjectiveBurnFast",
					about:   "The same as a part of what was agreed for the group (maxLagSeconds of its ConsumerGroup), of the worst one. From 100 % on it is outside. Not measured: no group with an objective has a position that can be read.",
					queries: []query{{expr: fmt.Sprintf("max(%s / %s)", seconds, objective)}}, limits: []limit{{"green", 0}, {"yellow", 0.5}, {"red", 1}}, defaultValue: "not measured",
				},
				{
					kind: "stat", title: "Time within objective", width: 4, unit: "percentunit", decimals: new(2), alert: "ConsumerGroupObjectiveBurnSlow",
					about:   fmt.Sprintf("Of the time shown, of the worst group. %g %% over 30 days is the target. Not measured: no group with an objective has a position that can be read.", 100*target),
					queries: []query{{expr: fmt.Sprintf("min(1 - avg_over_time(%s{%s}[$__range]))", breached, ofGroup)}}, limits: good(target), defaultValue: "not measured",
				},
				{
					kind: "stat", title: "Partitions that stand still", width: 4, alert: "ConsumerGroupStalled",
					about:   "Partitions with unread records and no progress for a minute, with a consumer (stalled) or without (stopped), and those whose position is outside of the log (lost).",
					queries: []query{{expr: fmt.Sprintf("sum(%s)", statuses("stalled|stopped|lost"))}}, limits: bad(1),
				},
				{
					kind: "stat", title: "Records lost", width: 4, alert: "ConsumerGroupRecordsLost",
					about:   "Records that retention deleted in the time shown before the group read them.",
					queries: []query{{expr: fmt.Sprintf("sum(increase(kafka_consumergroup_records_lost_total{%s}[$__range]))", ofTopic)}}, limits: bad(1), decimals: new(0),
				},
				{
					kind: "stat", title: "Last read", width: 4, unit: "s", alert: "LagCollectorNoData",
					about:   "Time since the collector last read the cluster; of the worst cluster. When it is old, so is everything on this page.",
					queries: []query{{expr: fmt.Sprintf("max(time() - max by (kafka_cluster) (%s{%s}))", lastPolled, ofCluster)}}, limits: []limit{{"green", 0}, {"yellow", collectorOld / 4}, {"red", collectorOld}},
				},
			}},
			{"How late", []panel{
				{
					kind: "timeseries", title: "Lag in seconds", width: 14, unit: "s", alert: "ConsumerGroupObjectiveBurnFast",
					about: "Age of the oldest unread record, by group, with each group's objective dashed. It grows by a second each second while a group stands still, whether anything new comes in or not; a replay shows as a peak that falls as the group catches up.",
					queries: []query{
						{expr: seconds, legend: group},
						{expr: objective, legend: group + " objective", dashed: true},
					},
				},
				{
					kind: "timeseries", title: "How fast the budget goes", width: 10, limits: []limit{{"text", 0}, {"orange", slowBurn}, {"red", fastBurn}}, alert: "ConsumerGroupObjectiveBurnFast",
					about: fmt.Sprintf("Time outside of the objective against what the target allows: 1 uses up month's budget in a month, %g in two days. The dashed lines are where alerts begin.", fastBurn),
					queries: []query{
						{expr: fmt.Sprintf("%s{%s} / %s", outside(hour), ofGroup, budget), legend: group + " 1 h"},
						{expr: fmt.Sprintf("%s{%s} / %s", outside(6*hour), ofGroup, budget), legend: group + " 6 h"},
					},
				},
			}},
			{"Flow", []panel{
				{
					kind: "timeseries", title: "Written and read", width: 8, unit: "recps",
					about: "Records appended to the topics and records that groups have moved past, per second. A group whose line is below its topic's falls behind.",
					queries: []query{
						{expr: fmt.Sprintf("sum by (kafka_cluster, topic) (rate(kafka_topic_partition_current_offset{%s,topic=~\"$topic\"}[$__rate_interval]))", ofCluster), legend: "written {{topic}}"},
						// Not rate(): it would take a position that went back for a counter that began anew.
						{expr: fmt.Sprintf("sum by (%s) (clamp_min(deriv(kafka_consumergroup_current_offset{%s}[$__rate_interval]), 0))", groupTopic, ofTopic), legend: groupOfTopic},
					},
				},
				{
					kind: "timeseries", title: "Unread records", width: 8, about: "By group and topic. On a compacted topic an upper bound: some of the offsets between have no record any more.",
					queries: []query{{expr: backlog, legend: groupOfTopic}},
				},
				{
					kind: "timeseries", title: "Time until all is read", width: 8, unit: "s",
					about: "Unread records over the pace at which they became fewer in the last five minutes, for groups that are 10 s behind or more. Nothing is shown for a group that is not gaining.",
					queries: []query{{expr: fmt.Sprintf(`
%[1]s / on (%[2]s) -(min by (%[2]s) (deriv(kafka_consumergroup_topic_lag{%[3]s}[5m])) < 0)
and on (%[2]s) max by (%[2]s) (kafka_consumergroup_topic_max_lag_seconds{%[3]s}) > 10`, backlog, groupTopic, ofTopic), legend: groupOfTopic}},
					defaultValue: "none",
				},
			}},
			{"Groups", []panel{
				{
					kind: "timeseries", title: "Partitions by status", width: 10, stacked: true, alert: "ConsumerGroupStopped",
					about: "ok; slow: reads and falls behind; rewound: its position went back; no_commit: it reads the topic and has no position here; stalled: has a consumer and stands still; stopped: has none; lost: its position is outside of the log.",
					queries: []query{
						{expr: fmt.Sprintf("sum by (status) (%s)", statuses(".+")), legend: "{{status}}"},
					},
					colors: map[string]string{"ok": "green", "slow": "yellow", "rewound": "blue", "no_commit": "purple", "stalled": "orange", "stopped": "red", "lost": "dark-red"},
				},
				{
					kind: "timeseries", title: "Members", width: 7, about: "Consumers in the group, and partitions of its topics that no member has. More members than partitions help nothing.",
					queries: []query{
						{expr: fmt.Sprintf("max by (%s) (kafka_consumergroup_members{%s})", clusterGroup, ofGroup), legend: group},
						{expr: fmt.Sprintf("sum by (%s) (max by (%s) (kafka_consumergroup_unassigned_partitions{%s})) > 0", clusterGroup, groupTopic, ofTopic), legend: group + " unassigned"},
					},
				},
				{
					kind: "state-timeline", title: "State", width: 7, about: "As the group's coordinator says it. Empty: no members, but a position that is kept. Rebalancing for minutes: members come and go, or one does not answer.",
					queries: []query{{expr: fmt.Sprintf(`
max by (%[1]s) (kafka_consumergroup_state{%[2]s,state="Stable"}) == 1
or 2 * max by (%[1]s) (kafka_consumergroup_state{%[2]s,state=~"Assigning|Reconciling|PreparingRebalance|CompletingRebalance"}) == 2
or 3 * max by (%[1]s) (kafka_consumergroup_state{%[2]s,state="Empty"}) == 3
or 4 * max by (%[1]s) (kafka_consumergroup_state{%[2]s,state="Dead"}) == 4`, clusterGroup, ofGroup), legend: group}},
					names:  map[int]string{1: "Stable", 2: "Rebalancing", 3: "Empty", 4: "Dead"},
					colors: map[string]string{"Stable": "green", "Rebalancing": "orange", "Empty": "blue", "Dead": "red"},
				},
			}},
			{"Partitions", []panel{
				{
					kind: "table", title: "The ten furthest behind", width: 24, about: "A single partition far behind among others that are read: a key that most records have, or a record that its consumer does not get past.",
					queries: []query{
						{expr: worst},
						{expr: ofWorst("kafka_consumergroup_lag")},
						{expr: ofWorst("kafka_consumergroup_current_offset")},
						{expr: fmt.Sprintf("time() - (%s)", ofWorst("kafka_consumergroup_last_progress_timestamp_seconds"))},
						{expr: ofWorst("kafka_consumergroup_retention_headroom_ratio")},
					},
					columns: map[string]column{
						"kafka_cluster": {title: "Cluster"}, "consumergroup": {title: "Group"}, "topic": {title: "Topic"}, "partition": {title: "Partition"},
						"A": {title: "Late by", unit: "s"}, "B": {title: "Unread"}, "C": {title: "Position", unit: "none"}, "D": {title: "Since progress", unit: "s"},
						"E": {title: "Headroom", unit: "percentunit", limits: good(headroomLow)},
					},
				},
				{
					kind: "timeseries", title: "Retention headroom", width: 8, unit: "percentunit", max: new(1.0), limits: []limit{{"text", 0}, {"red", headroomLow}}, alert: "ConsumerGroupRetentionHeadroomLow",
					about:   "Part of the log before a group's first unread record, of its worst partition: what retention can still delete without loss. It matters where records are deleted; a compacted topic's are not.",
					queries: []query{{expr: fmt.Sprintf("min by (%s) (kafka_consumergroup_retention_headroom_ratio{%s})", groupTopic, ofTopic), legend: groupOfTopic}},
				},
				{
					kind: "timeseries", title: "Went back, lost", width: 8, alert: "ConsumerGroupRewound",
					about: "Times that a group's position went back, and records that were deleted unread, in each interval.",
					queries: []query{
						{expr: fmt.Sprintf("sum by (%s) (increase(kafka_consumergroup_offset_rewinds_total{%s}[$__rate_interval])) > 0", groupTopic, ofTopic), legend: groupOfTopic + " went back"},
						{expr: fmt.Sprintf("sum by (%s) (increase(kafka_consumergroup_records_lost_total{%s}[$__rate_interval])) > 0", groupTopic, ofTopic), legend: groupOfTopic + " lost"},
					},
				},
				{
					kind: "timeseries", title: "Without a position, in open transactions", width: 8, alert: "ConsumerGroupWithoutPosition",
					about: "Partitions in which a group has no commit, which is normal for its first seconds; groups with an objective that have none anywhere, as 1; and records behind the first open transaction, which no reader of committed data gets until it ends.",
					queries: []query{
						{expr: fmt.Sprintf("max by (%s) (kafka_consumergroup_uncommitted_partitions{%s}) > 0", groupTopic, ofTopic), legend: groupOfTopic + " partitions"},
						{expr: fmt.Sprintf("count by (%s) (%s)", clusterGroup, withoutPosition("{"+ofGroup+"}")), legend: group + " nowhere"},
						{expr: fmt.Sprintf("sum by (kafka_cluster, topic) (max by (kafka_cluster, topic, partition) (kafka_topic_partition_open_txn_records{%s,topic=~\"$topic\"})) > 0", ofCluster), legend: "{{topic}} open"},
					},
				},
			}},
			{"The collector", []panel{
				{
					kind: "timeseries", title: "Reads the cluster", width: 6, max: new(1.0), alert: "LagCollectorNoData", about: "1 while the last poll of the cluster succeeded.",
					queries: []query{{expr: fmt.Sprintf("max by (kafka_cluster) (lag_collector_up{%s})", ofCluster), legend: "{{kafka_cluster}}"}},
				},
				{
					kind: "timeseries", title: "Duration of a poll, p99", width: 6, unit: "s", about: "Lag can be wrong by as much as the interval between polls, which must be longer than this.",
					queries: []query{{expr: fmt.Sprintf("histogram_quantile(0.99, sum by (kafka_cluster, le) (rate(lag_collector_duration_seconds_bucket{%s}[$__rate_interval])))", ofCluster), legend: "{{kafka_cluster}}"}},
				},
				{
					kind: "timeseries", title: "Errors", width: 6, unit: "eps", about: "By request and Kafka's error code. Authorization errors: the collector's user needs Describe on all topics and groups.",
					queries: []query{{expr: fmt.Sprintf("sum by (kafka_cluster, api, code) (rate(lag_collector_errors_total{%s}[$__rate_interval])) > 0", ofCluster), legend: "{{api}} {{code}}"}},
				},
				{
					kind: "timeseries", title: "Series", width: 6, alert: "LagSeriesDropped", about: "Series shown, and series left out because of the operator's maxSeries.",
					queries: []query{
						{expr: fmt.Sprintf("max by (kafka_cluster) (lag_collector_series{%s})", ofCluster), legend: "{{kafka_cluster}}"},
						{expr: fmt.Sprintf("sum by (kafka_cluster) (increase(lag_collector_series_dropped_total{%s}[$__rate_interval])) > 0", ofCluster), legend: "{{kafka_cluster}} dropped"},
					},
				},
			}},
		},
	}
}
