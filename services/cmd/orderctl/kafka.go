package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

const (
	// progressEvery is the time between two lines about long work.
	progressEvery = 2 * time.Second
	// stallPatience is how long Kafka may give no record.
	stallPatience = 30 * time.Second
)

var errStalled = fmt.Errorf("nothing has come from Kafka for %s", stallPatience)

// kafka is what the commands work on.
type kafka struct {
	cfg      broker.Config
	log      *slog.Logger
	progress io.Writer
}

// read gives the records of the topics to apply, in batches that are valid only during the call: from these
// offsets, or from the first ones, up to where the topics end now. It returns the end. The names of the topics
// are without the prefix.
func (k *kafka) read(
	ctx context.Context, admin *broker.Admin, what string, from map[broker.Partition]int64, topics []string,
	apply func([]broker.Record),
) (end map[broker.Partition]int64, err error) {
	names := k.cfg.Names(topics)
	first, end, err := admin.Bounds(ctx, names...)
	if err != nil {
		return nil, err
	}
	if from == nil {
		from = first
	}
	var all int64
	for p := range end {
		all += end[p] - from[p]
	}
	// There may be fewer records than offsets.
	progress := k.meter(what, "offsets", all)
	reading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(stallPatience, func() { cancel(errStalled) })
	defer stall.Stop()
	err = broker.ReadTo(reading, k.cfg, k.log, k.cfg.Name(contract.GroupOrderctl), from, end,
		func(_ context.Context, records []broker.Record) error {
			stall.Reset(stallPatience)
			apply(records)
			progress.add(len(records))
			return nil
		})
	if errors.Is(context.Cause(reading), errStalled) {
		// An open transaction may be why.
		return nil, errors.Join(errStalled, admin.Withheld(ctx, names...))
	}
	return end, err
}

// meter shows how far long work has come.
type meter struct {
	to           io.Writer
	what, unit   string
	done, all    int64
	begun, shown time.Time
}

// meter returns a meter for all units, or for an unknown number if all is 0.
func (k *kafka) meter(what, unit string, all int64) *meter {
	now := time.Now()
	return &meter{to: k.progress, what: what, unit: unit, all: all, begun: now, shown: now}
}

// add counts units that are done.
func (m *meter) add(units int) {
	m.done += int64(units)
	if time.Since(m.shown) < progressEvery {
		return
	}
	m.shown = time.Now()
	if m.all == 0 || m.done == 0 {
		fmt.Fprintf(m.to, "%s: %d %s\n", m.what, m.done, m.unit)
		return
	}
	part := float64(m.done) / float64(m.all)
	left := time.Duration(float64(time.Since(m.begun)) * (1 - part) / part)
	bar := []byte("....................")
	for i := range int(part * float64(len(bar))) {
		bar[min(i, len(bar)-1)] = '#'
	}
	fmt.Fprintf(m.to, "%s: [%s] %d of %d %s, %s left\n", m.what, bar, m.done, m.all, m.unit, left.Round(time.Second))
}
