// Package maven keeps folders of jars in the user's cache, for the programs on a JVM that development and
// tests need.
package maven

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/child"
)

// Folder returns the folder with the jars that a pom asks for, and reports whether it has just been fetched. It
// fetches them if they are not there. Of several processes, the first fetches them while the others wait. No
// other process gets the folder before unlock is called.
//
// The name is for people. A changed pom has another sum and so another folder: a folder that programs run from is
// never altered.
func Folder(ctx context.Context, log *slog.Logger, name string, pom []byte) (
	dir string, fresh bool, unlock func(), err error,
) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", false, nil, fmt.Errorf("find the cache directory: %w", err)
	}
	sum := sha256.Sum256(pom)
	dir = filepath.Join(cache, "ordersystem", name+"-"+hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", false, nil, err
	}
	if unlock, err = lockFile(ctx, dir+".lock"); err != nil {
		return "", false, nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		log.Info("fetching jars, once", "name", name, "dir", dir)
		if err := fetch(ctx, pom, dir); err != nil {
			unlock()
			return "", false, nil, err
		}
		fresh = true
	}
	return dir, fresh, unlock, nil
}

// fetch copies the jars into dir with Maven. It works in another directory and renames that at the
// end, so that dir exists only when it is complete.
func fetch(ctx context.Context, pom []byte, dir string) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return &child.MissingError{Program: "mvn", Install: "Apache Maven (Debian and Ubuntu: maven)"}
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "pom.xml"), pom, 0o644); err != nil {
		return err
	}
	// Quiet is without the progress: errors are printed all the same.
	cmd := exec.CommandContext(ctx, mvn, "--batch-mode", "--quiet", "--strict-checksums", "-f", "pom.xml",
		"dependency:copy-dependencies", "-DoutputDirectory="+tmp)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch jars with mvn: %w\n%s", err, out)
	}
	return os.Rename(tmp, dir)
}

// lockFile locks a file, or waits until it can. The system releases the lock when the process ends,
// even after a crash.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !backoff.Sleep(ctx, 50*time.Millisecond) {
			f.Close()
			return nil, fmt.Errorf("wait for the lock %s: %w", path, ctx.Err())
		}
	}
}
