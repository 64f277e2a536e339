// Package rival has other ways to do the services' jobs, as programs to measure beside them.
package rival

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
	"strings"

	"ordersystem.dev/services/internal/maven"
)

var (
	//go:embed streams/pom.xml
	streamsPOM []byte
	//go:embed streams/OrderView.java
	orderView []byte
)

// Streams returns the command of a Kafka Streams application that does the Order service's job, which
// OrderView.java explains. It fetches Kafka Streams and compiles the application if that was not done yet.
//
// The flags of the JVM are the default ones, but for a limit of its memory: 1 GiB, as the broker has. Without one
// it takes a quarter of the machine's.
func Streams(ctx context.Context, log *slog.Logger) (path string, args []string, err error) {
	path, err = exec.LookPath("java")
	if err != nil {
		return "", nil, fmt.Errorf("find java: %w", err)
	}
	dir, _, unlock, err := maven.Folder(ctx, log, "kafka-streams", streamsPOM)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	sum := sha256.Sum256(orderView)
	classes := filepath.Join(dir, "classes-"+hex.EncodeToString(sum[:4]))
	jars := filepath.Join(dir, "*")
	if _, err := os.Stat(classes); errors.Is(err, os.ErrNotExist) {
		if err := compile(ctx, jars, classes); err != nil {
			return "", nil, err
		}
	}
	classPath := strings.Join([]string{jars, classes}, string(os.PathListSeparator))
	return path, []string{"-Xmx1g", "-cp", classPath, "OrderView"}, nil
}

// compile compiles the application into a folder, which exists only when it is complete.
func compile(ctx context.Context, jars, classes string) error {
	tmp := classes + ".tmp"
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	source := filepath.Join(tmp, "OrderView.java")
	if err := os.WriteFile(source, orderView, 0o644); err != nil {
		return err
	}
	javac := exec.CommandContext(ctx, "javac", "-cp", jars, "-d", tmp, source)
	if out, err := javac.CombinedOutput(); err != nil {
		return fmt.Errorf("compile OrderView.java: %w\n%s", err, out)
	}
	return os.Rename(tmp, classes)
}
