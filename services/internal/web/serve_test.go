package web_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/env"
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
		served <- web.Serve(ctx, slog.New(slog.DiscardHandler), ln, handler)
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
