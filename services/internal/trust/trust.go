// Package trust reads the certificates that a client trusts.
package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
)

// Read returns the PEM text of a file, or of every *.crt file in a directory, and the certificates
// in it: while Strimzi renews its authority, two are valid. Without a path it returns neither. A file
// that ends within a certificate is an error, because it is still being written.
func Read(path string) (string, *x509.CertPool, error) {
	if path == "" {
		return "", nil, nil
	}
	files := []string{path}
	if info, err := os.Stat(path); err != nil {
		return "", nil, fmt.Errorf("read CA: %w", err)
	} else if info.IsDir() {
		if files, _ = filepath.Glob(filepath.Join(path, "*.crt")); len(files) == 0 {
			return "", nil, fmt.Errorf("read CA: no *.crt in %s", path)
		}
	}
	var all bytes.Buffer
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", nil, fmt.Errorf("read CA: %w", err)
		}
		block, rest := pem.Decode(text)
		for block != nil && len(bytes.TrimSpace(rest)) > 0 {
			block, rest = pem.Decode(rest)
		}
		// A last part that is no PEM block may stand behind good ones.
		if block == nil {
			return "", nil, fmt.Errorf("read CA: %s is not whole PEM text", file)
		}
		all.Write(text)
		all.WriteByte('\n')
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(all.Bytes()) {
		return "", nil, fmt.Errorf("read CA: no certificate in %s", path)
	}
	return all.String(), roots, nil
}
