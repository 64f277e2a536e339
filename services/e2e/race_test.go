//go:build race

package e2e

// The programs are built as the tests are, so that a data race in them is seen, too.
func init() { buildFlags = append(buildFlags, "-race") }
