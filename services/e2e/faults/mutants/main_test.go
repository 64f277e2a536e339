package main

import (
	"bytes"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/testenv"
)

// A patch that no longer applies would go unnoticed until somebody runs all of them.
func TestPatchesApply(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "git", "git")
	mutants, err := all()
	if err != nil {
		t.Fatal(err)
	}
	if len(mutants) == 0 {
		t.Error("there are no patches")
	}
	for _, m := range mutants {
		const root = "../../../.."
		if _, err := command(t.Context(), root, bytes.NewReader(m.patch), "git", "apply", "--check", "-"); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if !strings.HasSuffix(m.what, ".") || strings.HasPrefix(m.what, "diff") {
			t.Errorf("%s: the first line does not say what it does: %q", m.name, m.what)
		}
	}
}

func TestCaughtBy(t *testing.T) {
	t.Parallel()
	for out, want := range map[string]string{
		"x_test.go:1: kill cart\nfaults_test.go:9: violated: lost, gap\nx_test.go:2: lost: order A": "lost, gap",

		"x_test.go:1: not within 1m0s: Cart's outbox is empty; last: 3\n": "not within 1m0s: Cart's outbox is empty",

		"faults_test.go:7: the stores and the topics differ: map[a:b]": "the stores and the topics differ",

		"load_test.go:7: a look-up of a at version 3, ETag 2": "a look-up of a at version 3, ETag 2",

		"panic: out of memory": "the run failed and did not say why",
	} {
		if got := caughtBy(out); got != want {
			t.Errorf("%q was caught by %q, want %q", out, got, want)
		}
	}
}
