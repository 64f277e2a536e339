package faults

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var someKinds = []Kind{{"kill cart", time.Second}, {"stop kafka", 2 * time.Second}, {"restart order", 0}}

func TestASeedGivesTheSameSchedule(t *testing.T) {
	t.Parallel()
	draw := func(seed uint64) Schedule {
		return Draw(rand.New(rand.NewPCG(seed, 0)), someKinds, 20*time.Second, time.Second)
	}
	s := draw(1)
	if diff := cmp.Diff(s, draw(1)); diff != "" {
		t.Errorf("the same seed (-first +second):\n%s", diff)
	}
	if cmp.Equal(s, draw(2)) {
		t.Error("another seed gives the same schedule")
	}
	var took time.Duration
	for i := range s {
		took += s[i].After + s[i].For
		if i%3 == 0 && i+3 <= len(s) {
			round := []string{s[i].Name, s[i+1].Name, s[i+2].Name}
			slices.Sort(round)
			if diff := cmp.Diff([]string{"kill cart", "restart order", "stop kafka"}, round); diff != "" {
				t.Errorf("faults %d to %d (-want +got):\n%s", i, i+2, diff)
			}
		}
	}
	if took < 20*time.Second || took > 23*time.Second {
		t.Errorf("the schedule takes %s, want about 20s", took)
	}
	again, err := ParseSchedule(s.String(), someKinds)
	if diff := cmp.Diff(s, again); diff != "" || err != nil {
		t.Errorf("read again: %v (-written +read):\n%s", err, diff)
	}
	for text, want := range map[string]string{
		"":                      `"" is no fault, such as 1s kill cart 1s`,
		"1s kill cart":          "invalid duration",
		"1s stop the world 2s":  `there is no fault "stop the world"`,
		"1s kill cart 1s, 2s x": `" 2s x" is no fault`,
	} {
		if _, err := ParseSchedule(text, someKinds); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", text, err, want)
		}
	}
}

// Only the faults that are needed for a failure are left, wherever they are.
func TestShrinkLeavesWhatIsNeeded(t *testing.T) {
	t.Parallel()
	all := make(Schedule, 30)
	for i := range all {
		all[i].After = time.Duration(i)
	}
	for _, needed := range [][]int{{0}, {29}, {7, 8}, {0, 29}, {3, 11, 12, 25}} {
		runs := 0
		got := Shrink(all, func(s Schedule) bool {
			runs++
			return !slices.ContainsFunc(needed, func(i int) bool { return !slices.Contains(s, all[i]) })
		})
		var left []int
		for _, f := range got {
			left = append(left, int(f.After))
		}
		if diff := cmp.Diff(needed, left); diff != "" {
			t.Errorf("what is left of 30 faults (-want +got):\n%s", diff)
		}
		if runs > 100 {
			t.Errorf("%v: %d runs", needed, runs)
		}
	}
	if got := Shrink(all[:1], func(Schedule) bool { t.Error("there is nothing to try"); return true }); len(got) != 1 {
		t.Errorf("one fault: %v", got)
	}
}
