package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// unit is how the values of a row are written.
type unit string

const (
	perSecond    unit = "/s"
	milliseconds unit = "ms"
	seconds      unit = "s"
	mebibytes    unit = "MiB"
)

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

// formatSpread writes a median with what lies around it.
func (u unit) formatSpread(s spread) string {
	low, high := s.low, s.high
	if u == milliseconds && s.median >= 10_000 { // as format does
		low, high = low/1000, high/1000
	}
	return fmt.Sprintf("%s (%s–%s)", u.format(s.median), number(low), number(high))
}

// number writes three digits, which is more than a repeat will confirm, and groups thousands.
func number(x float64) string {
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return "–"
	case x >= 1000:
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

func grouped(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// goal is what a ratio should be; the zero value is none.
type goal struct{ atLeast, atMost float64 }

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

// row compares what this system does with the raw limit, repeat by repeat.
type row struct {
	what      string
	unit      unit
	ours, raw []float64
	cpu       []float64 // µs of processor time per order, of the service alone
	rawCPU    []float64 // the same of the raw limit
	sooner    bool      // these are times, and the ratio is how many times sooner ours is
	goal      goal      // for the ratio
}

// ratio is ours / raw, repeat by repeat; the other way round where sooner is asked for.
func (r row) ratio() spread {
	if r.sooner {
		return spreadOf(ratios(r.raw, r.ours))
	}
	return spreadOf(ratios(r.ours, r.raw))
}

// table prints rows as Markdown.
func table(w io.Writer, title, note string, rows ...row) {
	fmt.Fprintf(w, "\n### %s\n\n%s\n\n", title, note)
	fmt.Fprintln(w, "| what | ours | raw | ratio: median (min–max) | CPU µs per order: ours (raw) | target |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- |")
	for _, r := range rows {
		cells := []string{
			r.what, r.unit.format(spreadOf(r.ours).median), r.unit.format(spreadOf(r.raw).median),
			r.formatRatio(), formatCPU(r.cpu, r.rawCPU), r.goal.format(r.ratio().median),
		}
		fmt.Fprintln(w, "| "+strings.Join(cells, " | ")+" |")
	}
}

func (r row) formatRatio() string {
	s := r.ratio()
	if math.IsNaN(s.median) {
		return "–"
	}
	sooner := ""
	if r.sooner {
		sooner = " × sooner"
	}
	return fmt.Sprintf("%s%s (%s–%s)", number(s.median), sooner, number(s.low), number(s.high))
}

func formatCPU(ours, raw []float64) string {
	text := number(spreadOf(ours).median)
	if len(raw) > 0 {
		text += " (" + number(spreadOf(raw).median) + ")"
	}
	return text
}
