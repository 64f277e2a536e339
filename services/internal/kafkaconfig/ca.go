package kafkaconfig

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
)

// readCA returns the PEM text of a file, or of every *.crt file in a directory: while Strimzi renews
// its authority, two are valid. Without a path it returns no text. A file that ends within a
// certificate is an error, because it is still being written.
func readCA(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	files := []string{path}
	if info, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("read CA: %w", err)
	} else if info.IsDir() {
		if files, _ = filepath.Glob(filepath.Join(path, "*.crt")); len(files) == 0 {
			return "", fmt.Errorf("read CA: no *.crt in %s", path)
		}
	}
	var all bytes.Buffer
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read CA: %w", err)
		}
		block, rest := pem.Decode(text)
		for block != nil && len(bytes.TrimSpace(rest)) > 0 {
			block, rest = pem.Decode(rest)
		}
		// A last part that is no PEM block may stand behind good ones.
		if block == nil {
			return "", fmt.Errorf("read CA: %s is not whole PEM text", file)
		}
		all.Write(text)
		all.WriteByte('\n')
	}
	if !x509.NewCertPool().AppendCertsFromPEM(all.Bytes()) {
		return "", fmt.Errorf("read CA: no certificate in %s", path)
	}
	return all.String(), nil
}
