package order

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/web"
)

const (
	maxWait    = 30 * time.Second // longest wait that a look-up is granted
	retryAfter = 2 * time.Second  // when a look-up may be worth trying again
)

// server answers the API.
type server struct {
	store    *store
	view     *view
	waiters  *waiters
	auditor  *auditor
	log      *slog.Logger
	stopping context.Context // ends when the service stops

	pace pace // at which a client must take an audit's answer
}

func (s *server) handler(reg prometheus.Registerer) http.Handler {
	return web.Routes{
		{Method: http.MethodGet, Path: "/order/order-details", Handler: answer(s.log, s.details)},
		{Method: http.MethodGet, Path: "/order/getallorderidsfromtopic", Handler: answer(s.log, s.audit)},
	}.Handler(reg)
}

// problem is a web.Problem as an error.
type problem web.Problem

func (p problem) Error() string { return p.Text }

// answer writes the error that a handler returns instead of answering; what is no problem of the client's is logged and told in general.
func answer(log *slog.Logger, h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		p, ok := errors.AsType[problem](err)
		if !ok {
			p = problem{Status: http.StatusInternalServerError, Text: "Something went wrong in the Order service; its log says what."}
			if r.Context().Err() == nil { // else the client has gone, and what failed is only that
				log.Error("request", "path", r.URL.Path, "err", err)
			}
		}
		web.Problem(p).Write(w, r)
	}
}

// details answers one order, and waits for it if the client prefers that.
func (s *server) details(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	if !q.Has("orderid") {
		return badRequest("orderId is missing: GET /order/order-details?orderId=X.")
	}
	id, err := contract.ParseOrderID(q.Get("orderid"))
	if err != nil {
		return badRequest(err.Error() + ".")
	}
	least := int64(1)
	if q.Has("minversion") {
		if least, err = strconv.ParseInt(q.Get("minversion"), 10, 64); err != nil || least < 1 {
			return badRequest(fmt.Sprintf("minVersion must be a whole number from 1, not %.20q.", q.Get("minversion")))
		}
	}
	if missing := s.view.ready(); missing != nil {
		return problem{http.StatusServiceUnavailable, "The Order service is not ready: " + missing.Error() + ".", retryAfter}
	}
	wait := preferredWait(r.Header)
	if wait > 0 {
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(wait.Seconds())))
	}
	k, err := s.await(r.Context(), id, least, wait)
	if err != nil {
		return err
	}
	if k.version == 0 {
		return problem{Status: http.StatusNotFound, Text: "Order with ID " + id + " not found."}
	}
	w.Header().Set("ETag", `"`+strconv.FormatInt(k.version, 10)+`"`)
	if k.version < least {
		return problem{Status: http.StatusPreconditionFailed,
			Text: fmt.Sprintf("Order with ID %s is known at version %d, not yet at %d.", id, k.version, least)}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(withShippingCost(k)) // the client has gone: nobody is left to tell
	return nil
}

// await returns the order once it is known at version least or later, or as it is known when the time is up.
func (s *server) await(ctx context.Context, id string, least int64, wait time.Duration) (known, error) {
	if wait <= 0 {
		return s.store.get(ctx, id)
	}
	timeUp := time.NewTimer(wait)
	defer timeUp.Stop()
	for {
		changed, leave := s.waiters.watch(id) // before reading, so that no change falls in between
		k, err := s.store.get(ctx, id)
		if err != nil || k.version >= least {
			leave()
			return k, err
		}
		select {
		case <-changed:
			leave()
			continue
		case <-timeUp.C:
		case <-ctx.Done():
		case <-s.stopping.Done():
			// Not 404: the time it was to wait is not over, and whoever answers next may well know the order.
			err = problem{http.StatusServiceUnavailable, "The Order service is stopping; ask again.", time.Second}
		}
		leave()
		return k, err
	}
}

// withShippingCost adds the shipping cost at the end of the order's JSON.
func withShippingCost(k known) []byte {
	b := append(k.body[:len(k.body)-1:len(k.body)-1], `,"shippingCost":`...)
	return append(append(b, contract.ShippingCost(k.total).String()...), '}')
}

// audit answers the orders of a topic, as the topic itself tells them.
func (s *server) audit(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	topic := q.Get("topicname")
	if !contract.IsOrderTopic(topic) {
		return problem{Status: http.StatusBadRequest, Text: "Invalid topic name."}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	control := http.NewResponseController(w)
	defer context.AfterFunc(s.stopping, func() { // neither Kafka nor a slow client holds the stop up
		cancel()
		_ = control.SetWriteDeadline(time.Now())
	})()
	snap, err := s.auditor.snapshot(ctx, topic, has(r.Header, "Cache-Control", "no-cache"))
	if err := control.SetWriteDeadline(time.Now().Add(s.pace.grace)); err != nil { // reading may have taken longer than the server's
		return err
	}
	if err != nil {
		return err
	}
	defer snap.close()
	if snap.orders == 0 {
		return problem{Status: http.StatusNotFound, Text: "No orders found in the specified topic."}
	}
	w.Header().Set("Content-Type", "application/json")
	paced := &pacedWriter{ctx: ctx, w: w, control: control, pace: s.pace, start: time.Now()}
	if err := snap.writeJSON(ctx, paced); err != nil {
		if r.Context().Err() == nil {
			s.log.Warn("an audit's answer breaks off", "topic", topic, "bytes", paced.written, "err", err)
		}
		panic(http.ErrAbortHandler) // the status is out: only a broken connection tells that the answer is not whole
	}
	return nil
}

// pace is how fast a client must take an answer: after the first moments so many bytes a second. Else its connection breaks, for
// the answer holds a snapshot of the index and one of the few connections to it.
type pace struct {
	grace time.Duration
	rate  int64 // bytes per second
}

type pacedWriter struct {
	ctx     context.Context // of the answer
	w       http.ResponseWriter
	control *http.ResponseController
	pace    pace
	start   time.Time
	written int64
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	if err := context.Cause(p.ctx); err != nil {
		return 0, err
	}
	due := p.start.Add(p.pace.grace + time.Duration((p.written+int64(len(b)))/p.pace.rate)*time.Second)
	if err := p.control.SetWriteDeadline(due); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	p.written += int64(n)
	return n, err
}

// query reads the parameters, whose names are in lower case here. One given twice is refused: which of them counts would be a guess.
func query(r *http.Request) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query cannot be read: " + err.Error() + ".")
	}
	for _, name := range []string{"orderId", "minVersion", "topicName"} {
		values := q[strings.ToLower(name)]
		if len(values) > 1 {
			return nil, badRequest(name + " is given more than once.")
		}
		if !utf8.ValidString(strings.Join(values, "")) {
			return nil, badRequest(name + " is not valid UTF-8.")
		}
	}
	return q, nil
}

func badRequest(text string) error {
	return problem{Status: http.StatusBadRequest, Text: "Invalid input fields. " + text}
}

// preferredWait is how long the client prefers to wait (RFC 7240), at most maxWait. The first `wait` counts; what cannot be
// understood is as if it were not there, as the RFC asks.
func preferredWait(h http.Header) time.Duration {
	for _, header := range h.Values("Prefer") {
		for preference := range splitUnquoted(header, ',') {
			for first := range splitUnquoted(preference, ';') { // what follows are parameters
				name, value, _ := strings.Cut(first, "=")
				if !strings.EqualFold(strings.TrimSpace(name), "wait") {
					break
				}
				value = strings.Trim(strings.TrimSpace(value), `"`)
				if value == "" || strings.Trim(value, "0123456789") != "" {
					return 0
				}
				seconds, err := strconv.Atoi(value)
				if err != nil { // more digits than a number can have
					return maxWait
				}
				return min(time.Duration(min(seconds, 3600))*time.Second, maxWait)
			}
		}
	}
	return 0
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

// has says whether one of a header's comma-separated values is this one.
func has(h http.Header, name, want string) bool {
	for _, header := range h.Values(name) {
		for value := range strings.SplitSeq(header, ",") {
			if strings.EqualFold(strings.TrimSpace(value), want) {
				return true
			}
		}
	}
	return false
}
