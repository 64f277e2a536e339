package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"ordersystem.dev/services/contract"
)

// report collects and prints the results of a run. It is safe for concurrent use.
type report struct {
	stdout, stderr io.Writer

	mu sync.Mutex
	// done counts the successful steps by name.
	done   map[string]int
	failed int
	// visible has the times from the last response of Cart until Order had the order.
	visible []time.Duration
	// acknowledged has, by topic, the orders that must be in it and their least versions.
	acknowledged map[string]map[string]int64
}

// newReport makes an empty report.
func newReport(stdout, stderr io.Writer) *report {
	return &report{
		stdout: stdout, stderr: stderr,
		done:         map[string]int{},
		acknowledged: map[string]map[string]int64{contract.TopicCreated: {}, contract.TopicUpdated: {}},
	}
}

// expectPlaced makes the audit look for an order that was placed before this run.
func (r *report) expectPlaced(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acknowledged[contract.TopicCreated][id] = 1
}

// expected returns a copy of the orders that must be in a topic, with their least versions.
func (r *report) expected(topic string) map[string]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.acknowledged[topic])
}

// past has the names of the steps in results.
var past = map[string]string{stepPlace: "placed", stepUpdate: "updated", stepFind: "found"}

// succeed counts and prints a step that succeeded.
func (r *report) succeed(step string, o state, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[step]++
	switch step {
	case stepPlace:
		r.acknowledged[contract.TopicCreated][o.OrderID] = o.Version
	case stepUpdate:
		r.acknowledged[contract.TopicUpdated][o.OrderID] = o.Version
	case stepFind:
		r.visible = append(r.visible, took)
	}
	fmt.Fprintf(r.stdout, "%-7s %s version %d %s\n", past[step], o.OrderID, o.Version, short(took))
}

// audited prints the result of one topic's audit: the orders in the topic and how many of this
// run's were found.
func (r *report) audited(topic string, total, found, expected int, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.stdout, "audited %s total %d, of this run %d/%d %s\n", topic, total, found, expected, short(took))
}

// fail counts and prints a failure.
func (r *report) fail(what string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	fmt.Fprintf(r.stderr, "failed: %s: %v\n", what, err)
}

// summary prints the last line and returns the exit code.
func (r *report) summary(retried int64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.stdout, "summary: placed %d, updated %d, found %d, failed %d, retried %d",
		r.done[stepPlace], r.done[stepUpdate], r.done[stepFind], r.failed, retried)
	if n := len(r.visible); n > 0 {
		slices.Sort(r.visible)
		p50, p99 := r.visible[(n-1)*50/100], r.visible[(n-1)*99/100]
		fmt.Fprintf(r.stdout, "; found after p50 %s, p99 %s", short(p50), short(p99))
	}
	fmt.Fprintln(r.stdout)
	if r.failed > 0 {
		return 1
	}
	return 0
}

// short rounds a duration for people.
func short(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
