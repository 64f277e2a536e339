package web

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// mostConnections is how many connections an API has at most. One that does nothing takes some
	// 20 KiB.
	mostConnections = 4096
	// OpsConnections is how many connections the operations endpoints have at most: kubelet,
	// Prometheus, and people.
	OpsConnections = 32
	// reservedFiles is how many file descriptors an API leaves to everything else: the operations
	// endpoints, Kafka, the database, the indexes of audits.
	reservedFiles = 128
	// silence is how long a connection must have been without a request before it gives its place
	// to one that waits. A client that has just connected sends its request within that time.
	silence = time.Second
)

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
// until one is closed or has been without a request for some time: that one is closed then. All
// others wait in the queue of the kernel.
type limitListener struct {
	net.Listener
	places chan struct{}
	// waits is true while a connection waits for a place.
	waits atomic.Bool
	// closed ends the wait.
	closed    chan struct{}
	closeOnce sync.Once

	mu   sync.Mutex
	open map[*limitedConn]bool
}

func newLimitListener(ln net.Listener, connections int) *limitListener {
	return &limitListener{
		Listener: ln, places: make(chan struct{}, connections),
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

// Accept is part of net.Listener. It waits for a place with a connection in its hand, so that no
// silent connection is closed while there is nobody to take its place.
func (l *limitListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if !l.takePlace() {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	c := &limitedConn{Conn: conn, listener: l}
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
		if l.closeSilent() {
			continue
		}
		select {
		case l.places <- struct{}{}:
			return true
		case <-l.closed:
			return false
		case <-time.After(silence / 20):
		}
	}
}

// closeSilent closes the connection that was without a request for the longest time. It reports
// whether there is one that was so for long enough.
func (l *limitListener) closeSilent() bool {
	longest, since := (*limitedConn)(nil), time.Now().Add(-silence).UnixNano()
	l.mu.Lock()
	for c := range l.open {
		if at := c.silentSince.Load(); at > 0 && at <= since {
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

// Close is part of net.Listener.
func (l *limitListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// connState notes since when a connection is without a request. It is an http.Server's ConnState.
func (l *limitListener) connState(conn net.Conn, state http.ConnState) {
	var since int64
	if state == http.StateNew || state == http.StateIdle {
		since = time.Now().UnixNano()
	}
	conn.(*limitedConn).silentSince.Store(since)
}

// handler lets a client give its connection up after the response while another one waits. Unlike
// a connection that is closed, this loses no request that is on its way.
func (l *limitListener) handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.waits.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// limitedConn is a connection of a limitListener.
type limitedConn struct {
	net.Conn
	listener *limitListener
	// silentSince is the time in Unix nanoseconds since which there is no request; 0: there is one.
	silentSince atomic.Int64
	closeOnce   sync.Once
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
