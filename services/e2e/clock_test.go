package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/internal/testenv"
)

// The clock of a machine goes back by an hour, while idle clients have all connections that there may be. They
// keep the next client out for no longer than before.
func TestAClockThatGoesBackKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	cart := newCart(t, testenv.Fake(t)).jumping()
	cart.command = []string{"sh", "-c", `ulimit -n 200 && exec "$0"`}
	cart.start().ready()
	limit := cart.metric("http_connections_limit")
	for n := range int(limit) {
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(cart.api, "http://"), 10*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodHead})
		if err != nil || resp.Close {
			t.Fatalf("connection %d does not stay open: %v", n, err)
		}
	}
	if open := cart.metric("http_connections"); open != limit {
		t.Fatalf("%v connections are open, want %v", open, limit)
	}
	cart.clock.Jump(-time.Hour)
	fresh := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	got, err := sendBy(fresh, http.MethodPost, cart.api+"/order/create-order", `{"orderId": "A", "itemsNum": 1}`)
	if err != nil || got.status != http.StatusOK {
		t.Fatalf("a request after the jump: %d %q, %v", got.status, got.body, err)
	}
	date, err := http.ParseTime(got.header.Get("Date"))
	if off := time.Until(date) + time.Hour; err != nil || off.Abs() > time.Minute {
		t.Errorf("Cart's clock is %s off, so this test shows nothing (%v)", off, err)
	}
}
