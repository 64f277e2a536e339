package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// balancer forwards TCP connections to one of several addresses, as a Kubernetes Service does. It knows
// nothing of HTTP and repeats nothing: a connection that cannot be forwarded is closed.
type balancer struct {
	listener net.Listener

	mu      sync.Mutex
	targets []string
	next    int
	ways
}

// ways are the two ways of connections.
type ways struct{ requests, responses gate }

// part holds back what goes either way, for as long as pause takes.
func (w *ways) part(pause func()) {
	w.requests.hold(func() { w.responses.hold(pause) })
}

// gate lets data through, or holds it back: neither side of a connection learns of that.
type gate struct{ sync.RWMutex }

// pass waits while data is held back.
func (g *gate) pass() {
	g.RLock()
	defer g.RUnlock()
}

// hold holds data back for as long as pause takes.
func (g *gate) hold(pause func()) {
	g.Lock()
	defer g.Unlock()
	pause()
}

// gated writes through a gate.
type gated struct {
	io.Writer
	*gate
}

func (g gated) Write(data []byte) (int, error) {
	g.pass()
	return g.Writer.Write(data)
}

// newBalancer starts a balancer that has no targets yet.
func newBalancer(t testing.TB) *balancer {
	t.Helper()
	ln := listen(t)
	b := &balancer{listener: ln}
	var serving sync.WaitGroup
	serving.Go(b.serve)
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return b
}

func (b *balancer) addr() string { return b.listener.Addr().String() }

// use replaces the targets of new connections. Those that are open stay where they are.
func (b *balancer) use(targets ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.targets = targets
}

func (b *balancer) serve() {
	for {
		client, err := b.listener.Accept()
		if err != nil {
			return
		}
		go b.forward(client)
	}
}

func (b *balancer) forward(client net.Conn) {
	defer client.Close()
	b.mu.Lock()
	b.next++
	target := ""
	if len(b.targets) > 0 {
		target = b.targets[b.next%len(b.targets)]
	}
	b.mu.Unlock()
	server, err := net.DialTimeout("tcp", target, time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	for _, way := range []struct {
		to, from net.Conn
		through  *gate
	}{{server, client, &b.requests}, {client, server, &b.responses}} {
		both.Go(func() {
			if _, err := io.Copy(gated{way.to, way.through}, way.from); err != nil {
				way.to.Close()
			}
			// The other way may go on.
			_ = way.to.(*net.TCPConn).CloseWrite()
		})
	}
	both.Wait()
}
