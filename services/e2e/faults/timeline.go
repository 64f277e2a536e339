package faults

import (
	"cmp"
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// timelineOrders is how many orders a timeline has at most.
const timelineOrders = 20

// Span is a fault as it was.
type Span struct {
	Name       string
	Begin, End time.Time
}

// Timeline writes a page that shows the operations on some orders, the faults, and the violations. The orders
// are first those with violations, and then those with most operations.
func Timeline(to io.Writer, e Evidence, spans []Span, found []Violation) error {
	effects := NewChecker(e).effects()
	violated := make(map[string]int)
	for _, v := range found {
		violated[v.Order]++
	}
	orders := slices.SortedFunc(maps.Keys(effects), func(a, b string) int {
		return cmp.Or(violated[b]-violated[a], len(effects[b])-len(effects[a]))
	})
	orders = orders[:min(len(orders), timelineOrders)]
	var shown []porcupine.Operation
	// over is after the last response.
	var over int64
	for _, order := range orders {
		for _, o := range effects[order] {
			shown = append(shown, o)
			over = max(over, o.Input.(effect).End.UnixNano()+1)
		}
	}
	for i := range shown {
		if shown[i].Return == math.MaxInt64 {
			shown[i].Return = over
		}
	}
	model := cart
	model.Partition = func(all []porcupine.Operation) (parts [][]porcupine.Operation) {
		for _, order := range orders {
			parts = append(parts, slices.DeleteFunc(slices.Clone(all), func(o porcupine.Operation) bool {
				return o.Input.(effect).Order != order
			}))
		}
		return parts
	}
	_, info := porcupine.CheckOperationsVerbose(model, shown, linearPatience)
	var notes []porcupine.Annotation
	for _, s := range spans {
		notes = append(notes, porcupine.Annotation{
			Tag: "faults", Start: s.Begin.UnixNano(), End: s.End.UnixNano(), Description: s.Name,
			BackgroundColor: "#f6b26b",
		})
	}
	for _, v := range found {
		notes = append(notes, porcupine.Annotation{
			Tag: "violations", Start: over, Description: v.Kind, Details: v.String(), BackgroundColor: "#e06666",
		})
	}
	info.AddAnnotations(notes)
	return porcupine.Visualize(model, info, to)
}
