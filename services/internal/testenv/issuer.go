package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// The issuer and the audience of an Issuer's tokens.
const (
	IssuerName = "https://id.example.com"
	Audience   = "orders"
)

// Issuer signs tokens, and has an HTTP server with its public keys.
type Issuer struct {
	// KeysURL is where its keys are.
	KeysURL string
	// Asked is how often they were asked for.
	Asked atomic.Int64
	// Status is the status of the server's responses.
	Status atomic.Int64
	// More is one more key as JSON, if it is set.
	More atomic.Value

	keys atomic.Pointer[jose.JSONWebKeySet]
}

// NewIssuer starts an issuer without a key. Its server ends with the test.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{}
	i.Status.Store(http.StatusOK)
	i.keys.Store(&jose.JSONWebKeySet{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.Asked.Add(1)
		w.WriteHeader(int(i.Status.Load()))
		all := []any{}
		for _, key := range i.keys.Load().Keys {
			all = append(all, key)
		}
		if more, ok := i.More.Load().(string); ok {
			all = append(all, json.RawMessage(more))
		}
		if err := json.NewEncoder(w).Encode(map[string]any{"keys": all}); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	i.KeysURL = server.URL
	return i
}

// Publish adds a key pair to the issuer and returns it.
func (i *Issuer) Publish(t testing.TB, id string) jose.JSONWebKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := jose.JSONWebKey{Key: private, KeyID: id, Algorithm: string(jose.ES256), Use: "sig"}
	i.keys.Store(&jose.JSONWebKeySet{Keys: append(i.keys.Load().Keys, key.Public())})
	return key
}

// Env returns the variables with which a service takes the issuer's tokens.
func (i *Issuer) Env() []string {
	return []string{"AUTH_ISSUER=" + IssuerName, "AUTH_AUDIENCE=" + Audience, "AUTH_JWKS_URL=" + i.KeysURL}
}

// SignToken returns a token with the claims of a valid one for all scopes, changed by claims: nil
// removes one.
func SignToken(t testing.TB, key any, alg jose.SignatureAlgorithm, claims map[string]any) string {
	t.Helper()
	all := map[string]any{
		"iss": IssuerName, "aud": Audience, "scope": "orders:read orders:write",
		"exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
