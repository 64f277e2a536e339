package main

import "fmt"

// kafkaDashboard shows the brokers and the topics.
func kafkaDashboard() dashboard {
	return dashboard{
		name: "kafka", title: "Kafka and topics",
		about: "The brokers' own view, by the Strimzi Metrics Reporter, " +
			"and the topics' offsets, by the lag operator.",
		variables: []variable{kafkaCluster, topic},
		rows: []row{
			{"Is it fine?", kafkaSummary()},
			{"Traffic", kafkaTraffic()},
			{"Requests", kafkaRequests()},
			{"Topics", kafkaTopics()},
			{"Brokers", kafkaBrokers()},
		},
	}
}

// Selections of the brokers' series: those of chosen topics, and those of the requests that clients
// of this system send.
const (
	ofBrokersTopics = ofBrokers + `,topic=~"$topic"`
	ofRequests      = ofBrokers +
		`,request=~"Produce|FetchConsumer|OffsetCommit|ConsumerGroupHeartbeat|ListOffsets|Metadata"`
)

// kafkaGraph returns a graph of one query.
func kafkaGraph(title, unit, about, expr, legend string) panel {
	return panel{
		kind: "timeseries", title: title, width: 8, unit: unit, about: about,
		queries: []query{{expr: expr, legend: legend}},
	}
}

// ofAllBrokers aggregates a metric of all brokers.
func ofAllBrokers(aggregate, metric string) string {
	return fmt.Sprintf("%s(%s{%s})", aggregate, metric, ofBrokers)
}

// kafkaSummary shows what must be right for Kafka to work at all.
func kafkaSummary() []panel {
	stat := func(title, alert, about, expr string, limits []limit) panel {
		return panel{
			kind: "stat", title: title, width: 4, alert: alert, about: about, queries: []query{{expr: expr}},
			limits: limits,
		}
	}
	return []panel{
		stat("Brokers", "", "Brokers that report.",
			ofAllBrokers("count", "kafka_server_replicamanager_leadercount"), good(1)),
		stat("Active controllers", "KafkaPartitionsUnwritable", "One, whatever the number of nodes. "+
			"0: topics cannot be changed and no leader can be chosen.",
			ofAllBrokers("sum", "kafka_controller_kafkacontroller_activecontrollercount"),
			[]limit{{"red", 0}, {"green", 1}, {"red", 2}}),
		stat("Offline partitions", "KafkaPartitionsUnwritable",
			"Partitions without a leader: they can neither be written nor read.",
			ofAllBrokers("max", "kafka_controller_kafkacontroller_offlinepartitionscount"), bad(1)),
		stat("Under minimal replicas", "KafkaPartitionsUnwritable",
			"Partitions with fewer in-sync replicas than min.insync.replicas. "+
				"Cart's messages to them are refused and wait in its outbox.",
			ofAllBrokers("sum", "kafka_server_replicamanager_underminisrpartitioncount"), bad(1)),
		stat("Under-replicated", "KafkaUnderReplicated",
			"Partitions with a replica that is not in sync: normal while a broker restarts.",
			ofAllBrokers("sum", "kafka_server_replicamanager_underreplicatedpartitions"),
			[]limit{{"green", 0}, {"yellow", 1}}),
		stat("Unclean elections", "", "In the time shown. A replica that was not in sync became leader: "+
			"acknowledged records are gone.",
			fmt.Sprintf("sum(increase(%s{%s}[$__range]))",
				"kafka_controller_controllerstats_uncleanleaderelectionspersec_total", ofBrokers), bad(1)),
	}
}

// kafkaTraffic shows what producers write and consumers read.
func kafkaTraffic() []panel {
	perTopic := func(title, unit, metric, about string) panel {
		expr := perSecond("topic", "kafka_server_brokertopicmetrics_"+metric, ofBrokersTopics)
		return kafkaGraph(title, unit, about, expr, "{{topic}}")
	}
	return []panel{
		perTopic("Messages in", "mps", "messagesinpersec_total",
			"By topic, each record once: replicas do not count."),
		perTopic("Bytes in", "Bps", "bytesinpersec_total",
			"From producers, as they are on the wire: compressed."),
		perTopic("Bytes out", "Bps", "bytesoutpersec_total",
			"To consumers. Several times the bytes in: several groups, an audit, or a group that reads all again."),
	}
}

// kafkaRequests shows how long requests take and where their time goes.
func kafkaRequests() []panel {
	// The parts of the time of a produce request, on average.
	var parts []query
	for _, part := range []struct{ metric, legend string }{
		{"requestqueuetimems", "waits for a thread"},
		{"localtimems", "written here"},
		{"remotetimems", "waits for replicas"},
		{"responsequeuetimems", "response waits"},
		{"responsesendtimems", "sent"},
	} {
		expr := mean("kafka_network_requestmetrics_"+part.metric, ofBrokers+`,request="Produce"`)
		parts = append(parts, query{expr: expr, legend: part.legend})
	}
	return []panel{
		kafkaGraph("Time, p99", "ms",
			"Of the slowest broker. A consumer's fetch waits for records, by design. No other request here waits.",
			fmt.Sprintf(`max by (request) (kafka_network_requestmetrics_totaltimems{%s,quantile="0.99"})`, ofRequests),
			"{{request}}"),
		{
			kind: "timeseries", title: "Where a produce request's time goes", width: 8, unit: "ms", stacked: true,
			about: "On average. Waits for replicas: the price of acks=all, or a slow follower. " +
				"Waits for a thread: the broker is busy.",
			queries: parts,
		},
		kafkaGraph("Requests per second", "reqps",
			"By kind. Heartbeats and fetches come from idle clients too.",
			perSecond("request", "kafka_network_requestmetrics_requestspersec_total", ofRequests), "{{request}}"),
		kafkaGraph("Errors", "eps",
			"By kind and error. Some belong to a client's start (NOT_COORDINATOR) "+
				"or to every restart of a broker (NOT_LEADER_OR_FOLLOWER).",
			perSecond("request, error", "kafka_network_requestmetrics_errorspersec_total",
				ofBrokers+`,error!="NONE"`)+" > 0", "{{request}} {{error}}"),
		{
			kind: "timeseries", title: "Idle threads", width: 8, unit: "percentunit", max: new(1.0),
			about: "Of the threads of the network and of the request handlers, of the busiest broker. " +
				"Below 30 % requests queue.",
			queries: []query{
				{
					expr:   ofAllBrokers("min", "kafka_network_socketserver_networkprocessoravgidlepercent"),
					legend: "network",
				},
				{
					expr: fmt.Sprintf("min(%s) / 1e9",
						rate("kafka_server_kafkarequesthandlerpool_requesthandleravgidlepercent_total", ofBrokers)),
					legend: "requests",
				},
			},
			limits: []limit{{"text", 0}, {"red", 0.3}},
		},
		kafkaGraph("Connections", "short", "Open connections, by listener. Clients keep theirs.",
			fmt.Sprintf("sum by (listener) (kafka_server_socket_server_metrics_connection_count{%s})", ofBrokers),
			"{{listener}}"),
	}
}

// kafkaTopics shows the size of each topic.
func kafkaTopics() []panel {
	perPartition := func(metric string) string {
		return fmt.Sprintf(`max by (kafka_cluster, topic, partition) (%s{%s,topic=~"$topic"})`, metric, ofCluster)
	}
	offsets := func(metric string) string {
		return fmt.Sprintf("sum by (kafka_cluster, topic) (%s)", perPartition(metric))
	}
	const current, oldest = "kafka_topic_partition_current_offset", "kafka_topic_partition_oldest_offset"
	size := fmt.Sprintf("sum by (topic) (kafka_log_log_size{%s})", ofBrokersTopics)
	return []panel{
		{
			kind: "table", title: "Topics", width: 16,
			about: "Offsets are the lag operator's: sums over the partitions. " +
				"A compacted topic has fewer records than offsets. Size is the brokers', all replicas.",
			queries: []query{
				{
					expr: fmt.Sprintf("sum by (topic) (%s - on (kafka_cluster, topic) %s)",
						offsets(current), offsets(oldest)),
				},
				{expr: fmt.Sprintf("sum by (topic) (%s)", offsets(oldest))},
				{expr: fmt.Sprintf("count by (topic) (%s)", perPartition(current))},
				{expr: size},
			},
			columns: map[string]column{
				"topic": {title: "Topic"},
				"A":     {title: "Offsets in the log"},
				"B":     {title: "Deleted before it"},
				"C":     {title: "Partitions"},
				"D":     {title: "Size", unit: "bytes"},
			},
		},
		kafkaGraph("Size", "bytes", "On disk, all replicas.", size, "{{topic}}"),
	}
}

// kafkaBrokers shows the processes and the replicas.
func kafkaBrokers() []panel {
	return []panel{
		kafkaGraph("Memory", "bytes",
			"Heap in use. Java's memory rises and falls like a saw-tooth; a rising floor is a leak.",
			fmt.Sprintf(`jvm_memory_used_bytes{%s,area="heap"}`, ofNodes), "{{pod}}"),
		kafkaGraph("Processors", "short", "In use, on average over the interval.",
			rate("process_cpu_seconds_total", ofNodes), "{{pod}}"),
		kafkaGraph("Garbage collection", "percentunit", "Part of the time that the collector takes.",
			perSecond("pod", "jvm_gc_collection_seconds_sum", ofNodes), "{{pod}}"),
		kafkaGraph("Leaders", "short",
			"Partitions that the broker leads. Uneven after a restart, until Kafka balances them.",
			fmt.Sprintf("kafka_server_replicamanager_leadercount{%s}", ofBrokers), "{{pod}}"),
		{
			kind: "timeseries", title: "Replicas fall out and come back", width: 8, unit: "ops",
			about: "Of the in-sync set. Without a restart: a broker's disk or network is too slow.",
			queries: []query{
				{
					expr: fmt.Sprintf("sum(%s)",
						rate("kafka_server_replicamanager_isrshrinkspersec_total", ofBrokers)),
					legend: "out",
				},
				{
					expr: fmt.Sprintf("sum(%s)",
						rate("kafka_server_replicamanager_isrexpandspersec_total", ofBrokers)),
					legend: "back",
				},
			},
		},
		kafkaGraph("Open files", "percentunit",
			"Of what the process may open: two and more for each segment of each partition.",
			fmt.Sprintf("process_open_fds{%[1]s} / process_max_fds{%[1]s}", ofNodes), "{{pod}}"),
	}
}
