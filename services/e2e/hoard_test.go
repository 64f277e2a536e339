package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/internal/testenv"
)

// Clients that open more connections than the service may have files neither keep the probes out,
// nor, for long, other clients.
func TestManyConnectionsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	kafka := testenv.Fake(t)
	cart, order := newCart(t, kafka), newOrder(t, kafka)
	fresh := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, tt := range []struct {
		service *process
		request func() (*http.Response, error)
	}{
		{cart, func() (*http.Response, error) {
			return fresh.Post(cart.api+"/order/create-order", "", strings.NewReader(`{"orderId": "A", "itemsNum": 1}`))
		}},
		{order, func() (*http.Response, error) {
			req, err := http.NewRequest(http.MethodGet, order.api+"/order/order-details?orderId=A", nil)
			if err != nil {
				return nil, err
			}
			req.Header.Set("Prefer", "wait=30")
			return fresh.Do(req)
		}},
	} {
		tt.service.command = []string{"sh", "-c", `ulimit -n 200 && exec "$0"`}
		tt.service.start().ready()
		for n := range 1500 {
			conn, err := net.DialTimeout("tcp", strings.TrimPrefix(tt.service.api, "http://"), 10*time.Second)
			if err != nil {
				t.Fatalf("connection %d: %v", n, err)
			}
			defer conn.Close()
			// Silent ones, idle ones, and such that never send the whole of a body.
			switch n % 3 {
			case 0:
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			case 1:
				fmt.Fprint(conn, "POST /order/create-order HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
			}
		}
		done := make(chan error, 1)
		go func() {
			resp, err := tt.request()
			if err == nil {
				defer resp.Body.Close()
				if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("%s: %s", resp.Status, body)
				}
			}
			done <- err
		}()
		failed := 0
		for running := true; running || failed > 0; {
			select {
			case err := <-done:
				running = false
				if err != nil {
					t.Errorf("%s: a request among many connections: %v", tt.service.name, err)
				}
			case <-time.After(50 * time.Millisecond):
			}
			resp, err := probe.Get(tt.service.ops + "/readyz")
			if err != nil {
				if failed++; failed == failedProbes {
					t.Fatalf("%s: %d probes in a row among many connections failed: %v", tt.service.name, failed, err)
				}
				continue
			}
			failed = 0
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: /readyz: %s", tt.service.name, resp.Status)
			}
		}
	}
}

// Clients whose look-ups wait, on more connections than there may be, keep other clients out for no
// longer than a moment.
func TestLookUpsThatWaitKeepNobodyOut(t *testing.T) {
	t.Parallel()
	order := newOrder(t, testenv.Fake(t))
	order.command = []string{"sh", "-c", `ulimit -n 200 && exec "$0"`}
	order.start().ready()
	for n := range 300 {
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(order.api, "http://"), 10*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /order/order-details?orderId=A HTTP/1.1\r\nHost: x\r\nPrefer: wait=30\r\n\r\n")
	}
	// The look-ups wait for 30 s.
	fresh := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := fresh.Get(order.api + "/order/order-details?orderId=A")
	if err != nil {
		t.Fatalf("a look-up that does not wait: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("a look-up that does not wait: %s, want 404", resp.Status)
	}
}
