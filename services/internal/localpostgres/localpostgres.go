// Package localpostgres runs a real PostgreSQL server on this machine, for benchmarks and tests.
//
// It uses the newest server in Debian's directories, or the one in PATH. PostgreSQL refuses to run as
// root, so root runs it as the user postgres. A server is a process of its own that ends with the
// process that started it. It listens on TCP only, on a free port, and asks for a password.
//
// Unless Options.Settings say otherwise, fsync, full_page_writes and synchronous_commit are on: what
// was committed survives a crash of the machine. With fsync off it survives a crash of the server
// only, so no test of a crash may turn it off.
//
// The package must not import testing: programs link it. Package testenv has the helpers for tests.
package localpostgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// Options describe the server to start.
type Options struct {
	// Dir keeps the data and the log. It must be empty or missing.
	Dir string
	// Settings are added to PostgreSQL's own or replace them.
	Settings map[string]string
	// Env is added to the environment of the server, and not to that of the programs that prepare it.
	Env []string
	// Log reports the start. Nil is silent.
	Log *slog.Logger
}

// Start makes a new database cluster and waits until its server serves. It returns a
// [*child.MissingError] if PostgreSQL is not installed.
func Start(ctx context.Context, o Options) (*Server, error) {
	s, err := prepare(o, rand.Text())
	if err != nil {
		return nil, fmt.Errorf("start postgresql in %s: %w", o.Dir, err)
	}
	password := filepath.Join(s.options.Dir, "password")
	if err := s.programs.own(password, []byte(s.password)); err != nil {
		return nil, err
	}
	// The test decides what is safe on the disk, not the preparation.
	err = s.run(ctx, "initdb", "--pgdata="+s.data(), "--username=postgres", "--pwfile="+password,
		"--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync")
	if err == nil {
		err = s.startFirst(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("start postgresql in %s: %w", o.Dir, err)
	}
	return s, nil
}

// StartStandby starts a copy of s that follows it, and waits until it is synchronous: from then on, a
// commit on s is acknowledged only when the standby has it on its disk.
func (s *Server) StartStandby(ctx context.Context, o Options) (*Server, error) {
	standby, err := prepare(o, s.password)
	if err == nil {
		err = standby.run(ctx, "pg_basebackup", "--pgdata="+standby.data(), "--dbname="+s.URL("postgres"),
			"--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	}
	if err == nil {
		err = standby.startFirst(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("start a standby in %s: %w", o.Dir, err)
	}
	// pg_basebackup has copied the settings before this one, so a promoted standby waits for nobody.
	if err := s.Wait(ctx, "ALTER SYSTEM SET synchronous_standby_names = '*'",
		"SELECT pg_reload_conf()",
		"SELECT 1 / count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"); err != nil {
		standby.Kill()
		return nil, fmt.Errorf("start a standby in %s: %w", o.Dir, err)
	}
	return standby, nil
}

// prepare returns a server that has a directory, and neither data nor a port.
func prepare(o Options, password string) (*Server, error) {
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	p, err := findPrograms()
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := p.give(dir); err != nil {
		return nil, err
	}
	return &Server{options: o, programs: p, password: password}, nil
}
