package web

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Certificate is the certificate of a server, in two files. Files that have changed count from the next
// connection on, so a renewed certificate needs no restart.
type Certificate struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	// seen are the times at which the files that were read last had changed.
	seen [2]time.Time
}

// NewCertificate reads a certificate with its chain, and its key. Both files are in PEM.
func NewCertificate(cert, key string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{cert: cert, key: key, log: log}
	if err := c.reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// register registers the metric of the certificate.
func (c *Certificate) register(reg prometheus.Registerer) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "http_certificate_not_after_timestamp_seconds",
		Help: "Unix time at which the certificate of the API expires.",
	}, func() float64 {
		// It cannot fail: there is one from the start.
		cert, _ := c.get(nil)
		return float64(cert.Leaf.NotAfter.Unix())
	}))
}

// get returns the certificate for a connection. It is a tls.Config's GetCertificate.
func (c *Certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.reload(); err != nil {
		c.log.Warn("the certificate of the API has changed and cannot be read; the one before stays in use",
			"err", err)
	}
	return c.loaded, nil
}

// reload reads the files if they have changed since it was called last. The two are not replaced in one
// moment: after the first one they may not belong together.
func (c *Certificate) reload() error {
	var changed [2]time.Time
	for i, file := range []string{c.cert, c.key} {
		info, err := os.Stat(file)
		if err == nil {
			changed[i] = info.ModTime()
		}
	}
	if changed == c.seen && c.loaded != nil {
		return nil
	}
	c.seen = changed
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("read the certificate of the API from %s and %s: %w", c.cert, c.key, err)
	}
	c.loaded = &pair
	return nil
}
