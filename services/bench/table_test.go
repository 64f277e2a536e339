package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/bench/stats"
)

func TestUnits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		unit unit
		x    float64
		want string
	}{
		{perSecond, 12_345.6, "12,300/s"},
		{perSecond, 999.6, "1000/s"},
		{perSecond, 1_234_567, "1,230,000/s"},
		{milliseconds, 0.01234, "0.0123 ms"},
		{milliseconds, 1.234, "1.23 ms"},
		{milliseconds, 12.34, "12.3 ms"},
		{milliseconds, 5123, "5,120 ms"},
		{milliseconds, 282_000, "282 s"},
		{mebibytes, 21.04, "21.0 MiB"},
		{mebibytes, math.NaN(), "–"},
	} {
		if diff := cmp.Diff(tt.want, tt.unit.format(tt.x)); diff != "" {
			t.Errorf("%v %s: %s", tt.x, tt.unit, diff)
		}
	}
}

func TestSpreadIsInTheUnitOfItsMedian(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		of   stats.Spread
		want string
	}{
		{stats.Spread{Median: 9, Low: 7.5, High: 11}, "9.00 ms (7.50–11.0)"},
		{stats.Spread{Median: 282_000, Low: 9_000, High: 300_000}, "282 s (9.00–300)"},
	} {
		if diff := cmp.Diff(tt.want, milliseconds.formatSpread(tt.of)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestGoal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		goal  goal
		ratio float64
		want  string
	}{
		{goal{}, 1, "–"},
		{goal{atLeast: 0.6}, 0.6, "≥ 0.6: met"},
		{goal{atLeast: 0.6}, 0.59, "**≥ 0.6: missed**"},
		{goal{atMost: 4}, 3.9, "≤ 4: met"},
		{goal{atMost: 4}, 4.1, "**≤ 4: missed**"},
		// A target that was not measured is not met.
		{goal{atMost: 4}, math.NaN(), "**≤ 4: missed**"},
	} {
		if diff := cmp.Diff(tt.want, tt.goal.format(tt.ratio)); diff != "" {
			t.Errorf("%+v, %v: %s", tt.goal, tt.ratio, diff)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	rate := result{what: "rate", unit: perSecond, goal: goal{atLeast: 0.5}}
	for _, ours := range []float64{50, 60, 55} {
		rate.add(stats.Sample{Value: ours, CPU: 12}, stats.Sample{Value: 100, CPU: 3})
	}
	took := result{what: "time", unit: milliseconds}
	took.addTimes(10*time.Millisecond, 5*time.Millisecond)
	again := result{what: "again", unit: milliseconds, sooner: true, goal: goal{atLeast: 100}}
	again.addTimes(10*time.Millisecond, 1500*time.Millisecond)
	printTable(&out, "Title", "What it means.", rate, took, again)
	want := `
### Title

What it means.

| what | ours | raw | ratio: median (min–max) | CPU µs per order: ours (raw) | target |
| --- | --- | --- | --- | --- | --- |
| rate | 55.0/s | 100/s | 0.55 (0.50–0.60) | 12.0 (3.00) | ≥ 0.5: met |
| time | 10.0 ms | 5.00 ms | 2.00 (2.00–2.00) | – | – |
| again | 10.0 ms | 1,500 ms | 150 × sooner (150–150) | – | ≥ 100: met |
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
