package web_test

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/internal/web"
)

// certificate is a certificate in two files.
type certificate struct{ cert, key string }

// issue makes a certificate for a name and returns its files.
func issue(t *testing.T, by *testenv.Authority, name string) certificate {
	t.Helper()
	dir := t.TempDir()
	c := certificate{filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")}
	cert, key := by.Issue(t, name, name)
	write(t, c.cert, cert)
	write(t, c.key, key)
	return c
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// renew replaces a file by one that is younger for sure: some file systems' clocks tick every 10 ms.
func renew(t *testing.T, file string, text []byte) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, text)
	later := info.ModTime().Add(time.Second)
	if err := os.Chtimes(file, later, later); err != nil {
		t.Fatal(err)
	}
}

// load reads the files.
func (c certificate) load(t *testing.T, log *slog.Logger) *web.Certificate {
	t.Helper()
	loaded, err := web.NewCertificate(c.cert, c.key, log)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestARenewedCertificateNeedsNoRestart(t *testing.T) {
	t.Parallel()
	authority := testenv.NewAuthority(t, "ca")
	files := issue(t, authority, "first")
	var log testenv.Lines
	logger := slog.New(slog.NewTextHandler(&log, nil))
	addr, metrics := serve(t, web.Server{Log: logger, Certificate: files.load(t, logger), Connections: 8})
	// named asks on a new connection, and returns the name in the certificate.
	named := func() string {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: authority.Roots()}, DisableKeepAlives: true,
			// A client that could use HTTP/2 gets HTTP/1.1.
			ForceAttemptHTTP2: true,
		}}
		resp, err := client.Get("https://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 1 {
			t.Errorf("the response came with %s, want HTTP/1.1", resp.Proto)
		}
		return resp.TLS.PeerCertificates[0].Subject.CommonName
	}
	if got := named(); got != "first" {
		t.Fatalf("the certificate is for %q, want first", got)
	}
	expires := gauges(t, metrics)["http_certificate_not_after_timestamp_seconds"]
	if until := time.Until(time.Unix(int64(expires), 0)); until < 23*time.Hour || until > 24*time.Hour {
		t.Errorf("the metric says that the certificate expires in %s, want a day", until)
	}

	cert, key := authority.Issue(t, "second", "second")
	renew(t, files.cert, cert)
	if got := named(); got != "first" {
		t.Errorf("while only one file is new, the certificate is for %q, want first", got)
	}
	if !strings.Contains(log.String(), "the one before stays in use") {
		t.Errorf("the log does not say that the files do not belong together:\n%s", log.String())
	}
	renew(t, files.key, key)
	if got := named(); got != "second" {
		t.Errorf("the certificate is for %q, want second", got)
	}
	// A client that does not speak TLS is no error of the server.
	conn := overTLS(false).connect(t, addr, request)
	_, _ = io.Copy(io.Discard, conn)
	if strings.Contains(log.String(), "handshake") {
		t.Errorf("a failed handshake is in the log:\n%s", log.String())
	}
	if err := os.Remove(files.key); err != nil {
		t.Fatal(err)
	}
	if got := named(); got != "second" {
		t.Errorf("after a file is gone the certificate is for %q, want second", got)
	}
}

func TestACertificateThatCannotBeReadIsAnError(t *testing.T) {
	t.Parallel()
	authority := testenv.NewAuthority(t, "ca")
	one, other := issue(t, authority, "one"), issue(t, authority, "other")
	_, err := web.NewCertificate(one.cert, other.key, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), other.key) {
		t.Errorf("err = %v, want it to name %s", err, other.key)
	}
}
