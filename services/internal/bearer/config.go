package bearer

import (
	"log/slog"
	"net/url"

	"ordersystem.dev/services/internal/env"
)

// Config says whose tokens count. With the zero value nobody needs one.
type Config struct {
	// Issuer is the claim iss of the tokens.
	Issuer string
	// Audience is one of the claim aud: what the issuer calls this API.
	Audience string
	// KeysURL is where the issuer has its public keys, as a JWK Set.
	KeysURL string
	// KeysCA is a file with the certificates that are trusted there; empty: those of the system.
	KeysCA string
}

// ConfigFromEnv reads AUTH_ISSUER, AUTH_AUDIENCE, AUTH_JWKS_URL and AUTH_JWKS_CA. The first three belong
// together.
func ConfigFromEnv(e *env.Env) Config {
	c := Config{
		Issuer:   e.String("AUTH_ISSUER", ""),
		Audience: e.String("AUTH_AUDIENCE", ""),
		KeysURL:  e.String("AUTH_JWKS_URL", ""),
		KeysCA:   e.String("AUTH_JWKS_CA", ""),
	}
	if c == (Config{}) {
		return c
	}
	e.Required("AUTH_ISSUER", "https://id.example.com")
	e.Required("AUTH_AUDIENCE", "orders")
	const example = "https://id.example.com/jwks.json"
	e.Required("AUTH_JWKS_URL", example)
	if u, err := url.Parse(c.KeysURL); c.KeysURL != "" &&
		(err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		e.Invalid("AUTH_JWKS_URL", c.KeysURL, "an absolute URL such as "+example)
	}
	return c
}

// LogValue returns the configuration for the log.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("issuer", c.Issuer), slog.String("audience", c.Audience),
		slog.String("jwks_url", c.KeysURL), slog.String("jwks_ca", c.KeysCA))
}
