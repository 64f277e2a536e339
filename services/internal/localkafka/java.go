package localkafka

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// QuickJVM returns the flags of a JVM that starts quickly and stays small: it has no optimizing compiler
// to warm up and no collector threads. It is wrong for a benchmark. More flags come last, so they win.
func QuickJVM(more ...string) []string {
	return append([]string{"-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"}, more...)
}

// installation is a JVM with Kafka's class path. Everything that starts a broker shares it.
type installation struct {
	java string
	jars []string
	// archive is a class data archive, or empty. Without it, loading the classes takes half of the
	// time that Kafka needs to start.
	archive string
}

// command returns a command that runs a class of Kafka's.
func (in installation) command(ctx context.Context, flags []string, class string, args ...string) *exec.Cmd {
	flags = slices.Clone(flags)
	if in.archive != "" {
		// The JVM ignores an archive that does not fit it.
		flags = append(flags, "-XX:SharedArchiveFile="+in.archive)
	}
	flags = append(flags, "-cp", strings.Join(in.jars, string(os.PathListSeparator)), class)
	return exec.CommandContext(ctx, in.java, append(flags, args...)...)
}
