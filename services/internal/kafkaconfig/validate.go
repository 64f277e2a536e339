package kafkaconfig

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"ordersystem.dev/services/internal/trust"
)

// Field names a field of Client. Its text is the name in an error when the caller has no other.
type Field string

// The fields of Client that Validate checks.
const (
	FieldBrokers      Field = "brokers"
	FieldProtocol     Field = "security protocol"
	FieldCA           Field = "CA"
	FieldCert         Field = "certificate"
	FieldKey          Field = "key"
	FieldMechanism    Field = "SASL mechanism"
	FieldUsername     Field = "username"
	FieldPassword     Field = "password"
	FieldUsernameFile Field = "username file"
	FieldPasswordFile Field = "password file"
	FieldEndpoint     Field = "token endpoint"
	FieldTokenCA      Field = "CA of the token endpoint"
	FieldScope        Field = "scope"
)

// Names are the names under which a caller's users know the fields, such as variables or keys of a
// file. A field that is not in it keeps its own name.
type Names map[Field]string

// Of returns the name of a field.
func (n Names) Of(f Field) string {
	if name, ok := n[f]; ok {
		return name
	}
	return string(f)
}

// Invalid is one mistake in a Client.
type Invalid struct {
	Field Field
	// Value is what the field holds. It is empty for a field that is not set, and never a secret.
	Value string
	// Want is what is allowed, worded to follow "must be". For a file it ends with the reason why
	// that file cannot be used.
	Want string
}

// Error returns the field, its value and what is allowed.
func (i Invalid) Error() string { return fmt.Sprintf("%s %q: must be %s", i.Field, i.Value, i.Want) }

// Validate returns every mistake, and none if the settings can be used. Settings that do not fit
// together are mistakes too: a password for a connection that does not use it would otherwise
// travel as plain text one day. Validate reads the files. Texts that mention another field use
// names, which may be nil. It takes only mechanisms that show a password.
func (c Client) Validate(names Names) []Invalid { return c.validate(names, passwords) }

// ValidateAll is Validate for a client that has all mechanisms.
func (c Client) ValidateAll(names Names) []Invalid { return c.validate(names, all) }

func (c Client) validate(names Names, mechanisms []string) []Invalid {
	v := validation{names: names}
	v.brokers(c)
	v.tlsFiles(c)
	v.protocol(c)
	if c.UsesSASL() {
		v.sasl(c, mechanisms)
	}
	return v.mistakes
}

// validation collects the mistakes of one Client.
type validation struct {
	names    Names
	mistakes []Invalid
}

func (v *validation) wrong(f Field, value, want string) {
	v.mistakes = append(v.mistakes, Invalid{Field: f, Value: value, Want: want})
}

func (v *validation) brokers(c Client) {
	if len(c.Brokers) == 0 || slices.ContainsFunc(c.Brokers, func(b string) bool { return !isAddress(b) }) {
		v.wrong(FieldBrokers, c.BrokerList(),
			"host:port with a port from 1 to 65535, several separated by commas")
	}
}

func isAddress(broker string) bool {
	host, port, err := net.SplitHostPort(broker)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// certificates is what a CA has to be. The reason why it is not follows.
const certificates = "a file of PEM certificates, or a directory with *.crt files of them: "

func (v *validation) tlsFiles(c Client) {
	if _, _, err := trust.Read(c.CA); err != nil {
		v.wrong(FieldCA, c.CA, certificates+err.Error())
	}
	cert, certRead := v.read(FieldCert, c.Cert)
	key, keyRead := v.read(FieldKey, c.Key)
	if (c.Cert == "") != (c.Key == "") {
		v.wrong(FieldCert, c.Cert, "set together with "+v.names.Of(FieldKey))
		return
	}
	if certRead && keyRead {
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			v.wrong(FieldCert, c.Cert, "the PEM certificate of "+v.names.Of(FieldKey)+": "+err.Error())
		}
	}
}

// read returns what a file holds, and reports whether there is a file that could be read.
func (v *validation) read(f Field, file string) (text []byte, ok bool) {
	if file == "" {
		return nil, false
	}
	text, err := os.ReadFile(file)
	if err != nil {
		v.wrong(f, file, "a file that can be read: "+err.Error())
		return nil, false
	}
	return text, true
}

// protocol checks that the protocol is known and makes use of all that is set.
func (v *validation) protocol(c Client) {
	if c.Protocol != "" && !slices.Contains(protocols, c.Protocol) {
		v.wrong(FieldProtocol, c.Protocol, "one of "+strings.Join(protocols, ", "))
		return
	}
	if s, ok := firstSet([]setting{{FieldCA, c.CA}, {FieldCert, c.Cert}, {FieldKey, c.Key}}); ok && !c.UsesTLS() {
		v.wrong(FieldProtocol, c.Protocol, "ssl or sasl_ssl when "+v.names.Of(s.field)+" is set")
	}
	if s, ok := firstSet([]setting{
		{FieldMechanism, c.Mechanism}, {FieldUsername, c.Username}, {FieldPassword, c.Password},
		{FieldUsernameFile, c.UsernameFile}, {FieldPasswordFile, c.PasswordFile},
		{FieldEndpoint, c.TokenEndpoint}, {FieldTokenCA, c.TokenCA}, {FieldScope, c.Scope},
	}); ok && !c.UsesSASL() {
		v.wrong(FieldProtocol, c.Protocol, "sasl_plaintext or sasl_ssl when "+v.names.Of(s.field)+" is set")
	}
}

type setting struct {
	field Field
	value string
}

func firstSet(settings []setting) (first setting, ok bool) {
	for _, s := range settings {
		if s.value != "" {
			return s, true
		}
	}
	return setting{}, false
}

func (v *validation) sasl(c Client, mechanisms []string) {
	if !slices.Contains(mechanisms, c.Mechanism) {
		v.wrong(FieldMechanism, c.Mechanism, "one of "+strings.Join(mechanisms, ", ")+" with "+c.Protocol)
	}
	username, usernameFile := setting{FieldUsername, c.Username}, setting{FieldUsernameFile, c.UsernameFile}
	password, passwordFile := setting{FieldPassword, c.Password}, setting{FieldPasswordFile, c.PasswordFile}
	if c.Mechanism == MSKIAM {
		// They come from the environment.
		v.empty(c, username, password, usernameFile, passwordFile)
	} else {
		v.credential(c, username, usernameFile)
		v.credential(c, password, passwordFile)
	}
	if c.Mechanism == OAuthBearer {
		v.tokenEndpoint(c)
	} else {
		v.empty(c,
			setting{FieldEndpoint, c.TokenEndpoint}, setting{FieldTokenCA, c.TokenCA}, setting{FieldScope, c.Scope})
	}
}

// empty checks that none of the settings is set, because the mechanism does not use them.
func (v *validation) empty(c Client, settings ...setting) {
	if s, ok := firstSet(settings); ok {
		value := s.value
		if s.field == FieldPassword {
			value = ""
		}
		v.wrong(s.field, value, "left out with "+c.Mechanism)
	}
}

func (v *validation) tokenEndpoint(c Client) {
	u, err := url.Parse(c.TokenEndpoint)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		v.wrong(FieldEndpoint, c.TokenEndpoint, "an https or http URL, such as https://idp.example.com/token")
	case u.User != nil:
		// The URL is in the log.
		v.wrong(FieldEndpoint, u.Redacted(), "a URL without a user and a password")
	}
	if _, _, err := trust.Read(c.TokenCA); err != nil {
		v.wrong(FieldTokenCA, c.TokenCA, certificates+err.Error())
	}
}

// credential checks that a username or a password is given once, as a value or as a file.
func (v *validation) credential(c Client, value, file setting) {
	switch {
	case value.value == "" && file.value == "":
		v.wrong(value.field, "", "set with "+c.Protocol)
	case value.value != "" && file.value != "":
		v.wrong(file.field, file.value, "empty when "+v.names.Of(value.field)+" is set")
	default:
		v.read(file.field, file.value)
	}
}
