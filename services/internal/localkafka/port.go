package localkafka

import (
	"fmt"
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

// checkFree returns a [*PortTakenError] if a broker could not listen on addr.
func checkFree(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return &PortTakenError{addr, err}
	}
	return ln.Close()
}

func localAddr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
