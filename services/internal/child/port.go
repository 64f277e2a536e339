package child

import (
	"math/rand/v2"
	"net"
	"strconv"
)

// FreePort returns a port that nothing listens on. It lies outside the range from which the system
// takes the ports of outgoing connections. Otherwise a client that retries to reach a stopped
// server could get the server's own port, connect to itself, and hold the port.
func FreePort() int {
	for {
		port := 15000 + rand.IntN(15000)
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			ln.Close()
			return port
		}
	}
}
