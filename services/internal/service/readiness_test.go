package service

import (
	"errors"
	"testing"
)

func TestReadiness(t *testing.T) {
	t.Parallel()
	rebuilding, full, none := errors.New("rebuilding"), errors.New("disk is full"), error(nil)
	set := func(reason error) func(*Readiness) { return func(r *Readiness) { r.Set(reason) } }
	check := func(reason error) func(*Readiness) {
		return func(r *Readiness) { r.AddCheck(func() error { return reason }) }
	}
	for name, c := range map[string]struct {
		steps []func(*Readiness)
		// "" is ready.
		want string
	}{
		"the zero value":              {nil, "starting"},
		"a reason":                    {[]func(*Readiness){set(rebuilding)}, "rebuilding"},
		"no reason any more":          {[]func(*Readiness){set(rebuilding), set(none)}, ""},
		"a check alone is not enough": {[]func(*Readiness){check(none)}, "starting"},
		"a check that fails":          {[]func(*Readiness){set(none), check(none), check(full)}, "disk is full"},
		"all reasons are shown":       {[]func(*Readiness){set(rebuilding), check(full)}, "rebuilding; disk is full"},
		"stopping hides all the others": {
			[]func(*Readiness){set(rebuilding), check(full), (*Readiness).stop}, "stopping",
		},
		"stopping is for good": {[]func(*Readiness){(*Readiness).stop, set(none)}, "stopping"},
	} {
		var r Readiness
		for _, step := range c.steps {
			step(&r)
		}
		got := ""
		if err := r.Err(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
