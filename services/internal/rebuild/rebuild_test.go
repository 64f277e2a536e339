package rebuild

import (
	"strings"
	"testing"
)

// A command that is not understood is refused: a misspelt parameter must not swap, nor drop orders.
func TestOptionsAreReadStrictly(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{}, {Swap: true}, {Swap: true, Drop: true}} {
		if got, err := ParseOptions(o.query()); err != nil || got != o {
			t.Errorf("%q: %+v, %v, want %+v", o.query(), got, err, o)
		}
	}
	for query, want := range map[string]string{
		"Swap=true":           `there is no parameter "Swap"`,
		"swap":                `swap is [""]`,
		"swap=yes":            `swap is ["yes"]`,
		"swap=true&swap=true": `swap is ["true" "true"]`,
		"drop=true":           "drop without swap",
		"swap=true;drop=true": "invalid semicolon",
	} {
		if o, err := ParseOptions(query); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", query, o, err, want)
		}
	}
}
