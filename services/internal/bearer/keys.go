package bearer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/trust"
)

const (
	// every is how often the keys are read. An issuer publishes a new key some time before it signs
	// with it, and a removed one counts no longer than this, unless the keys cannot be read.
	every = 5 * time.Minute
	// settled is how long an answer of the issuer counts for a token with an unknown key. So unknown
	// keys, which anybody can name, cost the issuer one request in that time.
	settled = 10 * time.Second
	// readTimeout is how long the issuer has for its answer.
	readTimeout = 5 * time.Second
	// mostKeyBytes is the size of the largest answer that is read.
	mostKeyBytes = 1 << 20
)

// keySet is the public keys of an issuer (RFC 7517).
type keySet struct {
	// url is where they are, and ca a file with the certificates that are trusted there; empty: those of
	// the system.
	url, ca string
	// last is the last answer; nil before the first one.
	last atomic.Pointer[answer]

	// mu is held while the keys are read: who needs them meanwhile waits for that answer.
	mu sync.Mutex
	// tried is when they were read last, and err why that failed.
	tried time.Time
	err   error
}

// answer is what the issuer's server said at a time.
type answer struct {
	keys *jose.JSONWebKeySet
	at   time.Time
}

func newKeySet(cfg Config) (*keySet, error) {
	s := &keySet{url: cfg.KeysURL, ca: cfg.KeysCA}
	// A mistake in the file shows at the start.
	_, err := s.client()
	return s, err
}

// client returns a client for one request. The CA may have changed since the one before.
func (s *keySet) client() (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	_, roots, err := trust.Read(s.ca)
	if err != nil {
		return nil, fmt.Errorf("AUTH_JWKS_CA: %w", err)
	}
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	return &http.Client{Transport: transport, Timeout: readTimeout}, nil
}

// known reports whether the keys were read once.
func (s *keySet) known() bool { return s.last.Load() != nil }

// readAt returns the Unix time at which the keys were read last; 0: not yet.
func (s *keySet) readAt() float64 {
	if last := s.last.Load(); last != nil {
		return float64(last.at.Unix())
	}
	return 0
}

// find returns the key with an ID. It reads the keys again if it does not know it, but not if it has
// just done that. Its errors are an invalidError and errNoKeys.
func (s *keySet) find(ctx context.Context, id string) (*jose.JSONWebKey, error) {
	if id == "" {
		return nil, invalidError{"it does not name the key that signed it (kid)", nil}
	}
	if key := s.get(id); key != nil {
		return key, nil
	}
	// The answer is for all requests, and not only for this one.
	if err := s.refresh(context.WithoutCancel(ctx), settled); err != nil {
		return nil, errors.Join(errNoKeys, err)
	}
	if key := s.get(id); key != nil {
		return key, nil
	}
	return nil, invalidError{"the issuer has no key with its kid", nil}
}

// get returns the key with an ID from the last answer, or nil.
func (s *keySet) get(id string) *jose.JSONWebKey {
	last := s.last.Load()
	if last == nil {
		return nil
	}
	for _, key := range last.keys.Key(id) {
		if key.IsPublic() && key.Use != "enc" {
			return &key
		}
	}
	return nil
}

// follow reads the keys again and again until ctx ends.
func (s *keySet) follow(ctx context.Context, log *slog.Logger) {
	failed := backoff.Backoff{Min: time.Second, Max: time.Minute}
	for wait := time.Duration(0); backoff.Sleep(ctx, wait); {
		err := s.refresh(ctx, 0)
		switch {
		case err == nil:
			failed.Reset()
			wait = every
		case ctx.Err() != nil:
			return
		default:
			wait = failed.Next()
			log.Warn("the keys of the issuer cannot be read; those from before still count",
				"known", s.known(), "err", err, "again_in", wait)
		}
	}
}

// refresh reads the keys, unless the last answer is younger than age.
func (s *keySet) refresh(ctx context.Context, age time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tried.IsZero() && time.Since(s.tried) < age {
		return s.err
	}
	keys, err := s.fetch(ctx)
	s.tried, s.err = time.Now(), err
	if err == nil {
		s.last.Store(&answer{keys, s.tried})
	}
	return err
}

func (s *keySet) fetch(ctx context.Context) (*jose.JSONWebKeySet, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	client, err := s.client()
	if err != nil {
		return nil, err
	}
	response, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d", s.url, response.StatusCode)
	}
	var set struct{ Keys []json.RawMessage }
	if err := json.NewDecoder(io.LimitReader(response.Body, mostKeyBytes)).Decode(&set); err != nil {
		return nil, fmt.Errorf("%s: no JWK Set: %w", s.url, err)
	}
	keys := &jose.JSONWebKeySet{}
	for _, text := range set.Keys {
		var key jose.JSONWebKey
		// Keys of an unknown kind are left out (RFC 7517 section 5).
		if err := json.Unmarshal(text, &key); err == nil {
			keys.Keys = append(keys.Keys, key)
		}
	}
	if len(keys.Keys) == 0 {
		return nil, fmt.Errorf("%s: none of the %d keys in the JWK Set is of a known kind", s.url, len(set.Keys))
	}
	return keys, nil
}
