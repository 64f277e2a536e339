package lag

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"

	"ordersystem.dev/services/internal/kafkaconfig"
)

// ReadError is one part of a cluster that a poll could not read. A poll with ReadErrors can succeed
// as a whole: everything else was read.
type ReadError struct {
	// API is Kafka's name of the request, such as OffsetFetch.
	API string
	// Group and Topic are what the error concerns: one of them, or neither if a broker did not list
	// its groups.
	Group, Topic string
	// Err is the broker's or the connection's error.
	Err error
}

// Error returns the request, what it was about, and the cause.
func (e *ReadError) Error() string {
	switch {
	case e.Group != "":
		return fmt.Sprintf("%s of group %s: %v", e.API, e.Group, e.Err)
	case e.Topic != "":
		return fmt.Sprintf("%s of topic %s: %v", e.API, e.Topic, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.API, e.Err)
}

// Unwrap returns the broker's or the connection's error.
func (e *ReadError) Unwrap() error { return e.Err }

// Code returns Kafka's name of the error, TIMEOUT or CONNECTION if no broker responded, or CREDENTIALS
// if the collector had none to show. There are few codes, so a metric may have them as a label.
func (e *ReadError) Code() string {
	if _, ok := errors.AsType[*kafkaconfig.CredentialsError](e.Err); ok {
		return "CREDENTIALS"
	}
	if ke, ok := errors.AsType[*kerr.Error](e.Err); ok {
		return ke.Message
	}
	if errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, os.ErrDeadlineExceeded) {
		return "TIMEOUT"
	}
	return "CONNECTION"
}

// Unauthorized reports whether Kafka refused the request because the collector's user lacks rights.
func (e *ReadError) Unauthorized() bool {
	return slices.ContainsFunc([]error{
		kerr.GroupAuthorizationFailed, kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed,
	}, func(refusal error) bool { return errors.Is(e.Err, refusal) })
}

// Stable returns Error with the code in place of the cause. The cause may contain a local port, so
// it differs from poll to poll; Stable stays the same while the failure is the same.
func (e *ReadError) Stable() string {
	return (&ReadError{API: e.API, Group: e.Group, Topic: e.Topic, Err: errors.New(e.Code())}).Error()
}

// key identifies the failure in logs: equal keys are the same failure again.
func (e *ReadError) key() string { return e.API + " " + e.Code() }

// asReadError returns the ReadError in the error of a poll that failed as a whole. An error without
// one counts as an error of the first request.
func asReadError(err error) *ReadError {
	if e, ok := errors.AsType[*ReadError](err); ok {
		return e
	}
	return &ReadError{API: "ListGroups", Err: err}
}

// errNotInResponse is the error of a group or partition that a broker left out of its response.
var errNotInResponse = errors.New("the broker left it out of its response")
