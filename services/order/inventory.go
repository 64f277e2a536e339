package order

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/inventory"
	"ordersystem.dev/services/order/audit"
)

// viewPoll is the pause while the view comes to the end of the topics.
const viewPoll = 20 * time.Millisecond

// newInventory returns the inventory of the view. It has every record that the topics had at the request.
func newInventory(s *store, c *catchUp, admin *broker.Admin, log *slog.Logger) *inventory.Server {
	return &inventory.Server{
		DB: s.db,
		Before: func(ctx context.Context) error {
			if err := c.ready(); err != nil {
				return err
			}
			return awaitEnd(ctx, s, admin.Bounds)
		},
		Log: log,
	}
}

// awaitEnd waits until the view has come to where the topics end now.
func awaitEnd(ctx context.Context, s *store, bounds audit.BoundsFunc) error {
	patient, cancel := context.WithTimeout(ctx, inventory.Patience)
	defer cancel()
	first, end, err := bounds(patient, s.topics...)
	if err != nil {
		return err
	}
	for {
		at, err := s.offsets(patient)
		if err != nil {
			return err
		}
		missing := behind(at, first, end)
		if missing == nil {
			return nil
		}
		if !backoff.Sleep(patient, viewPoll) {
			return fmt.Errorf("the view is not at the end of the topics after %s: %w", inventory.Patience, missing)
		}
	}
}
