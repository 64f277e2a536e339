package order

import (
	"log/slog"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/service"
	"ordersystem.dev/services/internal/sqldb"
)

// Config is the configuration of the service.
type Config struct {
	service.Endpoints
	// DataDir holds the store and the indexes of the audit.
	DataDir string
	// DatabaseURL is where the store is instead, if it is not empty.
	DatabaseURL string
	// AuditCacheBytes is how large the indexes of the audit may be together; 0: as the disk allows.
	AuditCacheBytes int
	// Kafka is how to reach the cluster. Run sets its client ID and statistics, and what it skips.
	Kafka broker.Config
}

// ConfigFromEnv reads the variables of service.EndpointsFromEnv, DATA_DIR, DATABASE_URL,
// AUDIT_CACHE_BYTES and KAFKA_*. e.Err returns what is wrong.
func ConfigFromEnv(e *env.Env) Config {
	return Config{
		Endpoints:       service.EndpointsFromEnv(e, ":7000"),
		DataDir:         e.String("DATA_DIR", "data/order"),
		DatabaseURL:     sqldb.URLFromEnv(e),
		AuditCacheBytes: e.Int("AUDIT_CACHE_BYTES", 0, 0, 1<<50),
		Kafka:           broker.ConfigFromEnv(e),
	}
}

// LogValue returns the configuration as the log shows it. The part of Kafka masks its secrets.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(
		// Without a name its parts are parts of this group.
		slog.Any("", c.Endpoints),
		slog.String("data_dir", c.DataDir), slog.String("database_url", sqldb.Redacted(c.DatabaseURL)),
		slog.Int("audit_cache_bytes", c.AuditCacheBytes), slog.Any("kafka", c.Kafka),
		slog.String("kafka_prefix", c.Kafka.Prefix),
	)
}
