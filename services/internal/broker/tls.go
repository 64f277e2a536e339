package broker

import (
	"errors"
	"sync/atomic"
	"time"

	"ordersystem.dev/services/internal/kafkaconfig"
)

// errRenewed ends what was made with TLS files that have changed. The caller goes on with a new
// client.
var errRenewed = errors.New("the TLS files have changed")

// tlsFiles holds which contents of the TLS files are in use. It is shared by the copies of a
// Config.
//
// Files may change at any time, as when Strimzi renews a certificate, and librdkafka reads them
// only once. So the Admin watches them and tries new contents. If Kafka accepts those, every client
// of the Config is recreated. Until then, clients are made with the contents that were accepted
// last.
type tlsFiles struct {
	client kafkaconfig.Client
	inUse  atomic.Pointer[pems]
}

// newTLSFiles returns nil for a client without TLS files.
func newTLSFiles(c kafkaconfig.Client) *tlsFiles {
	if !c.HasTLSFiles() {
		return nil
	}
	return &tlsFiles{client: c}
}

// current returns the contents in use. The first call reads the files.
func (f *tlsFiles) current() (*pems, error) {
	if p := f.inUse.Load(); p != nil {
		return p, nil
	}
	p, err := readFiles(f.client)
	if err != nil {
		return nil, err
	}
	// Of two first calls at the same time, one decides what is in use.
	f.inUse.CompareAndSwap(nil, p)
	return f.inUse.Load(), nil
}

// use puts p to use, and notifies every client that was made with the contents before. Only the
// Admin calls it, after it has made its own client.
func (f *tlsFiles) use(p *pems) {
	close(f.inUse.Swap(p).replaced)
}

// pems is what the files held at one moment.
type pems struct {
	kafkaconfig.TLS

	// replaced is closed when other contents are in use.
	replaced chan struct{}
}

// readFiles reads the files as they are now.
func readFiles(c kafkaconfig.Client) (*pems, error) {
	files, err := c.ReadTLS()
	if err != nil {
		return nil, err
	}
	return &pems{TLS: files, replaced: make(chan struct{})}, nil
}

// same reports whether p and o hold the same texts.
func (p *pems) same(o *pems) bool { return p.CA == o.CA && p.Cert == o.Cert && p.Key == o.Key }

// expires returns when the client's certificate does. It is zero without one.
func (p *pems) expires() time.Time {
	if p.Pair.Leaf == nil {
		return time.Time{}
	}
	return p.Pair.Leaf.NotAfter
}
