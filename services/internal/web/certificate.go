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
	// of are the times at which the files of loaded had changed, and failed those of files that could not
	// be read.
	of, failed [2]time.Time
}

// NewCertificate reads a certificate with its chain, and its key. Both files are in PEM.
func NewCertificate(cert, key string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{cert: cert, key: key, log: log}
	// Before the files are read: a change meanwhile shows later.
	c.of = c.changed()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of the API from %s and %s: %w", cert, key, err)
	}
	c.loaded = &pair
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
	changed := c.changed()
	if changed == c.of {
		return c.loaded, nil
	}
	// The two files are not replaced in one moment: after the first one they may not belong together.
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err == nil {
		c.loaded, c.of = &pair, changed
	} else if changed != c.failed {
		c.failed = changed
		c.log.Warn("the certificate of the API has changed and cannot be read; the one before stays in use",
			"cert", c.cert, "key", c.key, "err", err)
	}
	return c.loaded, nil
}

// changed returns when the files had changed last.
func (c *Certificate) changed() (at [2]time.Time) {
	for i, file := range []string{c.cert, c.key} {
		if info, err := os.Stat(file); err == nil {
			at[i] = info.ModTime()
		}
	}
	return at
}
