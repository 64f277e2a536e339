package order

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/bearer"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/order/audit"
)

const (
	// maxWait is the longest wait that a look-up is granted.
	maxWait = 30 * time.Second
	// notReadyRetry is when a look-up may be worth trying again while the store catches up.
	notReadyRetry = 2 * time.Second
	// auditRetry is when an audit that failed may be worth trying again.
	auditRetry = 5 * time.Second
)

// server serves the API.
type server struct {
	store   *store
	catchUp *catchUp
	waiters *waiters
	auditor *audit.Auditor
	// auth is nil if the API takes no tokens.
	auth *bearer.Guard
	log  *slog.Logger
	// stopping ends soon after the service was asked to stop. Requests that wait are then ended with
	// errStopping.
	stopping context.Context
	// pace is how fast a client must take the result of an audit.
	pace web.Pace
}

// handler returns the handler of the API. It registers the metrics of the requests, so it is called
// once.
func (s *server) handler(reg prometheus.Registerer) http.Handler {
	details := s.auth.Require(bearer.ScopeRead, s.respond(s.details))
	audits := s.auth.Require(bearer.ScopeRead, s.respond(s.audit))
	return web.Routes{
		{Method: http.MethodGet, Path: "/order/order-details", Handler: details},
		{Method: http.MethodGet, Path: "/order/getallorderidsfromtopic", Handler: audits},
	}.Handler(reg)
}

// respond writes the problem for the error of a handler, and logs the error where the response does
// not show what is wrong.
func (s *server) respond(handle func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := handle(w, r)
		if err == nil {
			return
		}
		p := problem(err).UnlessGone(r, err)
		if p.Status == http.StatusInternalServerError {
			s.log.Error("request", "path", r.URL.Path, "err", err)
		}
		p.Write(w, r)
	}
}

// details responds with one order, and waits for it if the client prefers that.
func (s *server) details(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	if !q.Has("orderid") {
		return invalidError{errors.New("orderId is missing: GET /order/order-details?orderId=X")}
	}
	id, err := contract.ParseOrderID(q.Get("orderid"))
	if err != nil {
		return invalidError{err}
	}
	if err := bearer.Cover(r.Context(), id); err != nil {
		return err
	}
	has := parseIfNoneMatch(r.Header.Values("If-None-Match"))
	least := int64(1)
	if q.Has("minversion") {
		least, err = strconv.ParseInt(q.Get("minversion"), 10, 64)
		if err != nil || least < 1 || least > contract.MaxVersion {
			return invalidError{fmt.Errorf("minVersion must be a whole number from 1 to %d, not %.20q",
				int64(contract.MaxVersion), q.Get("minversion"))}
		}
	}
	if missing := s.catchUp.ready(); missing != nil {
		return notReadyError{missing}
	}
	// A wait without minVersion is for a version that the client does not have.
	awaited := least
	if !q.Has("minversion") {
		awaited = has.newest() + 1
	}
	wait := web.PreferredWait(r.Header, maxWait)
	if wait > 0 && !s.waiters.enter() {
		// A preference may be ignored (RFC 7240). Its absence in the response shows it.
		wait = 0
	}
	if wait > 0 {
		defer s.waiters.leave()
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(wait.Seconds())))
	}
	found, err := s.await(r.Context(), id, awaited, wait)
	if err != nil {
		return err
	}
	if found.version == 0 {
		return notFoundError{id}
	}
	w.Header().Set("ETag", etag(found.version))
	if found.version < least {
		return versionError{orderID: id, known: found.version, least: least}
	}
	if has.names(found.version) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Type", "application/json")
	// An error here means that the client has gone.
	_, _ = w.Write(withShippingCost(found))
	return nil
}

// entityTags are the versions of an order that a client has.
type entityTags []string

// parseIfNoneMatch splits If-None-Match into its entity tags. A weak one counts like a strong one
// (RFC 9110 section 13.1.2).
func parseIfNoneMatch(headers []string) entityTags {
	var tags entityTags
	for _, h := range headers {
		for tag := range strings.SplitSeq(h, ",") {
			tags = append(tags, strings.TrimPrefix(strings.TrimSpace(tag), "W/"))
		}
	}
	return tags
}

// names reports whether the client has this version. The tag * names all.
func (tags entityTags) names(version int64) bool {
	return slices.Contains(tags, "*") || slices.Contains(tags, etag(version))
}

// newest returns the highest version that the client has, or 0 if it has none.
func (tags entityTags) newest() int64 {
	var newest int64
	for _, tag := range tags {
		version, err := strconv.ParseInt(strings.Trim(tag, `"`), 10, 64)
		if err == nil && version <= contract.MaxVersion {
			newest = max(newest, version)
		}
	}
	return newest
}

// etag returns the entity tag of a version.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// await returns the order once its version is at least least, or as it is when the wait is over.
func (s *server) await(ctx context.Context, id string, least int64, wait time.Duration) (stored, error) {
	if wait <= 0 {
		return s.store.get(ctx, id)
	}
	timeUp := time.NewTimer(wait)
	defer timeUp.Stop()
	var stops error
	for waiting := true; waiting; {
		// Before reading, so that no change falls in between.
		changed, leave := s.waiters.watch(id, least)
		found, err := s.store.get(ctx, id)
		if err != nil || found.version >= least {
			leave()
			return found, err
		}
		select {
		case <-changed:
		case <-timeUp.C:
			waiting = false
		case <-ctx.Done():
			// The client has gone.
			leave()
			return found, nil
		case <-s.stopping.Done():
			// Not as it is: the wait is not over, and the next service may well find the order.
			waiting, stops = false, errStopping
		}
		leave()
	}
	// It may have changed without waking anybody, such as by another member a moment ago.
	found, err := s.store.get(ctx, id)
	if err == nil && found.version < least {
		err = stops
	}
	return found, err
}

// withShippingCost adds the shipping cost at the end of the order's JSON.
func withShippingCost(found stored) []byte {
	b := append(found.body[:len(found.body)-1:len(found.body)-1], `,"shippingCost":`...)
	return append(append(b, contract.ShippingCost(found.total).String()...), '}')
}

// audit responds with the orders of a topic, as the topic itself has them.
//
// A stop ends it: an audit that waits gets errStopping, and a response that is being written
// breaks.
func (s *server) audit(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	topic := q.Get("topicname")
	if !contract.IsOrderTopic(topic) {
		return errTopicName
	}
	if err := bearer.Cover(r.Context(), ""); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	result, err := s.auditor.Audit(ctx, topic, web.HasToken(r.Header, "Cache-Control", "no-cache"))
	// The audit may have taken longer than the server allows a response. An error here means that
	// the connection is closed, which the next write notices.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.pace.Grace))
	if err != nil {
		// Nothing failed if the service stops or the client has gone.
		if ctx.Err() == nil && errors.Is(err, audit.ErrUnreadable) {
			s.log.Warn("audit", "topic", topic, "err", err)
		}
		return err
	}
	defer result.Close()
	if result.Orders == 0 {
		return errNoOrders
	}
	paced := web.NewPacedWriter(ctx, w, s.pace)
	defer paced.Close()
	defer context.AfterFunc(result.Wanted, paced.Hurry)()
	w.Header().Set("Content-Type", "application/json")
	err = result.WriteJSON(ctx, paced)
	if err == nil || !paced.Begun() {
		return err
	}
	if r.Context().Err() == nil {
		s.log.Warn("the response to an audit breaks off", "topic", topic, "bytes", paced.Written(), "err", err)
	}
	// The status is sent already. Only a broken connection shows that the response is not whole.
	panic(http.ErrAbortHandler)
}

// query returns the parameters, whose names are in lower case here. A parameter that is given twice
// is refused, because either value might be meant.
func query(r *http.Request) (url.Values, error) {
	// A semicolon is a character like any other in a query (WHATWG URL), also in an order ID.
	// net/url refuses it, because it once separated parameters.
	q, err := url.ParseQuery(strings.ReplaceAll(r.URL.RawQuery, ";", "%3B"))
	if err != nil {
		return nil, invalidError{fmt.Errorf("the query cannot be read: %w", err)}
	}
	for _, name := range []string{"orderId", "minVersion", "topicName"} {
		values := q[strings.ToLower(name)]
		if len(values) > 1 {
			return nil, invalidError{errors.New(name + " is given more than once")}
		}
		if !utf8.ValidString(strings.Join(values, "")) {
			return nil, invalidError{errors.New(name + " is not valid UTF-8")}
		}
	}
	return q, nil
}

var (
	errTopicName = errors.New("the topic is no order topic")
	errNoOrders  = errors.New("the topic holds no orders")
	// errStopping ends requests that wait. They may succeed on the next service.
	errStopping = errors.New("the service is stopping")
)

// invalidError is a request that the contract does not allow. Its text is for the client.
type invalidError struct{ error }

// notReadyError is a look-up before the store has caught up. It wraps what is missing.
type notReadyError struct{ error }

// notFoundError is a look-up of an order that the store does not have.
type notFoundError struct{ orderID string }

func (e notFoundError) Error() string { return "order " + e.orderID + " is not known" }

// versionError is a look-up of a version that the store does not have yet.
type versionError struct {
	orderID      string
	known, least int64
}

func (e versionError) Error() string {
	return fmt.Sprintf("order %s is at version %d, not at %d", e.orderID, e.known, e.least)
}

// problem is the one table from errors to HTTP responses.
func problem(err error) web.Problem {
	if e, ok := errors.AsType[invalidError](err); ok {
		return web.Problem{Status: http.StatusBadRequest, Text: "Invalid input fields. " + e.Error() + "."}
	}
	if e, ok := errors.AsType[notReadyError](err); ok {
		return unavailable("The Order service is not ready: "+e.Error()+".", notReadyRetry)
	}
	if e, ok := errors.AsType[notFoundError](err); ok {
		return web.Problem{Status: http.StatusNotFound, Text: "Order with ID " + e.orderID + " not found."}
	}
	if e, ok := errors.AsType[versionError](err); ok {
		return web.Problem{
			Status: http.StatusPreconditionFailed,
			Text:   fmt.Sprintf("Order with ID %s is known at version %d, not yet at %d.", e.orderID, e.known, e.least),
		}
	}
	switch {
	case errors.Is(err, bearer.ErrNotCovered):
		return bearer.NotCovered
	case errors.Is(err, errStopping):
		return unavailable("The Order service is stopping; ask again.", time.Second)
	case errors.Is(err, errTopicName):
		return web.Problem{Status: http.StatusBadRequest, Text: "Invalid topic name."}
	case errors.Is(err, errNoOrders):
		return web.Problem{Status: http.StatusNotFound, Text: "No orders found in the specified topic."}
	case errors.Is(err, audit.ErrBusy):
		return unavailable("Too many audits are being answered; try again later.", auditRetry)
	case errors.Is(err, audit.ErrNoRoom):
		return unavailable("The volume of the Order service has no room for an audit.", auditRetry)
	case errors.Is(err, audit.ErrUnreadable), errors.Is(err, context.Canceled):
		return unavailable(unreadable(err), auditRetry)
	case sqldb.IsUnavailable(err):
		return unavailable("The database of the Order service cannot be used at present; ask again.", time.Second)
	default:
		return web.Problem{
			Status: http.StatusInternalServerError,
			Text:   "Something went wrong in the Order service; its log says what.",
		}
	}
}

// unreadable returns the text for a topic that cannot be read. An error that is not known may hold
// details of the cluster, so its text stays in the log.
func unreadable(err error) string {
	if e, ok := errors.AsType[*broker.MissingTopicsError](err); ok {
		return "The topic cannot be read: " + e.Error() + "."
	}
	if e, ok := errors.AsType[*broker.WithheldError](err); ok {
		return "The topic cannot be read to its end: " + e.Error() + "."
	}
	if errors.Is(err, audit.ErrStalled) {
		return "The topic cannot be read: nothing comes from Kafka; the Order service's log says why."
	}
	_, unreachable := errors.AsType[*broker.UnreachableError](err)
	if unreachable || errors.Is(err, context.DeadlineExceeded) {
		return "The topic cannot be read: Kafka is unreachable."
	}
	return "The topic cannot be read now; the Order service's log says why."
}

// unavailable is a problem that passes: the client should try again after some time.
func unavailable(text string, retryAfter time.Duration) web.Problem {
	return web.Problem{Status: http.StatusServiceUnavailable, Text: text, RetryAfter: retryAfter}
}
