package main

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
		of   spread
		want string
	}{
		{spread{9, 7.5, 11}, "9.00 ms (7.50–11.0)"},
		{spread{282_000, 9_000, 300_000}, "282 s (9.00–300)"},
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
		{goal{atMost: 4}, math.NaN(), "**≤ 4: missed**"}, // what was not measured is not met
	} {
		if diff := cmp.Diff(tt.want, tt.goal.format(tt.ratio)); diff != "" {
			t.Errorf("%+v, %v: %s", tt.goal, tt.ratio, diff)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	table(&out, "Title", "What it means.",
		row{what: "rate", unit: perSecond, ours: []float64{50, 60, 55}, raw: []float64{100, 100, 100}, cpu: []float64{12}, rawCPU: []float64{3}, goal: goal{atLeast: 0.5}},
		row{what: "time", unit: milliseconds, ours: []float64{10}, raw: []float64{5}},
		row{what: "again", unit: milliseconds, ours: []float64{10}, raw: []float64{1500}, sooner: true, goal: goal{atLeast: 100}},
	)
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
