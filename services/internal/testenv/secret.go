package testenv

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// Secret is a directory of files as Kubernetes mounts a Secret. Each file is a symbolic link that
// leads through another link, ..data. A change swaps that link, so that all files change at once.
type Secret struct{ Dir string }

// Change replaces all files of the Secret.
func (s Secret) Change(t testing.TB, files map[string][]byte) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	data := filepath.Join(s.Dir, time.Now().Format("..2006_01_02_15_04_05.000000000"))
	must(os.Mkdir(data, 0o755))
	for name, text := range files {
		must(os.WriteFile(filepath.Join(data, name), text, 0o600))
	}
	link := filepath.Join(s.Dir, "..data")
	// The first call finds no link.
	former, _ := os.Readlink(link)
	must(os.Symlink(filepath.Base(data), link+"_tmp"))
	must(os.Rename(link+"_tmp", link))
	entries, err := os.ReadDir(s.Dir)
	must(err)
	for _, e := range entries {
		if _, stays := files[e.Name()]; !stays && e.Name()[0] != '.' {
			must(os.Remove(filepath.Join(s.Dir, e.Name())))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := os.Symlink(filepath.Join("..data", name), filepath.Join(s.Dir, name))
		if err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if former != "" {
		must(os.RemoveAll(filepath.Join(s.Dir, former)))
	}
}
