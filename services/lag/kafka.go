package lag

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"ordersystem.dev/services/internal/ca"
)

// Kafka says where the brokers are and how to get in. The files may change at any time, as when
// Strimzi renews a certificate: each connection reads them anew.
type Kafka struct {
	Brokers                    []string // host:port
	Protocol                   string   // plaintext, ssl, sasl_plaintext, sasl_ssl; empty is plaintext
	CA                         string   // a file, or a directory all of whose *.crt are trusted; empty trusts what the system does
	Cert, Key                  string   // files of the client's certificate
	Mechanism                  string   // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
	UsernameFile, PasswordFile string
}

// options are those of a client that gives a request up after timeout, and tries it again for no
// longer. An error is all that cannot be used.
func (k Kafka) options(timeout time.Duration) ([]kgo.Opt, error) {
	// Version 10 of OffsetFetch names topics by ID only, and franz-go looks the names up for
	// itself, without an end.
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(9, 9)
	opts := []kgo.Opt{
		kgo.SeedBrokers(k.Brokers...),
		kgo.ClientID("lag-collector"),
		kgo.MaxVersions(versions),
		kgo.RequestTimeoutOverhead(timeout),
		kgo.RetryTimeout(timeout),
		kgo.RetryBackoffFn(
			func(tries int) time.Duration { return min(time.Duration(tries)*100*time.Millisecond, time.Second) },
		),
		kgo.MetadataMinAge(timeout), // each poll reads it, and all its requests go by that
		kgo.DisableClientMetrics(),
	}
	var errs []error
	if len(k.Brokers) == 0 {
		errs = append(errs, errors.New("no brokers"))
	}
	for _, b := range k.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("broker %q is not host:port", b))
		}
	}
	protocols := []string{"", "plaintext", "ssl", "sasl_plaintext", "sasl_ssl"}
	if !slices.Contains(protocols, k.Protocol) {
		errs = append(errs, fmt.Errorf("protocol %q is none of %s", k.Protocol, strings.Join(protocols[1:], ", ")))
	}
	dialer := &net.Dialer{Timeout: 3 * time.Second}
	dial := dialer.DialContext
	if strings.HasSuffix(k.Protocol, "ssl") {
		if _, err := k.tls(""); err != nil {
			errs = append(errs, err)
		}
		dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(addr) // checked, or made by franz-go
			cfg, err := k.tls(host)
			if err != nil {
				return nil, err
			}
			return (&tls.Dialer{NetDialer: dialer, Config: cfg}).DialContext(ctx, network, addr)
		}
	} else if k.CA+k.Cert+k.Key != "" {
		errs = append(errs, fmt.Errorf("TLS files are given, and protocol %q does without", k.Protocol))
	}
	if strings.HasPrefix(k.Protocol, "sasl") {
		mechanism, err := k.sasl()
		if err != nil {
			errs = append(errs, err)
		} else {
			opts = append(opts, kgo.SASL(mechanism))
		}
	} else if k.Mechanism+k.UsernameFile+k.PasswordFile != "" {
		errs = append(errs, fmt.Errorf("SASL is set, and protocol %q does without", k.Protocol))
	}
	return append(opts, kgo.Dialer(dial)), errors.Join(errs...)
}

// tls is what the files say now.
func (k Kafka) tls(host string) (*tls.Config, error) {
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if k.CA != "" {
		trusted, err := ca.Read(k.CA)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(trusted)) {
			return nil, fmt.Errorf("read CA: no certificate in %s", k.CA)
		}
	}
	if k.Cert+k.Key != "" {
		pair, err := tls.LoadX509KeyPair(k.Cert, k.Key)
		if err != nil {
			return nil, fmt.Errorf("read the client's certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func (k Kafka) sasl() (sasl.Mechanism, error) {
	if _, _, err := k.login(); err != nil {
		return nil, err
	}
	login := func(context.Context) (scram.Auth, error) {
		user, pass, err := k.login()
		return scram.Auth{User: user, Pass: pass}, err
	}
	switch k.Mechanism {
	case "PLAIN":
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			user, pass, err := k.login()
			return plain.Auth{User: user, Pass: pass}, err
		}), nil
	case "SCRAM-SHA-256":
		return scram.Sha256(login), nil
	case "SCRAM-SHA-512":
		return scram.Sha512(login), nil
	}
	return nil, fmt.Errorf("SASL mechanism %q is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", k.Mechanism)
}

func (k Kafka) login() (user, pass string, err error) {
	u, err := os.ReadFile(k.UsernameFile)
	if err != nil {
		return "", "", fmt.Errorf("read the user's name: %w", err)
	}
	p, err := os.ReadFile(k.PasswordFile)
	if err != nil {
		return "", "", fmt.Errorf("read the password: %w", err)
	}
	return strings.TrimSpace(string(u)), strings.TrimRight(string(p), "\r\n"), nil
}
