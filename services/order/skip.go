package order

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/skip"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/web"
)

// skipPatience is how long the consumer may take to pass a batch. It looks once a second whether it may.
const skipPatience = 30 * time.Second

// notMetError is a command to skip what is no damaged batch, or none that Order has come to.
type notMetError struct{ error }

// skipper has all that this service reads pass a damaged batch: the consumer, audits and rebuilds. It only notes
// the batch in the store. Whoever meets the batch asks the store, so it does not matter which member of the group
// has the partition, nor which one is asked.
type skipper struct {
	store *store
	// damage returns the damaged batch that holds up a reader at an offset, or nil. It is broker.FindDamage.
	damage  func(ctx context.Context, p broker.Partition, offset int64) (*broker.DamagedError, error)
	command *web.Command
	log     *slog.Logger
}

// newSkipper returns one.
func newSkipper(
	s *store, damage func(context.Context, broker.Partition, int64) (*broker.DamagedError, error), log *slog.Logger,
) *skipper {
	return &skipper{
		store: s, damage: damage, log: log, command: web.NewCommand("a batch is being skipped already"),
	}
}

// ServeHTTP does what the parameters say. See package skip for the response.
func (s *skipper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, err error) { web.Problem{Status: status, Text: err.Error() + "\n"}.Write(w, r) }
	o, err := skip.ParseOptions(r.URL.RawQuery)
	if err != nil {
		refuse(http.StatusBadRequest, err)
		return
	}
	response, begun := s.command.Begin(w, r)
	if !begun {
		return
	}
	defer response.End()
	result, err := s.skip(response.Context(), o)
	if _, notMet := errors.AsType[notMetError](err); notMet {
		refuse(http.StatusConflict, err)
		return
	}
	if err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	web.WriteJSON(w, http.StatusOK, "application/json", result)
}

// skip does what the options say. The error is a notMetError if there is nothing to skip.
func (s *skipper) skip(ctx context.Context, o skip.Options) (*skip.Result, error) {
	p, next, err := s.position(ctx, o.At)
	if err != nil {
		return nil, err
	}
	known, err := s.store.skips(ctx, o.At)
	if err != nil {
		return nil, err
	}
	// The offset is often that of a marker before the batch, and may be in the middle of the batch.
	damaged, err := s.damage(ctx, p, next)
	holdsUp := err == nil && damaged != nil && damaged.Place == o.At
	if err == nil && !holdsUp && o.At.Offset < next {
		// The batch was damaged after the consumer had read it. Audits and rebuilds meet it.
		damaged, err = s.damage(ctx, p, o.At.Offset)
	}
	if err != nil {
		return nil, fmt.Errorf("look at the batch: %w", err)
	}
	result := &skip.Result{At: o.At.String(), Outcome: skip.Already}
	if known && (!holdsUp || !o.Confirm) {
		return result, nil
	}
	if damaged == nil || damaged.Place != o.At {
		return nil, notMetError{notMet(o.At, next, damaged)}
	}
	result.Outcome, result.Records, result.Bytes = skip.Would, damaged.Records, damaged.Bytes
	if !o.Confirm {
		return result, nil
	}
	if err := s.store.skip(ctx, p, o.At.Offset); err != nil {
		return nil, err
	}
	s.log.Warn("a damaged batch is skipped: POST /skip", "topic", p.Topic, "partition", p.Number,
		"offset", o.At.Offset, "records", damaged.Records, "consumer_waits", holdsUp)
	if holdsUp {
		if err := s.awaitPassed(ctx, p, next); err != nil {
			return nil, err
		}
	}
	result.Outcome = skip.Skipped
	return result, nil
}

// position returns the partition of a place, and where the store is in it, whichever member has it.
func (s *skipper) position(ctx context.Context, at broker.Place) (broker.Partition, int64, error) {
	read, err := s.store.offsets(ctx)
	if err != nil {
		return broker.Partition{}, 0, err
	}
	for p, next := range read {
		if p.Topic == at.Topic && p.Number == at.Partition {
			return p, next, nil
		}
	}
	return broker.Partition{}, 0, notMetError{fmt.Errorf("nothing is skipped: Order has not had %s/%d. It reads %s",
		at.Topic, at.Partition, strings.Join(s.store.topics, " and "))}
}

// notMet returns why nothing is skipped at a place. next is where the store is, and damaged is the batch that was
// found instead, or nil.
func notMet(at broker.Place, next int64, damaged *broker.DamagedError) error {
	found := ""
	if damaged != nil {
		found = fmt.Sprintf(". The next damaged batch is %s", damaged.Place)
	}
	return fmt.Errorf("nothing is skipped: Order is at offset %d of %s/%d, and has met no damaged batch at %s%s",
		next, at.Topic, at.Partition, at, found)
}

// awaitPassed waits until the consumer has passed the batch before which it waits at the offset next. Its dead
// letter is then in the store.
func (s *skipper) awaitPassed(ctx context.Context, p broker.Partition, next int64) error {
	patient, cancel := context.WithTimeoutCause(ctx, skipPatience, fmt.Errorf(
		"the batch is to be skipped, and no member has passed it within %s: see the logs of Order", skipPatience))
	defer cancel()
	for {
		read, err := s.store.offsets(patient)
		if err != nil || read[p] != next {
			return err
		}
		if !backoff.Sleep(patient, viewPoll) {
			return context.Cause(patient)
		}
	}
}

// skips reports whether a damaged batch is skipped. It is the SkipDamaged of all that this service reads.
func (s *store) skips(ctx context.Context, at broker.Place) (bool, error) {
	found := false
	// A topic that was recreated has other batches at the same offsets. The row of the offset has the ID of the
	// present one.
	err := s.db.Query(ctx, `SELECT 1 FROM skipped s
		JOIN offsets o ON o.topic_id = s.topic_id AND o.partition = s.partition
		WHERE o.topic = ? AND s.partition = ? AND s.first_offset = ?`,
		func(*sql.Rows) error { found = true; return nil }, at.Topic, at.Partition, at.Offset)
	if err != nil {
		return false, fmt.Errorf("look up whether the batch %s is skipped: %w", at, err)
	}
	return found, nil
}

// skip has readers pass the damaged batch whose first record has an offset.
func (s *store) skip(ctx context.Context, p broker.Partition, first int64) error {
	err := s.db.Tx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO skipped(topic_id, partition, first_offset) VALUES (?, ?, ?)
			ON CONFLICT DO NOTHING`, p.TopicID, p.Number, first)
		return err
	})
	if err != nil {
		return fmt.Errorf("note that the batch %s/%d/%d is skipped: %w", p.Topic, p.Number, first, err)
	}
	return nil
}
