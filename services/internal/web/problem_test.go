package web_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"ordersystem.dev/services/internal/web"
)

func TestProblemsAreTextOrJSON(t *testing.T) {
	t.Parallel()
	problem := web.Problem{Status: 503, Text: "Try later.", RetryAfter: 1500 * time.Millisecond}
	const details = `{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Try later."}`
	for accept, want := range map[string][2]string{
		"":                                   {"text/plain; charset=utf-8", "Try later."},
		"*/*":                                {"text/plain; charset=utf-8", "Try later."},
		"text/html, nonsense;;":              {"text/plain; charset=utf-8", "Try later."},
		"application/json":                   {"application/problem+json", details},
		"text/html, APPLICATION/json; q=0.5": {"application/problem+json", details},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		problem.Write(w, r)
		got := [2]string{w.Header().Get("Content-Type"), w.Body.String()}
		if got != want || w.Code != 503 || w.Header().Get("Retry-After") != "2" {
			t.Errorf("Accept %q: %d %q, Retry-After %q, want %q",
				accept, w.Code, got, w.Header().Get("Retry-After"), want)
		}
	}
}
