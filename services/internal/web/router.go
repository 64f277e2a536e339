package web

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
)

// Routes are the endpoints of a service.
type Routes []Route

// Route is one endpoint.
type Route struct {
	Method string
	// Path is in lower case, because Routes.Handler turns the path of each request into lower case.
	Path    string
	Handler http.HandlerFunc
}

// Handler serves the routes, whatever the case of a request's path and of the names in its query,
// and measures each request. For an unknown path or method it responds with what there is.
func (rs Routes) Handler(reg prometheus.Registerer) http.Handler {
	durations := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds",
		Help: "Time in seconds to respond to a request, the wait that a look-up asked for included.",
		// 0.5 ms to 65 s.
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18), NativeHistogramBucketFactor: 1.1,
	}, []string{"route", "method", "code"})
	reg.MustRegister(durations)

	// A cleaned path would be redirected, and a redirect turns a POST into a GET.
	router := mux.NewRouter().SkipClean(true)
	allowed := map[string][]string{}
	var all []string
	for _, route := range rs {
		methods := []string{route.Method}
		if route.Method == http.MethodGet {
			// RFC 9110 section 9.1 requires HEAD; net/http leaves the body out.
			methods = append(methods, http.MethodHead)
		}
		measured := measure(durations, route.Path, route.Method, refuseOtherOrigins(route.Handler))
		router.Handle(route.Path, measured).Methods(methods...)
		allowed[route.Path] = append(allowed[route.Path], route.Method)
		all = append(all, route.Method+" "+route.Path)
	}
	slices.Sort(all)
	unknown := "There is nothing at this path. This service has: " + strings.Join(all, ", ") + "."
	router.NotFoundHandler = measure(durations, "other", "other", func(w http.ResponseWriter, r *http.Request) {
		Problem{Status: http.StatusNotFound, Text: unknown}.Write(w, r)
	})
	router.MethodNotAllowedHandler = measure(durations, "other", "other", func(w http.ResponseWriter, r *http.Request) {
		allow := strings.Join(allowed[r.URL.Path], ", ")
		w.Header().Set("Allow", allow)
		Problem{
			Status: http.StatusMethodNotAllowed,
			Text:   fmt.Sprintf("This path takes %s, not %.16s.", allow, r.Method),
		}.Write(w, r)
	})
	return FoldCase(router)
}

// refuseOtherOrigins refuses a request that a page of another origin makes a browser send, if it
// could change something. Programs send neither of the headers that tell, and are not affected.
func refuseOtherOrigins(h http.HandlerFunc) http.HandlerFunc {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Problem{
			Status: http.StatusForbidden,
			Text: "A page of another origin sent this request (Sec-Fetch-Site, Origin). " +
				"Send it from this origin, or from a program.",
		}.Write(w, r)
	}))
	return protection.Handler(h).ServeHTTP
}

// FoldCase passes every request on with its path and the names in its query in lower case, because
// no router ignores case. It also drops one slash at the end of the path. Values stay as they are.
func FoldCase(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := *r.URL
		u.Path, u.RawPath = strings.ToLower(u.Path), ""
		if len(u.Path) > 1 {
			u.Path = strings.TrimSuffix(u.Path, "/")
		}
		if u.RawQuery != "" {
			pairs := strings.Split(u.RawQuery, "&")
			for i, pair := range pairs {
				name, value, found := strings.Cut(pair, "=")
				if plain, err := url.QueryUnescape(name); err == nil {
					name = url.QueryEscape(strings.ToLower(plain))
				}
				if found {
					name += "="
				}
				pairs[i] = name + value
			}
			u.RawQuery = strings.Join(pairs, "&")
		}
		// A shallow copy is enough; WithContext would make a second one.
		folded := *r
		folded.URL = &u
		h.ServeHTTP(w, &folded)
	})
}

// measure records the duration of each request. A request whose handler panics, which breaks the
// connection, has the code "aborted". One whose client has left before its end has the code "gone", unless the
// service failed all the same: a client that waits for less time than the service must not hide that.
func measure(
	durations *prometheus.HistogramVec, route, method string, next http.HandlerFunc,
) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sw := statusWriter{ResponseWriter: w, status: http.StatusOK}
		code := "aborted"
		defer func() {
			if r.Context().Err() != nil && sw.status < http.StatusInternalServerError {
				code = "gone"
			}
			durations.WithLabelValues(route, method, code).Observe(time.Since(start).Seconds())
		}()
		next(&sw, r)
		code = strconv.Itoa(sw.status)
	}
}

// statusWriter remembers the status of a response.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader is part of http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
