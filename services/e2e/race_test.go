//go:build race

package e2e

// The programs are built with the race detector too, so that their data races are found.
func init() { raceFlags = append(raceFlags, "-race") }
