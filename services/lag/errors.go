package lag

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
)

// ReadError says what could not be read in a poll that succeeded as a whole.
type ReadError struct {
	API          string // the request, such as OffsetFetch
	Group, Topic string // what it concerns: one of them, or none when a broker does not say which groups it has
	Err          error
}

func (e *ReadError) Error() string {
	switch {
	case e.Group != "":
		return fmt.Sprintf("%s of group %s: %v", e.API, e.Group, e.Err)
	case e.Topic != "":
		return fmt.Sprintf("%s of topic %s: %v", e.API, e.Topic, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.API, e.Err)
}

// Unwrap is the broker's or the connection's error.
func (e *ReadError) Unwrap() error { return e.Err }

// whole is why a poll failed as a whole.
func whole(err error) *ReadError {
	if e, ok := errors.AsType[*ReadError](err); ok {
		return e
	}
	return &ReadError{API: "ListGroups", Err: err}
}

// key tells whether two errors are the same one again.
func (e *ReadError) key() string { return e.API + " " + e.Code() }

// Code is Kafka's name of the error, of which there are not many.
func (e *ReadError) Code() string {
	if ke, ok := errors.AsType[*kerr.Error](e.Err); ok {
		return ke.Message
	}
	if errors.Is(e.Err, context.DeadlineExceeded) {
		return "TIMEOUT"
	}
	return "CONNECTION"
}

// errNoAnswer is for what a broker was asked and passed over.
var errNoAnswer = errors.New("the broker left it out of its answer")
