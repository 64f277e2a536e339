package testenv

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// Secret is a directory of files as Kubernetes mounts a Secret: each is a symbolic link through
// another one, ..data, and a change swaps that.
type Secret struct{ Dir string }

// Change puts other files in place of all that there are.
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
	// None at first.
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
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(s.Dir, name)); err != nil &&
			!os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if former != "" {
		must(os.RemoveAll(filepath.Join(s.Dir, former)))
	}
}
