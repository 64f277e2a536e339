package localkafka

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// A PortTakenError reports that the broker cannot listen on the port that was asked for.
type PortTakenError struct {
	Addr string
	Err  error
}

func (e *PortTakenError) Error() string { return fmt.Sprintf("listen on %s: %v", e.Addr, e.Err) }

func (e *PortTakenError) Unwrap() error { return e.Err }

// FreePort returns a port that nothing listens on. It lies outside the range from which the system
// takes the ports of outgoing connections. Otherwise a client that retries to reach a stopped
// server could get the server's own port, connect to itself, and hold the port.
func FreePort() int {
	for {
		if port := 15000 + rand.IntN(15000); checkFree(localAddr(port)) == nil {
			return port
		}
	}
}

// checkFree returns a [*PortTakenError] if a broker could not listen on addr.
func checkFree(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return &PortTakenError{addr, err}
	}
	return ln.Close()
}

func localAddr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
