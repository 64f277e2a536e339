package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/env"
)

var anyPort = env.Addr{Value: "127.0.0.1:0", Variable: "HTTP_ADDR"}

func newService(t *testing.T) *Service {
	t.Helper()
	s, err := New(Config{API: anyPort, Ops: anyPort}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, addr net.Addr, path string) (status int, body string) {
	t.Helper()
	// No connection stays open, as the server would wait for it.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr.String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestOperationsEndpointsAreServedFromStartToEnd(t *testing.T) {
	t.Parallel()
	s := newService(t)
	ctx, stop := context.WithCancel(t.Context())
	var api, ops net.Addr
	check := func(when string, wantStatus int, want string) {
		if status, body := get(t, ops, "/readyz"); status != wantStatus || body != want {
			t.Errorf("%s: /readyz is %d %q, want %d %q", when, status, body, wantStatus, want)
		}
	}
	err := s.Run(ctx,
		func(a, o net.Addr) { api, ops = a, o },
		Stage{
			func(ctx context.Context) error {
				return s.ServeAPI(ctx, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(http.StatusTeapot)
				}))
			},
			func(context.Context) error {
				check("at the start", 503, "not ready: starting\n")
				s.Ready.Set(nil)
				check("when ready", 200, "ready\n")
				if status, _ := get(t, api, "/"); status != http.StatusTeapot {
					t.Errorf("the API responds with %d, want %d of its handler", status, http.StatusTeapot)
				}
				if _, body := get(t, ops, "/metrics"); !strings.Contains(body, "\ngo_goroutines ") {
					t.Errorf("/metrics lacks the Go collector:\n%s", body)
				}
				stop()
				return nil
			},
		},
		Stage{func(ctx context.Context) error {
			<-ctx.Done()
			check("when the last stage of the service stops", 503, "not ready: stopping\n")
			return nil
		}},
	)
	if err != nil {
		t.Error(err)
	}
}

func TestNewBindsBothAddressesOrNone(t *testing.T) {
	t.Parallel()
	s := newService(t)
	taken := env.Addr{Value: s.ops.Addr().String(), Variable: "OPS_ADDR"}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	api := env.Addr{Value: free.Addr().String(), Variable: "HTTP_ADDR"}
	if _, err := New(Config{API: api, Ops: taken}, s.log); err == nil || !strings.Contains(err.Error(), "OPS_ADDR") {
		t.Errorf("with a port that is taken: %v, want an error that names OPS_ADDR", err)
	}
	again, err := net.Listen("tcp", api.Value)
	if err != nil {
		t.Fatalf("the other address is still bound: %v", err)
	}
	again.Close()
}

func TestRunReturnsTheFirstFailure(t *testing.T) {
	t.Parallel()
	s := newService(t)
	broken := errors.New("broken")
	err := s.Run(t.Context(), nil, Stage{func(context.Context) error { return broken }})
	if !errors.Is(err, broken) {
		t.Errorf("Run: %v, want %v", err, broken)
	}
}
