package testenv

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// Authority signs certificates, as Strimzi's cluster CA and clients CA do.
type Authority struct {
	PEM []byte // its certificate

	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	chain []byte // what goes behind a certificate, from an authority that is not trusted by itself
}

// NewAuthority makes an authority that signs itself.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	a := &Authority{}
	a.cert, a.key = sign(t, name, nil)
	a.PEM = pemBlock("CERTIFICATE", a.cert.Raw)
	return a
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

// Issue makes a certificate for a user or for a broker on this machine or on other hosts, as PEM text.
func (a *Authority) Issue(t testing.TB, name string, hosts ...string) (cert, key []byte) {
	t.Helper()
	c, k := sign(t, name, a, hosts...)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(pemBlock("CERTIFICATE", c.Raw), a.chain), pemBlock("PRIVATE KEY", der)
}

// sign makes a certificate by an authority, or without one that of an authority.
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
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), // a cluster's clocks may be behind
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: hosts,
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

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// SecureKafka is a broker as Strimzi runs it: at TLSAddr, it wants certificates of its clients and does for them what ACLs allow. At
// Addr it is open to whoever makes topics and reads along.
type SecureKafka struct {
	*Kafka
	Cluster *Authority // signs the broker's certificate
	Clients *Authority // signs users

	dir string
}

// StartSecureKafka starts such a broker for this test alone. It has no topics and no ACLs.
func StartSecureKafka(t testing.TB) *SecureKafka {
	t.Helper()
	k := &SecureKafka{Cluster: NewAuthority(t, "cluster-ca"), Clients: NewAuthority(t, "clients-ca"), dir: t.TempDir()}
	k.Certify(t, k.Clients)
	var err error
	k.Kafka, err = Start(t.Context(), Options{
		Dir: t.TempDir(), TLS: true, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Settings: map[string]string{
			"listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL", // with SSL there is no default
			"ssl.keystore.type":              "PEM", "ssl.keystore.location": filepath.Join(k.dir, "broker.pem"),
			"ssl.truststore.type": "PEM", "ssl.truststore.location": filepath.Join(k.dir, "clients.pem"),
			"ssl.client.auth":       "required",
			"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users":           "User:ANONYMOUS", // at Addr, and the broker itself
		},
	})
	Require(t, err)
	t.Cleanup(func() {
		k.Kill()
		showLog(t, k.Kafka)
	})
	return k
}

// Certify gives the broker a certificate of its Cluster authority, and clients to trust. Both are in use from its next start on.
func (k *SecureKafka) Certify(t testing.TB, clients ...*Authority) {
	t.Helper()
	var trusted []byte
	for _, a := range clients {
		trusted = append(trusted, a.PEM...)
	}
	cert, key := k.Cluster.Issue(t, "broker")
	for name, text := range map[string][]byte{"broker.pem": slices.Concat(key, cert), "clients.pem": trusted} {
		if err := os.WriteFile(filepath.Join(k.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Restart ends the broker as a crash does and starts it again: every connection has to be made anew.
func (k *SecureKafka) Restart(t testing.TB) {
	t.Helper()
	k.Kill()
	if err := k.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Allow gives a user ACLs, such as "topic orders Read" or "group readers Describe", and waits until the broker knows them.
func (k *SecureKafka) Allow(t testing.TB, user string, acls ...string) {
	t.Helper()
	admin, err := newAdmin(k.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(t.Context(), ioPatience)
	defer cancel()
	operations := map[string]kadm.ACLOperation{"Read": kadm.OpRead, "Write": kadm.OpWrite, "Describe": kadm.OpDescribe}
	for _, acl := range acls {
		words := strings.Fields(acl)
		b := kadm.NewACLs().Allow("User:CN=" + user).AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral).Operations(operations[words[2]])
		if words[0] == "topic" {
			b = b.Topics(words[1])
		} else {
			b = b.Groups(words[1])
		}
		made, err := admin.CreateACLs(ctx, b)
		for _, m := range made {
			err = cmp.Or(err, m.Err)
		}
		for known := 0; err == nil && known == 0; {
			var described kadm.DescribeACLsResults
			described, err = admin.DescribeACLs(ctx, b)
			for _, d := range described {
				known += len(d.Described)
			}
		}
		if err != nil {
			t.Fatalf("allow %s %s: %v", user, acl, err)
		}
	}
}

// User is a client of a SecureKafka, with the two Secrets that Strimzi keeps for it.
type User struct {
	CA   Secret // ca.crt, whom it trusts
	Cert Secret // user.crt and user.key

	kafka *SecureKafka
	name  string
}

// NewUser makes a user that the broker knows, and that trusts it.
func (k *SecureKafka) NewUser(t testing.TB, name string) *User {
	t.Helper()
	u := &User{kafka: k, name: name, CA: Secret{t.TempDir()}, Cert: Secret{t.TempDir()}}
	u.CA.Change(t, map[string][]byte{"ca.crt": k.Cluster.PEM})
	u.Renew(t)
	return u
}

// Renew gives the user a certificate of the Clients authority that there is now.
func (u *User) Renew(t testing.TB) {
	t.Helper()
	cert, key := u.kafka.Clients.Issue(t, u.name)
	u.Cert.Change(t, map[string][]byte{"user.crt": cert, "user.key": key})
}

// Env is what a service is told, to be this user.
func (u *User) Env() map[string]string {
	return map[string]string{
		"KAFKA_BROKERS": u.kafka.TLSAddr, "KAFKA_SECURITY_PROTOCOL": "ssl", "KAFKA_TLS_CA": u.CA.Dir,
		"KAFKA_TLS_CERT": filepath.Join(u.Cert.Dir, "user.crt"), "KAFKA_TLS_KEY": filepath.Join(u.Cert.Dir, "user.key"),
	}
}

// Secret is a directory of files as Kubernetes mounts a Secret: each is a symbolic link through another one, ..data, and a change
// swaps that.
type Secret struct{ Dir string }

// Change puts other files in place of all that there are.
func (s Secret) Change(t testing.TB, files map[string][]byte) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	data := filepath.Join(s.Dir, time.Now().Format("..2006_01_02_15_04_05.000000000"))
	must(os.Mkdir(data, 0o755))
	for name, text := range files {
		must(os.WriteFile(filepath.Join(data, name), text, 0o600))
	}
	link := filepath.Join(s.Dir, "..data")
	former, _ := os.Readlink(link) // none at first
	must(os.Symlink(filepath.Base(data), link+"_tmp"))
	must(os.Rename(link+"_tmp", link))
	entries, err := os.ReadDir(s.Dir)
	must(err)
	for _, e := range entries {
		if _, stays := files[e.Name()]; !stays && e.Name()[0] != '.' {
			must(os.Remove(filepath.Join(s.Dir, e.Name())))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(s.Dir, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if former != "" {
		must(os.RemoveAll(filepath.Join(s.Dir, former)))
	}
}
