package cart

import (
	"log/slog"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/service"
	"ordersystem.dev/services/internal/sqldb"
)

// Config is the configuration of the Cart service.
type Config struct {
	service.Endpoints
	// DataDir is where the store is. It must outlive the service.
	DataDir string
	// DatabaseURL is where the store is instead, if it is not empty.
	DatabaseURL string
	// MaxBacklog is how many events may wait for Kafka. At this number requests are refused.
	MaxBacklog int
	// MaxBacklogBytes is how large these events may be together.
	MaxBacklogBytes int
	Kafka           broker.Config
}

// ConfigFromEnv reads the configuration from the environment. It reports every mistake to e.
func ConfigFromEnv(e *env.Env) Config {
	c := Config{
		Endpoints:   service.EndpointsFromEnv(e, ":5000"),
		DataDir:     e.String("DATA_DIR", "data/cart"),
		DatabaseURL: sqldb.URLFromEnv(e),
		MaxBacklog:  e.Int("MAX_BACKLOG", 1_000_000, 1, 1_000_000_000),
		// A fifth of the chart's volume. While it waits, such a backlog takes twice that: as events
		// and as orders.
		MaxBacklogBytes: e.Int("MAX_BACKLOG_BYTES", 1<<30, 1, 1<<50),
		Kafka:           broker.ConfigFromEnv(e),
	}
	// Cart meets a damaged batch when it rebuilds its store, which can hold no note of it then.
	c.Kafka.SkipDamaged = broker.SkipDamagedFromEnv(e)
	return c
}

// LogValue returns the configuration for the log. The part for Kafka masks its secrets.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(
		// Without a name its parts are parts of this group.
		slog.Any("", c.Endpoints),
		slog.String("data_dir", c.DataDir), slog.String("database_url", sqldb.Redacted(c.DatabaseURL)),
		slog.Int("max_backlog", c.MaxBacklog),
		slog.Int("max_backlog_bytes", c.MaxBacklogBytes), slog.Any("kafka", c.Kafka),
		slog.String("kafka_prefix", c.Kafka.Prefix),
	)
}
