package web

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// mostConnections is how many connections an API has at most. One that is kept takes some 20 KiB, one
	// that has sent no whole request less than 4 KiB (see [limitListener.run]). One whose client sends the
	// largest headers and the largest body, slowly, takes some 100 KiB: so all of them fit into the memory
	// limit of the charts.
	mostConnections = 2048
	// mostHeaderBytes is the size of the headers of a request. net/http adds 4 KiB.
	mostHeaderBytes = 16 << 10
	// opsConnections is how many connections the operations endpoints have at most: kubelet,
	// Prometheus, and people.
	opsConnections = 32
	// reservedFiles is how many file descriptors an API leaves to everything else: the operations
	// endpoints, Kafka, the database, the indexes of audits.
	reservedFiles = 128
	// patience is how long a connection must have waited for its client before it gives its place to
	// one that waits. A client that has just connected sends its request within that time.
	patience = time.Second
)

// started is when this process began. How long a connection waits is measured by it, on the monotonic clock:
// the time of day may jump. A jump back would otherwise let slow clients keep all others out for as long.
var started = time.Now()

// uptime returns how long this process has run, in nanoseconds.
func uptime() int64 { return int64(time.Since(started)) }

// APIConnections returns how many connections an API may have, so that the limit on file
// descriptors leaves enough for all else. A low limit is halved.
func APIConnections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur > 2*mostConnections {
		return mostConnections
	}
	limit := int(files.Cur)
	return min(mostConnections, limit-min(limit/2, reservedFiles))
}

// limitListener accepts a limited number of connections. When all are in use, the next one waits
// until one is closed or has waited for its client for some time: that one is closed then. All
// others wait in the queue of the kernel.
type limitListener struct {
	net.Listener
	// plain is whether requests can be read here, and not only behind TLS.
	plain  bool
	places chan struct{}
	// arrived has what Accept returns.
	arrived chan arrival
	// waits is true while a connection waits for a place.
	waits atomic.Bool
	// retires is true once the server stops.
	retires atomic.Bool
	// closed ends the wait.
	closed    chan struct{}
	closeOnce sync.Once

	mu   sync.Mutex
	open map[*limitedConn]bool
}

func newLimitListener(ln net.Listener, connections int, plain bool) *limitListener {
	return &limitListener{
		Listener: ln, plain: plain, places: make(chan struct{}, connections), arrived: make(chan arrival),
		closed: make(chan struct{}), open: map[*limitedConn]bool{},
	}
}

// register registers the metrics of the connections.
func (l *limitListener) register(reg prometheus.Registerer) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "http_connections",
			Help: "Open connections to the API. At http_connections_limit, the next one waits for a place.",
		}, func() float64 { return float64(len(l.places)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "http_connections_limit",
			Help: "How many connections to the API there are at most.",
		}, func() float64 { return float64(cap(l.places)) }),
	)
}

// take accepts a connection. It waits for a place with the connection in its hand, so that no
// connection is closed while there is nobody to take its place.
func (l *limitListener) take() (*limitedConn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if !l.takePlace() {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	c := &limitedConn{Conn: conn, listener: l}
	c.arrives.Store(l.plain)
	c.waitForClient()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c] = true
	return c, nil
}

// takePlace reports whether it got a place before the listener was closed.
func (l *limitListener) takePlace() bool {
	defer l.waits.Store(false)
	for {
		select {
		case l.places <- struct{}{}:
			return true
		default:
		}
		l.waits.Store(true)
		if l.closeSlowest() {
			continue
		}
		select {
		case l.places <- struct{}{}:
			return true
		case <-l.closed:
			return false
		case <-time.After(patience / 20):
		}
	}
}

// closeSlowest closes the connection that has waited for its client for the longest time. It reports
// whether there is one that has waited for long enough.
func (l *limitListener) closeSlowest() bool {
	longest, since := (*limitedConn)(nil), uptime()-int64(patience)
	l.mu.Lock()
	for c := range l.open {
		if at := c.writesSince.Load(); at > 0 && at <= since {
			longest, since = c, at
		}
		if at := c.readsSince.Load(); at > 0 && at <= since && !c.unread() {
			longest, since = c, at
		}
	}
	l.mu.Unlock()
	if longest == nil {
		return false
	}
	_ = longest.Close()
	return true
}

// retire ends each connection with its next response. It returns when no connection is left that was
// idle for less than linger, or after twice that time.
//
// A server that closes an idle connection loses a request that its client has just sent.
func (l *limitListener) retire(linger time.Duration) {
	l.retires.Store(true)
	for end := time.Now().Add(2 * linger); l.fresh(linger) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// fresh reports whether a connection has a request under way, or was idle for less than linger.
func (l *limitListener) fresh(linger time.Duration) bool {
	since := uptime() - int64(linger)
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		if at := c.readsSince.Load(); at == 0 || at > since {
			return true
		}
	}
	return false
}

// Close is part of net.Listener.
func (l *limitListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// connState notes since when a connection waits for its next request. It is an http.Server's ConnState.
func (l *limitListener) connState(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew: // It has waited since it was accepted.
	case http.StateIdle:
		limitedOf(conn).waitForClient()
	default:
		limitedOf(conn).readsSince.Store(0)
	}
}

// connKey is the key of the *limitedConn in the context of a request.
type connKey struct{}

// connContext is an http.Server's ConnContext.
func (l *limitListener) connContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, limitedOf(conn))
}

// limitedOf returns the connection of a limitListener that an http.Server has, also below TLS.
func limitedOf(conn net.Conn) *limitedConn {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	return conn.(*limitedConn)
}

// handler lets a client give its connection up after the response while another one waits, or once the
// server stops. Unlike a connection that is closed, this loses no request that is on its way. It also
// notes while the connection waits for the body of a request.
func (l *limitListener) handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.waits.Load() || l.retires.Load() {
			w.Header().Set("Connection", "close")
		}
		c := r.Context().Value(connKey{}).(*limitedConn)
		// A copy: when the response ends, net/http looks at the body of its own request, to see whether the client
		// still waits for permission to send it.
		arriving := *r
		if r.Body != http.NoBody {
			arriving.Body = &arrivingBody{r.Body, c}
		}
		h.ServeHTTP(w, &arriving)
		// The rest of the response, and a body that was not read, are up to the client.
		c.waitForClient()
	})
}

// arrivingBody is the body of a request. Its connection waits for the client from the first Read to
// the end of the body.
type arrivingBody struct {
	io.ReadCloser
	conn *limitedConn
}

// Read is part of io.Reader.
func (b *arrivingBody) Read(p []byte) (int, error) {
	b.conn.readsSince.CompareAndSwap(0, uptime())
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.conn.readsSince.Store(0)
	}
	return n, err
}

// limitedConn is a connection of a limitListener.
type limitedConn struct {
	net.Conn
	listener *limitListener
	// readsSince is the uptime since which the connection waits for a request or for its body; 0: it does
	// not.
	readsSince atomic.Int64
	// writesSince is the uptime since which the client has to take a part of a response; 0: it does not.
	writesSince atomic.Int64
	// arrives is true until the server can have the connection.
	arrives atomic.Bool
	// head is the beginning of the first request: what the server has not read of it.
	head      []byte
	closeOnce sync.Once
}

// waitForClient notes that the connection waits for its client from now on.
func (c *limitedConn) waitForClient() { c.readsSince.Store(uptime()) }

// unread reports whether the client has sent something that this process has not read yet. Then the
// service is slow, and not the client.
func (c *limitedConn) unread() bool {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = raw.Control(func(fd uintptr) {
		// A connection of Go never blocks.
		n, _, _ = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
	})
	return err == nil && n > 0
}

// Read is part of net.Conn.
func (c *limitedConn) Read(b []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.head)
	if c.head = c.head[n:]; len(c.head) == 0 {
		c.head = nil
	}
	return n, nil
}

// Write is part of net.Conn. It waits while the client does not take what was written before.
func (c *limitedConn) Write(b []byte) (int, error) {
	c.writesSince.Store(uptime())
	defer c.writesSince.Store(0)
	return c.Conn.Write(b)
}

// Close is part of net.Conn.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.closeOnce.Do(func() {
		c.listener.mu.Lock()
		delete(c.listener.open, c)
		c.listener.mu.Unlock()
		<-c.listener.places
	})
	return err
}
