package web

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// WantsJSON reports whether the client asks for JSON. Text is the default, because the clients of
// the reference system expect it.
func WantsJSON(r *http.Request) bool {
	for _, header := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(header, ",") {
			kind, params, err := mime.ParseMediaType(part)
			if err != nil || (kind != "application/json" && kind != "application/problem+json") {
				continue
			}
			if q, err := strconv.ParseFloat(params["q"], 64); err != nil || q > 0 {
				return true
			}
		}
	}
	return false
}

// HasToken reports whether one of the comma-separated values of a header is token, in any case.
func HasToken(h http.Header, name, token string) bool {
	for _, header := range h.Values(name) {
		for value := range strings.SplitSeq(header, ",") {
			if strings.EqualFold(strings.TrimSpace(value), token) {
				return true
			}
		}
	}
	return false
}

// PreferredWait returns how long the client prefers to wait (RFC 7240, `Prefer: wait=10`), at most
// longest. The first `wait` counts. A header that cannot be understood is ignored, as the RFC asks.
func PreferredWait(h http.Header, longest time.Duration) time.Duration {
	for _, header := range h.Values("Prefer") {
		for preference := range splitUnquoted(header, ',') {
			// Only the part before the first semicolon names the preference; the rest are
			// parameters.
			for first := range splitUnquoted(preference, ';') {
				name, value, _ := strings.Cut(first, "=")
				if !strings.EqualFold(strings.TrimSpace(name), "wait") {
					break
				}
				return waitSeconds(strings.Trim(strings.TrimSpace(value), `"`), longest)
			}
		}
	}
	return 0
}

// waitSeconds returns the duration of a whole number of seconds, at most longest. It is 0 for
// anything that is no such number.
func waitSeconds(value string, longest time.Duration) time.Duration {
	if value == "" || strings.Trim(value, "0123456789") != "" {
		return 0
	}
	seconds, err := strconv.Atoi(value)
	if err != nil || int64(seconds) > int64(longest/time.Second) {
		// The number may have more digits than an int can have.
		return longest
	}
	return time.Duration(seconds) * time.Second
}

// splitUnquoted yields the parts of s between separators that are not within a quoted string.
func splitUnquoted(s string, separator byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] == '"':
				quoted = !quoted
			case quoted && s[i] == '\\':
				i++
			case !quoted && s[i] == separator:
				if !yield(s[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(s[start:])
	}
}
