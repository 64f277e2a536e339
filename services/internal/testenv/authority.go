package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"
)

// Authority signs certificates, as Strimzi's cluster CA and clients CA do.
type Authority struct {
	// PEM is the authority's own certificate.
	PEM []byte

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// chain follows each certificate that an intermediate authority issues, up to the trusted
	// authority. It is empty for an authority that signs itself.
	chain []byte
}

// NewAuthority makes an authority that signs itself. Its certificates are valid for a day.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	a := &Authority{}
	a.cert, a.key = sign(t, name, nil)
	a.PEM = pemBlock("CERTIFICATE", a.cert.Raw)
	return a
}

// Roots returns a pool with the authority alone.
func (a *Authority) Roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return roots
}

// Intermediate makes an authority whose certificates are trusted where this one is.
func (a *Authority) Intermediate(t testing.TB, name string) *Authority {
	t.Helper()
	b := &Authority{}
	b.cert, b.key = sign(t, name, a)
	b.PEM = pemBlock("CERTIFICATE", b.cert.Raw)
	b.chain = slices.Concat(b.PEM, a.chain)
	return b
}

// Issue makes a certificate and its key as PEM text. It is for a user, or for a broker on this
// machine or on the hosts.
func (a *Authority) Issue(t testing.TB, name string, hosts ...string) (cert, key []byte) {
	t.Helper()
	c, k := sign(t, name, a, hosts...)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(pemBlock("CERTIFICATE", c.Raw), a.chain), pemBlock("PRIVATE KEY", der)
}

// sign makes a certificate and signs it by an authority. If by is nil, the certificate signs
// itself.
func sign(t testing.TB, name string, by *Authority, hosts ...string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		// A cluster's clocks may be behind.
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:              hosts,
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// pemBlock encodes one block of PEM text, such as a CERTIFICATE.
func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
