package web_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/internal/web"
)

func TestServeDrains(t *testing.T) {
	t.Parallel()
	ln, err := web.Listen(env.Addr{Value: "127.0.0.1:0", Variable: "HTTP_ADDR"})
	if err != nil {
		t.Fatal(err)
	}
	entered, finish := make(chan struct{}), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-finish
		web.WriteText(w, 200, "done")
	})
	go func() {
		served <- web.Server{Log: slog.New(slog.DiscardHandler), Connections: 10}.Serve(ctx, ln, handler)
	}()
	body := make(chan string)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			body <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		body <- string(text) + errorText(err)
	}()
	<-entered
	stop()
	// Until nothing is accepted any more.
	for {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
	}
	close(finish)
	if got := <-body; got != "done" {
		t.Errorf("the request under way got %q, want %q", got, "done")
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A server that stops does not close a connection under a request that is on its way. It says with its
// next response that the connection ends. Only a connection that is idle for long is closed.
func TestAStopLosesNoRequestOnItsWay(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const linger = 20 * time.Second
	connect := overTLS(false).connect
	server := web.Server{Log: slog.New(slog.DiscardHandler), Connections: 10, Linger: linger}
	entered, finish := make(chan struct{}), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	var served errgroup.Group
	served.Go(func() error {
		return server.Serve(ctx, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(entered)
				<-finish
			}
			web.WriteText(w, 200, "done")
		}))
	})
	idle := connect(t, ln.Addr().String(), request)
	if !responds(t, idle) {
		t.Error("a connection is not kept before the stop")
	}
	slow := connect(t, ln.Addr().String(), "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	begin := time.Now()
	stop()
	// Nothing shows that the server has begun to stop: the request may come before or after that.
	time.Sleep(50 * time.Millisecond)
	for name, conn := range map[string]net.Conn{"idle": idle, "new": connect(t, ln.Addr().String(), "")} {
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		if responds(t, conn) {
			t.Errorf("the %s connection is kept although the server stops", name)
		}
	}
	// A response that was under way does not say it, so its connection stays until the next one.
	close(finish)
	if responds(t, slow) {
		if _, err := io.WriteString(slow, request); err != nil {
			t.Fatal(err)
		}
		if responds(t, slow) {
			t.Error("the slow connection is kept although the server stops")
		}
	}
	if err := served.Wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took >= linger {
		t.Errorf("the stop took %s although no connection was left", took)
	}
}

// serve runs a server until the test ends, and returns its address and metrics.
func serve(t *testing.T, server web.Server) (addr string, metrics *prometheus.Registry) {
	t.Helper()
	metrics = prometheus.NewRegistry()
	server.Registry = metrics
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var served errgroup.Group
	served.Go(func() error { return server.Serve(ctx, ln, http.HandlerFunc(respond)) })
	t.Cleanup(func() {
		stop()
		if err := served.Wait(); err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String(), metrics
}

// respond responds with "done". A request for /held is under way until the test ends, one for /endless
// has a response without an end, and one for /read reads its body first.
func respond(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/held":
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	case "/endless":
		for block := make([]byte, 1<<20); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	case "/read":
		if _, err := io.ReadAll(r.Body); err != nil {
			return
		}
	}
	web.WriteText(w, 200, "done")
}

// overTLS is how a client of the server connects.
type overTLS bool

// server returns a server with so many connections.
func (secure overTLS) server(t *testing.T, connections int) web.Server {
	t.Helper()
	s := web.Server{Log: slog.New(slog.DiscardHandler), Connections: connections}
	if secure {
		s.Certificate = issue(t, testenv.NewAuthority(t, "ca"), "orders").load(t, s.Log)
	}
	return s
}

// connect opens a connection and sends text, which may be part of a request.
func (secure overTLS) connect(t *testing.T, addr, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if secure && text != "" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn
}

// gauges returns the gauges in reg by name.
func gauges(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		values[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	return values
}

// responds waits for a response, and returns whether the server keeps the connection.
func responds(t *testing.T, conn net.Conn) (kept bool) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return !resp.Close
}

// A handler that refuses a request without its body does not wait for that: neither for a client that waits for
// permission to send it (RFC 9110, section 10.1.1), nor for a large one.
func TestARefusalDoesNotWaitForTheBody(t *testing.T) {
	t.Parallel()
	plain := overTLS(false)
	addr, _ := serve(t, plain.server(t, 6))
	for name, headers := range map[string]string{
		"it waits for permission": "Expect: 100-continue\r\nContent-Length: 10\r\n",
		"it is large":             "Content-Length: 1000000\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := plain.connect(t, addr, "POST / HTTP/1.1\r\nHost: x\r\n"+headers+"\r\n")
			if responds(t, conn) {
				t.Error("the connection is kept although the body may still come")
			}
		})
	}
}

const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

// The server closes a connection whose headers take longer than headerTimeout, and one that has waited for
// its client longer than patience while another one waits. A test whose machine stood still for so long has
// shown nothing, and is repeated. It has so many attempts.
const (
	headerTimeout = 5 * time.Second
	patience      = time.Second
	attempts      = 5
)

// Connections that wait for their clients give their places up to those that wait for a place. Those
// with a request under way keep theirs.
func TestSlowConnectionsGiveTheirPlaceUp(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]overTLS{"HTTP": false, "HTTPS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			secure.slowGiveUp(t)
		})
	}
}

func (secure overTLS) slowGiveUp(t *testing.T) {
	connect := secure.connect
	addr, metrics := serve(t, secure.server(t, 6))
	held := connect(t, addr, "GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
	if !responds(t, held) {
		t.Error("a connection is not kept while there is room")
	}
	idle := connect(t, addr, request)
	responds(t, idle)
	slow := map[string]net.Conn{
		"idle":          idle,
		"silent":        connect(t, addr, ""),
		"half a body":   connect(t, addr, "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"),
		"body not read": connect(t, addr, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"),
		"reads nothing": connect(t, addr, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"),
	}
	if limit := gauges(t, metrics)["http_connections_limit"]; limit != 6 {
		t.Errorf("http_connections_limit is %v, want 6", limit)
	}
	for start := time.Now(); gauges(t, metrics)["http_connections"] != 6; time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("http_connections is %v with all places taken", gauges(t, metrics)["http_connections"])
		}
	}
	// Many more than there are places.
	for range 12 {
		responds(t, connect(t, addr, request))
	}
	for name, conn := range slow {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s connection is still open", name)
		}
	}
	held.SetReadDeadline(time.Now())
	if _, err := held.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection with a request under way: %v, want it to be open", err)
	}
}

// While a connection waits, a client learns with its response that it loses its own.
func TestBusyConnectionIsGivenUpAfterItsResponse(t *testing.T) {
	t.Parallel()
	for range attempts {
		if busyIsGivenUp(t) {
			return
		}
	}
	t.Fatalf("in each of %d attempts, the request took longer than %s", attempts, patience)
}

// busyIsGivenUp reports whether the request was sent so fast that the server had to respond to it.
func busyIsGivenUp(t *testing.T) (sent bool) {
	t.Helper()
	connect := overTLS(false).connect
	addr, _ := serve(t, overTLS(false).server(t, 1))
	begin := time.Now()
	busy := connect(t, addr, "GET / HTTP/1.1\r\n")
	waiting := connect(t, addr, request)
	// It takes a moment until the second one waits.
	for start := time.Now(); time.Since(start) < 200*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		fmt.Fprint(busy, "X: x\r\n")
	}
	fmt.Fprint(busy, "Host: x\r\n\r\n")
	if time.Since(begin) >= patience {
		return false
	}
	if responds(t, busy) {
		t.Error("the connection is kept while another one waits")
	}
	if !responds(t, waiting) {
		t.Error("the connection is not kept although none waits")
	}
	return true
}

// A request may come in any pieces. One that can only be refused is refused before its end.
func TestRequestsArriveInPieces(t *testing.T) {
	t.Parallel()
	addr, _ := serve(t, overTLS(false).server(t, 20))
	const headers = "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
	for name, test := range map[string]struct {
		pieces []string
		want   []int
	}{
		"byte by byte":               {strings.Split(request, ""), []int{200}},
		"body in a piece of its own": {[]string{headers + "\r\n", "body"}, []int{200}},
		"headers and half a body":    {[]string{headers + "\r\nbo", "dy"}, []int{200}},
		"two at once":                {[]string{headers + "\r\nbody" + request}, []int{200, 200}},
		"one, and half of another":   {[]string{request + request[:9], request[9:]}, []int{200, 200}},
		"lines without CR":           {[]string{"GET / HTTP/1.1\nHost: x\n\n"}, []int{200}},
		"large headers": {
			[]string{headers, "X: " + strings.Repeat("x", 9000), "\r\n\r\nbody"}, []int{200},
		},
		"too large headers": {[]string{headers, "X: " + strings.Repeat("x", 30_000)}, []int{431}},
		"no HTTP":           {[]string{"EHLO x\r\n"}, []int{400}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []int
			var err error
			var took time.Duration
			const limit = 3 * time.Second
			for n := 0; n == 0 || n < attempts && took > limit; n++ {
				begin := time.Now()
				got, err = sendPieces(t, addr, test.pieces, len(test.want))
				took = time.Since(begin)
			}
			if err != nil || took > limit {
				t.Fatalf("after %s: %v", took, err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("responded with %d, want %d", got, test.want)
			}
		})
	}
}

// sendPieces sends pieces over a new connection, and returns the status of each of n responses.
func sendPieces(t *testing.T, addr string, pieces []string, n int) (status []int, err error) {
	t.Helper()
	conn := overTLS(false).connect(t, addr, "")
	for i, piece := range pieces {
		if i > 0 {
			// Nothing shows that the server has read a piece: two of them may come at once.
			time.Sleep(2 * time.Millisecond)
		}
		if _, err := io.WriteString(conn, piece); err != nil {
			return nil, err
		}
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	responses := bufio.NewReader(conn)
	for range n {
		resp, err := http.ReadResponse(responses, nil)
		if err != nil {
			return nil, err
		}
		// A server that refuses a request may reset the connection under the rest of its response.
		_, _ = io.Copy(io.Discard, resp.Body)
		status = append(status, resp.StatusCode)
	}
	return status, nil
}

// Clients that never end a request take little memory. The test runs alone, as it measures all of it.
func TestHalfARequestTakesLittleMemory(t *testing.T) {
	for n, done := 1, false; !done; n++ {
		// A subtest closes the connections of its attempt.
		t.Run(fmt.Sprintf("attempt %d", n), func(t *testing.T) {
			var half, whole float64
			if half, whole, done = memoryOfRequests(t); !done {
				if done = n == attempts; done {
					t.Fatalf("in each of %d attempts, connections were not accepted within %s", n, headerTimeout)
				}
				return
			}
			t.Logf("half a request: %.1f KiB, kept after a request: %.1f KiB", half/1024, whole/1024)
			if half > whole/2 {
				t.Errorf("a connection with half a request takes %.1f KiB: want half of %.1f KiB at most, which one "+
					"takes after a request", half/1024, whole/1024)
			}
		})
	}
}

// memoryOfRequests returns how much memory a connection with half a request takes, and one that is kept
// after a request. It reports whether all connections were open for as long as it measured.
func memoryOfRequests(t *testing.T) (half, whole float64, open bool) {
	t.Helper()
	const connections = 200
	addr, metrics := serve(t, overTLS(false).server(t, 2*connections))
	begin := time.Now()
	// growth returns how much memory each of many connections takes after they have sent text.
	growth := func(text string, then func(net.Conn)) float64 {
		t.Helper()
		open := gauges(t, metrics)["http_connections"]
		before := memory()
		for range connections {
			then(overTLS(false).connect(t, addr, text))
		}
		for gauges(t, metrics)["http_connections"] < open+connections && time.Since(begin) < headerTimeout {
			time.Sleep(time.Millisecond)
		}
		// Nothing shows that the server has read what was sent.
		time.Sleep(100 * time.Millisecond)
		return (memory() - before) / connections
	}
	half = growth(request[:len(request)-2], func(net.Conn) {})
	whole = growth(request, func(conn net.Conn) { responds(t, conn) })
	return half, whole, time.Since(begin) < headerTimeout
}

// memory returns how many bytes the heap and the stacks take.
func memory() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// A stop waits neither for a connection that sends nothing nor for one that never ends its request.
func TestAStopClosesWhatHasNotArrived(t *testing.T) {
	t.Parallel()
	shortest := stopBeforeArrival(t)
	// net/http alone waits for five seconds.
	const limit = 3 * time.Second
	for n := 1; n < attempts && shortest > limit; n++ {
		shortest = min(shortest, stopBeforeArrival(t))
	}
	if shortest > limit {
		t.Errorf("the shortest of %d stops took %s", attempts, shortest)
	}
}

// stopBeforeArrival returns how long a server takes to stop that has such connections.
func stopBeforeArrival(t *testing.T) (took time.Duration) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var served errgroup.Group
	served.Go(func() error {
		return overTLS(false).server(t, 3).Serve(ctx, ln, http.HandlerFunc(respond))
	})
	silent := overTLS(false).connect(t, ln.Addr().String(), "")
	half := overTLS(false).connect(t, ln.Addr().String(), "GET / HTTP/1.1\r\n")
	responds(t, overTLS(false).connect(t, ln.Addr().String(), request))
	begin := time.Now()
	stop()
	if err := served.Wait(); err != nil {
		t.Error(err)
	}
	took = time.Since(begin)
	for name, conn := range map[string]net.Conn{"silent": silent, "half": half} {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
			t.Errorf("the %s connection is open after the stop: %v", name, err)
		}
	}
	return took
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestATakenPortNamesItsVariable(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = web.Listen(env.Addr{Value: ln.Addr().String(), Variable: "CART_HTTP_ADDR"})
	if err == nil || !strings.Contains(err.Error(), "set CART_HTTP_ADDR to move it") {
		t.Errorf("err = %v, want it to name the variable", err)
	}
}
