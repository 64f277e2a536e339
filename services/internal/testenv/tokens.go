package testenv

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"ordersystem.dev/services/internal/localkafka"
)

// TokenServer gives tokens for the client credentials of one client, as an identity provider does
// (RFC 6749, section 4.4). The tokens are signed JWTs.
type TokenServer struct {
	// URL is the token endpoint. It has TLS.
	URL string
	// CA is the PEM certificate that its clients have to trust.
	CA []byte

	// keys serves the public key to Kafka, without TLS.
	keys   *httptest.Server
	server *httptest.Server
	key    *rsa.PrivateKey

	mu     sync.Mutex
	tokens TokenSettings
	given  int
}

// TokenSettings are how a [TokenServer] responds.
type TokenSettings struct {
	// Client and Secret are the only credentials that it takes.
	Client, Secret string
	// Scope is the only one that it gives.
	Scope string
	// Audience is whom the tokens are for. Kafka takes those for "kafka".
	Audience string
	// Lifetime is how long a token is valid.
	Lifetime time.Duration
}

// StartTokenServer starts a server for this test alone.
func StartTokenServer(t testing.TB, settings TokenSettings) *TokenServer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &TokenServer{key: key, tokens: settings}
	s.keys = httptest.NewServer(http.HandlerFunc(s.serveKeys))
	s.server = httptest.NewTLSServer(http.HandlerFunc(s.serveToken))
	t.Cleanup(s.keys.Close)
	t.Cleanup(s.server.Close)
	s.URL = s.server.URL + "/token"
	s.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
	return s
}

// Change replaces how the server responds from now on.
func (s *TokenServer) Change(settings TokenSettings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = settings
}

// Close ends the token endpoint.
func (s *TokenServer) Close() { s.server.Close() }

// Given returns how many tokens were given.
func (s *TokenServer) Given() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given
}

func (s *TokenServer) serveToken(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	client, secret, _ := r.BasicAuth()
	switch {
	case client != s.tokens.Client || secret != s.tokens.Secret:
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_client"})
	case r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") != s.tokens.Scope:
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_scope", "error_description": "no such scope"})
	default:
		s.given++
		_ = json.NewEncoder(w).Encode(map[string]any{
			"access_token": s.sign(client), "token_type": "Bearer", "expires_in": int(s.tokens.Lifetime.Seconds()),
		})
	}
}

// sign returns a token of the client, signed with RS256.
func (s *TokenServer) sign(client string) string {
	part := func(v any) string {
		text, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(text)
	}
	now := time.Now()
	text := part(map[string]string{"alg": "RS256", "typ": "JWT", "kid": "test"}) + "." + part(map[string]any{
		"iss": s.server.URL, "aud": s.tokens.Audience, "sub": client, "scope": s.tokens.Scope,
		"iat": now.Unix(), "exp": now.Add(s.tokens.Lifetime).Unix(),
	})
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// serveKeys serves the public key as a JSON Web Key Set.
func (s *TokenServer) serveKeys(w http.ResponseWriter, _ *http.Request) {
	number := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "test",
		"n": number(s.key.N), "e": number(big.NewInt(int64(s.key.E))),
	}}})
}

// StartTokenKafka starts a broker that takes the server's tokens at TLSAddr, which has no TLS, and ends
// a connection whose token has expired. Addr is open to everybody.
func StartTokenKafka(t testing.TB, s *TokenServer) *localkafka.Broker {
	t.Helper()
	const (
		listener = "listener.name.ssl."
		oauth    = "org.apache.kafka.common.security.oauthbearer."
		// The broker asks no other server for keys.
		allowed = "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls="
	)
	return StartKafkaWith(t, localkafka.Options{
		TLS: true,
		JVM: localkafka.QuickJVM(allowed + s.keys.URL),
		Settings: map[string]string{
			// The listener named SSL has another protocol.
			"listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SASL_PLAINTEXT",

			listener + "sasl.enabled.mechanisms":                        "OAUTHBEARER",
			listener + "oauthbearer.sasl.jaas.config":                   oauth + "OAuthBearerLoginModule required;",
			listener + "oauthbearer.sasl.server.callback.handler.class": oauth + "OAuthBearerValidatorCallbackHandler",
			listener + "oauthbearer.connections.max.reauth.ms":          "3600000",

			"sasl.oauthbearer.jwks.endpoint.url": s.keys.URL,
			"sasl.oauthbearer.expected.audience": "kafka",
			"sasl.oauthbearer.expected.issuer":   s.server.URL,
		},
	})
}
