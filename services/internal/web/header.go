package web

import (
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// WantsJSON reports whether the client prefers JSON to text, by the weights in Accept (RFC 9110
// section 12.5.1). If it names JSON, JSON wins at equal weights. If only */* does, text wins: it is
// the default, because the clients of the reference system expect it.
func WantsJSON(r *http.Request) bool {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	if accept == "" {
		return false
	}
	json, named := quality(accept, "application/json", "application/problem+json", "application/*")
	text, _ := quality(accept, "text/plain", "text/*")
	return json > text || (named && json > 0 && json == text)
}

// quality returns the weight that Accept gives to the first of the media ranges that it has, and
// reports whether it has one. Otherwise it returns the weight of */*, or 0.
func quality(accept string, ranges ...string) (weight float64, named bool) {
	best := len(ranges) + 1
	ranges = append(ranges, "*/*")
	for part := range splitUnquoted(accept, ',') {
		kind, params, err := mime.ParseMediaType(part)
		rank := slices.Index(ranges, kind)
		if err != nil || rank < 0 || rank > best {
			continue
		}
		q, err := strconv.ParseFloat(params["q"], 64)
		if err != nil || !(q >= 0 && q <= 1) {
			q = 1
		}
		if rank < best {
			best, weight = rank, 0
		}
		weight = max(weight, q)
	}
	return weight, best < len(ranges)-1
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
