package main

import "fmt"

// ofBrokers selects what the brokers say of themselves, by the Strimzi Metrics Reporter. The label comes from Strimzi's pods, by the
// PodMonitor; the lag operator's name for a cluster is the same.
const ofBrokers = `strimzi_io_cluster=~"$kafka_cluster"`

// ofNodes selects what any program says of itself, of Kafka's pods only: the lag operator's series name the cluster too.
const ofNodes = ofBrokers + `,strimzi_io_pool_name!=""`

// kafkaDashboard shows the brokers and the topics.
func kafkaDashboard() dashboard {
	const ofTopics = ofBrokers + `,topic=~"$topic"`
	graph := func(title, unit, about, expr, legend string) panel {
		return panel{kind: "timeseries", title: title, width: 8, unit: unit, about: about, queries: []query{{expr: expr, legend: legend}}}
	}
	stat := func(title, about, expr string, limits []limit) panel {
		return panel{kind: "stat", title: title, width: 4, about: about, queries: []query{{expr: expr}}, limits: limits}
	}
	number := func(aggregate, metric string) string {
		return fmt.Sprintf("%s(%s{%s})", aggregate, metric, ofBrokers)
	}
	const requests = ofBrokers + `,request=~"Produce|FetchConsumer|OffsetCommit|ConsumerGroupHeartbeat|ListOffsets|Metadata"`
	// Where the time of a produce request goes, on average.
	var parts []query
	for _, part := range []struct{ metric, legend string }{
		{"requestqueuetimems", "waits for a thread"}, {"localtimems", "written here"}, {"remotetimems", "waits for replicas"},
		{"responsequeuetimems", "waits to be answered"}, {"responsesendtimems", "sent"},
	} {
		parts = append(parts, query{
			expr: fmt.Sprintf(`sum(rate(kafka_network_requestmetrics_%[1]s_sum{%[2]s,request="Produce"}[$__rate_interval])) / sum(rate(kafka_network_requestmetrics_%[1]s_count{%[2]s,request="Produce"}[$__rate_interval]))`,
				part.metric, ofBrokers),
			legend: part.legend,
		})
	}
	offsets := func(metric string) string {
		return fmt.Sprintf(`sum by (kafka_cluster, topic) (max by (kafka_cluster, topic, partition) (%s{%s,topic=~"$topic"}))`, metric, ofCluster)
	}
	return dashboard{
		name: "kafka", title: "Kafka and topics",
		about:     "The brokers' own view, by the Strimzi Metrics Reporter, and the topics' offsets, by the lag operator.",
		variables: []variable{kafkaCluster, topic},
		rows: []row{
			{"Is it fine?", []panel{
				stat("Brokers", "Brokers that answer.", number("count", "kafka_server_replicamanager_leadercount"), good(1)),
				stat("Active controllers", "One, whatever the number of nodes. 0: topics cannot be changed and no leader be chosen.",
					number("sum", "kafka_controller_kafkacontroller_activecontrollercount"), []limit{{"red", 0}, {"green", 1}, {"red", 2}}),
				stat("Offline partitions", "Partitions without a leader: nothing can be written to them or read from them.",
					number("max", "kafka_controller_kafkacontroller_offlinepartitionscount"), bad(1)),
				stat("Under minimal replicas", "Partitions with fewer replicas in step than min.insync.replicas: Cart's messages to them are refused and wait in its outbox.",
					number("sum", "kafka_server_replicamanager_underminisrpartitioncount"), bad(1)),
				stat("Under-replicated", "Partitions with a replica that is not in step: normal while a broker restarts.",
					number("sum", "kafka_server_replicamanager_underreplicatedpartitions"), []limit{{"green", 0}, {"yellow", 1}}),
				stat("Unclean elections", "In the time shown: a replica that was not in step became leader, so records that were acknowledged are gone.",
					fmt.Sprintf("sum(increase(kafka_controller_controllerstats_uncleanleaderelectionspersec_total{%s}[$__range]))", ofBrokers), bad(1)),
			}},
			{"Traffic", []panel{
				graph("Messages in", "mps", "By topic, each record once: replicas do not count.", perSecond("topic", "kafka_server_brokertopicmetrics_messagesinpersec_total", ofTopics), "{{topic}}"),
				graph("Bytes in", "Bps", "From producers, as they are on the wire: compressed.", perSecond("topic", "kafka_server_brokertopicmetrics_bytesinpersec_total", ofTopics), "{{topic}}"),
				graph("Bytes out", "Bps", "To consumers. Several times what comes in: several groups, an audit, or one that reads all again.", perSecond("topic", "kafka_server_brokertopicmetrics_bytesoutpersec_total", ofTopics), "{{topic}}"),
			}},
			{"Requests", []panel{
				graph("Time, p99", "ms", "Of the slowest broker. A consumer's fetch waits for records, by design, as does nothing else here.",
					fmt.Sprintf(`max by (request) (kafka_network_requestmetrics_totaltimems{%s,quantile="0.99"})`, requests), "{{request}}"),
				{kind: "timeseries", title: "Where a produce request's time goes", width: 8, unit: "ms", stacked: true, about: "On average. Waits for replicas: the price of acks=all, or a slow follower. Waits for a thread: the broker is busy.", queries: parts},
				graph("Requests per second", "reqps", "By kind. Heartbeats and fetches come from idle clients too.", perSecond("request", "kafka_network_requestmetrics_requestspersec_total", requests), "{{request}}"),
				graph("Errors", "eps", "By kind and error. Some belong to a client's start (NOT_COORDINATOR) or to every restart of a broker (NOT_LEADER_OR_FOLLOWER).",
					perSecond("request, error", "kafka_network_requestmetrics_errorspersec_total", ofBrokers+`,error!="NONE"`)+" > 0", "{{request}} {{error}}"),
				{kind: "timeseries", title: "Idle threads", width: 8, unit: "percentunit", max: new(1.0), limits: []limit{{"text", 0}, {"red", 0.3}}, about: "Of the network's and the request handlers' threads, of the busiest broker. Below 30 % requests queue.", queries: []query{
					{expr: number("min", "kafka_network_socketserver_networkprocessoravgidlepercent"), legend: "network"},
					{expr: fmt.Sprintf("min(rate(kafka_server_kafkarequesthandlerpool_requesthandleravgidlepercent_total{%s}[$__rate_interval])) / 1e9", ofBrokers), legend: "requests"},
				}},
				graph("Connections", "short", "Open connections, by listener; clients keep theirs.", fmt.Sprintf("sum by (listener) (kafka_server_socket_server_metrics_connection_count{%s})", ofBrokers), "{{listener}}"),
			}},
			{"Topics", []panel{
				{
					kind: "table", title: "Topics", width: 16, about: "Offsets are the lag operator's: sums over the partitions. A compacted topic has fewer records than lie between them. Size is the brokers', all replicas.",
					queries: []query{
						{expr: fmt.Sprintf(`sum by (topic) (%s - on (kafka_cluster, topic) %s)`, offsets("kafka_topic_partition_current_offset"), offsets("kafka_topic_partition_oldest_offset"))},
						{expr: fmt.Sprintf("sum by (topic) (%s)", offsets("kafka_topic_partition_oldest_offset"))},
						{expr: fmt.Sprintf(`count by (topic) (max by (kafka_cluster, topic, partition) (kafka_topic_partition_current_offset{%s,topic=~"$topic"}))`, ofCluster)},
						{expr: fmt.Sprintf("sum by (topic) (kafka_log_log_size{%s})", ofTopics)},
					},
					columns: map[string]column{
						"topic": {title: "Topic"}, "A": {title: "Offsets in the log"}, "B": {title: "Deleted before it"}, "C": {title: "Partitions"}, "D": {title: "Size", unit: "bytes"},
					},
				},
				graph("Size", "bytes", "On disk, all replicas.", fmt.Sprintf("sum by (topic) (kafka_log_log_size{%s})", ofTopics), "{{topic}}"),
			}},
			{"Brokers", []panel{
				graph("Memory", "bytes", "Heap in use; a saw-tooth is Java's way, a rising floor is not.", fmt.Sprintf(`jvm_memory_used_bytes{%s,area="heap"}`, ofNodes), "{{pod}}"),
				graph("Processors", "short", "In use, on average over the interval.", fmt.Sprintf("rate(process_cpu_seconds_total{%s}[$__rate_interval])", ofNodes), "{{pod}}"),
				graph("Garbage collection", "percentunit", "Part of the time that the collector takes.", perSecond("pod", "jvm_gc_collection_seconds_sum", ofNodes), "{{pod}}"),
				graph("Leaders", "short", "Partitions that the broker leads. Uneven after a restart, until Kafka evens it out.", fmt.Sprintf("kafka_server_replicamanager_leadercount{%s}", ofBrokers), "{{pod}}"),
				{kind: "timeseries", title: "Replicas fall out and come back", width: 8, unit: "ops", about: "Of the set in step. Without a restart: a broker's disk or network is too slow.", queries: []query{
					{expr: fmt.Sprintf("sum(rate(kafka_server_replicamanager_isrshrinkspersec_total{%s}[$__rate_interval]))", ofBrokers), legend: "out"},
					{expr: fmt.Sprintf("sum(rate(kafka_server_replicamanager_isrexpandspersec_total{%s}[$__rate_interval]))", ofBrokers), legend: "back"},
				}},
				graph("Open files", "percentunit", "Of what the process may open: two and more for each segment of each partition.", fmt.Sprintf("process_open_fds{%[1]s} / process_max_fds{%[1]s}", ofNodes), "{{pod}}"),
			}},
		},
	}
}
