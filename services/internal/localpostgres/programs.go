package localpostgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"ordersystem.dev/services/internal/child"
)

// programs are PostgreSQL's own, and the user who runs them.
type programs struct {
	// dir holds initdb, pg_basebackup and postgres.
	dir string
	// credential is that of the user postgres. It is nil unless this process is root's.
	credential *syscall.Credential
}

func findPrograms() (programs, error) {
	missing := &child.MissingError{
		Program: "postgresql", Install: "PostgreSQL's server (Debian and Ubuntu: postgresql)",
	}
	var p programs
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return p, err
	}
	if len(found) == 0 {
		path, err := exec.LookPath("initdb")
		if err != nil {
			return p, missing
		}
		// A link leads to the directory that has the other programs too.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return p, err
		}
		found = []string{path}
	}
	p.dir = filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(release(a), release(b)) }))
	if os.Geteuid() != 0 {
		return p, nil
	}
	account, err := user.Lookup("postgres")
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		return p, missing
	}
	if err != nil {
		return p, err
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(account.Gid, 10, 32)
	p.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return p, errors.Join(err, err2)
}

// release returns the number in /usr/lib/postgresql/15/bin/initdb, or 0.
func release(initdb string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(initdb))))
	return n
}

// command returns a command that runs one of the programs.
func (p programs) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.dir, name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential}
	// The user cannot enter every directory that root can.
	cmd.Dir = "/"
	// The caller's PGDATA, PGPORT and so on are for another server.
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	return cmd
}

// give makes the user who runs the programs the owner of a file.
func (p programs) give(file string) error {
	if p.credential == nil {
		return nil
	}
	return os.Chown(file, int(p.credential.Uid), int(p.credential.Gid))
}

// own writes a file that only the user who runs the programs can read.
func (p programs) own(file string, text []byte) error {
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("write for postgresql: %w", err)
	}
	return p.give(file)
}
