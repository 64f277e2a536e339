package kafkaconfig_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/testenv"
)

// writeFile writes a file below dir, with the folders on the way to it, and returns its path.
func writeFile(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSplitBrokers(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][]string{
		"":               nil,
		" ":              nil,
		"a:1":            {"a:1"},
		" a:1 , b:2":     {"a:1", "b:2"},
		"a:1,":           {"a:1", ""},
		"a:1,, [::1]:93": {"a:1", "", "[::1]:93"},
	} {
		if diff := cmp.Diff(want, kafkaconfig.SplitBrokers(list)); diff != "" {
			t.Errorf("SplitBrokers(%q) (-want +got):\n%s", list, diff)
		}
	}
}

func TestNormal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ given, want [2]string }{
		{[2]string{"", ""}, [2]string{"plaintext", ""}},
		{[2]string{"SASL_SSL", "scram-sha-512"}, [2]string{"sasl_ssl", "SCRAM-SHA-512"}},
		{[2]string{"TLS", "gssapi"}, [2]string{"TLS", "gssapi"}},
	} {
		got := kafkaconfig.Client{Protocol: test.given[0], Mechanism: test.given[1]}.Normal()
		if got.Protocol != test.want[0] || got.Mechanism != test.want[1] {
			t.Errorf("Normal of %q = %q, %q, want %q", test.given, got.Protocol, got.Mechanism, test.want)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	authority := testenv.NewAuthority(t, "cluster-ca")
	certText, keyText := authority.Issue(t, "cart")
	_, otherText := authority.Issue(t, "cart")
	ca := writeFile(t, dir, "cas/ca.crt", string(authority.PEM))
	cert := writeFile(t, dir, "tls.crt", string(certText))
	key := writeFile(t, dir, "tls.key", string(keyText))
	otherKey := writeFile(t, dir, "other.key", string(otherText))
	half := writeFile(t, dir, "half.crt", string(authority.PEM[:100]))
	user, pass := writeFile(t, dir, "user", "cart\n"), writeFile(t, dir, "pass", "secret\n")
	empty, missing := t.TempDir(), filepath.Join(dir, "missing")
	ok := []string{"kafka:9092"}

	const (
		address     = "host:port with a port from 1 to 65535, several separated by commas"
		certificate = "a file of PEM certificates, or a directory with *.crt files of them: "
		readable    = "a file that can be read: "
		noFile      = ": no such file or directory"
	)
	for _, test := range []struct {
		name   string
		client kafkaconfig.Client
		want   []kafkaconfig.Invalid
	}{
		{name: "one broker", client: kafkaconfig.Client{Brokers: ok}},
		{
			name:   "several brokers",
			client: kafkaconfig.Client{Brokers: []string{"a:1", "[::1]:65535"}, Protocol: "plaintext"},
		},
		{name: "TLS without files", client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl"}},
		{
			name:   "TLS with all files",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: ca, Cert: cert, Key: key},
		},
		{
			name:   "a directory of CAs",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: filepath.Dir(ca)},
		},
		{
			name: "a password",
			client: kafkaconfig.Client{
				Brokers: ok, Protocol: "sasl_ssl", Mechanism: "PLAIN", Username: "cart", Password: "secret",
			},
		},
		{
			name: "a password in a file",
			client: kafkaconfig.Client{
				Brokers: ok, Protocol: "sasl_plaintext", Mechanism: "SCRAM-SHA-256",
				UsernameFile: user, PasswordFile: pass,
			},
		},
		{
			name: "nothing",
			want: []kafkaconfig.Invalid{{Field: kafkaconfig.FieldBrokers, Want: address}},
		},
		{
			name:   "addresses that cannot be used, reported as one list",
			client: kafkaconfig.Client{Brokers: []string{"kafka:9092", "kafka:abc", "kafka:99999"}},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldBrokers, Value: "kafka:9092,kafka:abc,kafka:99999", Want: address},
			},
		},
		{
			name:   "a protocol that Kafka does not have",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "tls", CA: ca, Username: "cart"},
			want: []kafkaconfig.Invalid{{
				Field: kafkaconfig.FieldProtocol, Value: "tls",
				Want: "one of plaintext, ssl, sasl_plaintext, sasl_ssl",
			}},
		},
		{
			name: "settings that the protocol does not use",
			client: kafkaconfig.Client{
				Brokers: ok, Protocol: "plaintext", Cert: cert, Key: key, Username: "cart", Password: "secret",
			},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldProtocol, Value: "plaintext", Want: "ssl or sasl_ssl when TLS_CERT is set"},
				{
					Field: kafkaconfig.FieldProtocol, Value: "plaintext",
					Want: "sasl_plaintext or sasl_ssl when username is set",
				},
			},
		},
		{
			name:   "a password alone that the protocol does not use",
			client: kafkaconfig.Client{Brokers: ok, Password: "secret"},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldProtocol, Want: "sasl_plaintext or sasl_ssl when password is set"},
			},
		},
		{
			name:   "a password file that the protocol does not use",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", PasswordFile: pass},
			want: []kafkaconfig.Invalid{{
				Field: kafkaconfig.FieldProtocol, Value: "ssl",
				Want: "sasl_plaintext or sasl_ssl when password file is set",
			}},
		},
		{
			name:   "files that cannot be read",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: missing, Cert: missing, Key: dir},
			want: []kafkaconfig.Invalid{
				{
					Field: kafkaconfig.FieldCA, Value: missing,
					Want: certificate + "read CA: stat " + missing + noFile,
				},
				{Field: kafkaconfig.FieldCert, Value: missing, Want: readable + "open " + missing + noFile},
				{Field: kafkaconfig.FieldKey, Value: dir, Want: readable + "read " + dir + ": is a directory"},
			},
		},
		{
			name:   "half a CA",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: half},
			want: []kafkaconfig.Invalid{
				{
					Field: kafkaconfig.FieldCA, Value: half,
					Want: certificate + "read CA: " + half + " is not whole PEM text",
				},
			},
		},
		{
			name:   "a CA that is a key",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: key},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldCA, Value: key, Want: certificate + "read CA: no certificate in " + key},
			},
		},
		{
			name:   "a directory without CAs",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", CA: empty},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldCA, Value: empty, Want: certificate + "read CA: no *.crt in " + empty},
			},
		},
		{
			name:   "a certificate without its key",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", Cert: cert},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldCert, Value: cert, Want: "set together with TLS_KEY"},
			},
		},
		{
			name:   "a key without its certificate",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", Key: key},
			want:   []kafkaconfig.Invalid{{Field: kafkaconfig.FieldCert, Want: "set together with TLS_KEY"}},
		},
		{
			name:   "the key of another certificate",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "ssl", Cert: cert, Key: otherKey},
			want: []kafkaconfig.Invalid{{
				Field: kafkaconfig.FieldCert, Value: cert,
				Want: "the PEM certificate of TLS_KEY: tls: private key does not match public key",
			}},
		},
		{
			name:   "SASL without anything",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "sasl_ssl"},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldMechanism, Want: "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 with sasl_ssl"},
				{Field: kafkaconfig.FieldUsername, Want: "set with sasl_ssl"},
				{Field: kafkaconfig.FieldPassword, Want: "set with sasl_ssl"},
			},
		},
		{
			name: "a mechanism that is not supported, and a password file that is missing",
			client: kafkaconfig.Client{
				Brokers: ok, Protocol: "sasl_ssl", Mechanism: "GSSAPI", UsernameFile: user, PasswordFile: missing,
			},
			want: []kafkaconfig.Invalid{
				{
					Field: kafkaconfig.FieldMechanism, Value: "GSSAPI",
					Want: "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 with sasl_ssl",
				},
				{Field: kafkaconfig.FieldPasswordFile, Value: missing, Want: readable + "open " + missing + noFile},
			},
		},
		{
			name:   "a mechanism that only the lag collector has",
			client: kafkaconfig.Client{Brokers: ok, Protocol: "sasl_ssl", Mechanism: "AWS_MSK_IAM"},
			want: []kafkaconfig.Invalid{{
				Field: kafkaconfig.FieldMechanism, Value: "AWS_MSK_IAM",
				Want: "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 with sasl_ssl",
			}},
		},
		{
			name: "a username and a file of it",
			client: kafkaconfig.Client{
				Brokers: ok, Protocol: "sasl_ssl", Mechanism: "PLAIN",
				Username: "cart", UsernameFile: user, Password: "secret",
			},
			want: []kafkaconfig.Invalid{
				{Field: kafkaconfig.FieldUsernameFile, Value: user, Want: "empty when username is set"},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			names := kafkaconfig.Names{kafkaconfig.FieldCert: "TLS_CERT", kafkaconfig.FieldKey: "TLS_KEY"}
			got := test.client.Validate(names)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if text := fmt.Sprint(got); strings.Contains(text, "secret") {
				t.Errorf("the password is shown: %s", text)
			}
		})
	}
}

func TestValidateAll(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id, secret := writeFile(t, dir, "id", "lag"), writeFile(t, dir, "secret", "secret")
	bearer := func(endpoint string) kafkaconfig.Client {
		return kafkaconfig.Client{
			Brokers: []string{"kafka:9092"}, Protocol: "sasl_ssl", Mechanism: kafkaconfig.OAuthBearer,
			UsernameFile: id, PasswordFile: secret, TokenEndpoint: endpoint,
		}
	}
	msk := kafkaconfig.Client{Brokers: []string{"kafka:9092"}, Protocol: "sasl_ssl", Mechanism: kafkaconfig.MSKIAM}
	password := msk
	password.Password = "secret"
	scram := bearer("https://idp")
	scram.Mechanism = "SCRAM-SHA-512"
	const url = "an https or http URL, such as https://idp.example.com/token"
	for _, tt := range []struct {
		client kafkaconfig.Client
		want   []kafkaconfig.Invalid
	}{
		{bearer("https://idp.example.com/token"), nil},
		{bearer("http://idp:8080"), nil},
		{msk, nil},
		{bearer(""), []kafkaconfig.Invalid{{Field: kafkaconfig.FieldEndpoint, Want: url}}},
		{bearer("idp"), []kafkaconfig.Invalid{{Field: kafkaconfig.FieldEndpoint, Value: "idp", Want: url}}},
		{bearer("http://"), []kafkaconfig.Invalid{{Field: kafkaconfig.FieldEndpoint, Value: "http://", Want: url}}},
		{bearer("https://a:secret@b"), []kafkaconfig.Invalid{{
			Field: kafkaconfig.FieldEndpoint, Value: "https://a:xxxxx@b", Want: "a URL without a user and a password",
		}}},
		{password, []kafkaconfig.Invalid{{Field: kafkaconfig.FieldPassword, Want: "left out with AWS_MSK_IAM"}}},
		{scram, []kafkaconfig.Invalid{
			{Field: kafkaconfig.FieldEndpoint, Value: "https://idp", Want: "left out with SCRAM-SHA-512"},
		}},
	} {
		if diff := cmp.Diff(tt.want, tt.client.ValidateAll(nil)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.client, diff)
		}
	}
}

// Only a number from 1 to 65535 is a port, and every address needs a host.
func TestValidateChecksEachAddress(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"kafka:1": true, "kafka:65535": true, "10.0.0.1:9092": true, "[::1]:9092": true,
		"": false, "kafka": false, "kafka:": false, ":9092": false,
		"kafka:0": false, "kafka:65536": false, "kafka:99999": false,
		"kafka:abc": false, "kafka:-1": false, "kafka:+1": false, "kafka:9092:1": false, "ssl://kafka:9092": false,
	} {
		got := kafkaconfig.Client{Brokers: []string{"a:1", address}}.Validate(nil)
		if (len(got) == 0) != want {
			t.Errorf("Validate with the address %q = %v, want valid: %v", address, got, want)
		}
	}
}

func TestInvalidIsAnErrorWithFieldValueAndWhatIsAllowed(t *testing.T) {
	t.Parallel()
	err := kafkaconfig.Invalid{Field: kafkaconfig.FieldProtocol, Value: "tls", Want: "one of plaintext, ssl"}
	if got, want := err.Error(), `security protocol "tls": must be one of plaintext, ssl`; got != want {
		t.Errorf("Error() = %s, want %s", got, want)
	}
}

func TestReadTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	authority := testenv.NewAuthority(t, "cluster-ca")
	certText, keyText := authority.Issue(t, "cart")
	c := kafkaconfig.Client{
		CA:   writeFile(t, dir, "ca.crt", string(authority.PEM)),
		Cert: writeFile(t, dir, "tls.crt", string(certText)),
		Key:  writeFile(t, dir, "tls.key", string(keyText)),
	}
	got, err := c.ReadTLS()
	if err != nil || got.CA != string(authority.PEM)+"\n" ||
		got.Cert != string(certText) || got.Key != string(keyText) ||
		got.Pair.Leaf == nil || got.Pair.Leaf.Subject.CommonName != "cart" {
		t.Errorf("ReadTLS() = %+v, %v", got, err)
	}
	none, err := kafkaconfig.Client{}.ReadTLS()
	if err != nil || none.CA+none.Cert+none.Key != "" || none.Pair.Certificate != nil {
		t.Errorf("ReadTLS() without files = %+v, %v", none, err)
	}
	missing := filepath.Join(dir, "missing")
	for want, c := range map[string]kafkaconfig.Client{
		"read CA":                           {CA: missing, Cert: c.Cert, Key: c.Key},
		"read the client's certificate":     {Cert: missing, Key: c.Key},
		"read the client's key":             {Cert: c.Cert, Key: missing},
		"are not a certificate and its key": {Cert: c.Cert, Key: c.Cert},
	} {
		if _, err := c.ReadTLS(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ReadTLS() of %v: error %v, want one with %q", c, err, want)
		}
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	user, pass := writeFile(t, dir, "user", " cart\n"), writeFile(t, dir, "pass", " secret \r\n")
	missing := filepath.Join(dir, "missing")
	for _, test := range []struct {
		client               kafkaconfig.Client
		username, pass, errs string
	}{
		{kafkaconfig.Client{Username: "cart", Password: "secret"}, "cart", "secret", ""},
		{kafkaconfig.Client{UsernameFile: user, PasswordFile: pass}, "cart", " secret ", ""},
		{kafkaconfig.Client{UsernameFile: missing, PasswordFile: pass}, "", "", "read the username"},
		{kafkaconfig.Client{UsernameFile: user, PasswordFile: missing}, "", "", "read the password"},
	} {
		username, password, err := test.client.Credentials()
		if username != test.username || password != test.pass || !strings.Contains(fmt.Sprint(err), test.errs) {
			t.Errorf("Credentials() of %v = %q, %q, %v", test.client, username, password, err)
		}
	}
}

func TestThePasswordIsMasked(t *testing.T) {
	t.Parallel()
	c := kafkaconfig.Client{Brokers: []string{"a:1", "b:2"}, Username: "cart", Password: "secret"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("start", "kafka", c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("start", "config", struct{ Kafka kafkaconfig.Client }{c})
	for _, text := range []string{
		log.String(),
		c.String(),
		fmt.Sprintf("%v %+v %#v", c, struct{ Kafka kafkaconfig.Client }{c}, c),
	} {
		if strings.Contains(text, "secret") || !strings.Contains(text, "cart") || !strings.Contains(text, "a:1,b:2") {
			t.Errorf("the client is shown as %s", text)
		}
	}
}
