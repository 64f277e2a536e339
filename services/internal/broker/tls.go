package broker

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"ordersystem.dev/services/internal/ca"
	"ordersystem.dev/services/internal/env"
)

// tlsCheck is how often the files are read. It is polling because that alone sees every way in which files are swapped: Kubernetes
// replaces a symbolic link two levels above them.
const tlsCheck = 2 * time.Second

// TLS names the files that say whom a client trusts and who it is. They may change at any time, as when Strimzi renews a certificate;
// librdkafka reads them once. So the Admin watches them, tries what is new, and then every client of the same Config is made anew.
// Copies of a Config share their TLS. What cannot be used changes nothing: clients are made with what could be used last.
type TLS struct {
	CA        string // a file, or a directory all of whose *.crt are trusted; empty trusts what the system does
	Cert, Key string // files of the client's certificate

	inUse atomic.Pointer[pems]
}

// pems is what the files held at one moment.
type pems struct {
	ca, cert, key string
	expires       time.Time     // of the client's certificate
	replaced      chan struct{} // closed when others are in use
}

func (p *pems) same(o *pems) bool { return p.ca == o.ca && p.cert == o.cert && p.key == o.key }

// check says which variable has to be set right.
func (f *TLS) check(e *env.Env) {
	_, err := ca.Read(f.CA)
	if err != nil {
		e.Invalid("KAFKA_TLS_CA", f.CA, "a file of PEM certificates, or a directory with *.crt files of them")
	}
	for _, file := range []struct{ variable, name string }{{"KAFKA_TLS_CERT", f.Cert}, {"KAFKA_TLS_KEY", f.Key}} {
		if _, missing := os.Stat(file.name); file.name != "" && missing != nil {
			err = missing
			e.Invalid(file.variable, file.name, "a file that can be read")
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		e.Invalid("KAFKA_TLS_CERT", f.Cert, "set together with KAFKA_TLS_KEY")
	} else if err == nil {
		if _, err = f.current(); err != nil {
			e.Invalid("KAFKA_TLS_CERT", f.Cert, "the PEM certificate of KAFKA_TLS_KEY")
		}
	}
}

// current is what clients are made with; without files it is empty, and never replaced.
func (f *TLS) current() (*pems, error) {
	if f == nil {
		return &pems{}, nil
	}
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
func (f *TLS) use(p *pems) {
	close(f.inUse.Swap(p).replaced)
}

// read reads the files as one set: a certificate and a key that were read before and after a swap do not fit together.
func (f *TLS) read() (*pems, error) {
	trusted, err := ca.Read(f.CA)
	if err != nil {
		return nil, err
	}
	p := &pems{ca: trusted, replaced: make(chan struct{})}
	if f.Cert == "" {
		return p, nil
	}
	cert, err := os.ReadFile(f.Cert)
	if err != nil {
		return nil, fmt.Errorf("read the client's certificate: %w", err)
	}
	key, err := os.ReadFile(f.Key)
	if err != nil {
		return nil, fmt.Errorf("read the client's key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are no certificate with its key: %w", f.Cert, f.Key, err)
	}
	p.cert, p.key, p.expires = string(cert), string(key), pair.Leaf.NotAfter
	return p, nil
}
