package main

import "fmt"

// notMeasured is shown for objectives if there are none to measure.
const notMeasured = " Not measured: no group with an objective has a position that can be read."

// lagDashboard shows first whether every group keeps up, then in seconds how late each group is,
// then why.
func lagDashboard() dashboard {
	return dashboard{
		name: "consumer-lag", title: "Consumer lag",
		about: "How late each consumer group reads: in seconds first, since 1,000 records can be nothing or a day. " +
			"From the lag operator. It asks the brokers, and therefore knows groups whose consumers are gone too.",
		variables: []variable{kafkaCluster, consumerGroup, topic},
		rows: []row{
			{"Is it fine?", lagSummary()},
			{"How late", lagInSeconds()},
			{"Flow", lagFlow()},
			{"Groups", lagGroups()},
			{"Partitions", lagPartitions()},
			{"The collector", lagCollector()},
		},
	}
}

// The labels of one group, and of one topic of a group.
const (
	clusterGroup = "kafka_cluster, consumergroup"
	groupTopic   = clusterGroup + ", topic"
)

// The legends of lines, one for each group or for each topic of a group.
const (
	legendGroup = "{{consumergroup}}"
	legendTopic = "{{consumergroup}} {{topic}}"
)

// The lag of each topic of a group in records, the lag of each group in seconds, and its objective
// in seconds.
var (
	lagRecords   = fmt.Sprintf("max by (%s) (kafka_consumergroup_topic_lag{%s})", groupTopic, ofTopic)
	lagSeconds   = fmt.Sprintf("max by (%s) (kafka_consumergroup_topic_max_lag_seconds{%s})", clusterGroup, ofTopic)
	lagObjective = fmt.Sprintf("max by (%s) (kafka_consumergroup_objective_seconds{%s})", clusterGroup, ofGroup)
)

// statuses selects partitions by a regular expression of their status.
func statuses(status string) string {
	return fmt.Sprintf(`max by (%s, status) (kafka_consumergroup_partition_status{%s,status=~"%s"})`,
		groupTopic, ofTopic, status)
}

// lagSummary shows one number for each question that a person has first.
func lagSummary() []panel {
	return []panel{
		{
			kind: "stat", title: "Furthest behind", width: 4, unit: "s",
			about: "Age of the oldest record that a group has not read, of the worst group and partition. " +
				"0: everything is read.",
			queries: []query{{expr: fmt.Sprintf("max(%s)", lagSeconds)}},
		},
		{
			kind: "stat", title: "Of its objective", width: 4, unit: "percentunit",
			alert: "ConsumerGroupObjectiveBurnFast",
			about: "The same as a part of the group's objective (maxLagSeconds of its ConsumerGroup), " +
				"of the worst group. From 100 % on the group is outside its objective." + notMeasured,
			queries:      []query{{expr: fmt.Sprintf("max(%s / %s)", lagSeconds, lagObjective)}},
			limits:       []limit{{"green", 0}, {"yellow", 0.5}, {"red", 1}},
			defaultValue: "not measured",
		},
		{
			kind: "stat", title: "Time within objective", width: 4, unit: "percentunit", decimals: new(2),
			alert: "ConsumerGroupObjectiveBurnSlow",
			about: fmt.Sprintf("Part of the time shown, of the worst group. %g %% over 30 days is the target.",
				100*target) + notMeasured,
			queries:      []query{{expr: fmt.Sprintf("min(1 - avg_over_time(%s{%s}[$__range]))", breached, ofGroup)}},
			limits:       good(target),
			defaultValue: "not measured",
		},
		{
			kind: "stat", title: "Partitions without progress", width: 4,
			alert: "ConsumerGroupStalled",
			about: "Partitions with unread records and no progress for a minute, " +
				"with a consumer (stalled) or without (stopped). " +
				"Partitions whose position is outside the log (lost) count too.",
			queries: []query{{expr: fmt.Sprintf("sum(%s)", statuses("stalled|stopped|lost"))}},
			limits:  bad(1),
		},
		{
			kind: "stat", title: "Records lost", width: 4, decimals: new(0),
			alert: "ConsumerGroupRecordsLost",
			about: "Records that retention deleted in the time shown before the group read them.",
			queries: []query{{
				expr: fmt.Sprintf("sum(increase(kafka_consumergroup_records_lost_total{%s}[$__range]))", ofTopic),
			}},
			limits: bad(1),
		},
		{
			kind: "stat", title: "Last read", width: 4, unit: "s",
			alert: "LagCollectorNoData",
			about: "Time since the collector last read the cluster, of the worst cluster. " +
				"If it is old, everything on this page is old.",
			queries: []query{{
				expr: fmt.Sprintf("max(time() - max by (kafka_cluster) (%s{%s}))", lastPolled, ofCluster),
			}},
			limits: []limit{{"green", 0}, {"yellow", collectorOld / 4}, {"red", collectorOld}},
		},
	}
}

// lagInSeconds shows how late groups are, and how fast they use up their budget.
func lagInSeconds() []panel {
	return []panel{
		{
			kind: "timeseries", title: "Lag in seconds", width: 14, unit: "s",
			alert: "ConsumerGroupObjectiveBurnFast",
			about: "Age of the oldest unread record, by group. Each group's objective is dashed. " +
				"Lag grows by a second each second while a group does not read, also if no new records arrive. " +
				"A replay is a peak that falls as the group catches up.",
			queries: []query{
				{expr: lagSeconds, legend: legendGroup},
				{expr: lagObjective, legend: legendGroup + " objective", dashed: true},
			},
		},
		{
			kind: "timeseries", title: "How fast the budget goes", width: 10,
			alert: "ConsumerGroupObjectiveBurnFast",
			about: fmt.Sprintf("Time outside the objective, compared with what the target allows. "+
				"1 uses up a month's budget in a month, %g in two days. Alerts begin at the dashed lines.", fastBurn),
			queries: []query{
				{expr: fmt.Sprintf("%s{%s} / %s", outside(hour), ofGroup, budget), legend: legendGroup + " 1 h"},
				{expr: fmt.Sprintf("%s{%s} / %s", outside(6*hour), ofGroup, budget), legend: legendGroup + " 6 h"},
			},
			limits: []limit{{"text", 0}, {"orange", slowBurn}, {"red", fastBurn}},
		},
	}
}

// lagFlow compares what is written with what is read.
func lagFlow() []panel {
	written := rate("kafka_topic_partition_current_offset", ofCluster+`,topic=~"$topic"`)
	return []panel{
		{
			kind: "timeseries", title: "Written and read", width: 8, unit: "recps",
			about: "Records appended to the topics, and records that groups have moved past, per second. " +
				"A group whose line is below its topic's falls behind.",
			queries: []query{
				{expr: fmt.Sprintf("sum by (kafka_cluster, topic) (%s)", written), legend: "written {{topic}}"},
				// Not rate(): it would take a position that went back for a counter that was reset.
				{
					expr: fmt.Sprintf("sum by (%s) "+
						"(clamp_min(deriv(kafka_consumergroup_current_offset{%s}[$__rate_interval]), 0))",
						groupTopic, ofTopic),
					legend: legendTopic,
				},
			},
		},
		{
			kind: "timeseries", title: "Unread records", width: 8,
			about: "By group and topic. On a compacted topic an upper bound: " +
				"some of the offsets in between have no record any more.",
			queries: []query{{expr: lagRecords, legend: legendTopic}},
		},
		{
			kind: "timeseries", title: "Time until all is read", width: 8, unit: "s",
			about: "Unread records divided by the pace at which they became fewer in the last five minutes, " +
				"for groups that are 10 s behind or more. A group that is not gaining has no line.",
			queries: []query{{expr: fmt.Sprintf(`
%[1]s / on (%[2]s) -(min by (%[2]s) (deriv(kafka_consumergroup_topic_lag{%[3]s}[5m])) < 0)
and on (%[2]s) max by (%[2]s) (kafka_consumergroup_topic_max_lag_seconds{%[3]s}) > 10`,
				lagRecords, groupTopic, ofTopic), legend: legendTopic}},
			defaultValue: "none",
		},
	}
}

// lagGroups shows the members and states of groups.
func lagGroups() []panel {
	unassigned := fmt.Sprintf("max by (%s) (kafka_consumergroup_unassigned_partitions{%s})", groupTopic, ofTopic)
	return []panel{
		{
			kind: "timeseries", title: "Partitions by status", width: 10, stacked: true,
			alert: "ConsumerGroupStopped",
			about: "ok; slow: reads and falls behind; rewound: its position went back; " +
				"no_commit: the group reads the topic and has no position here; " +
				"stalled: has a consumer and no progress; stopped: has no consumer; " +
				"lost: its position is outside the log.",
			queries: []query{{expr: fmt.Sprintf("sum by (status) (%s)", statuses(".+")), legend: "{{status}}"}},
			colors: map[string]string{
				"ok": "green", "slow": "yellow", "rewound": "blue", "no_commit": "purple",
				"stalled": "orange", "stopped": "red", "lost": "dark-red",
			},
		},
		{
			kind: "timeseries", title: "Members", width: 7,
			about: "Consumers in the group, and partitions of its topics that no member has. " +
				"More members than partitions do not help.",
			queries: []query{
				{
					expr:   fmt.Sprintf("max by (%s) (kafka_consumergroup_members{%s})", clusterGroup, ofGroup),
					legend: legendGroup,
				},
				{
					expr:   fmt.Sprintf("sum by (%s) (%s) > 0", clusterGroup, unassigned),
					legend: legendGroup + " unassigned",
				},
			},
		},
		{
			kind: "state-timeline", title: "State", width: 7,
			about: "As the group's coordinator reports it. Empty: no members, but a position that is kept. " +
				"Rebalancing for minutes: members come and go, or one does not respond.",
			queries: []query{{expr: fmt.Sprintf(`
max by (%[1]s) (kafka_consumergroup_state{%[2]s,state="Stable"}) == 1
or 2 * max by (%[1]s) (kafka_consumergroup_state{%[2]s,state=~"%[3]s"}) == 2
or 3 * max by (%[1]s) (kafka_consumergroup_state{%[2]s,state="Empty"}) == 3
or 4 * max by (%[1]s) (kafka_consumergroup_state{%[2]s,state="Dead"}) == 4`,
				clusterGroup, ofGroup, "Assigning|Reconciling|PreparingRebalance|CompletingRebalance"),
				legend: legendGroup,
			}},
			names:  map[int]string{1: "Stable", 2: "Rebalancing", 3: "Empty", 4: "Dead"},
			colors: map[string]string{"Stable": "green", "Rebalancing": "orange", "Empty": "blue", "Dead": "red"},
		},
	}
}

// lagPartitions shows single partitions, where a cause is often found.
func lagPartitions() []panel {
	perPartition := func(metric string) string {
		return fmt.Sprintf("max by (%s, partition) (%s{%s})", groupTopic, metric, ofTopic)
	}
	// The ten partitions that are furthest behind, and what else is known of them.
	worst := fmt.Sprintf("topk(10, %s > 0)", perPartition("kafka_consumergroup_lag_seconds"))
	ofWorst := func(metric string) string {
		return fmt.Sprintf("%s and on (%s, partition) %s", perPartition(metric), groupTopic, worst)
	}
	positive := func(by, expr string) string { return fmt.Sprintf("sum by (%s) (%s) > 0", by, expr) }
	open := fmt.Sprintf("max by (kafka_cluster, topic, partition) "+
		`(kafka_topic_partition_open_txn_records{%s,topic=~"$topic"})`, ofCluster)
	return []panel{
		{
			kind: "table", title: "The ten furthest behind", width: 24,
			about: "A single partition far behind while others are read: " +
				"a key that most records have, or a record that its consumer cannot pass.",
			queries: []query{
				{expr: worst},
				{expr: ofWorst("kafka_consumergroup_lag")},
				{expr: ofWorst("kafka_consumergroup_current_offset")},
				{expr: fmt.Sprintf("time() - (%s)", ofWorst("kafka_consumergroup_last_progress_timestamp_seconds"))},
				{expr: ofWorst("kafka_consumergroup_retention_headroom_ratio")},
			},
			columns: map[string]column{
				"kafka_cluster": {title: "Cluster"},
				"consumergroup": {title: "Group"},
				"topic":         {title: "Topic"},
				"partition":     {title: "Partition"},
				"A":             {title: "Late by", unit: "s"},
				"B":             {title: "Unread"},
				"C":             {title: "Position", unit: "none"},
				"D":             {title: "Since progress", unit: "s"},
				"E":             {title: "Headroom", unit: "percentunit", limits: good(headroomLow)},
			},
		},
		{
			kind: "timeseries", title: "Retention headroom", width: 6, unit: "percentunit", max: new(1.0),
			alert: "ConsumerGroupRetentionHeadroomLow",
			about: "Part of the log before a group's first unread record, of its worst partition: " +
				"what retention can still delete without loss. " +
				"It matters where records are deleted. A compacted topic's are not.",
			queries: []query{{
				expr: fmt.Sprintf("min by (%s) (kafka_consumergroup_retention_headroom_ratio{%s})",
					groupTopic, ofTopic),
				legend: legendTopic,
			}},
			limits: []limit{{"text", 0}, {"red", headroomLow}},
		},
		{
			kind: "timeseries", title: "Went back, lost", width: 6,
			alert: "ConsumerGroupRewound",
			about: "How often a group's position went back, and how many records were deleted unread, " +
				"in each interval.",
			queries: []query{
				{
					expr:   positive(groupTopic, increase("kafka_consumergroup_offset_rewinds_total", ofTopic)),
					legend: legendTopic + " went back",
				},
				{
					expr:   positive(groupTopic, increase("kafka_consumergroup_records_lost_total", ofTopic)),
					legend: legendTopic + " lost",
				},
			},
		},
		{
			kind: "timeseries", title: "Open transactions", width: 6, unit: "s",
			alert: "TransactionHanging",
			about: "How long a transaction has been open, by partition. " +
				"Groups that read committed records get nothing behind it, and have no lag.",
			queries: []query{{
				expr: fmt.Sprintf("max by (kafka_cluster, topic, partition) "+
					`(kafka_topic_partition_open_txn_seconds{%s,topic=~"$topic"}) > 0`, ofCluster),
				legend: "{{topic}}/{{partition}}",
			}},
			limits: []limit{{"text", 0}, {"orange", withheldLong}, {"red", transactionHangs}},
		},
		{
			kind: "timeseries", title: "Without a position, in open transactions", width: 6,
			alert: "ConsumerGroupWithoutPosition",
			about: "Partitions in which a group has no commit, which is normal for its first seconds. " +
				"Groups with an objective and no commit anywhere, as 1. " +
				"Records behind the first open transaction, which readers of committed records get when it ends.",
			queries: []query{
				{
					expr: fmt.Sprintf("max by (%s) (kafka_consumergroup_uncommitted_partitions{%s}) > 0",
						groupTopic, ofTopic),
					legend: legendTopic + " partitions",
				},
				{
					expr:   fmt.Sprintf("count by (%s) (%s)", clusterGroup, withoutPosition("{"+ofGroup+"}")),
					legend: legendGroup + " nowhere",
				},
				{expr: positive("kafka_cluster, topic", open), legend: "{{topic}} open"},
			},
		},
	}
}

// lagCollector shows whether the numbers above can be trusted.
func lagCollector() []panel {
	const legendCluster = "{{kafka_cluster}}"
	return []panel{
		{
			kind: "timeseries", title: "Reads the cluster", width: 6, max: new(1.0),
			alert: "LagCollectorNoData",
			about: "1 while the last poll of the cluster succeeded.",
			queries: []query{{
				expr:   fmt.Sprintf("max by (kafka_cluster) (lag_collector_up{%s})", ofCluster),
				legend: legendCluster,
			}},
		},
		{
			kind: "timeseries", title: "Duration of a poll, p99", width: 6, unit: "s",
			about: "Lag can be wrong by the interval between polls. The interval must be longer than this.",
			queries: []query{{
				expr: fmt.Sprintf("histogram_quantile(0.99, %s)",
					perSecond("kafka_cluster, le", "lag_collector_duration_seconds_bucket", ofCluster)),
				legend: legendCluster,
			}},
		},
		{
			kind: "timeseries", title: "Errors", width: 6, unit: "eps",
			alert: "LagCollectorUnauthorized",
			about: "By request and Kafka's error code. " +
				"Authorization errors: the collector's user needs Describe on all topics and groups.",
			queries: []query{{
				expr:   perSecond("kafka_cluster, api, code", "lag_collector_errors_total", ofCluster) + " > 0",
				legend: "{{api}} {{code}}",
			}},
		},
		{
			kind: "timeseries", title: "Series", width: 6,
			alert: "LagSeriesDropped",
			about: "Series shown, and series left out because of the operator's maxSeries.",
			queries: []query{
				{
					expr:   fmt.Sprintf("max by (kafka_cluster) (lag_collector_series{%s})", ofCluster),
					legend: legendCluster,
				},
				{
					expr: fmt.Sprintf("sum by (kafka_cluster) (%s) > 0",
						increase("lag_collector_series_dropped_total", ofCluster)),
					legend: legendCluster + " dropped",
				},
			},
		},
	}
}
