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
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := New(Config{Endpoints: Endpoints{API: anyPort, Ops: anyPort}}, log)
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

// While a service waits for what it needs, probes show why and clients are refused. Then it runs at the
// same addresses.
func TestAServiceThatWaitsServesProbes(t *testing.T) {
	t.Parallel()
	s := newService(t)
	ctx, stop := context.WithCancel(t.Context())
	failed := errors.New("failed")
	for _, want := range []error{failed, nil} {
		err := s.Prepare(ctx, func(context.Context) error {
			s.Ready.Set(errors.New("no database"))
			if status, body := get(t, s.ops.Addr(), "/readyz"); status != 503 || body != "not ready: no database\n" {
				t.Errorf("/readyz is %d %q", status, body)
			}
			for path, wanted := range map[string]int{"/healthz": 200, "/metrics": 200} {
				if status, body := get(t, s.ops.Addr(), path); status != wanted {
					t.Errorf("%s is %d %q", path, status, body)
				}
			}
			if status, body := get(t, s.api.Addr(), "/"); status != 503 {
				t.Errorf("the API responds with %d %q, want 503", status, body)
			}
			return want
		})
		if !errors.Is(err, want) {
			t.Errorf("Prepare: %v, want %v", err, want)
		}
	}
	err := s.Run(ctx, nil, Stage{
		func(ctx context.Context) error {
			return s.ServeAPI(ctx, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusTeapot)
			}))
		},
		func(context.Context) error {
			s.Ready.Set(nil)
			if status, _ := get(t, s.ops.Addr(), "/readyz"); status != 200 {
				t.Errorf("/readyz is %d, want 200", status)
			}
			if status, _ := get(t, s.api.Addr(), "/"); status != http.StatusTeapot {
				t.Errorf("the API responds with %d, want %d", status, http.StatusTeapot)
			}
			stop()
			return nil
		},
	})
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
	_, err = New(Config{Endpoints: Endpoints{API: api, Ops: taken}}, s.log)
	if err == nil || !strings.Contains(err.Error(), "OPS_ADDR") {
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
