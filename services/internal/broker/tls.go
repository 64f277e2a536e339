package broker

import (
	"sync/atomic"
	"time"

	"ordersystem.dev/services/internal/kafkaconfig"
)

// tlsCheck is how often the files are read. It is polling because that alone sees every way in which files are swapped: Kubernetes
// replaces a symbolic link two levels above them.
const tlsCheck = 2 * time.Second

// tlsFiles are the files that say whom a client trusts and who it is. They may change at any time, as when Strimzi renews a
// certificate; librdkafka reads them once. So the Admin watches them, tries what is new, and then every client of the same Config is
// made anew. What cannot be used changes nothing: clients are made with what could be used last.
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

// pems is what the files held at one moment.
type pems struct {
	kafkaconfig.TLS

	replaced chan struct{} // closed when others are in use
}

func (p *pems) same(o *pems) bool { return p.CA == o.CA && p.Cert == o.Cert && p.Key == o.Key }

// expires returns when the client's certificate does, and the zero time without one.
func (p *pems) expires() time.Time {
	if p.Pair.Leaf == nil {
		return time.Time{}
	}
	return p.Pair.Leaf.NotAfter
}

// currentFiles returns what clients are made with. Without files that is empty and never replaced.
func (c Config) currentFiles() (*pems, error) {
	if c.files == nil {
		return readFiles(c.Client)
	}
	return c.files.current()
}

func (f *tlsFiles) current() (*pems, error) {
	if p := f.inUse.Load(); p != nil {
		return p, nil
	}
	p, err := f.read()
	if err != nil {
		return nil, err
	}
	f.inUse.CompareAndSwap(nil, p) // of two that came first, one is in use
	return f.inUse.Load(), nil
}

// use lets every client that was made with others know. Only the Admin calls it, which has made its own client by then.
func (f *tlsFiles) use(p *pems) {
	close(f.inUse.Swap(p).replaced)
}

func (f *tlsFiles) read() (*pems, error) { return readFiles(f.client) }

func readFiles(c kafkaconfig.Client) (*pems, error) {
	files, err := c.ReadTLS()
	if err != nil {
		return nil, err
	}
	return &pems{TLS: files, replaced: make(chan struct{})}, nil
}
