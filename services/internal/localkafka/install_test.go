package localkafka

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ordersystem.dev/services/internal/child"
)

// Kafka is fetched once, even if several packages are tested at the same time. A failure leaves
// nothing behind that looks like an installation.
func TestInstall(t *testing.T) {
	bin, count := t.TempDir(), filepath.Join(t.TempDir(), "count")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	program := func(name, script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	program("java", "exit 1")

	program("mvn", "touch half.jar; echo no such artifact; exit 1")
	if _, err := install(t.Context(), log); err == nil || !strings.Contains(err.Error(), "no such artifact") {
		t.Fatalf("error is %v, want mvn's own words", err)
	}

	program("mvn", "sleep 0.1; echo x >>"+count+"; touch kafka.jar")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			in, err := install(t.Context(), log)
			if err != nil || len(in.jars) != 1 || filepath.Base(in.jars[0]) != "kafka.jar" {
				t.Errorf("installed %v, %v", in.jars, err)
			}
		})
	}
	wg.Wait()
	if text, err := os.ReadFile(count); string(text) != "x\n" {
		t.Errorf("mvn ran %d times, want once (%v)", strings.Count(string(text), "x"), err)
	}
}

func TestMissingPrograms(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, want := range []string{"java", "mvn"} {
		_, err := Start(t.Context(), Options{Dir: t.TempDir()})
		missing, ok := errors.AsType[*child.MissingError](err)
		if !ok || missing.Program != want || missing.Install == "" {
			t.Errorf("error is %v, want that %s is missing and what to install", err, want)
		}
		if err := os.WriteFile(filepath.Join(bin, want), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOldJava(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	bin := t.TempDir()
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	for name, script := range map[string]string{
		"mvn":  "touch kafka.jar",
		"java": "echo UnsupportedClassVersionError; exit 1",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Start(t.Context(), Options{Dir: t.TempDir()})
	if missing, ok := errors.AsType[*child.MissingError](err); !ok || missing.Program != "java 17" {
		t.Errorf("error is %v, want that java 17 is missing", err)
	}
}
