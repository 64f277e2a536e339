package kafkaconfig

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
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
// names, which may be nil.
func (c Client) Validate(names Names) []Invalid {
	v := validation{names: names}
	v.brokers(c)
	v.tlsFiles(c)
	v.protocol(c)
	if c.UsesSASL() {
		v.sasl(c)
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

func (v *validation) tlsFiles(c Client) {
	if _, _, err := readCA(c.CA); err != nil {
		v.wrong(FieldCA, c.CA, "a file of PEM certificates, or a directory with *.crt files of them: "+err.Error())
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
	if f, ok := firstSet([]setting{{FieldCA, c.CA}, {FieldCert, c.Cert}, {FieldKey, c.Key}}); ok && !c.UsesTLS() {
		v.wrong(FieldProtocol, c.Protocol, "ssl or sasl_ssl when "+v.names.Of(f)+" is set")
	}
	if f, ok := firstSet([]setting{
		{FieldMechanism, c.Mechanism}, {FieldUsername, c.Username}, {FieldPassword, c.Password},
		{FieldUsernameFile, c.UsernameFile}, {FieldPasswordFile, c.PasswordFile},
	}); ok && !c.UsesSASL() {
		v.wrong(FieldProtocol, c.Protocol, "sasl_plaintext or sasl_ssl when "+v.names.Of(f)+" is set")
	}
}

type setting struct {
	field Field
	value string
}

func firstSet(settings []setting) (f Field, ok bool) {
	for _, s := range settings {
		if s.value != "" {
			return s.field, true
		}
	}
	return "", false
}

func (v *validation) sasl(c Client) {
	if !slices.Contains(mechanisms, c.Mechanism) {
		v.wrong(FieldMechanism, c.Mechanism, "one of "+strings.Join(mechanisms, ", ")+" with "+c.Protocol)
	}
	v.credential(c, setting{FieldUsername, c.Username}, setting{FieldUsernameFile, c.UsernameFile})
	v.credential(c, setting{FieldPassword, c.Password}, setting{FieldPasswordFile, c.PasswordFile})
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
