package testenv

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
)

// SecureKafka is a broker as Strimzi runs it. At TLSAddr it asks clients for certificates and
// authorises them by ACLs. Addr is open to everybody, for the test's own topics and records.
type SecureKafka struct {
	*localkafka.Broker
	// Cluster signs the broker's certificate.
	Cluster *Authority
	// Clients signs the certificates of users.
	Clients *Authority

	// dir holds the broker's certificates.
	dir string
}

// StartSecureKafka starts a [SecureKafka] for this test alone. It has no topics and no ACLs.
func StartSecureKafka(t testing.TB) *SecureKafka {
	t.Helper()
	k := &SecureKafka{
		Cluster: NewAuthority(t, "cluster-ca"),
		Clients: NewAuthority(t, "clients-ca"),
		dir:     t.TempDir(),
	}
	k.Certify(t, k.Clients)
	k.Broker = StartKafkaWith(t, localkafka.Options{TLS: true, Settings: map[string]string{
		// There is no default for this map once SSL is in it.
		"listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL",
		"ssl.keystore.type":              "PEM",
		"ssl.keystore.location":          filepath.Join(k.dir, "broker.pem"),
		"ssl.truststore.type":            "PEM",
		"ssl.truststore.location":        filepath.Join(k.dir, "clients.pem"),
		"ssl.client.auth":                "required",
		"authorizer.class.name":          "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		// The clients of Addr, and the broker itself.
		"super.users": "User:ANONYMOUS",
	}})
	return k
}

// Certify gives the broker a new certificate of its Cluster authority, and the authorities whose
// clients it trusts. The broker uses both from its next start on.
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

// Restart ends the broker as a crash does and starts it again. Clients must connect again.
func (k *SecureKafka) Restart(t testing.TB) {
	t.Helper()
	k.Kill()
	if err := k.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Allow gives a user ACLs, such as "topic orders Read", or "group staging.* Describe" for all groups whose
// names begin so, and waits until the broker knows them.
func (k *SecureKafka) Allow(t testing.TB, user string, acls ...string) {
	t.Helper()
	k.change(t, user, true, acls)
}

// Revoke takes ACLs from a user again, and waits until the broker knows that.
func (k *SecureKafka) Revoke(t testing.TB, user string, acls ...string) {
	t.Helper()
	k.change(t, user, false, acls)
}

func (k *SecureKafka) change(t testing.TB, user string, allow bool, acls []string) {
	t.Helper()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(k.Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(t.Context(), ioPatience)
	defer cancel()
	operations := map[string]kadm.ACLOperation{"Read": kadm.OpRead, "Write": kadm.OpWrite, "Describe": kadm.OpDescribe}
	for _, acl := range acls {
		words := strings.Fields(acl)
		name, begins := strings.CutSuffix(words[1], "*")
		pattern := kadm.ACLPatternLiteral
		if begins {
			pattern = kadm.ACLPatternPrefixed
		}
		b := kadm.NewACLs().Allow("User:CN=" + user).AllowHosts("*").
			ResourcePatternType(pattern).Operations(operations[words[2]])
		switch words[0] {
		case "topic":
			b = b.Topics(name)
		case "group":
			b = b.Groups(name)
		case "transactional-id":
			b = b.TransactionalIDs(name)
		default:
			t.Fatalf("allow %s: no such resource", acl)
		}
		var err error
		if allow {
			var made kadm.CreateACLsResults
			made, err = admin.CreateACLs(ctx, b)
			for _, m := range made {
				err = cmp.Or(err, m.Err)
			}
		} else {
			var gone kadm.DeleteACLsResults
			gone, err = admin.DeleteACLs(ctx, b)
			for _, g := range gone {
				err = cmp.Or(err, g.Err)
			}
		}
		for known := !allow; err == nil && known != allow; {
			var described kadm.DescribeACLsResults
			described, err = admin.DescribeACLs(ctx, b)
			known = slices.ContainsFunc(described, func(d kadm.DescribeACLsResult) bool { return len(d.Described) > 0 })
		}
		if err != nil {
			t.Fatalf("change %s of %s: %v", acl, user, err)
		}
	}
}

// User is a client of a [SecureKafka], with the two Secrets that Strimzi keeps for it.
type User struct {
	// CA holds ca.crt, the authority that the user trusts.
	CA Secret
	// Cert holds user.crt and user.key.
	Cert Secret

	kafka *SecureKafka
	name  string
}

// NewUser makes a user that trusts the broker and that the broker trusts.
func (k *SecureKafka) NewUser(t testing.TB, name string) *User {
	t.Helper()
	u := &User{kafka: k, name: name, CA: Secret{t.TempDir()}, Cert: Secret{t.TempDir()}}
	u.CA.Change(t, map[string][]byte{"ca.crt": k.Cluster.PEM})
	u.Renew(t)
	return u
}

// Renew gives the user a new certificate of the broker's current Clients authority.
func (u *User) Renew(t testing.TB) {
	t.Helper()
	cert, key := u.kafka.Clients.Issue(t, u.name)
	u.Cert.Change(t, map[string][]byte{"user.crt": cert, "user.key": key})
}

// Client returns the settings with which a client connects as this user.
func (u *User) Client() kafkaconfig.Client {
	return kafkaconfig.Client{
		Brokers: []string{u.kafka.TLSAddr}, Protocol: "ssl", CA: u.CA.Dir,
		Cert: filepath.Join(u.Cert.Dir, "user.crt"), Key: filepath.Join(u.Cert.Dir, "user.key"),
	}
}

// Env returns the environment variables with which a service connects as this user.
func (u *User) Env() map[string]string {
	return map[string]string{
		"KAFKA_BROKERS":           u.kafka.TLSAddr,
		"KAFKA_SECURITY_PROTOCOL": "ssl",
		"KAFKA_TLS_CA":            u.CA.Dir,
		"KAFKA_TLS_CERT":          filepath.Join(u.Cert.Dir, "user.crt"),
		"KAFKA_TLS_KEY":           filepath.Join(u.Cert.Dir, "user.key"),
	}
}
