package bearer

import (
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/internal/web"
)

func newGuard(t *testing.T, i *testenv.Issuer) *Guard {
	t.Helper()
	g, err := New(Config{Issuer: testenv.IssuerName, Audience: testenv.Audience, KeysURL: i.KeysURL},
		prometheus.NewRegistry(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// ask sends a request about an order to an API that needs the scope to write.
func ask(t *testing.T, g *Guard, orderID string, authorization ...string) *httptest.ResponseRecorder {
	t.Helper()
	h := g.Require(ScopeWrite, func(w http.ResponseWriter, r *http.Request) {
		if Cover(r.Context(), orderID) != nil {
			NotCovered.Write(w, r)
			return
		}
		web.WriteText(w, http.StatusOK, "done")
	})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
	r.Header["Authorization"] = authorization
	w := httptest.NewRecorder()
	h(w, r)
	return w
}

func TestWhichTokensCount(t *testing.T) {
	t.Parallel()
	i := testenv.NewIssuer(t)
	key := i.Publish(t, "a")
	g := newGuard(t, i)
	valid := func(claims map[string]any) string { return "Bearer " + testenv.SignToken(t, key, jose.ES256, claims) }
	// The public key of the issuer, as a secret.
	public, err := key.Public().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	foreign := testenv.NewIssuer(t).Publish(t, "a")
	unnamed := key
	unnamed.KeyID = ""
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	for name, tt := range map[string]struct {
		authorization []string
		status        int
		// challenge and text are parts of the response.
		challenge, text string
	}{
		"a valid one":          {[]string{valid(nil)}, 200, "", "done"},
		"scheme in lower case": {[]string{"b" + valid(nil)[1:]}, 200, "", "done"},
		"scopes as a list":     {[]string{valid(map[string]any{"scope": []string{"x", ScopeWrite}})}, 200, "", "done"},
		"scopes as scp":        {[]string{valid(map[string]any{"scope": nil, "scp": ScopeWrite})}, 200, "", "done"},
		"one of its audiences": {
			[]string{valid(map[string]any{"aud": []string{"x", testenv.Audience}})}, 200, "", "done",
		},
		"a clock that is ahead": {[]string{valid(map[string]any{"exp": ago(30 * time.Second)})}, 200, "", "done"},
		"for this order":        {[]string{valid(map[string]any{"order_prefix": "shop-1/"})}, 200, "", "done"},
		"for other orders": {
			[]string{valid(map[string]any{"order_prefix": "shop-2/"})}, 403, "", "order_prefix",
		},
		"no header":      {nil, 401, "Bearer", "Authorization: Bearer <token>"},
		"another scheme": {[]string{"Basic YTpi"}, 401, "Bearer", "Authorization: Bearer <token>"},
		"two tokens":     {[]string{valid(nil), valid(nil)}, 401, "Bearer", "in one header"},
		"no JWT":         {[]string{"Bearer secret"}, 401, `error="invalid_token"`, "no JWT"},
		"expired": {
			[]string{valid(map[string]any{"exp": ago(2 * time.Minute)})}, 401, "invalid_token", "has expired",
		},
		"without an end": {[]string{valid(map[string]any{"exp": nil})}, 401, "invalid_token", "(exp)"},
		"for later": {
			[]string{valid(map[string]any{"nbf": ago(-time.Hour)})}, 401, "invalid_token", "(nbf, iat)",
		},
		"of another issuer": {[]string{valid(map[string]any{"iss": "https://x"})}, 401, "invalid_token", "(iss)"},
		"for another API":   {[]string{valid(map[string]any{"aud": "mail"})}, 401, "invalid_token", "(aud)"},
		"for no API":        {[]string{valid(map[string]any{"aud": nil})}, 401, "invalid_token", "(aud)"},
		"a claim of a wrong type": {
			[]string{valid(map[string]any{"order_prefix": 1})}, 401, "invalid_token", "claims are wrong",
		},
		"changed": {
			[]string{strings.Replace(valid(nil), ".", ".e30", 1)}, 401, "invalid_token", "not valid",
		},
		"signed by somebody else with the same key ID": {
			[]string{"Bearer " + testenv.SignToken(t, foreign, jose.ES256, nil)}, 401, "invalid_token", "signature",
		},
		"signed with the public key as a secret": {
			[]string{"Bearer " + testenv.SignToken(t, jose.JSONWebKey{Key: public, KeyID: "a"}, jose.HS256, nil)},
			401, "invalid_token", "no JWT that a key pair has signed",
		},
		"not signed": {
			[]string{"Bearer eyJhbGciOiJub25lIiwia2lkIjoiYSJ9.e30."}, 401, "invalid_token", "no JWT",
		},
		"without a key ID": {
			[]string{"Bearer " + testenv.SignToken(t, unnamed, jose.ES256, nil)}, 401, "invalid_token", "(kid)",
		},
		"without the scope": {
			[]string{valid(map[string]any{"scope": ScopeRead})}, 403,
			`Bearer error="insufficient_scope", scope="orders:write"`, "lacks the scope orders:write",
		},
		"without any scope": {
			[]string{valid(map[string]any{"scope": nil})}, 403, "insufficient_scope", "orders:write",
		},
	} {
		w := ask(t, g, "shop-1/order", tt.authorization...)
		challenge := w.Header().Get("WWW-Authenticate")
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.text) ||
			!strings.Contains(challenge, tt.challenge) || (tt.challenge == "") != (challenge == "") {
			t.Errorf("%s: %d %q, WWW-Authenticate %q; want %d with %q and %q",
				name, w.Code, w.Body, challenge, tt.status, tt.text, tt.challenge)
		}
	}
}

func TestWithoutAConfigurationEverybodyIsLetIn(t *testing.T) {
	t.Parallel()
	g, err := New(Config{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil || g.Err() != nil {
		t.Fatal(err, g.Err())
	}
	if w := ask(t, g, "order"); w.Code != http.StatusOK {
		t.Errorf("a request without a token gets %d %q, want 200", w.Code, w.Body)
	}
}

// A token may be signed by a key that is new. Whoever sends tokens with keys that do not exist does not
// make the issuer's server work for each.
func TestNewKeysAreReadWhenATokenNeedsThem(t *testing.T) {
	t.Parallel()
	i := testenv.NewIssuer(t)
	first := i.Publish(t, "first")
	g := newGuard(t, i)
	status := func(key jose.JSONWebKey) int {
		return ask(t, g, "order", "Bearer "+testenv.SignToken(t, key, jose.ES256, nil)).Code
	}
	if got := status(first); got != http.StatusOK {
		t.Fatalf("a token of the first key gets %d, want 200", got)
	}
	unknown := testenv.NewIssuer(t).Publish(t, "unknown")
	for range 100 {
		if got := status(unknown); got != http.StatusUnauthorized {
			t.Fatalf("a token of an unknown key gets %d, want 401", got)
		}
	}
	if got := i.Asked.Load(); got != 1 {
		t.Errorf("the issuer was asked %d times for its keys within %s, want once", got, settled)
	}
	second := i.Publish(t, "second")
	g.keys.tried = g.keys.tried.Add(-settled)
	if got := status(second); got != http.StatusOK {
		t.Errorf("a token of the new key gets %d, want 200", got)
	}
}

// A JWK Set may have keys of kinds that are not known here. The others count.
func TestUnknownKindsOfKeysAreLeftOut(t *testing.T) {
	t.Parallel()
	i := testenv.NewIssuer(t)
	key := i.Publish(t, "a")
	i.More.Store(`{"kty": "OKP", "crv": "Ed448", "kid": "b", "x": "AA"}`)
	if w := ask(t, newGuard(t, i), "order", "Bearer "+testenv.SignToken(t, key, jose.ES256, nil)); w.Code != 200 {
		t.Errorf("a token of a known key beside an unknown one: %d %q, want 200", w.Code, w.Body)
	}
}

// Nobody knows whether a token counts while the issuer's keys cannot be read, unless its key is known.
func TestTheIssuerIsAway(t *testing.T) {
	t.Parallel()
	i := testenv.NewIssuer(t)
	i.Status.Store(http.StatusBadGateway)
	key := i.Publish(t, "a")
	g := newGuard(t, i)
	token := "Bearer " + testenv.SignToken(t, key, jose.ES256, nil)
	w := ask(t, g, "order", token)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("before the first answer: %d %q, want 503 with Retry-After", w.Code, w.Body)
	}
	if err := g.Err(); err == nil || !strings.Contains(err.Error(), i.KeysURL) {
		t.Errorf("before the first answer the guard is ready: %v", err)
	}
	i.Status.Store(http.StatusOK)
	g.keys.tried = g.keys.tried.Add(-settled)
	if w := ask(t, g, "order", token); w.Code != http.StatusOK || g.Err() != nil {
		t.Fatalf("after the first answer: %d %q, %v; want 200", w.Code, w.Body, g.Err())
	}
	i.Status.Store(http.StatusBadGateway)
	if err := g.keys.refresh(t.Context(), 0); err == nil {
		t.Fatal("the issuer is not away")
	}
	if w := ask(t, g, "order", token); w.Code != http.StatusOK || g.Err() != nil {
		t.Errorf("a known key while the issuer is away: %d %q, %v; want 200", w.Code, w.Body, g.Err())
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	all := map[string]string{
		"AUTH_ISSUER": testenv.IssuerName, "AUTH_AUDIENCE": testenv.Audience,
		"AUTH_JWKS_URL": "https://id.example.com/keys",
	}
	with := func(name, value string) map[string]string {
		vars := maps.Clone(all)
		vars[name] = value
		return vars
	}
	for name, tt := range map[string]struct {
		vars map[string]string
		want string
	}{
		"none":              {nil, ""},
		"all":               {all, ""},
		"no issuer":         {with("AUTH_ISSUER", ""), "AUTH_ISSUER is not set"},
		"no audience":       {with("AUTH_AUDIENCE", ""), "AUTH_AUDIENCE is not set"},
		"no keys":           {with("AUTH_JWKS_URL", ""), "AUTH_JWKS_URL is not set"},
		"only the CA":       {map[string]string{"AUTH_JWKS_CA": "/ca"}, "AUTH_ISSUER is not set"},
		"keys without host": {with("AUTH_JWKS_URL", "id.example.com"), "must be an absolute URL"},
	} {
		e := env.New(func(name string) string { return tt.vars[name] })
		ConfigFromEnv(e)
		err := e.Err()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
