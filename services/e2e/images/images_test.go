// Package images_test checks the images that `make images` builds against what the documents
// promise. The first run takes some minutes. Later ones take a few seconds, because Docker keeps
// its caches.
package images_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/testenv"
)

const root = "../../.."

var programs = []string{"cart", "order", "lag-operator", "lag-collector", "check", "orderctl"}

func TestMakefileListsThePrograms(t *testing.T) {
	var want []string
	for _, p := range programs {
		want = append(want, "registry.example/ordersystem/"+p+":1.2.3")
	}
	testenv.RequireProgram(t, "make", "make")
	got := strings.Fields(run(t, "make", "-s", "-C", root, "image-names", "REGISTRY=registry.example", "VERSION=1.2.3"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestImageHoldsNothingButTheProgram(t *testing.T) {
	testenv.RequireBuildKit(t)
	for _, p := range programs {
		t.Run(p, func(t *testing.T) {
			name := build(t, p, "")
			i := open(t, name)

			want := config{User: "65532:65532", Entrypoint: []string{"/app"}}
			if diff := cmp.Diff(want, i.config); diff != "" {
				t.Error(diff)
			}
			files := []string{"app", "etc/", "etc/ssl/", "etc/ssl/certs/", "etc/ssl/certs/ca-certificates.crt"}
			if diff := cmp.Diff(files, i.names); diff != "" {
				t.Error(diff)
			}
			// Docker's cache ignores file times, but a layer's hash includes them.
			for name, f := range i.files {
				if f.modified.Unix() != 0 {
					t.Errorf("%s is of %v, so that no other build gives the same layer", name, f.modified)
				}
			}
			if !x509.NewCertPool().AppendCertsFromPEM(i.files["etc/ssl/certs/ca-certificates.crt"].content) {
				t.Error("no CA certificate in the bundle")
			}
			checkStatic(t, i.files["app"].content,
				map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[i.arch])
		})
	}
}

func TestImageStarts(t *testing.T) {
	testenv.RequireBuildKit(t)
	for program, says := range map[string]string{
		"cart":          "KAFKA_BROKERS is not set",
		"order":         "KAFKA_BROKERS is not set",
		"lag-operator":  "POD_NAMESPACE is not set",
		"lag-collector": "/etc/lag-collector/config.yaml",
		"check":         "no step is given",
		"orderctl":      "no command is given",
	} {
		t.Run(program, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), testenv.Docker(), "run", "--rm", "--network=none",
				"--read-only", build(t, program, "")).CombinedOutput()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.ExitCode() != 2 || !strings.Contains(string(out), says) {
				t.Errorf("got %v and %q, want exit code 2 and %q", err, out, says)
			}
		})
	}
}

// A scanner finds the Go modules in a program by itself, but not the C libraries.
func TestSBOMHasTheCLibrariesOfTheProgram(t *testing.T) {
	testenv.RequireBuildKit(t)
	const client = "github.com/confluentinc/confluent-kafka-go/v2"
	all := []string{"curl", "librdkafka", "lz4", "musl", "openssl", "sqlite", "zlib", "zstd"}
	for program, want := range map[string][]string{
		"cart": all, "order": all, "orderctl": all,
		"check": {"musl"}, "lag-collector": {"musl"}, "lag-operator": {"musl"},
	} {
		t.Run(program, func(t *testing.T) {
			app := open(t, build(t, program, "")).files["app"].content
			dir := t.TempDir()
			run(t, "make", "-s", "-C", root, "PROGRAMS="+program, "SBOM_DIR="+dir, "sbom")
			b, err := os.ReadFile(filepath.Join(dir, program+".cdx.json"))
			if err != nil {
				t.Fatal(err)
			}
			var sbom struct {
				Metadata struct {
					Component struct{ Hashes []struct{ Content string } }
				}
				Components []struct{ Name, Version, PURL string }
			}
			decode(t, b, &sbom)

			hash := fmt.Sprintf("%x", sha256.Sum256(app))
			if got := sbom.Metadata.Component.Hashes; len(got) != 1 || got[0].Content != hash {
				t.Errorf("the SBOM is of the file %v, want %s", got, hash)
			}
			var modules, libraries []string
			for _, c := range sbom.Components {
				if c.Version == "" {
					t.Errorf("%s has no version", c.Name)
				}
				if strings.HasPrefix(c.PURL, "pkg:golang/") {
					modules = append(modules, c.Name)
				} else {
					libraries = append(libraries, c.Name)
				}
			}
			slices.Sort(libraries)
			if diff := cmp.Diff(want, libraries); diff != "" {
				t.Error(diff)
			}
			if slices.Contains(modules, client) != slices.Contains(want, "librdkafka") {
				t.Errorf("the Go modules do not go with the C libraries: %v", modules)
			}
		})
	}
}

func TestImageForTheOtherArchitecture(t *testing.T) {
	testenv.RequireBuildKit(t)
	other, machine := "arm64", elf.EM_AARCH64
	if strings.Contains(run(t, testenv.Docker(), "version", "--format", "{{.Server.Arch}}"), other) {
		other, machine = "amd64", elf.EM_X86_64
	}
	i := open(t, build(t, "check", "", "PLATFORM=linux/"+other, "VERSION=test-other"))
	if i.arch != other {
		t.Errorf("the image is for %s, want %s", i.arch, other)
	}
	checkStatic(t, i.files["app"].content, machine)
}

// The second build shares no cache, module or path with the first. The test compares layers and not
// whole images: BuildKit before 0.11 ignores SOURCE_DATE_EPOCH and writes the time of the build
// into an image's configuration.
func TestImageIsReproducible(t *testing.T) {
	testenv.RequireBuildKit(t)
	b, err := os.ReadFile(filepath.Join(root, "services/Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := string(b)
	for here, there := range map[string]string{
		"id=ordersystem": "id=ordersystem-again",
		"/cache":         "/elsewhere/cache",
		"WORKDIR /src":   "WORKDIR /elsewhere/src",
	} {
		if !strings.Contains(elsewhere, here) {
			t.Fatalf("services/Dockerfile has no %q", here)
		}
		elsewhere = strings.ReplaceAll(elsewhere, here, there)
	}
	dockerfile := filepath.Join(t.TempDir(), "Dockerfile")
	if err := os.WriteFile(dockerfile, []byte(elsewhere), 0o600); err != nil {
		t.Fatal(err)
	}

	first := open(t, build(t, "cart", ""))
	second := open(t, build(t, "cart", "--file="+dockerfile, "VERSION=test-again"))
	if diff := cmp.Diff(first.layers, second.layers); diff != "" {
		t.Errorf("two builds, two hashes:\n%s", diff)
	}
}

func checkStatic(t *testing.T, program []byte, machine elf.Machine) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != machine {
		t.Errorf("the program is for %v, want %v", f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program is not statically linked: it has %v", p.Type)
		}
	}
}

// build runs `make images` for one program and returns the image's name. flag is one more flag for
// Docker; variables are set for make.
func build(t *testing.T, program, flag string, variables ...string) string {
	t.Helper()
	testenv.RequireProgram(t, "make", "make")
	args := append([]string{"-s", "-C", root, "PROGRAMS=" + program,
		"IMAGE_FLAGS=" + os.Getenv("IMAGE_FLAGS") + " " + flag}, variables...)
	run(t, "make", append(args, "images")...)
	return strings.TrimSpace(run(t, "make", append(args, "image-names")...))
}

type config struct {
	User       string
	Entrypoint []string
}

type file struct {
	content  []byte
	modified time.Time
}

type image struct {
	arch   string
	config config
	layers []string // their hashes
	names  []string
	files  map[string]file
}

func open(t *testing.T, name string) image {
	t.Helper()
	saved := untar(t, []byte(run(t, testenv.Docker(), "save", name)))
	var manifest []struct {
		Config string
		Layers []string
	}
	decode(t, saved["manifest.json"].content, &manifest)
	var c struct {
		Architecture string
		Config       config
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	decode(t, saved[manifest[0].Config].content, &c)
	i := image{arch: c.Architecture, config: c.Config, layers: c.RootFS.DiffIDs, files: map[string]file{}}
	for _, l := range manifest[0].Layers {
		for name, f := range untar(t, saved[l].content) {
			i.names = append(i.names, name)
			i.files[name] = f
		}
	}
	slices.Sort(i.names)
	return i
}

func untar(t *testing.T, archive []byte) map[string]file {
	t.Helper()
	files := map[string]file{}
	var plain io.Reader = bytes.NewReader(archive)
	// Newer versions of Docker compress the layers.
	if bytes.HasPrefix(archive, []byte("\x1f\x8b")) {
		var err error
		if plain, err = gzip.NewReader(plain); err != nil {
			t.Fatal(err)
		}
	}
	r := tar.NewReader(plain)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = file{content, h.ModTime}
	}
}

func decode(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(c.Args, " "), err, stderr.Bytes())
	}
	return string(out)
}
