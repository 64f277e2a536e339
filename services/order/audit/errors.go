package audit

import (
	"context"
	"errors"
	"fmt"

	"ordersystem.dev/services/internal/sqldb"
)

var (
	// ErrBusy is returned when MaxResults results are open and none is closed in time.
	ErrBusy = errors.New("too many results are open")
	// ErrUnreadable is returned when the topic cannot be read at present. It wraps the cause, which
	// may be ErrStalled, ErrNoRoom, a *broker.UnreachableError, a *broker.MissingTopicsError or a context's.
	ErrUnreadable = errors.New("the topic cannot be read")
	// ErrNoRoom is the cause when the index would take the room that the service's store needs.
	ErrNoRoom = errors.New("the volume has no room for an audit's index")
	// ErrStalled is the cause when no record comes from Kafka, such as behind a damaged batch. It wraps
	// a *broker.WithheldError if an open transaction is why.
	ErrStalled = errors.New("nothing comes from Kafka")
)

// unreadable returns ErrUnreadable with its cause.
func unreadable(ctx context.Context, topic string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnreadable, topic, causeOf(ctx, err))
}

// roomError returns ErrNoRoom with err as its cause if err says that the disk is full, and else err.
func roomError(err error) error {
	if sqldb.IsFull(err) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return err
}

// causeOf returns the cause of ctx if ctx has ended, because err is then only a consequence.
// Otherwise it returns err.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
