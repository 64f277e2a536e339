package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a kind of fault.
type Kind struct {
	Name string
	// Longest is how long it lasts at most, where that can be chosen.
	Longest time.Duration
}

// Fault is one fault of a schedule.
type Fault struct {
	// After is the time since the fault before it was over, or since the start.
	After time.Duration
	// Name is that of its kind.
	Name string
	// For is how long it lasts, where that can be chosen.
	For time.Duration
}

// String returns the fault as Parse reads it.
func (f Fault) String() string { return fmt.Sprintf("%s %s %s", f.After, f.Name, f.For) }

// Schedule is a sequence of faults.
type Schedule []Fault

// String returns the schedule as ParseSchedule reads it.
func (s Schedule) String() string {
	all := make([]string, len(s))
	for i, f := range s {
		all[i] = f.String()
	}
	return strings.Join(all, ", ")
}

// Draw draws a schedule that takes about as long as duration. Every kind of fault comes once before any of
// them comes again. The time between two faults is pause at most.
func Draw(rng *rand.Rand, kinds []Kind, duration, pause time.Duration) Schedule {
	upTo := func(most time.Duration) time.Duration {
		return time.Duration(rng.Int64N(int64(most) + 1)).Round(time.Millisecond)
	}
	var s Schedule
	var next []Kind
	for took := time.Duration(0); took < duration; {
		if len(next) == 0 {
			next = slices.Clone(kinds)
			rng.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
		}
		f := Fault{After: upTo(pause), Name: next[0].Name, For: upTo(next[0].Longest)}
		s, next, took = append(s, f), next[1:], took+f.After+f.For
	}
	return s
}

// ParseSchedule reads a schedule of these kinds of faults.
func ParseSchedule(text string, kinds []Kind) (Schedule, error) {
	var s Schedule
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Fields(part)
		if len(words) < 3 {
			return nil, fmt.Errorf("%q is no fault, such as %s", part, Fault{time.Second, kinds[0].Name, time.Second})
		}
		last := len(words) - 1
		after, err := time.ParseDuration(words[0])
		lasts, bad := time.ParseDuration(words[last])
		if err := errors.Join(err, bad); err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		name := strings.Join(words[1:last], " ")
		if !slices.ContainsFunc(kinds, func(k Kind) bool { return k.Name == name }) {
			return nil, fmt.Errorf("there is no fault %q", name)
		}
		s = append(s, Fault{after, name, lasts})
	}
	return s, nil
}

// Shrink returns a part of the schedule that still fails, and of which each fault is needed for that. fails
// reports whether a schedule does. A failure that depends on timing may not come again: then more is left than
// needed. (Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002.)
func Shrink(s Schedule, fails func(Schedule) bool) Schedule {
	for parts := 2; len(s) > 1; {
		size := (len(s) + parts - 1) / parts
		smaller := false
		for i := 0; i < len(s) && !smaller; i += size {
			rest := slices.Concat(s[:i], s[min(i+size, len(s)):])
			if smaller = len(rest) > 0 && fails(rest); smaller {
				s = rest
			}
		}
		switch {
		case smaller:
			parts = max(parts-1, 2)
		case size == 1:
			return s
		default:
			parts = min(2*parts, len(s))
		}
	}
	return s
}
