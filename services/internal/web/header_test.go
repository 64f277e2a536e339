package web_test

import (
	"net/http"
	"testing"
	"time"

	"ordersystem.dev/services/internal/web"
)

func TestPreferredWait(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":                      0,
		"wait=5":                5 * time.Second,
		"Wait=5":                5 * time.Second,
		`wait="5"`:              5 * time.Second,
		" wait = 5 ":            5 * time.Second,
		"wait=5; strict":        5 * time.Second,
		"respond-async, wait=5": 5 * time.Second,
		// A parameter of another preference.
		"respond-async;wait=5":    0,
		`x="a, wait=9", wait=2`:   2 * time.Second,
		`x="a\", wait=9", wait=2`: 2 * time.Second,
		// The first counts.
		"wait=1, wait=7":            time.Second,
		"wait=x, wait=7":            0,
		"wait":                      0,
		"wait=":                     0,
		"wait=-1":                   0,
		"wait=1.5":                  0,
		"wait=0":                    0,
		"wait=30":                   30 * time.Second,
		"wait=31":                   30 * time.Second,
		"wait=9223372036854775807":  30 * time.Second,
		"wait=99999999999999999999": 30 * time.Second,
		"waiting=5":                 0,
	} {
		if got := web.PreferredWait(http.Header{"Prefer": {header}}, 30*time.Second); got != want {
			t.Errorf("Prefer: %s = %s, want %s", header, got, want)
		}
	}
	several := http.Header{"Prefer": {"respond-async", "wait=3", "wait=4"}}
	if got := web.PreferredWait(several, 30*time.Second); got != 3*time.Second {
		t.Errorf("several header fields = %s, want the first wait", got)
	}
}

func TestHasToken(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"":                    false,
		"no-cache":            true,
		"max-age=0, No-Cache": true,
		"no-store":            false,
		"no-cache-at-all":     false,
	} {
		if got := web.HasToken(http.Header{"Cache-Control": {header}}, "Cache-Control", "no-cache"); got != want {
			t.Errorf("Cache-Control: %s has no-cache = %v, want %v", header, got, want)
		}
	}
	if !web.HasToken(http.Header{"Cache-Control": {"no-store", "no-cache"}}, "cache-control", "no-cache") {
		t.Error("the second header field is not looked at")
	}
}
