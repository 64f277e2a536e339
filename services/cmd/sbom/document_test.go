package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scanned is what scanners read of a document.
type scanned struct {
	BOMFormat, SpecVersion, SerialNumber string
	Version                              int
	Metadata                             struct {
		Timestamp string
		Component struct {
			BOMRef string `json:"bom-ref"`
			Type   string
			Name   string
			Hashes []struct{ Alg, Content string }
		}
	}
	Components   []component
	Dependencies []struct {
		Ref       string
		DependsOn []string
	}
}

type component struct {
	BOMRef                         string `json:"bom-ref"`
	Type, Name, Version, CPE, PURL string
	Properties                     []struct{ Name, Value string }
}

// thisProgram is the test itself. It links what sbom links, and no C library with a version.
func thisProgram(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// documentOf returns the document that is printed for a program, and what scanners read of it.
func documentOf(t *testing.T, path string) (string, scanned) {
	t.Helper()
	var out bytes.Buffer
	if err := run([]string{path}, &out); err != nil {
		t.Fatal(err)
	}
	var s scanned
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		t.Fatalf("%v in %s", err, out.Bytes())
	}
	return out.String(), s
}

func TestDocumentDescribesTheProgram(t *testing.T) {
	t.Parallel()
	path := thisProgram(t)
	_, got := documentOf(t, path)
	if got.BOMFormat != "CycloneDX" || got.SpecVersion != "1.6" || got.Version != 1 {
		t.Errorf("the document is %s %s, version %d", got.BOMFormat, got.SpecVersion, got.Version)
	}
	sum := sha256.Sum256(read(t, path))
	subject := got.Metadata.Component
	if len(subject.Hashes) != 1 || subject.Hashes[0].Alg != "SHA-256" ||
		subject.Hashes[0].Content != hex.EncodeToString(sum[:]) {
		t.Errorf("the hashes are %v, want the SHA-256 %x", subject.Hashes, sum)
	}
	if subject.Type != "application" || !strings.HasPrefix(subject.Name, "sbom") {
		t.Errorf("the document is of the %s %q", subject.Type, subject.Name)
	}
}

func TestDocumentHasEveryGoModule(t *testing.T) {
	t.Parallel()
	_, got := documentOf(t, thisProgram(t))
	info, ok := debug.ReadBuildInfo()
	if !ok || len(info.Deps) == 0 {
		t.Fatal("this program has no build information")
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ")
	want := map[string][]string{"stdlib": {version, "pkg:golang/stdlib@" + version}}
	for _, m := range info.Deps {
		want[m.Path] = []string{m.Version, "pkg:golang/" + m.Path + "@" + m.Version, "go.sum", m.Sum}
	}
	if want["github.com/CycloneDX/cyclonedx-go"] == nil {
		t.Error("this program does not link the library that writes the document")
	}
	found := map[string][]string{}
	for _, c := range got.Components {
		found[c.Name] = []string{c.Version, c.PURL}
		for _, p := range c.Properties {
			found[c.Name] = append(found[c.Name], p.Name, p.Value)
		}
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
}

// A document with a reference that is there twice, or to nothing, is not valid.
func TestReferencesAreUnique(t *testing.T) {
	t.Parallel()
	_, got := documentOf(t, thisProgram(t))
	known := map[string]bool{got.Metadata.Component.BOMRef: true}
	for _, c := range got.Components {
		if c.BOMRef == "" || known[c.BOMRef] || c.Type != "library" {
			t.Errorf("%s %s is a %s, and its reference is %q", c.Name, c.Version, c.Type, c.BOMRef)
		}
		known[c.BOMRef] = true
	}
	for _, d := range got.Dependencies {
		for _, ref := range append(d.DependsOn, d.Ref) {
			if !known[ref] {
				t.Errorf("nothing has the reference %q", ref)
			}
		}
	}
}

func TestDocumentIsReproducible(t *testing.T) {
	t.Parallel()
	first, got := documentOf(t, thisProgram(t))
	second, _ := documentOf(t, thisProgram(t))
	if diff := cmp.Diff(first, second); diff != "" {
		t.Error(diff)
	}
	if got.SerialNumber != "" || got.Metadata.Timestamp != "" {
		t.Errorf("it has the serial number %q and the time %q", got.SerialNumber, got.Metadata.Timestamp)
	}
}

// Scanners find a C library by its CPE. Who reads the document sees which module to upgrade.
func TestDocumentHasTheCLibraries(t *testing.T) {
	t.Parallel()
	bom, err := document(built(), bytesOf(libraries))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(bom)
	if err != nil {
		t.Fatal(err)
	}
	var got scanned
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}

	by := map[string]string{}
	for _, d := range got.Dependencies {
		for _, ref := range d.DependsOn {
			by[ref] = d.Ref
		}
	}
	found := map[string][]string{}
	for _, c := range got.Components {
		found[c.Name] = []string{c.PURL, c.CPE, by[c.BOMRef]}
	}
	const (
		cart = "ordersystem.dev/services/cmd/cart"
		rest = ":*:*:*:*:*:*:*"
	)
	client, driver := "pkg:golang/"+kafka.name+"@"+kafka.version, "pkg:golang/"+sqlite.name+"@"+sqlite.version
	v := versions(libraries)
	want := map[string][]string{
		"stdlib":     {"pkg:golang/stdlib@1.26.8", "cpe:2.3:a:golang:go:1.26.8" + rest, cart},
		kafka.name:   {client, "", cart},
		sqlite.name:  {driver, "", cart},
		"librdkafka": {"pkg:github/confluentinc/librdkafka@v" + v["librdkafka"], "", client},
		"openssl": {
			"pkg:generic/openssl@" + v["openssl"], "cpe:2.3:a:openssl:openssl:" + v["openssl"] + rest, client,
		},
		"curl":   {"pkg:generic/curl@" + v["curl"], "cpe:2.3:a:haxx:curl:" + v["curl"] + rest, client},
		"zlib":   {"pkg:generic/zlib@" + v["zlib"], "cpe:2.3:a:zlib:zlib:" + v["zlib"] + rest, client},
		"zstd":   {"pkg:generic/zstd@" + v["zstd"], "cpe:2.3:a:facebook:zstandard:" + v["zstd"] + rest, client},
		"lz4":    {"pkg:generic/lz4@" + v["lz4"], "cpe:2.3:a:lz4_project:lz4:" + v["lz4"] + rest, client},
		"sqlite": {"pkg:generic/sqlite@" + v["sqlite"], "cpe:2.3:a:sqlite:sqlite:" + v["sqlite"] + rest, driver},
		"musl":   {"pkg:generic/musl@" + v["musl"], "cpe:2.3:a:musl-libc:musl:" + v["musl"] + rest, cart},
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
}

func TestModuleThatIsAFolderIsRefused(t *testing.T) {
	t.Parallel()
	_, err := module(&debug.Module{
		Path: "example.com/a", Version: "v1.0.0", Sum: "h1:a=",
		Replace: &debug.Module{Path: "../a", Version: "(devel)"},
	})
	checkError(t, err, "../a is built from a folder")
}

func TestModuleIsWhatTakesItsPlace(t *testing.T) {
	t.Parallel()
	got, err := module(&debug.Module{
		Path: "example.com/a", Version: "v1.0.0", Sum: "h1:a=",
		Replace: &debug.Module{Path: "example.com/B", Version: "v2.0.0+incompatible", Sum: "h1:b="},
	})
	if want := "pkg:golang/example.com/B@v2.0.0%2Bincompatible"; err != nil || got.PackageURL != want {
		t.Errorf("got %s and error %v, want %s", got.PackageURL, err, want)
	}
}

func TestWrongArguments(t *testing.T) {
	t.Parallel()
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"usage: sbom PROGRAM":                   {},
		"no such file":                          {"/nowhere"},
		"read the build information of " + text: {text},
	} {
		checkError(t, run(args, io.Discard), want)
	}
}
