package kafkaconfig

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// dialTimeout is how long a connection to a broker may take to open.
const dialTimeout = 3 * time.Second

// Options returns the options that make a client of franz-go connect with these settings, which are
// valid. Each connection reads the TLS files and the credentials again, because they may change at
// any time, as when Strimzi renews a certificate. The mechanisms whose credentials expire are not
// among them: see services/lag/auth.
func (c Client) Options() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.ClientID(c.ClientID), kgo.Dialer(c.dialer())}
	if slices.Contains(passwords, c.Mechanism) {
		opts = append(opts, kgo.SASL(c.mechanism()))
	}
	return opts
}

// dialer returns the function that opens a connection, with TLS if the protocol has it.
func (c Client) dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	tcp := &net.Dialer{Timeout: dialTimeout}
	if !c.UsesTLS() {
		return tcp.DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		// The address has a port: Validate has checked it, or franz-go has made it.
		host, _, _ := net.SplitHostPort(addr)
		cfg, err := c.tlsConfig(host)
		if err != nil {
			return nil, err
		}
		return (&tls.Dialer{NetDialer: tcp, Config: cfg}).DialContext(ctx, network, addr)
	}
}

// tlsConfig returns the configuration that the TLS files hold now.
func (c Client) tlsConfig(host string) (*tls.Config, error) {
	files, err := c.ReadTLS()
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, RootCAs: files.Roots}
	if files.Cert != "" {
		cfg.Certificates = []tls.Certificate{files.Pair}
	}
	return cfg, nil
}

// mechanism returns the mechanism, which is one of passwords. It reads them at each connection.
func (c Client) mechanism() sasl.Mechanism {
	login := func(context.Context) (scram.Auth, error) {
		user, pass, err := c.Credentials()
		if err != nil {
			return scram.Auth{}, &CredentialsError{err}
		}
		return scram.Auth{User: user, Pass: pass}, nil
	}
	switch c.Mechanism {
	case "SCRAM-SHA-256":
		return scram.Sha256(login)
	case "SCRAM-SHA-512":
		return scram.Sha512(login)
	}
	return plain.Plain(func(ctx context.Context) (plain.Auth, error) {
		auth, err := login(ctx)
		return plain.Auth{User: auth.User, Pass: auth.Pass}, err
	})
}
