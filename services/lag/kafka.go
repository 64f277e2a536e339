package lag

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"ordersystem.dev/services/internal/kafkaconfig"
)

// dialTimeout is how long a connection to a broker may take to open.
const dialTimeout = 3 * time.Second

// clientOptions returns the options of a client that gives up a request after timeout, retries
// included. Each connection reads the TLS files and the credentials again, because they may change
// at any time, as when Strimzi renews a certificate. An error names everything that is wrong.
func clientOptions(k kafkaconfig.Client, timeout time.Duration) ([]kgo.Opt, error) {
	var errs []error
	for _, invalid := range k.Validate(nil) {
		errs = append(errs, invalid)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	// Version 10 of OffsetFetch names topics by ID only, and franz-go looks up the names without an
	// end.
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(9, 9)
	opts := []kgo.Opt{
		kgo.SeedBrokers(k.Brokers...),
		kgo.ClientID(k.ClientID),
		kgo.MaxVersions(versions),
		kgo.RequestTimeoutOverhead(timeout),
		kgo.RetryTimeout(timeout),
		kgo.RetryBackoffFn(retryBackoff),
		// Each poll reads metadata, and all its requests use that.
		kgo.MetadataMinAge(timeout),
		kgo.DisableClientMetrics(),
		kgo.Dialer(dialer(k)),
	}
	if k.UsesSASL() {
		opts = append(opts, kgo.SASL(mechanism(k)))
	}
	return opts, nil
}

// retryBackoff returns the wait before a retry: 100 ms more each time, and a second at most.
func retryBackoff(tries int) time.Duration {
	return min(time.Duration(tries)*100*time.Millisecond, time.Second)
}

// dialer returns the function that opens a connection, with TLS if the protocol has it.
func dialer(k kafkaconfig.Client) func(ctx context.Context, network, addr string) (net.Conn, error) {
	tcp := &net.Dialer{Timeout: dialTimeout}
	if !k.UsesTLS() {
		return tcp.DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		// The address has a port: Validate has checked it, or franz-go has made it.
		host, _, _ := net.SplitHostPort(addr)
		cfg, err := tlsConfig(k, host)
		if err != nil {
			return nil, err
		}
		return (&tls.Dialer{NetDialer: tcp, Config: cfg}).DialContext(ctx, network, addr)
	}
}

// tlsConfig returns the configuration that the TLS files hold now.
func tlsConfig(k kafkaconfig.Client, host string) (*tls.Config, error) {
	files, err := k.ReadTLS()
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, RootCAs: files.Roots}
	if files.Cert != "" {
		cfg.Certificates = []tls.Certificate{files.Pair}
	}
	return cfg, nil
}

// mechanism returns the SASL mechanism. It reads the credentials at each connection. k is valid.
func mechanism(k kafkaconfig.Client) sasl.Mechanism {
	login := func(context.Context) (scram.Auth, error) {
		user, pass, err := k.Credentials()
		return scram.Auth{User: user, Pass: pass}, err
	}
	switch k.Mechanism {
	case "SCRAM-SHA-256":
		return scram.Sha256(login)
	case "SCRAM-SHA-512":
		return scram.Sha512(login)
	}
	return plain.Plain(func(context.Context) (plain.Auth, error) {
		user, pass, err := k.Credentials()
		return plain.Auth{User: user, Pass: pass}, err
	})
}
