package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/testenv"
)

const root = "../../.."

// built returns the build information of a program like Cart.
func built() *buildinfo.BuildInfo {
	return &buildinfo.BuildInfo{
		GoVersion: "go1.26.8 X:nodwarf5",
		Path:      "ordersystem.dev/services/cmd/cart",
		Deps: []*debug.Module{
			{Path: kafka.name, Version: kafka.version, Sum: "h1:kafka="},
			{Path: sqlite.name, Version: sqlite.version, Sum: "h1:sqlite="},
		},
		Settings: []debug.BuildSetting{{Key: "-tags", Value: "netgo,musl"}},
	}
}

// bytesOf returns a program that has what these libraries leave in it.
func bytesOf(libraries []library) []byte {
	program := []byte("\x7fELF")
	for _, l := range libraries {
		program = fmt.Appendf(program, "\x00%s\x00", l.text())
	}
	return program
}

// versions returns the versions of libraries by their names.
func versions(libraries []library) map[string]string {
	v := map[string]string{}
	for _, l := range libraries {
		v[l.name] = l.version
	}
	return v
}

// of returns the part of the table that one origin brings.
func of(o origin) []library {
	return slices.DeleteFunc(slices.Clone(libraries), func(l library) bool { return l.from != o })
}

func TestLibrariesAreThoseOfTheBuildInformation(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*buildinfo.BuildInfo)
		want   []library
	}{
		"Kafka client, SQLite and musl": {func(*buildinfo.BuildInfo) {}, libraries},
		"Kafka client and SQLite": {
			func(i *buildinfo.BuildInfo) { i.Settings = nil }, slices.Concat(of(kafka), of(sqlite)),
		},
		"SQLite and musl": {
			func(i *buildinfo.BuildInfo) { i.Deps = i.Deps[1:] }, slices.Concat(of(sqlite), of(zig)),
		},
		"musl alone": {func(i *buildinfo.BuildInfo) { i.Deps = nil }, of(zig)},
		"no C":       {func(i *buildinfo.BuildInfo) { i.Deps, i.Settings = nil, nil }, nil},
	} {
		info := built()
		c.change(info)
		got, err := linked(info, bytesOf(c.want))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(versions(c.want), versions(got)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// A program that is linked with another version of a library, or without it, gets no document.
func TestLibraryThatIsNotInTheProgramIsNamed(t *testing.T) {
	t.Parallel()
	for _, l := range libraries {
		if l.mark == "" {
			continue
		}
		program := bytes.ReplaceAll(bytesOf(libraries), []byte(l.text()), []byte("OpenSSL 0.9.8 "))
		_, err := linked(built(), program)
		checkError(t, err, l.name+" "+l.version, "is not in the program", "services/cmd/sbom/libraries.go")
	}
}

func TestVersionsAreKnownForOneVersionOfAModule(t *testing.T) {
	t.Parallel()
	for used, m := range map[string]*debug.Module{
		"v2.99.0": {Path: kafka.name, Version: "v2.99.0"},
		"example.com/fork v2.15.0": {
			Path: kafka.name, Version: kafka.version,
			Replace: &debug.Module{Path: "example.com/fork", Version: "v2.15.0"},
		},
		"../fork (devel)": {
			Path: kafka.name, Version: kafka.version, Replace: &debug.Module{Path: "../fork", Version: "(devel)"},
		},
	} {
		info := built()
		info.Deps[0] = m
		_, err := linked(info, bytesOf(libraries))
		checkError(t, err, "librdkafka", used, kafka.version, "services/cmd/sbom/libraries.go")
	}
}

// The table is right for the archives that the images are linked with.
func TestTableHasTheLibrariesOfTheKafkaClient(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "ar", "binutils")
	dir := filepath.Join(moduleDir(t, kafka), "kafka")
	for _, arch := range []string{"amd64", "arm64"} {
		archive := filepath.Join(dir, "librdkafka_vendor", "librdkafka_musl_linux_"+arch+".a")
		source := read(t, filepath.Join(dir, "build_musl_linux_"+arch+".go"))
		got := map[string]string{"librdkafka": find(t, source, `librdkafka-static-bundle-v([0-9.]+)\.tgz`)}
		// The first version in each of these object files is that of its library.
		for name, object := range map[string]string{
			"openssl": "libcrypto-lib-cversion.o",
			"curl":    "libcurl_la-version.o",
			"zlib":    "inftrees.o",
			"zstd":    "zstd_common.o",
			"lz4":     "lz4.o",
		} {
			got[name] = find(t, output(t, "ar", "p", archive, object), `([0-9]+\.[0-9]+\.[0-9]+)`)
		}
		if diff := cmp.Diff(got, versions(of(kafka))); diff != "" {
			t.Errorf("%s (-the archive +the table):\n%s", arch, diff)
		}
		whole := read(t, archive)
		for _, l := range of(kafka) {
			if !bytes.Contains(whole, []byte(l.text())) {
				t.Errorf("the archive for %s has no %q", arch, l.text())
			}
		}
	}
}

func TestTableHasTheSQLiteOfItsDriver(t *testing.T) {
	t.Parallel()
	header := read(t, filepath.Join(moduleDir(t, sqlite), "sqlite3-binding.h"))
	got := []string{
		find(t, header, `#define SQLITE_VERSION +"([^"]+)"`), find(t, header, `#define SQLITE_SOURCE_ID +"([^"]+)"`),
	}
	var want []string
	for _, l := range of(sqlite) {
		want = append(want, l.version, l.text())
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-the driver +the table):\n%s", diff)
	}
}

func TestTableIsForTheCompilerOfTheImages(t *testing.T) {
	t.Parallel()
	got := find(t, read(t, filepath.Join(root, "services/Dockerfile")), `ziglang==([0-9.]+)`)
	if got != zig.version {
		t.Errorf("zig %s builds the images, and the table is for %s: musl's version is in zig's "+
			"lib/libc/musl/src/internal/version.h, and `zig cc --version` prints clang's", got, zig.version)
	}
}

// A module that brings C and is not in the table would be overlooked.
func TestTableHasEveryModuleThatBringsC(t *testing.T) {
	t.Parallel()
	out := output(t, "env", "GOOS=linux", "CGO_ENABLED=1", "go", "list", "-deps", "-tags=musl",
		"-f", "{{if .CgoFiles}}{{with .Module}}{{.Path}}{{end}}{{end}}", "ordersystem.dev/services/cmd/...")
	got := map[string]bool{}
	for name := range strings.FieldsSeq(string(out)) {
		got[name] = true
	}
	// Its own C has no version.
	want := []string{kafka.name, sqlite.name, "ordersystem.dev"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Error(diff)
	}
}

// moduleDir returns the folder of the version of a module that is in go.mod.
func moduleDir(t *testing.T, o origin) string {
	t.Helper()
	var m struct{ Version, Dir string }
	if err := json.Unmarshal(output(t, "go", "mod", "download", "-json", o.name), &m); err != nil {
		t.Fatal(err)
	}
	if m.Version != o.version {
		t.Errorf("go.mod has %s %s, and the table is for %s", o.name, m.Version, o.version)
	}
	return m.Dir
}

// find returns what is in the parentheses of the first match.
func find(t *testing.T, text []byte, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindSubmatch(text)
	if m == nil {
		t.Fatalf("nothing matches %s in %.300q", pattern, text)
	}
	return string(m[1])
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func output(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(c.Args, " "), err, stderr.Bytes())
	}
	return out
}

// checkError checks that an error has every part.
func checkError(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want %q in it", err, part)
		}
	}
}
