package cart

import (
	"context"
	"log/slog"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// orderTopics returns the topics that the service writes, and rebuilds its store from.
func orderTopics(kafka broker.Config) []string { return kafka.Names(contract.OrderTopics()) }

// rebuild fills a new store with the orders of the topics, so that no version is given twice and no
// order is created twice. It reads up to the high watermarks that the topics have at its start, as
// only this service writes to them. Orders behind an open transaction exist, so it waits for them. A
// rebuild that was cut off starts again from the beginning. It returns where the logs begin, as what
// was deleted before is missing in the store, and how many orders are in doubt.
func rebuild(
	ctx context.Context, cfg broker.Config, admin *broker.Admin, s *store, log *slog.Logger,
) (first map[broker.Partition]int64, inDoubt int, err error) {
	first, end, err := admin.Bounds(ctx, orderTopics(cfg)...)
	if err != nil {
		return nil, 0, err
	}
	var doubts doubts
	// total counts offsets. There may be fewer records, as compaction removes some.
	var records, skipped, total int64
	for p := range end {
		total += end[p] - first[p]
	}
	log.Info("rebuilding the store from the topics", "offsets", total)
	progress := time.Now()
	// restoreBatch writes the newest version of each order in a batch.
	restoreBatch := func(ctx context.Context, batch []broker.Record) error {
		events, bad := decodeBatch(batch, log)
		for _, r := range bad {
			doubts.add(r)
		}
		newest, err := newestVersions(events)
		if err != nil {
			return err
		}
		records += int64(len(batch))
		skipped += int64(len(bad))
		if time.Since(progress) > 5*time.Second {
			progress = time.Now()
			log.Info("rebuilding", "records", records, "of_offsets", total)
		}
		return s.restore(ctx, newest)
	}
	if err := broker.ReadTo(ctx, cfg, log, cfg.Name(contract.GroupRebuild), first, end, restoreBatch); err != nil {
		return nil, 0, err
	}
	if inDoubt, err = doubts.report(ctx, s.db, log); err != nil {
		return nil, 0, err
	}
	if err := s.setPublished(ctx, end); err != nil {
		return nil, 0, err
	}
	if err := s.markRebuilt(ctx, time.Now()); err != nil {
		return nil, 0, err
	}
	log.Info("the store is rebuilt", "records", records, "skipped", skipped, "in_doubt", inDoubt)
	return first, inDoubt, nil
}

// decodeBatch returns the events of a batch, and the records that hold none: the Order service
// makes them dead letters. What cannot be read may have been many orders, so it is logged here too.
func decodeBatch(batch []broker.Record, log *slog.Logger) (events []contract.Event, bad []*broker.Record) {
	events = make([]contract.Event, 0, len(batch))
	for i := range batch {
		r := &batch[i]
		if r.Fault != nil {
			log.Error("records are left out: their batch cannot be read", "topic", r.Topic, "partition", r.Partition,
				"offset", r.Offset, "err", r.Fault, "next", "docs/runbooks/OrderDeadLetters.md")
			bad = append(bad, r)
			continue
		}
		e, err := contract.DecodeEvent(r.Topic, r.Offset, r.Key, r.Value, r.Headers)
		if err != nil {
			bad = append(bad, r)
			continue
		}
		events = append(events, e)
	}
	return events, bad
}
