package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ordersystem.dev/services/cart"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/order"
)

// The addresses of the real services, which run in this process. All tests share them.
var cartURL, orderURL string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "check-")
	if err != nil {
		panic(err)
	}
	kafka, err := fakekafka.New("", 0)
	if err != nil {
		panic(err)
	}
	kafkaAddr := kafka.ListenAddrs()[0]
	ctx, stop := context.WithCancel(context.Background())
	var services sync.WaitGroup
	// start returns the address of a service that is ready.
	start := func(name string, run func(*env.Env, func(api, ops net.Addr)) error) string {
		vars := map[string]string{
			"HTTP_ADDR": "127.0.0.1:0", "OPS_ADDR": "127.0.0.1:0",
			"KAFKA_BROKERS": kafkaAddr, "DATA_DIR": filepath.Join(dir, name),
		}
		api, ops := make(chan string, 1), make(chan string, 1)
		services.Go(func() {
			err := run(env.New(func(name string) string { return vars[name] }), func(a, o net.Addr) {
				api <- "http://" + a.String()
				ops <- "http://" + o.String()
			})
			if err != nil {
				panic(err)
			}
		})
		awaitReady(<-ops)
		return <-api
	}
	cartURL = start("cart", func(e *env.Env, listening func(api, ops net.Addr)) error {
		return cart.Run(ctx, cart.ConfigFromEnv(e), slog.New(slog.DiscardHandler), listening)
	})
	orderURL = start("order", func(e *env.Env, listening func(api, ops net.Addr)) error {
		return order.Run(ctx, order.ConfigFromEnv(e), slog.New(slog.DiscardHandler), listening)
	})
	code := m.Run()
	stop()
	services.Wait()
	kafka.Close()
	os.RemoveAll(dir)
	os.Exit(code)
}

func awaitReady(ops string) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(ops + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			panic(fmt.Sprintf("%s is not ready: %v", ops, err))
		}
	}
}

// system has the URLs of the two services: their own, or those of proxies in front of them.
type system struct{ cart, order string }

// meddler responds to a request instead of a service, or with its help.
type meddler func(w http.ResponseWriter, r *http.Request, service http.Handler)

// between puts a meddler in front of both services.
func between(t *testing.T, m meddler) system {
	t.Helper()
	front := func(address string) string {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		service := httputil.NewSingleHostReverseProxy(u)
		handler := func(w http.ResponseWriter, r *http.Request) { m(w, r, service) }
		s := httptest.NewUnstartedServer(http.HandlerFunc(handler))
		// The handler aborts on purpose.
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		// On a used connection net/http itself tries again, and nothing counts it.
		s.Config.SetKeepAlivesEnabled(false)
		s.Start()
		t.Cleanup(s.Close)
		return s.URL
	}
	return system{front(cartURL), front(orderURL)}
}

// rewrite responds as the service does. It changes the body if the status is 200.
func rewrite(w http.ResponseWriter, r *http.Request, service http.Handler, change func([]byte) []byte) {
	recorded := httptest.NewRecorder()
	service.ServeHTTP(recorded, r)
	body := recorded.Body.Bytes()
	if recorded.Code == http.StatusOK {
		body = change(body)
	}
	w.WriteHeader(recorded.Code)
	_, _ = w.Write(body)
}

// cut breaks the connection.
func cut() { panic(http.ErrAbortHandler) }

// result is the exit code and the output of a run.
type result struct {
	code           int
	stdout, stderr string
}

func (s system) check(t *testing.T, args ...string) result {
	t.Helper()
	return s.checkWith(t.Context(), new(bytes.Buffer), args...)
}

func (s system) checkWith(ctx context.Context, stdout interface {
	Write([]byte) (int, error)
	String() string
}, args ...string) result {
	vars := map[string]string{"CART_URL": s.cart, "ORDER_URL": s.order}
	var stderr bytes.Buffer
	code := run(ctx, args, func(name string) string { return vars[name] }, stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}
