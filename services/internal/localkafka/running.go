package localkafka

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Running finds the broker that works on dir, also one that another process started. pid is 0 if
// there is none.
//
// It asks the system who holds the lock that Kafka keeps on its data. A file with a process ID in
// it could name another process, which got the same ID later.
func Running(dir string) (addr string, pid int, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "data", ".lock"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lock); err != nil {
		return "", 0, fmt.Errorf("ask for the lock on %s: %w", f.Name(), err)
	}
	if lock.Type == syscall.F_UNLCK {
		return "", 0, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, "server.properties"))
	if err != nil {
		return "", 0, err
	}
	listener, _, _ := strings.Cut(parseProperties(string(text))["listeners"], ",")
	return strings.TrimPrefix(listener, "PLAINTEXT://"), int(lock.Pid), nil
}
