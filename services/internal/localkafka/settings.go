package localkafka

import (
	"bufio"
	_ "embed"
	"strings"
)

var (
	//go:embed broker.properties
	brokerProperties string
	//go:embed single-node.properties
	singleNodeProperties string
)

// BrokerSettings returns the settings that every broker of this project has in common.
func BrokerSettings() map[string]string { return parseProperties(brokerProperties) }

// MetricsSettings returns settings with which a broker serves its metrics at addr. They are the
// metrics that Strimzi's brokers serve by default.
func MetricsSettings(addr string) map[string]string {
	return map[string]string{
		"metric.reporters":                     "io.strimzi.kafka.metrics.KafkaPrometheusMetricsReporter",
		"kafka.metrics.reporters":              "io.strimzi.kafka.metrics.YammerPrometheusMetricsReporter",
		"prometheus.metrics.reporter.listener": "http://" + addr,
		"prometheus.metrics.reporter.allowlist": strings.Join([]string{
			"kafka_cluster_partition.*",
			"kafka_controller_kafkacontroller.*",
			"kafka_controller_controllerstats_uncleanleaderelectionspersec",
			"kafka_log_log_size",
			"kafka_network_requestmetrics.*",
			"kafka_network_socketserver_networkprocessoravgidlepercent",
			"kafka_server_app_info.*",
			"kafka_server_brokertopicmetrics.*",
			"kafka_server_kafkarequesthandlerpool_requesthandleravgidlepercent",
			"kafka_server_kafkaserver_brokerstate",
			"kafka_server_kafkaserver_clusterid",
			"kafka_server_kafkaserver_linux.*",
			"kafka_server_raft.*",
			"kafka_server_replicamanager.*",
			"kafka_server_request_queue_size",
			"kafka_server_socket_server.*",
		}, ","),
	}
}

// parseProperties reads Java's format, as far as the files here use it: one name=value a line, and
// comments.
func parseProperties(text string) map[string]string {
	m := make(map[string]string)
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && name[0] != '#' {
			m[name] = value
		}
	}
	return m
}
