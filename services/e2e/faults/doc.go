// Package faults is what the tests of the system under faults have in common, apart from the system itself:
// which faults come when, what clients saw, and whether that keeps the system's promises.
package faults
