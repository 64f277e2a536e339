package localkafka

import (
	"context"
	_ "embed"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"

	"ordersystem.dev/services/internal/child"
	"ordersystem.dev/services/internal/maven"
)

const needJDK = "a JDK, 17 or newer (Debian and Ubuntu: openjdk-17-jdk-headless)"

// pom pins Kafka's version and lists what belongs to its class path.
//
//go:embed pom.xml
var pom []byte

// install returns the Kafka of the user's cache and fetches it if it is not there.
func install(ctx context.Context, log *slog.Logger) (installation, error) {
	java, err := exec.LookPath("java")
	if err != nil {
		return installation{}, &child.MissingError{Program: "java", Install: needJDK}
	}
	dir, fresh, unlock, err := maven.Folder(ctx, log, "kafka-"+Version(), pom)
	if err != nil {
		return installation{}, err
	}
	defer unlock()
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
