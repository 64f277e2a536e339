package kafkaconfig

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"ordersystem.dev/services/internal/trust"
)

// TLS is what the TLS files of a Client held at one moment.
type TLS struct {
	// CA is the PEM text of the trusted certificates. Empty trusts what the system trusts.
	CA string
	// Roots is CA parsed. It is nil if CA is empty.
	Roots *x509.CertPool
	// Cert and Key are the PEM texts of the client's certificate and its key. Both are empty for a
	// client without a certificate.
	Cert, Key string
	// Pair is Cert and Key parsed, with its Leaf. It is the zero value without them.
	Pair tls.Certificate
}

// HasTLSFiles reports whether any TLS file is set.
func (c Client) HasTLSFiles() bool { return c.CA != "" || c.Cert != "" || c.Key != "" }

// ReadTLS reads the TLS files as one set. A certificate and a key that do not belong together are
// an error: one of them was read before a change of the files, and the other after it.
func (c Client) ReadTLS() (TLS, error) {
	trusted, roots, err := trust.Read(c.CA)
	if err != nil {
		return TLS{}, err
	}
	if c.Cert == "" && c.Key == "" {
		return TLS{CA: trusted, Roots: roots}, nil
	}
	cert, err := os.ReadFile(c.Cert)
	if err != nil {
		return TLS{}, fmt.Errorf("read the client's certificate: %w", err)
	}
	key, err := os.ReadFile(c.Key)
	if err != nil {
		return TLS{}, fmt.Errorf("read the client's key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return TLS{}, fmt.Errorf("%s and %s are not a certificate and its key: %w", c.Cert, c.Key, err)
	}
	return TLS{CA: trusted, Roots: roots, Cert: string(cert), Key: string(key), Pair: pair}, nil
}
