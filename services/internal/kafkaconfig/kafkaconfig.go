// Package kafkaconfig holds what a client has to know to connect to Kafka, and checks it. The
// services use librdkafka, which has settings of its own. The lag collector, and the services where
// librdkafka cannot read, use franz-go, whose options Options returns.
package kafkaconfig

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
)

// The security protocols, as Kafka names them.
const (
	plaintext     = "plaintext"
	ssl           = "ssl"
	saslPlaintext = "sasl_plaintext"
	saslSSL       = "sasl_ssl"
)

// The mechanisms whose credentials expire. Only the lag collector has them.
const (
	OAuthBearer = "OAUTHBEARER"
	MSKIAM      = "AWS_MSK_IAM"
)

var (
	protocols = []string{plaintext, ssl, saslPlaintext, saslSSL}
	passwords = []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}
	all       = append(slices.Clone(passwords), OAuthBearer, MSKIAM)
)

// Client holds the settings of a connection to Kafka. Its log value and its texts mask the
// password.
type Client struct {
	// Brokers are addresses of the form host:port. A client needs one of them to find the others.
	Brokers []string
	// ClientID names the client in the brokers' logs and quotas. It may be empty.
	ClientID string
	// Protocol is plaintext, ssl, sasl_plaintext or sasl_ssl. Empty is plaintext.
	Protocol string

	// CA is a file of PEM certificates, or a directory all of whose *.crt files are trusted.
	// Empty trusts what the system trusts.
	CA string
	// Cert and Key are PEM files of the client's certificate and its key. Both are empty for a
	// client without a certificate.
	Cert, Key string

	// Mechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or AWS_MSK_IAM. It is empty
	// without SASL.
	Mechanism string
	// Username and Password are the user's credentials. With OAUTHBEARER they are the ID and the
	// secret of a client of the token server. With AWS_MSK_IAM they are empty.
	Username, Password string
	// UsernameFile and PasswordFile are files that hold the credentials instead. They may change
	// while a client runs; Credentials reads them.
	UsernameFile, PasswordFile string

	// TokenEndpoint is the URL that gives tokens for OAUTHBEARER.
	TokenEndpoint string
	// TokenCA is whom to trust there. It is like CA.
	TokenCA string
	// Scope is what to ask for there, separated by blanks. It may be empty.
	Scope string
}

// SplitBrokers returns the addresses in a list that is separated by commas, without blanks around
// them. It returns none for an empty list.
func SplitBrokers(list string) []string {
	if strings.TrimSpace(list) == "" {
		return nil
	}
	brokers := strings.Split(list, ",")
	for i, broker := range brokers {
		brokers[i] = strings.TrimSpace(broker)
	}
	return brokers
}

// Normal returns c with its protocol in lower case and its mechanism in upper case, as clients want
// them. A protocol that is not set becomes plaintext. A word that is not known stays as it is, so
// that Validate reports it as it was given.
func (c Client) Normal() Client {
	if c.Protocol == "" {
		c.Protocol = plaintext
	}
	c.Protocol = fold(c.Protocol, protocols)
	c.Mechanism = fold(c.Mechanism, all)
	return c
}

// fold returns the one of words that equals word but for its case, or word itself.
func fold(word string, words []string) string {
	for _, w := range words {
		if strings.EqualFold(w, word) {
			return w
		}
	}
	return word
}

// BrokerList returns the addresses separated by commas.
func (c Client) BrokerList() string { return strings.Join(c.Brokers, ",") }

// UsesTLS reports whether the connection is encrypted.
func (c Client) UsesTLS() bool { return c.Protocol == ssl || c.Protocol == saslSSL }

// UsesSASL reports whether the client authenticates by SASL.
func (c Client) UsesSASL() bool { return c.Protocol == saslPlaintext || c.Protocol == saslSSL }

// Credentials returns the username and the password, read from their files where those are set.
// Blanks around a username and line ends behind a password do not belong to them.
func (c Client) Credentials() (username, password string, err error) {
	username, err = readUsername(c)
	if err != nil {
		return "", "", err
	}
	password, err = readPassword(c)
	if err != nil {
		return "", "", err
	}
	return username, password, nil
}

// CredentialsError is why a client has no credentials, so that it could not ask Kafka anything.
type CredentialsError struct {
	// Err has no part in errors.Is and errors.As: its cause may be a broken connection, which is not
	// one to Kafka.
	Err error
}

// Error returns the cause.
func (e *CredentialsError) Error() string { return "get the credentials for Kafka: " + e.Err.Error() }

func readUsername(c Client) (string, error) {
	if c.UsernameFile == "" {
		return c.Username, nil
	}
	text, err := os.ReadFile(c.UsernameFile)
	if err != nil {
		return "", fmt.Errorf("read the username: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

func readPassword(c Client) (string, error) {
	if c.PasswordFile == "" {
		return c.Password, nil
	}
	text, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// LogValue shows what is set, with the password masked.
func (c Client) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("brokers", c.BrokerList()), slog.String("protocol", c.Protocol)}
	password := ""
	if c.Password != "" {
		password = "***"
	}
	for _, attr := range []slog.Attr{
		slog.String("client_id", c.ClientID),
		slog.String("ca", c.CA),
		slog.String("cert", c.Cert),
		slog.String("key", c.Key),
		slog.String("mechanism", c.Mechanism),
		slog.String("username", c.Username),
		slog.String("password", password),
		slog.String("username_file", c.UsernameFile),
		slog.String("password_file", c.PasswordFile),
		slog.String("token_endpoint", c.TokenEndpoint),
		slog.String("token_ca", c.TokenCA),
		slog.String("scope", c.Scope),
	} {
		if attr.Value.String() != "" {
			attrs = append(attrs, attr)
		}
	}
	return slog.GroupValue(attrs...)
}

// String masks the password, also for %+v of a struct that holds a Client.
func (c Client) String() string { return fmt.Sprint(c.LogValue()) }

// GoString masks the password for %#v.
func (c Client) GoString() string { return c.String() }

// MarshalText masks the password in the JSON log of a struct that holds a Client.
func (c Client) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
