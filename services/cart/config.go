package cart

import (
	"log/slog"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
)

// Config is what the Cart service is told from outside.
type Config struct {
	HTTPAddr   env.Addr
	OpsAddr    env.Addr
	DataDir    string
	MaxBacklog int // orders accepted and not yet acknowledged by Kafka; at this number further ones are refused
	Kafka      broker.Config
}

// ConfigFromEnv reads the configuration; what is wrong with it is in e.Err.
func ConfigFromEnv(e *env.Env) Config {
	http := e.Addr("HTTP_ADDR", ":5000")
	return Config{
		HTTPAddr:   http,
		OpsAddr:    e.Addr("OPS_ADDR", http.Next()),
		DataDir:    e.String("DATA_DIR", "data/cart"),
		MaxBacklog: e.Int("MAX_BACKLOG", 1_000_000, 1, 1_000_000_000),
		Kafka:      broker.ConfigFromEnv(e),
	}
}

// LogValue is the configuration as the log shows it; the broker's part masks its secrets.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("http_addr", c.HTTPAddr.Value), slog.String("ops_addr", c.OpsAddr.Value),
		slog.String("data_dir", c.DataDir), slog.Int("max_backlog", c.MaxBacklog), slog.Any("kafka", c.Kafka),
	)
}
