// Command mutants seeds bugs into the project, one at a time, runs it under faults, and shows by which check
// each bug was caught. A bug that is not caught is a hole in the checks.
//
//	go run ./services/e2e/faults/mutants [-for 40s] [-seed 1] [NAME...]
//
// Each bug is a patch in this folder. Its first line says what it does, and a line "on: postgres" that the
// system with that database is what shows it, not the one with SQLite. The patches are applied to a copy of
// the last commit. The exit code is 1 if a bug survives.
package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

//go:embed *.patch
var patches embed.FS

// mutant is a bug.
type mutant struct {
	name, what string
	// on is the database: sqlite or postgres.
	on    string
	patch []byte
}

// all returns the bugs in the order of their names.
func all() ([]mutant, error) {
	files, err := fs.Glob(patches, "*.patch")
	if err != nil {
		return nil, err
	}
	var found []mutant
	for _, file := range files {
		patch, err := patches.ReadFile(file)
		if err != nil {
			return nil, err
		}
		head, _, _ := strings.Cut(string(patch), "diff --git ")
		what, rest, _ := strings.Cut(head, "\n")
		m := mutant{name: strings.TrimSuffix(file, ".patch"), what: what, on: "sqlite", patch: patch}
		if strings.TrimSpace(rest) == "on: postgres" {
			m.on = "postgres"
		}
		found = append(found, m)
	}
	return found, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	duration := flags.Duration("for", 40*time.Second, "how long each runs under faults")
	seed := flags.Uint64("seed", 1, "of the faults")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	mutants, err := all()
	if err != nil {
		return err
	}
	for _, name := range flags.Args() {
		if !slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == name }) {
			return fmt.Errorf("there is no mutant %q", name)
		}
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "tree")
	if _, err := command(ctx, ".", nil, "git", "worktree", "add", "--quiet", "--detach", tree, "HEAD"); err != nil {
		return err
	}
	defer func() {
		// Also after an interrupt.
		_, _ = command(context.WithoutCancel(ctx), ".", nil, "git", "worktree", "remove", "--force", tree)
	}()
	var survived []string
	for _, m := range mutants {
		if flags.NArg() > 0 && !slices.Contains(flags.Args(), m.name) {
			continue
		}
		by, took, err := m.test(ctx, tree, *duration, *seed)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if by == "" {
			survived = append(survived, m.name)
			by = "SURVIVED"
		}
		fmt.Printf("%-30s %4.0f s  %s\n", m.name, took.Seconds(), by)
	}
	if len(survived) > 0 {
		return fmt.Errorf("%d survived: %s", len(survived), strings.Join(survived, ", "))
	}
	return nil
}

// test runs the project with the bug, and returns what caught it, or "" if nothing did.
func (m mutant) test(ctx context.Context, tree string, duration time.Duration, seed uint64) (
	by string, took time.Duration, err error,
) {
	if _, err := command(ctx, tree, bytes.NewReader(m.patch), "git", "apply", "-"); err != nil {
		return "", 0, err
	}
	defer func() {
		_, undo := command(context.WithoutCancel(ctx), tree, nil, "git", "checkout", "--quiet", "--", ".")
		err = errors.Join(err, undo)
	}()
	// A bug that does not compile is caught by nobody.
	if _, err := command(ctx, tree, nil, "go", "test", "-run=^$", "./services/e2e"); err != nil {
		return "", 0, err
	}
	if _, err := command(ctx, tree, nil, "go", "build", "-o", os.DevNull, "./services/cmd/cart"); err != nil {
		return "", 0, err
	}
	begin := time.Now()
	out, failed := command(ctx, tree, nil, "env", "E2E_DURATION="+duration.String(), fmt.Sprint("E2E_SEED=", seed),
		"go", "test", "-count=1", "-timeout=10m", "-run=^TestFaultsUnderLoad$/^"+m.on+"$", "./services/e2e")
	if failed == nil {
		return "", time.Since(begin), nil
	}
	if ctx.Err() != nil {
		return "", 0, context.Cause(ctx)
	}
	return caughtBy(out), time.Since(begin), nil
}

// signs are what a failed run says, from the most to the least telling.
var signs = []*regexp.Regexp{
	regexp.MustCompile(`violated: (.*)`),
	regexp.MustCompile(`(not within [^:]*: [^;\n]*)`),
	regexp.MustCompile(`(the stores and the topics differ)`),
	regexp.MustCompile(`\w+_test\.go:\d+: (.{1,100})`),
}

// caughtBy returns what a failed run says about the reason.
func caughtBy(out string) string {
	for _, sign := range signs {
		if found := sign.FindStringSubmatch(out); found != nil {
			return found[1]
		}
	}
	return "the run failed and did not say why"
}

// command runs a program, and returns what it prints.
func command(ctx context.Context, dir string, stdin *bytes.Reader, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if stdin != nil {
		cmd.Stdin = stdin
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}
