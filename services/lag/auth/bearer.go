package auth

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/trust"
)

// bearer is OAUTHBEARER. It gets a token for the client's own credentials (RFC 6749, section 4.4).
type bearer struct {
	client kafkaconfig.Client
	tokens cached[string]
	// request remembers how the server wants the credentials. Only one fetch uses it at a time.
	request clientcredentials.Config
}

func newBearer(c kafkaconfig.Client) *bearer {
	b := &bearer{
		client:  c,
		request: clientcredentials.Config{TokenURL: c.TokenEndpoint, Scopes: strings.Fields(c.Scope)},
	}
	b.tokens.fetch = b.fetch
	return b
}

// Name is part of sasl.Mechanism.
func (b *bearer) Name() string { return kafkaconfig.OAuthBearer }

// Authenticate is part of sasl.Mechanism. franz-go calls it for each connection, and again before a
// token expires if the broker says how long a session may last (KIP-368).
func (b *bearer) Authenticate(ctx context.Context, host string) (sasl.Session, []byte, error) {
	token, err := b.tokens.get(ctx)
	if err != nil {
		return nil, nil, &kafkaconfig.CredentialsError{Err: err}
	}
	session, first, err := oauth.Auth{Token: token}.AsMechanism().Authenticate(ctx, host)
	return &bearerSession{session, func() { b.tokens.drop(token) }}, first, err
}

// bearerSession is a session of which Kafka may refuse the token.
type bearerSession struct {
	sasl.Session
	// refused is called when Kafka does.
	refused func()
}

// Challenge takes Kafka's response. It is empty, or says what is wrong with the token (RFC 7628,
// section 3.2.2).
func (s *bearerSession) Challenge(response []byte) (done bool, next []byte, err error) {
	if len(response) == 0 {
		return s.Session.Challenge(response)
	}
	s.refused()
	var reason struct{ Status string }
	if json.Unmarshal(response, &reason) != nil || reason.Status == "" {
		reason.Status = string(response)
	}
	return false, nil, fmt.Errorf("kafka refuses the token (%.100s): the broker's log says why; compare the token's "+
		"issuer, audience and scope with the broker's settings sasl.oauthbearer.*: %w",
		reason.Status, kerr.SaslAuthenticationFailed)
}

// fetch gets a token. It reads the files again.
func (b *bearer) fetch(ctx context.Context) (token string, expires time.Time, err error) {
	b.request.ClientID, b.request.ClientSecret, err = b.client.Credentials()
	if err != nil {
		return "", time.Time{}, err
	}
	_, roots, err := trust.Read(b.client.TokenCA)
	if err != nil {
		return "", time.Time{}, err
	}
	client := &http.Client{
		Transport: &http.Transport{
			Proxy:             http.ProxyFromEnvironment,
			TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true,
		},
		// The secret is for this server only.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t, err := b.request.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	if err != nil {
		return "", time.Time{}, explain(b.client.TokenEndpoint, err)
	}
	return t.AccessToken, t.Expiry, nil
}

// explain adds what to do to the error of a request for a token.
func explain(endpoint string, err error) error {
	response, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return fmt.Errorf("get a token: %w: check the token endpoint's address, its CA, and the way there", err)
	}
	status := response.Response.StatusCode
	text := strings.TrimSpace(fmt.Sprint(status, " ", response.ErrorCode, " ", response.ErrorDescription))
	if status >= 500 {
		return fmt.Errorf("get a token: %s fails with %.200s: see the token server's log", endpoint, text)
	}
	return fmt.Errorf("get a token: %s refuses with %.200s: check the URL, the client's ID and secret, and the scope",
		endpoint, text)
}
