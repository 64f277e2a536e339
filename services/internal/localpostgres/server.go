package localpostgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/child"
)

const (
	startPatience = 3 * time.Minute
	stopPatience  = 30 * time.Second
)

// Server is a PostgreSQL server in a process of its own. Its methods must not be called concurrently.
type Server struct {
	options  Options
	programs programs
	port     string
	password string
	process  *child.Process
}

// URL returns how a client connects to a database as the superuser. "postgres" exists always.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", s.password), Host: s.Addr(),
		Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Addr returns 127.0.0.1:port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", s.port) }

// PID returns the ID of the server's process, of which its others are children.
func (s *Server) PID() int { return s.process.PID() }

// StartAgain starts a server that was stopped or killed, with the same data and port.
func (s *Server) StartAgain(ctx context.Context) error {
	if s.process.Running() {
		return errors.New("start postgresql again: it still runs")
	}
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("start postgresql again: %w", err)
	}
	return nil
}

// Stop ends the server in order, as its service manager does: clients are disconnected and their
// transactions rolled back. It waits for the end, and kills a server that takes longer than 30 s.
func (s *Server) Stop() { s.process.Stop(syscall.SIGINT, stopPatience) }

// Kill ends the server as a crash does (SIGKILL), and waits until its children have noticed.
func (s *Server) Kill() { s.process.Kill() }

// Promote makes a standby a primary and waits until it takes writes.
func (s *Server) Promote(ctx context.Context) error {
	if err := s.Wait(ctx, "SELECT pg_promote(wait => false) WHERE pg_is_in_recovery()",
		"SELECT 1 / (NOT pg_is_in_recovery())::int"); err != nil {
		return fmt.Errorf("promote the standby: %w", err)
	}
	return nil
}

// Wait runs the statements on the database postgres, each in a transaction of its own. It repeats the
// last one until it succeeds, for up to a minute.
func (s *Server) Wait(ctx context.Context, statements ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	// The server forgets a connection that does not end in order.
	defer conn.Close(context.WithoutCancel(ctx))
	for i, statement := range statements {
		for {
			_, err := conn.Exec(ctx, statement)
			if err == nil {
				break
			}
			if i < len(statements)-1 || !backoff.Sleep(ctx, 20*time.Millisecond) {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
	}
	return nil
}

// Log returns the last lines of the server's log.
func (s *Server) Log() string {
	text, _ := os.ReadFile(s.file("postgres.log"))
	return tail(text)
}

// startFirst starts the server on a free port. Another process may take the port between its discovery
// and its use. Then startFirst tries another one.
func (s *Server) startFirst(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		s.port = strconv.Itoa(child.FreePort())
		err := s.start(ctx)
		if err == nil || attempt == 3 || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
}

func (s *Server) start(ctx context.Context) error {
	settings := map[string]string{
		"listen_addresses": "127.0.0.1", "port": s.port, "unix_socket_directories": "",
		"log_timezone": "UTC", "timezone": "UTC",
	}
	maps.Copy(settings, s.options.Settings)
	args := []string{"-D", s.data()}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	log, err := os.OpenFile(s.file("postgres.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	begin := time.Now()
	// The server outlives ctx, which only limits the start.
	cmd := s.programs.command(context.WithoutCancel(ctx), "postgres", args...)
	cmd.Env = append(cmd.Env, s.options.Env...)
	// The server's children hold a pipe, and a file they would not. So the process has ended only when
	// all of them have: until then, the server cannot start again.
	cmd.Stderr = struct{ io.Writer }{log}
	if s.process, err = child.Start(cmd, false); err != nil {
		return errors.Join(err, log.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := s.await(ctx); err != nil {
		s.process.Kill()
		return fmt.Errorf("%w\n%s", err, s.Log())
	}
	s.options.Log.Info("postgresql serves", "addr", s.Addr(), "dir", s.options.Dir,
		"took", time.Since(begin).Round(time.Millisecond))
	return nil
}

// await waits until the server serves, or fails as soon as its process ends.
func (s *Server) await(ctx context.Context) error {
	for {
		if !s.process.Running() {
			return fmt.Errorf("postgresql ended: %v", s.process.State())
		}
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if !backoff.Sleep(ctx, 20*time.Millisecond) {
			return fmt.Errorf("wait for postgresql: %w", cmp.Or(context.Cause(ctx), err))
		}
	}
}

// run runs one of PostgreSQL's programs to its end.
func (s *Server) run(ctx context.Context, program string, args ...string) error {
	if out, err := s.programs.command(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", program, err, tail(out))
	}
	return nil
}

func (s *Server) data() string { return s.file("data") }

func (s *Server) file(name string) string { return filepath.Join(s.options.Dir, name) }

// tail returns the last 20 lines of text.
func tail(text []byte) string {
	var lines []string
	for line := range bytes.Lines(text) {
		lines = append(lines, string(line))
	}
	return strings.Join(lines[max(0, len(lines)-20):], "")
}
