// Package bearer lets requests to an API in by their bearer token (RFC 6750): a JWT (RFC 7519) that one
// issuer has signed for this API. Who gets a token, and with which scopes, is up to the issuer.
package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/web"
)

// Scopes of the tokens.
const (
	// ScopeRead allows look-ups and audits.
	ScopeRead = "orders:read"
	// ScopeWrite allows to create and to update orders.
	ScopeWrite = "orders:write"
)

// leeway is how far the clocks of the issuer and of this machine may be apart.
const leeway = time.Minute

// algorithms are those of key pairs. Whoever could check a token of any other could also make one.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Guard checks the tokens of requests. A nil Guard lets every request in.
type Guard struct {
	cfg  Config
	keys *keySet
	log  *slog.Logger
}

// New returns the guard for a configuration, and registers its metric; nil if it asks for no tokens.
func New(cfg Config, reg prometheus.Registerer, log *slog.Logger) (*Guard, error) {
	if cfg == (Config{}) {
		return nil, nil
	}
	keys, err := newKeySet(cfg)
	if err != nil {
		return nil, err
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "auth_keys_read_timestamp_seconds",
		Help: "Unix time at which the issuer's keys were read last; 0: not yet. They are read every 5 minutes.",
	}, keys.readAt))
	return &Guard{cfg: cfg, keys: keys, log: log}, nil
}

// Run keeps the keys of the issuer up to date until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	if g == nil {
		return nil
	}
	g.keys.follow(ctx, g.log)
	return nil
}

// Err returns why no token can be checked, or nil.
func (g *Guard) Err() error {
	if g == nil || g.keys.known() {
		return nil
	}
	return errors.New("the issuer's keys were not read yet from " + g.cfg.KeysURL)
}

// Require lets those requests to h in whose token has a scope.
func (g *Guard) Require(scope string, h http.HandlerFunc) http.HandlerFunc {
	if g == nil {
		return h
	}
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := g.check(r)
		if err == nil && !slices.Contains(append(c.Scope, c.Scp...), scope) {
			err = scopeError(scope)
		}
		if err != nil {
			refuse(w, r, err)
			return
		}
		if c.OrderPrefix != nil {
			r = r.WithContext(context.WithValue(r.Context(), prefixKey{}, *c.OrderPrefix))
		}
		h(w, r)
	}
}

// prefixKey is the key of a token's order_prefix in the context of a request.
type prefixKey struct{}

// ErrNotCovered refuses a request about an order that its token is not for. NotCovered is the response.
var ErrNotCovered = errors.New("token is not for this order")

// NotCovered is the response to [ErrNotCovered].
var NotCovered = web.Problem{
	Status: http.StatusForbidden,
	Text:   "This token is not for this order: its claim order_prefix says how the IDs of its orders begin.",
}

// Prefix returns the claim order_prefix of a request's token; empty: it may be about any order.
func Prefix(ctx context.Context) string {
	prefix, _ := ctx.Value(prefixKey{}).(string)
	return prefix
}

// Cover returns ErrNotCovered if the token of a request has a claim order_prefix and the order's ID does
// not begin with it. The ID of a request about all orders is empty.
func Cover(ctx context.Context, orderID string) error {
	if !strings.HasPrefix(orderID, Prefix(ctx)) {
		return ErrNotCovered
	}
	return nil
}

// claims are the parts of a token that count.
type claims struct {
	jwt.Claims

	// Scope is that of RFC 8693. Some issuers call it scp.
	Scope scopes `json:"scope"`
	Scp   scopes `json:"scp"`
	// OrderPrefix is how the IDs of the orders begin that the token is for; nil: all orders.
	OrderPrefix *string `json:"order_prefix"`
}

// scopes is a list, or a string of words.
type scopes []string

// UnmarshalJSON is part of json.Unmarshaler.
func (s *scopes) UnmarshalJSON(text []byte) error {
	var words string
	if err := json.Unmarshal(text, &words); err == nil {
		*s = strings.Fields(words)
		return nil
	}
	return json.Unmarshal(text, (*[]string)(s))
}

// check returns the claims of a request's token. Its errors are errNoToken, an invalidError, and
// errNoKeys.
func (g *Guard) check(r *http.Request) (claims, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		return claims{}, errNoToken
	}
	scheme, text, _ := strings.Cut(headers[0], " ")
	if len(headers) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return claims{}, errNoToken
	}
	token, err := jwt.ParseSigned(strings.TrimSpace(text), algorithms)
	if err != nil {
		return claims{}, invalidError{"it is no JWT that a key pair has signed", err}
	}
	key, err := g.keys.find(r.Context(), token.Headers[0].KeyID)
	if err != nil {
		return claims{}, err
	}
	var c claims
	if err := token.Claims(key, &c); err != nil {
		return claims{}, invalidError{"its signature or its claims are wrong", err}
	}
	err = c.ValidateWithLeeway(
		jwt.Expected{Issuer: g.cfg.Issuer, AnyAudience: jwt.Audience{g.cfg.Audience}}, leeway)
	switch {
	case err == nil && c.Expiry == nil:
		return claims{}, invalidError{"it does not say when it expires (exp)", nil}
	case err == nil && c.OrderPrefix != nil && *c.OrderPrefix == "":
		// It was meant to limit the token.
		return claims{}, invalidError{"its claim order_prefix is empty", nil}
	case errors.Is(err, jwt.ErrExpired):
		return claims{}, invalidError{"it has expired (exp)", err}
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		return claims{}, invalidError{"its time has not come yet (nbf, iat)", err}
	case errors.Is(err, jwt.ErrInvalidIssuer):
		return claims{}, invalidError{"it is not from " + g.cfg.Issuer + " (iss)", err}
	case errors.Is(err, jwt.ErrInvalidAudience):
		return claims{}, invalidError{"it is not for " + g.cfg.Audience + " (aud)", err}
	case err != nil:
		return claims{}, invalidError{"its claims are wrong", err}
	}
	return c, nil
}

var (
	errNoToken = errors.New("request has no bearer token")
	errNoKeys  = errors.New("keys of the issuer cannot be read")
)

// invalidError refuses a token. what is for the client.
type invalidError struct {
	what string
	err  error
}

func (e invalidError) Error() string { return "token: " + e.what }

func (e invalidError) Unwrap() error { return e.err }

// scopeError refuses a token without this scope.
type scopeError string

func (e scopeError) Error() string { return "token lacks the scope " + string(e) }

// refuse is the one table from the errors of this package to responses (RFC 6750 section 3).
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	challenge := func(text string) { w.Header().Set("WWW-Authenticate", text) }
	invalid, isInvalid := errors.AsType[invalidError](err)
	scope, isScope := errors.AsType[scopeError](err)
	switch {
	case errors.Is(err, errNoToken):
		challenge("Bearer")
		web.Problem{
			Status: http.StatusUnauthorized,
			Text:   "This API takes a bearer token, in one header: Authorization: Bearer <token>.",
		}.Write(w, r)
	case isInvalid:
		challenge(`Bearer error="invalid_token"`)
		web.Problem{
			Status: http.StatusUnauthorized,
			Text:   "The bearer token is not valid: " + invalid.what + ". Get a new one from the issuer.",
		}.Write(w, r)
	case isScope:
		challenge(fmt.Sprintf(`Bearer error="insufficient_scope", scope=%q`, string(scope)))
		web.Problem{
			Status: http.StatusForbidden,
			Text:   fmt.Sprintf("The bearer token lacks the scope %s.", string(scope)),
		}.Write(w, r)
	default:
		web.Problem{
			Status:     http.StatusServiceUnavailable,
			Text:       "The issuer's keys cannot be read, so the bearer token cannot be checked. Try again later.",
			RetryAfter: 5 * time.Second,
		}.Write(w, r)
	}
}
