package cart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"ordersystem.dev/services/internal/inventory"
)

var errUnpublished = errors.New("the store has events that the relay has not published: docs/runbooks/OutboxOld.md")

// newInventory returns the inventory of the store. Once it is whole, Kafka has had every version in it.
func newInventory(s *store, r *reconciler, log *slog.Logger) *inventory.Server {
	return &inventory.Server{
		DB:     s.db,
		Before: func(context.Context) error { return r.compared() },
		After:  func(ctx context.Context) error { return awaitEmptied(ctx, s, r) },
		Log:    log,
	}
}

// awaitEmptied waits until Kafka has all events that are in the outbox now.
func awaitEmptied(ctx context.Context, s *store, r *reconciler) error {
	patient, cancel := context.WithTimeout(ctx, inventory.Patience)
	defer cancel()
	head, err := s.box.Head(patient)
	if err != nil {
		return err
	}
	err = r.awaitPublished(patient, head, func(string) {})
	if patient.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: waited %s", errUnpublished, inventory.Patience)
	}
	return err
}
