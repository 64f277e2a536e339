package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Problem is a response that is not what the client asked for.
type Problem struct {
	Status int
	// Text says what was wrong and what would be right.
	Text string
	// RetryAfter is when it may be worth trying again; with 0 the response has no such header.
	RetryAfter time.Duration
}

// UnlessGone returns p, or, if err is only that the client of r has left, a response that nobody reads. RFC 9110 has
// no status for that; 499 is nginx's. It keeps what failed for the client's sake apart from failures of the service.
func (p Problem) UnlessGone(r *http.Request, err error) Problem {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return Problem{Status: 499, Text: "The client has closed the connection."}
	}
	return p
}

// Write writes the text, or problem details (RFC 9457) when the client wants JSON.
func (p Problem) Write(w http.ResponseWriter, r *http.Request) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(p.RetryAfter.Round(time.Second).Seconds()))))
	}
	if !WantsJSON(r) {
		WriteText(w, p.Status, p.Text)
		return
	}
	WriteJSON(w, p.Status, "application/problem+json", struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(p.Status), p.Status, p.Text})
}

// WriteText writes a plain-text response. The body is exactly text: no line end is added.
func WriteText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// An error here means that the client has gone.
	_, _ = w.Write([]byte(text))
}

// WriteJSON writes v as a JSON response. It panics if the type of v cannot be encoded.
func WriteJSON(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	// An error here means that the client has gone.
	_, _ = w.Write(body)
}
