package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"ordersystem.dev/services/bench/stats"
)

// unit is the unit of a result's values.
type unit string

// The units of the benchmarks.
const (
	perSecond    unit = "/s"
	milliseconds unit = "ms"
	seconds      unit = "s"
	microseconds unit = "µs"
	mebibytes    unit = "MiB"
)

// format writes a value with its unit; NaN is "–". Long times are written in seconds.
func (u unit) format(x float64) string {
	switch {
	case math.IsNaN(x):
		return "–"
	case u == milliseconds && x >= 10_000:
		return seconds.format(x / 1000)
	case u == perSecond:
		return number(x) + string(u)
	default:
		return number(x) + " " + string(u)
	}
}

// formatSpread formats a median with the least and the most, all in the same unit.
func (u unit) formatSpread(s stats.Spread) string {
	low, high := s.Low, s.High
	// format writes a long median in seconds.
	if u == milliseconds && s.Median >= 10_000 {
		low, high = low/1000, high/1000
	}
	return fmt.Sprintf("%s (%s–%s)", u.format(s.Median), number(low), number(high))
}

// number writes three digits, which is more than a repeat confirms, and groups thousands.
func number(x float64) string {
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return "–"
	case x >= 1000:
		// Numbers above 1,000 are rounded to three digits too.
		step := math.Pow(10, math.Floor(math.Log10(x))-2)
		return grouped(int64(math.Round(x/step) * step))
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x >= 0.1:
		return strconv.FormatFloat(x, 'f', 2, 64)
	default:
		return strconv.FormatFloat(x, 'f', 4, 64)
	}
}

// grouped writes thousands in groups.
func grouped(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// goal is the target of a ratio. The zero value is none.
// Only one of the two is set.
type goal struct{ atLeast, atMost float64 }

// format writes the target and whether the ratio meets it.
func (g goal) format(ratio float64) string {
	var text string
	var met bool
	switch {
	case g.atLeast > 0:
		text, met = fmt.Sprintf("≥ %v", g.atLeast), ratio >= g.atLeast
	case g.atMost > 0:
		text, met = fmt.Sprintf("≤ %v", g.atMost), ratio <= g.atMost
	default:
		return "–"
	}
	if met {
		return text + ": met"
	}
	return "**" + text + ": missed**"
}

// result compares this system with the bare limit, repeat by repeat.
type result struct {
	// what is the first cell of the result's line in the table.
	what string
	// unit is that of ours and raw. The ratio has none.
	unit unit
	// ours and raw have one value for each repeat.
	ours, raw []float64
	// cpu is processor time in µs per order, of the service alone. rawCPU is that of the bare
	// limit.
	cpu, rawCPU []float64
	// created has what the processors did in each repeat, if that is known.
	created []created
	// sooner means that the values are times and that the ratio is raw / ours.
	sooner bool
	// goal is the target of the ratio.
	goal goal
}

// add adds one repeat. Processor times of 0 were not measured and do not count.
func (r *result) add(ours, raw stats.Sample) {
	r.ours, r.raw = append(r.ours, ours.Value), append(r.raw, raw.Value)
	if ours.CPU != 0 {
		r.cpu = append(r.cpu, ours.CPU)
	}
	if raw.CPU != 0 {
		r.rawCPU = append(r.rawCPU, raw.CPU)
	}
}

// addTimes adds one repeat of a result in milliseconds.
func (r *result) addTimes(ours, raw time.Duration) {
	r.add(stats.Sample{Value: stats.Milliseconds(ours)}, stats.Sample{Value: stats.Milliseconds(raw)})
}

// ratio returns ours / raw, repeat by repeat, or raw / ours of a result with sooner.
func (r *result) ratio() stats.Spread {
	if r.sooner {
		return stats.SpreadOf(stats.Ratios(r.raw, r.ours))
	}
	return stats.SpreadOf(stats.Ratios(r.ours, r.raw))
}

// printTable prints results as Markdown, below a title and a note on what they mean.
func printTable(w io.Writer, title, note string, results ...result) {
	fmt.Fprintf(w, "\n### %s\n\n%s\n\n", title, note)
	fmt.Fprintln(w, "| what | ours | raw | ratio: median (min–max) | CPU µs per order: ours (raw) | target |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- |")
	for _, r := range results {
		cells := []string{
			r.what, r.unit.format(stats.SpreadOf(r.ours).Median), r.unit.format(stats.SpreadOf(r.raw).Median),
			r.formatRatio(), formatCPU(r.cpu, r.rawCPU), r.goal.format(r.ratio().Median),
		}
		fmt.Fprintln(w, "| "+strings.Join(cells, " | ")+" |")
	}
}

// formatRatio writes the median of the ratios with the least and the most.
func (r *result) formatRatio() string {
	s := r.ratio()
	if math.IsNaN(s.Median) {
		return "–"
	}
	sooner := ""
	if r.sooner {
		sooner = " × sooner"
	}
	return fmt.Sprintf("%s%s (%s–%s)", number(s.Median), sooner, number(s.Low), number(s.High))
}

// formatCPU writes the median of processor times, and that of the bare limit in brackets.
func formatCPU(ours, raw []float64) string {
	text := number(stats.SpreadOf(ours).Median)
	if len(raw) > 0 {
		text += " (" + number(stats.SpreadOf(raw).Median) + ")"
	}
	return text
}
