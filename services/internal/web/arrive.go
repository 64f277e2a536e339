package web

import (
	"bytes"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// headerTimeout is how long the headers of a request may take.
	headerTimeout = 5 * time.Second
	// mostHeadBytes is how much of a request is read before the server has its connection.
	mostHeadBytes = 4 << 10
	// headBytes is room for the whole of most requests.
	headBytes = 512
)

// arrival is a connection for the server, or why none could be accepted.
type arrival struct {
	conn *limitedConn
	err  error
}

// run accepts connections until the listener is closed. The server gets each when the headers of its
// first request have arrived, as FreeBSD's accf_http(9) does it: net/http takes 18 KiB for a connection
// at once, and many clients that never end a request would take all of it.
func (l *limitListener) run() {
	var arriving sync.WaitGroup
	defer arriving.Wait()
	defer l.closeArriving()
	for {
		c, err := l.take()
		if err != nil {
			// The server waits a moment before it takes the next one, or gives up and closes the listener.
			if !l.handOver(arrival{err: err}) {
				return
			}
			continue
		}
		arriving.Go(func() {
			if c.arrives.Load() && !c.readHead() || !l.handOver(arrival{conn: c}) {
				_ = c.Close()
			}
		})
	}
}

// handOver reports whether the server has taken it, and not been closed before.
func (l *limitListener) handOver(a arrival) bool {
	select {
	case l.arrived <- a:
		return true
	case <-l.closed:
		return false
	}
}

// Accept is part of net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case a := <-l.arrived:
		if a.err != nil {
			return nil, a.err
		}
		return a.conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// closeArriving closes the connections whose first request has not arrived.
func (l *limitListener) closeArriving() {
	l.mu.Lock()
	open := slices.Collect(maps.Keys(l.open))
	l.mu.Unlock()
	for _, c := range open {
		if c.arrives.Load() {
			_ = c.Close()
		}
	}
}

// readHead reads the headers of the first request. It reports whether the server can go on with the
// connection. Whether the request is right is decided there.
func (c *limitedConn) readHead() bool {
	if err := c.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return false
	}
	head := make([]byte, 0, headBytes)
	for !isHead(head) {
		head = slices.Grow(head, 1)
		n, err := c.Conn.Read(head[len(head):cap(head)])
		if head = head[:len(head)+n]; err != nil {
			return false
		}
	}
	c.head = head
	if len(head) < mostHeadBytes {
		// From now on, the client waits for the service.
		c.readsSince.Store(0)
	}
	c.arrives.Store(false)
	return true
}

// isHead reports whether these are the headers of a request, or the server can refuse it without more.
func isHead(b []byte) bool {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	return whole && !bytes.Contains(line, []byte(" HTTP/")) ||
		bytes.Contains(b, []byte("\n\r\n")) || bytes.Contains(b, []byte("\n\n")) || len(b) >= mostHeadBytes
}
