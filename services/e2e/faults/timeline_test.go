package faults

import (
	"bytes"
	"strings"
	"testing"
)

// A person finds on the page what was asked for, what was done to the system, and what is wrong.
func TestTimelineShowsTheRun(t *testing.T) {
	t.Parallel()
	e := history()
	e.Operations = append(e.Operations, Operation{
		Client: 3, Order: "B", Status: "s2", Outcome: Refused, Code: 404, Begin: at(5), End: at(6),
	})
	var page bytes.Buffer
	spans := []Span{{Name: "kill cart", Begin: at(3), End: at(4)}}
	if err := Timeline(&page, e, spans, Check(e)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"create: version 1", "update to s2: 404", "update to never: no effect", "update to s4: version 4", "kill cart",
		"not linearizable: order B: 2 operations",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page does not have %q", want)
		}
	}
}
