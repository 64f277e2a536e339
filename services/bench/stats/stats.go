// Package stats has the numbers of the benchmarks: samples, their spread and their ratios.
package stats

import (
	"math"
	"slices"
)

// Sample is the result of one measurement.
type Sample struct {
	// Value is in the unit of the measurement, mostly orders per second.
	Value float64
	// CPU is the processor time in µs per order. It is 0 if it was not measured, and NaN if it
	// could not be read.
	CPU float64
}

// Spread summarises several repeats. It is NaN for no repeats.
type Spread struct{ Median, Low, High float64 }

// SpreadOf returns the spread of some values.
func SpreadOf(xs []float64) Spread {
	if len(xs) == 0 {
		return Spread{math.NaN(), math.NaN(), math.NaN()}
	}
	return Spread{Percentile(xs, 50), slices.Min(xs), slices.Max(xs)}
}

// Ratios divides repeat by repeat. The two measurements of a repeat run one right after the other,
// so that a slow moment of the machine affects both. A repeat without its pair does not count.
func Ratios(ours, raw []float64) []float64 {
	ratios := make([]float64, min(len(ours), len(raw)))
	for i := range ratios {
		ratios[i] = ours[i] / raw[i]
	}
	return ratios
}

// Percentile interpolates between the two values nearest to it. It returns NaN for no values.
func Percentile(xs []float64, p float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(xs))
	at := p / 100 * float64(len(sorted)-1)
	below := int(at)
	if below == len(sorted)-1 {
		return sorted[below]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// InSeries returns the rate of work that has several parts, each with its own rate, if the parts
// are done one after the other: their times add up.
func InSeries(rates ...float64) float64 {
	var time float64
	for _, r := range rates {
		time += 1 / r
	}
	return 1 / time
}
