package cart

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/bearer"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/web"
)

// server serves the HTTP API.
type server struct {
	commits *committer
	// auth is nil if the API takes no tokens.
	auth *bearer.Guard
	log  *slog.Logger
	// open is true once the store is rebuilt. An order that it does not hold then does not exist.
	open atomic.Bool
}

// handler returns the routes of the API and registers their metrics.
func (s *server) handler(reg prometheus.Registerer) http.Handler {
	return web.Routes{
		{Method: http.MethodPost, Path: "/order/create-order", Handler: s.auth.Require(bearer.ScopeWrite, s.create)},
		{Method: http.MethodPut, Path: "/order/update-order", Handler: s.auth.Require(bearer.ScopeWrite, s.update)},
	}.Handler(reg)
}

// openAPI lets requests in.
func (s *server) openAPI() { s.open.Store(true) }

// create handles the creation of an order. It encodes the event here, in parallel with other
// requests, and not in the transaction.
func (s *server) create(w http.ResponseWriter, r *http.Request) {
	s.respond(w, r, "Order created successfully", func(body []byte, traceparent string) (change, error) {
		req, err := contract.DecodeCreateOrder(body)
		if err != nil {
			return change{}, invalid(err)
		}
		tags := parseEntityTags(r.Header.Values("If-Match"))
		now := s.commits.now().UTC().Truncate(time.Millisecond)
		m, err := newEvent(contract.TypeCreated, newOrder(req, now), traceparent, now).Message()
		return change{
			orderID: req.OrderID, created: &m, ifMatch: tags,
			fingerprint: fingerprintOf(append([]string{"create", req.OrderID, strconv.Itoa(req.ItemsNum)}, tags...)...),
		}, err
	})
}

// update handles the update of an order. The event depends on the stored order, so it is made in
// the transaction.
func (s *server) update(w http.ResponseWriter, r *http.Request) {
	s.respond(w, r, "Order updated successfully", func(body []byte, traceparent string) (change, error) {
		req, err := contract.DecodeUpdateOrder(body)
		if err != nil {
			return change{}, invalid(err)
		}
		match := parseEntityTags(r.Header.Values("If-Match"))
		if slices.Contains(match, "*") {
			// Every order has a version that * names.
			match = nil
		}
		noneMatch := parseEntityTags(r.Header.Values("If-None-Match"))
		for i := range noneMatch {
			// A weak tag counts like a strong one here (RFC 9110 section 13.1.2).
			noneMatch[i] = strings.TrimPrefix(noneMatch[i], "W/")
		}
		parts := append([]string{"update", req.OrderID, req.Status}, match...)
		if noneMatch != nil {
			// No header has a line break, so no other request has these parts.
			parts = append(append(parts, "\n"), noneMatch...)
		}
		return change{
			orderID: req.OrderID, status: req.Status, ifMatch: match, ifNoneMatch: noneMatch,
			traceparent: traceparent, fingerprint: fingerprintOf(parts...),
		}, nil
	})
}

// decoder makes a change of a request body. traceparent is for the event.
type decoder func(body []byte, traceparent string) (change, error)

// respond handles a request of either route: it reads the request, has it stored, and responds.
// done is the text of a success.
func (s *server) respond(w http.ResponseWriter, r *http.Request, done string, decode decoder) {
	c, err := s.read(w, r, decode)
	var order orderState
	if err == nil {
		order, err = s.commits.submit(r.Context(), c)
	}
	if err != nil {
		p := problem(err, c.orderID).UnlessGone(r, err)
		if p.Status == http.StatusInternalServerError {
			s.log.Error("request", "path", r.URL.Path, "err", err)
		}
		p.Write(w, r)
		return
	}
	w.Header().Set("ETag", etag(order.version))
	if !web.WantsJSON(r) {
		web.WriteText(w, http.StatusOK, done)
		return
	}
	web.WriteJSON(w, http.StatusOK, "application/json", struct {
		Message string          `json:"message"`
		Order   json.RawMessage `json:"order"`
	}{done, order.body})
}

// read makes a change of a request, and refuses it if the service is not open yet.
func (s *server) read(w http.ResponseWriter, r *http.Request, decode decoder) (change, error) {
	if !s.open.Load() {
		return change{}, errNotRebuilt
	}
	key, err := parseIdempotencyKey(r.Header.Values("Idempotency-Key"))
	if err != nil {
		return change{}, err
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return change{}, errEncoded
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, contract.MaxBodyBytes))
	if err != nil {
		return change{}, fmt.Errorf("%w: %w", errUnread, err)
	}
	c, err := decode(body, continueTrace(r.Header.Get("Traceparent")))
	c.key = key
	if err == nil {
		err = bearer.Cover(r.Context(), c.orderID)
	}
	if prefix := bearer.Prefix(r.Context()); prefix != "" && key != "" {
		// Those who have tokens for different orders do not know each other's keys. No key has a line break.
		c.key = prefix + "\n" + key
	}
	return c, err
}

var (
	errNotRebuilt = errors.New("store is not rebuilt")
	errUnread     = errors.New("request could not be read to its end")
	errEncoded    = errors.New("request body has a content encoding")
)

// invalidError refuses a request that the contract does not allow. Its text is for the client.
type invalidError struct{ error }

// invalid makes err a refusal of the request.
func invalid(err error) error { return invalidError{err} }

// problem is the one table from errors to responses. The texts are those of the contract.
func problem(err error, orderID string) web.Problem {
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return web.Problem{
			Status: http.StatusRequestEntityTooLarge,
			Text:   fmt.Sprintf("The request body is over the limit of %d bytes.", e.Limit),
		}
	}
	if e, ok := errors.AsType[invalidError](err); ok {
		return web.Problem{Status: http.StatusBadRequest, Text: "Invalid input fields. " + e.Error() + "."}
	}
	if e, ok := errors.AsType[preconditionError](err); ok {
		return web.Problem{Status: http.StatusPreconditionFailed, Text: unmet(e, orderID)}
	}
	switch {
	case errors.Is(err, bearer.ErrNotCovered):
		return bearer.NotCovered
	case errors.Is(err, contract.ErrTooLarge):
		return web.Problem{Status: http.StatusBadRequest, Text: "Invalid input fields. " + err.Error() + "."}
	case errors.Is(err, errExists):
		return web.Problem{Status: http.StatusConflict, Text: "Order already exists"}
	case errors.Is(err, errNotFound):
		return web.Problem{Status: http.StatusNotFound, Text: "Order with ID " + orderID + " not found"}
	case errors.Is(err, errSameStatus):
		return web.Problem{Status: http.StatusConflict, Text: "Order status is the same as entered."}
	case errors.Is(err, errKeyReused):
		return web.Problem{
			Status: http.StatusUnprocessableEntity,
			Text:   "This Idempotency-Key was used for another request; a new request needs a new key.",
		}
	case errors.Is(err, errKeyInFlight):
		return web.Problem{
			Status:     http.StatusConflict,
			Text:       "A request with this Idempotency-Key is still under way; try again when it has ended.",
			RetryAfter: time.Second,
		}
	case errors.Is(err, errBacklog):
		return web.Problem{
			Status:     http.StatusServiceUnavailable,
			Text:       "Too many orders wait for Kafka; this one was not taken. Try again later.",
			RetryAfter: 10 * time.Second,
		}
	case errors.Is(err, errNearlyFull):
		return web.Problem{
			Status:     http.StatusServiceUnavailable,
			Text:       "The storage of the service is nearly full; this order was not taken. Try again later.",
			RetryAfter: 10 * time.Second,
		}
	case errors.Is(err, errNotRebuilt):
		return web.Problem{
			Status:     http.StatusServiceUnavailable,
			Text:       "The service is starting and does not know all orders yet. Try again shortly.",
			RetryAfter: 2 * time.Second,
		}
	case errors.Is(err, sqldb.ErrUnknownCommit):
		return web.Problem{
			Status: http.StatusServiceUnavailable,
			Text: "The connection to the database was lost, and it is not known whether the order was stored. " +
				"Try again later, with the same Idempotency-Key if there was one.",
			RetryAfter: 5 * time.Second,
		}
	case errors.Is(err, errUnavailable), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return web.Problem{
			Status:     http.StatusServiceUnavailable,
			Text:       "The order could not be stored and nothing was changed. Try again later.",
			RetryAfter: 5 * time.Second,
		}
	case errors.Is(err, errLastVersion):
		return web.Problem{
			Status: http.StatusConflict,
			Text:   "Order with ID " + orderID + " has reached the highest version and cannot be updated any more.",
		}
	case errors.Is(err, errEncoded):
		return web.Problem{
			Status: http.StatusUnsupportedMediaType,
			Text:   "The request body has a Content-Encoding. Send it without one, as plain JSON.",
		}
	case errors.Is(err, errUnread):
		return web.Problem{
			Status: http.StatusBadRequest,
			Text:   "Invalid input fields. The request could not be read to its end.",
		}
	default:
		return web.Problem{
			Status: http.StatusInternalServerError,
			Text:   "Something went wrong in the Cart service; its log says what.",
		}
	}
}

// unmet returns the text for a precondition that an order does not fulfil.
func unmet(e preconditionError, orderID string) string {
	text := "Order with ID " + orderID
	switch {
	case e.current == 0:
		return text + " does not exist, and " + e.header + " asks for a version of it."
	case e.header == "If-Match":
		text += " is at version " + etag(e.current) + ", which If-Match does not name."
	default:
		text += " is at version " + etag(e.current) + ", which If-None-Match names."
	}
	return text + " Read it again and decide again."
}

// parseEntityTags splits a header into its entity tags. It returns nil if there are none.
func parseEntityTags(headers []string) entityTags {
	var tags entityTags
	for _, h := range headers {
		for tag := range strings.SplitSeq(h, ",") {
			tags = append(tags, strings.TrimSpace(tag))
		}
	}
	return tags
}

// parseIdempotencyKey reads the header of draft-ietf-httpapi-idempotency-key-header. The draft
// wants a quoted string. Many clients leave the quotes out, so a key is the same with and without
// them.
func parseIdempotencyKey(headers []string) (string, error) {
	if len(headers) == 0 {
		return "", nil
	}
	key := strings.TrimSpace(headers[0])
	if len(key) > 1 && key[0] == '"' && key[len(key)-1] == '"' {
		key = key[1 : len(key)-1]
	}
	notPrintable := func(c rune) bool { return c < ' ' || c > '~' }
	if len(headers) > 1 || key == "" || len(key) > 255 || strings.ContainsFunc(key, notPrintable) {
		return "", invalid(errors.New("Idempotency-Key must be given once, as 1 to 255 printable ASCII characters"))
	}
	return key, nil
}

// fingerprintOf identifies a request by its parts, which contain no NUL.
func fingerprintOf(parts ...string) []byte {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return sum[:]
}

// validTraceparent matches version 00 of the header: trace, parent and flags.
var validTraceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})$`)

// continueTrace returns a new span of the caller's trace (W3C Trace Context), or of a new trace.
func continueTrace(header string) string {
	var id [24]byte
	_, _ = rand.Read(id[:]) // never fails
	trace, flags := hex.EncodeToString(id[:16]), "00"
	if m := validTraceparent.FindStringSubmatch(header); m != nil && strings.Trim(m[1], "0") != "" {
		trace, flags = m[1], m[2]
	}
	return "00-" + trace + "-" + hex.EncodeToString(id[16:]) + "-" + flags
}
