package web_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/web"
)

// command is a command under test. It says that it has begun, and goes on until its context ends.
type command struct {
	*web.Command
	url string
	// ended receives the reason for each end.
	ended chan error
}

func newCommand(t *testing.T) *command {
	t.Helper()
	c := &command{Command: web.NewCommand("somebody else does it"), ended: make(chan error, 10)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response, begun := c.Begin(w, r)
		if !begun {
			return
		}
		defer response.End()
		fmt.Fprintln(response, "begun")
		<-response.Context().Done()
		c.ended <- context.Cause(response.Context())
	}))
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

// begin begins the command. It goes on until leave is called.
func (c *command) begin(t *testing.T) (leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	// What is said reaches the client while the command goes on.
	line := make([]byte, len("begun\n"))
	if _, err := io.ReadFull(resp.Body, line); err != nil || string(line) != "begun\n" {
		t.Fatalf("the response begins with %q, %v", line, err)
	}
	return func() {
		cancel()
		resp.Body.Close()
	}
}

func (c *command) refuses(t *testing.T, status int, text string) {
	t.Helper()
	resp, err := http.Post(c.url, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status || !strings.Contains(string(got), text) {
		t.Errorf("%d %q, want %d %q", resp.StatusCode, got, status, text)
	}
}

// A command is one at a time, and does not go on for a client that has gone.
func TestACommandEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	for range 2 {
		leave := c.begin(t)
		c.refuses(t, http.StatusConflict, "somebody else does it")
		leave()
		<-c.ended
		// The next one may come before the last one has returned.
		awaitEnd(c)
	}
}

// awaitEnd waits until no command is under way.
func awaitEnd(c *command) {
	for {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		if response, begun := c.Begin(httptest.NewRecorder(), r); begun {
			response.End()
			return
		}
	}
}

// A stop ends the command under way, waits for it, and lets no other one begin.
func TestACommandEndsWithTheService(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	defer c.begin(t)()
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- c.Run(ctx) }()
	stop()
	if why := <-c.ended; why == nil || !strings.Contains(why.Error(), "the service is stopping") {
		t.Errorf("the command ends because of %v", why)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
	c.refuses(t, http.StatusServiceUnavailable, "the service is stopping")
}
