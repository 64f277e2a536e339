package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// FlipBatch changes a bit of a batch that a broker has stored, as a broken disk does, or changes it back. dir
// is the Dir of the broker's options, and offset is that of the first record of the batch.
func FlipBatch(t testing.TB, dir, topic string, partition int32, offset int64) {
	t.Helper()
	const (
		// The length of a batch comes after its offset, and does not count these two.
		prefix = 12
		// The bit is in the first record, or in the compressed ones. The CRC covers it.
		header, within = 61, 12
	)
	segments, err := filepath.Glob(filepath.Join(dir, "data", fmt.Sprintf("%s-%d", topic, partition), "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range segments {
		stored, err := os.ReadFile(segment)
		if err != nil {
			t.Fatal(err)
		}
		for at, size := 0, 0; at+prefix <= len(stored); at += size {
			size = prefix + int(binary.BigEndian.Uint32(stored[at+8:]))
			if int64(binary.BigEndian.Uint64(stored[at:])) != offset || size <= header+within {
				continue
			}
			file, err := os.OpenFile(segment, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			at += header + within
			_, err = file.WriteAt([]byte{stored[at] ^ 1}, int64(at))
			if err := errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no batch begins at %s/%d/%d", topic, partition, offset)
}

// FaultyDisk is the disk as one child process sees it.
type FaultyDisk struct {
	// Env is for the environment of that process.
	Env           []string
	t             testing.TB
	failing, slow string
}

// NewFaultyDisk returns a disk of which an fsync of file can fail. The file may be made later.
func NewFaultyDisk(t testing.TB, file string) *FaultyDisk {
	t.Helper()
	dir := openDir(t)
	d := newDisk(t, dir)
	d.Env = append(d.Env, "FAIL_FSYNC_OF="+file, preload(t, dir, faultyDisk))
	return d
}

// newDisk returns a disk whose faults are switched on by files in a directory.
func newDisk(t testing.TB, dir string) *FaultyDisk {
	d := &FaultyDisk{t: t, failing: filepath.Join(dir, "failing"), slow: filepath.Join(dir, "slow")}
	d.Env = []string{"FAIL_FSYNC_IF=" + d.failing, "SLOW_FSYNC_WHILE=" + d.slow}
	return d
}

// Fail lets the next fsync fail with EIO.
func (d *FaultyDisk) Fail() {
	d.t.Helper()
	if err := os.WriteFile(d.failing, nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// Slow calls during. Meanwhile each fsync takes 200 ms longer.
func (d *FaultyDisk) Slow(during func()) {
	d.t.Helper()
	if err := os.WriteFile(d.slow, nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	during()
	if err := os.Remove(d.slow); err != nil {
		d.t.Fatal(err)
	}
}

// MountsDisks reports whether there can be a [SmallDisk].
var MountsDisks = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "disk-")
	if err != nil {
		return false
	}
	defer os.Remove(dir)
	return exec.Command("mount", "-t", "tmpfs", "tmpfs", dir).Run() == nil && exec.Command("umount", dir).Run() == nil
})

// SmallDisk mounts a disk of so many MiB and returns a folder in it that belongs to the user who runs
// PostgreSQL.
func SmallDisk(t testing.TB, mib int) (folder string) {
	t.Helper()
	disk, err := os.MkdirTemp("", "disk-") //nolint:usetesting // The server's user cannot enter that of the test.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(disk) })
	options := fmt.Sprintf("size=%dm,mode=755", mib)
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", options, "tmpfs", disk).
		CombinedOutput(); err != nil {
		CannotRun(t, fmt.Sprintf("a small disk cannot be mounted: %v: %s", err, out))
	}
	t.Cleanup(func() { _ = exec.CommandContext(context.WithoutCancel(t.Context()), "umount", "-l", disk).Run() })
	folder = filepath.Join(disk, "space")
	err = os.Mkdir(folder, 0o700)
	if account, lookUp := user.Lookup("postgres"); lookUp == nil && os.Geteuid() == 0 {
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		err = errors.Join(err, os.Chown(folder, uid, gid))
	}
	if err != nil {
		t.Fatal(err)
	}
	return folder
}
