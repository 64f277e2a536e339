package web_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"ordersystem.dev/services/internal/web"
)

func TestWantsJSON(t *testing.T) {
	t.Parallel()
	if web.WantsJSON(httptest.NewRequest("GET", "/", nil)) {
		t.Error("without Accept: JSON, want text")
	}
	for accept, want := range map[string]bool{
		"":                              false,
		"application/json":              true,
		"APPLICATION/JSON":              true,
		"application/problem+json":      true,
		"application/*":                 true,
		"application/json;q=0.001":      true,
		"application/json; q=.5":        true,
		`application/json; x="a,b;q=0"`: true,
		"application/jsonp":             false,
		"json":                          false,
		"text/html":                     false,
		"nonsense;;, application/json":  true,

		// Nothing but */* names JSON: text is the default.
		"*/*":                   false,
		"text/html, */*; q=0.8": false,
		"*/*;q=0.5":             false,
		"*":                     false,

		// JSON is named, and as good as text.
		"application/json, text/plain":       true,
		"application/json, text/plain, */*":  true,
		"text/plain, application/json":       true,
		"application/json, */*":              true,
		"text/*;q=0.5, application/*;q=0.5":  true,
		"text/html, application/json; q=0.5": true,

		// One of the two is better.
		"application/json;q=0.5, text/plain":           false,
		"application/json;q=0.9, */*":                  false,
		"application/json;q=0.9, */*;q=0.8":            true,
		"application/*;q=0.4, text/*;q=0.5":            false,
		"text/plain;q=0.5, */*":                        true,
		"application/json, text/plain;q=0.999":         true,
		"text/plain, application/problem+json;q=0.999": false,

		// The most specific range counts, wherever it stands.
		"application/json;q=0.1, application/*, text/plain;q=0.5":   false,
		"application/*;q=0.1, application/json, text/plain;q=0.5":   true,
		"text/plain;q=0.1, text/*, application/json;q=0.5":          true,
		"application/json;q=0.1, application/json;q=0.9, */*;q=0.5": true,

		// A weight of 0 refuses. What is refused is sent only if all is refused: there is no 406.
		"application/json;q=0":                           false,
		"application/json;q=0.000, */*":                  false,
		"application/json;q=0, application/*":            false,
		"application/json;q=0, application/problem+json": false,
		"text/plain;q=0, */*":                            true,
		"text/*;q=0, */*;q=0.1":                          true,
		"text/plain;q=0":                                 false,
		"*/*;q=0":                                        false,
		"*/*;q=0, application/json":                      true,

		// A weight that is none does not count.
		"application/json;q=high":        true,
		"application/json;q=NaN":         true,
		"application/json;q=2, */*":      true,
		"application/json;q=-1":          true,
		"application/json;q=1e-999, */*": false,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", accept)
		if got := web.WantsJSON(r); got != want {
			t.Errorf("Accept: %s: JSON %t, want %t", accept, got, want)
		}
	}
	several := httptest.NewRequest("GET", "/", nil)
	several.Header["Accept"] = []string{"application/json;q=0.5", "text/plain"}
	if web.WantsJSON(several) {
		t.Error("the second header field is not looked at")
	}
}

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
