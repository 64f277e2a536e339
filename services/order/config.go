// Package order is the Order service: it folds the order topics into a store of its own, answers look-ups from that store, and
// audits the topics by reading them.
package order

import (
	"log/slog"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
)

// Config is what the service is told from outside.
type Config struct {
	HTTPAddr env.Addr // the API
	OpsAddr  env.Addr // probes and metrics
	DataDir  string   // the store, and the audit's indexes
	Kafka    broker.Config
}

// ConfigFromEnv reads HTTP_ADDR, OPS_ADDR (by default the API's port + 1), DATA_DIR and KAFKA_*; e.Err() says what is wrong.
func ConfigFromEnv(e *env.Env) Config {
	http := e.Addr("HTTP_ADDR", ":7000")
	return Config{
		HTTPAddr: http,
		OpsAddr:  e.Addr("OPS_ADDR", http.Next()),
		DataDir:  e.String("DATA_DIR", "data/order"),
		Kafka:    broker.ConfigFromEnv(e),
	}
}

// LogValue is the configuration as the log shows it; the broker's part masks its secrets.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("http_addr", c.HTTPAddr.Value), slog.String("ops_addr", c.OpsAddr.Value),
		slog.String("data_dir", c.DataDir), slog.Any("kafka", c.Kafka),
	)
}
