package localkafka

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/child"
)

const needJDK = "a JDK, 17 or newer (Debian and Ubuntu: openjdk-17-jdk-headless)"

// pom pins Kafka's version and lists what belongs to its class path.
//
//go:embed pom.xml
var pom []byte

// install returns the Kafka of the user's cache and fetches it if it is not there. Of several
// processes, the first fetches it while the others wait.
func install(ctx context.Context, log *slog.Logger) (installation, error) {
	java, err := exec.LookPath("java")
	if err != nil {
		return installation{}, &child.MissingError{Program: "java", Install: needJDK}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return installation{}, fmt.Errorf("find the cache directory: %w", err)
	}
	// A changed pom has another sum and so another directory. An installation is therefore never
	// altered while a broker runs from it.
	sum := sha256.Sum256(pom)
	dir := filepath.Join(cache, "ordersystem", "kafka-"+Version()+"-"+hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return installation{}, err
	}
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return installation{}, err
	}
	defer unlock()

	fresh := false
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		log.Info("fetching kafka, once", "version", Version(), "dir", dir)
		if err := fetch(ctx, dir); err != nil {
			return installation{}, err
		}
		fresh = true
	}
	in := installation{java: java}
	if in.jars, err = filepath.Glob(filepath.Join(dir, "*.jar")); err != nil {
		return installation{}, err
	}
	// The archive is valid for one order of the class path only.
	slices.Sort(in.jars)
	archive := filepath.Join(dir, "classes.jsa")
	if fresh {
		if err := archiveClasses(ctx, in, archive); err != nil {
			log.Warn("no class data archive: each start of kafka takes a second longer", "err", err)
		}
	}
	if _, err := os.Stat(archive); err == nil {
		in.archive = archive
	}
	return in, nil
}

// Version returns the Kafka version that the pom pins.
func Version() string {
	return string(regexp.MustCompile(`<kafka.version>(.+)</kafka.version>`).FindSubmatch(pom)[1])
}

// fetch copies the jars into dir with Maven. It works in another directory and renames that at the
// end, so that dir exists only when it is complete.
func fetch(ctx context.Context, dir string) error {
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
	cmd := exec.CommandContext(ctx, mvn, "--batch-mode", "--strict-checksums", "-f", "pom.xml",
		"dependency:copy-dependencies", "-DoutputDirectory="+tmp)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch kafka with mvn: %w\n%s", err, tail(out, 20, ""))
	}
	return os.Rename(tmp, dir)
}

// archiveClasses starts and stops a broker once, so that the JVM archives the classes that it
// loaded.
func archiveClasses(ctx context.Context, in installation, path string) error {
	dir, err := os.MkdirTemp("", "kafka-archive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &Broker{ID: 1, installation: in, options: Options{
		Dir: dir,
		Log: slog.New(slog.DiscardHandler),
		JVM: QuickJVM("-XX:ArchiveClassesAtExit=" + path + ".tmp"),
	}}
	if err := b.start(ctx); err != nil {
		return err
	}
	b.Stop()
	return os.Rename(path+".tmp", path)
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
