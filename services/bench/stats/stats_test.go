package stats

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var about = cmp.Options{cmpopts.EquateApprox(0, 1e-9), cmpopts.EquateNaNs(), cmp.AllowUnexported(Spread{})}

func TestPercentile(t *testing.T) {
	t.Parallel()
	hundred := make([]float64, 101)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tt := range []struct {
		name string
		of   []float64
		p    float64
		want float64
	}{
		{"none", nil, 50, math.NaN()},
		{"one", []float64{7}, 99, 7},
		{"median of an odd number", []float64{9, 1, 5}, 50, 5},
		{"median of an even number lies between", []float64{4, 1, 3, 2}, 50, 2.5},
		{"least", []float64{4, 1, 3, 2}, 0, 1},
		{"most", []float64{4, 1, 3, 2}, 100, 4},
		{"p99", hundred, 99, 99},
		{"between two values", []float64{0, 10}, 25, 2.5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, Percentile(tt.of, tt.p), about); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPercentileLeavesItsInputAlone(t *testing.T) {
	t.Parallel()
	xs := []float64{3, 1, 2}
	Percentile(xs, 50)
	if diff := cmp.Diff([]float64{3, 1, 2}, xs); diff != "" {
		t.Error(diff)
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(Spread{2, 1, 9}, SpreadOf([]float64{9, 2, 1}), about); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Spread{math.NaN(), math.NaN(), math.NaN()}, SpreadOf(nil), about); diff != "" {
		t.Error("of nothing:", diff)
	}
}

// A machine that is slow for one repeat slows both of a pair; the ratio of medians would mix the
// pairs.
func TestRatiosArePairwise(t *testing.T) {
	t.Parallel()
	ours, raw := []float64{50, 10, 60}, []float64{100, 20, 120}
	if diff := cmp.Diff([]float64{0.5, 0.5, 0.5}, Ratios(ours, raw), about); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]float64{0.5}, Ratios(ours[:1], raw), about); diff != "" {
		t.Error("a repeat without its pair does not count:", diff)
	}
}

func TestInSeries(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		rates []float64
		want  float64
	}{
		{"one", []float64{100}, 100},
		{"two of the same halve it", []float64{100, 100}, 50},
		{"the slow one decides", []float64{1e12, 100}, 99.99999999},
		{"three", []float64{60, 30, 20}, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, InSeries(tt.rates...), about); diff != "" {
				t.Error(diff)
			}
		})
	}
}
