package operator

import (
	"log/slog"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/lag/config"
)

// Config is the configuration of the operator.
type Config struct {
	config.Config
	// Namespace is where the operator's Lease is.
	Namespace string
}

// ConfigFromEnv reads the environment, and the file that CONFIG_FILE names. It reports all mistakes
// in both at once.
func ConfigFromEnv(e *env.Env) (Config, error) {
	namespace := e.Required("POD_NAMESPACE", "orders")
	cfg, err := config.ForOperator(e)
	return Config{Config: cfg, Namespace: namespace}, err
}

// LogValue returns the configuration for the log. It contains no secrets.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(append(c.Config.LogValue().Group(), slog.String("namespace", c.Namespace))...)
}
