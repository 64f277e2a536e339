package main

import (
	"math"
	"slices"
)

// spread is what several repeats come to.
type spread struct{ median, low, high float64 }

func spreadOf(xs []float64) spread {
	if len(xs) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	return spread{percentile(xs, 50), slices.Min(xs), slices.Max(xs)}
}

// ratios divides repeat by repeat: the two of a pair ran one right after the other, so what the machine did meanwhile hits both.
func ratios(ours, raw []float64) []float64 {
	rs := make([]float64, min(len(ours), len(raw)))
	for i := range rs {
		rs[i] = ours[i] / raw[i]
	}
	return rs
}

// percentile interpolates between the two values nearest to it; NaN when there are none.
func percentile(xs []float64, p float64) float64 {
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

// inSeries is the rate of work whose parts, each done at its own rate, are done one after the other: their times add up.
func inSeries(rates ...float64) float64 {
	var time float64
	for _, r := range rates {
		time += 1 / r
	}
	return 1 / time
}
