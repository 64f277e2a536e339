package kafkaconfig_test

import (
	"path/filepath"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/testenv"
)

// Files that hold no whole certificates are refused.
func TestReadTLSReadsAFileOrADirectoryOfCAs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string, text []byte) string { return writeFile(t, dir, name, string(text)) }
	former, current := testenv.NewAuthority(t, "former").PEM, testenv.NewAuthority(t, "current").PEM
	one := file("both/new.crt", current)
	file("both/old.crt", former)
	file("both/ca.p12", []byte("not PEM"))
	other := file("other/ca.p12", []byte("not PEM"))
	_, keyText := testenv.NewAuthority(t, "other").Issue(t, "cart")
	key := file("tls.key", keyText)
	// Such a file is still being written.
	half := file("half.crt", append(append([]byte{}, former...), current[:len(current)/2]...))
	for _, tt := range []struct{ path, want, err string }{
		{"", "", ""},
		{one, string(current) + "\n", ""},
		{filepath.Dir(one), string(current) + "\n" + string(former) + "\n", ""},
		{filepath.Dir(other), "", "no *.crt in " + filepath.Dir(other)},
		{other, "", "not whole PEM"},
		{half, "", "not whole PEM"},
		{key, "", "no certificate in " + key},
		{filepath.Join(dir, "none"), "", "no such file"},
	} {
		files, err := kafkaconfig.Client{CA: tt.path}.ReadTLS()
		got := files.CA
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("the CA at %s is %q, %v; want %q, %s", tt.path, got, err, tt.want, tt.err)
		}
	}
}
