package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// longTransaction is longer than any transaction in order: Cart's end after 10 s at the latest.
const longTransaction = 15 * time.Second

// assignment holds the partitions of a session, and keeps librdkafka and the handler in step with
// it. Only topicIDs may be called from another goroutine than that of the session.
type assignment struct {
	*membership
	client  *kafka.Consumer
	handler Handler
	// work is the context of the handler's calls.
	work context.Context

	positions map[topicPartition]*position
	paused    bool

	mu sync.Mutex
	// ids are the IDs of the topics by name, as of their last assignment.
	ids map[string]string
}

// position is where the reading of an assigned partition stands.
type position struct {
	id Partition
	// next is the offset after all that is collected.
	next int64
	// stable is the last stable offset, and stableSince is when it moved there or was the end of the
	// log. It is zero before the first report.
	stable      int64
	stableSince time.Time
	// reported is true when the log has a line about the transaction that is open there.
	reported bool
	// stopped reports whether the partition is not fetched because it cannot be read.
	stopped bool
}

func newAssignment(work context.Context, m *membership, client *kafka.Consumer, h Handler) *assignment {
	return &assignment{
		membership: m, client: client, handler: h, work: work,
		positions: make(map[topicPartition]*position), ids: make(map[string]string),
	}
}

// position returns nil for a partition that is not assigned.
func (a *assignment) position(tp kafka.TopicPartition) *position {
	return a.positions[topicPartition{*tp.Topic, tp.Partition}]
}

// topicIDs returns the IDs of the topics that are or were assigned.
func (a *assignment) topicIDs() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.ids)
}

// lag returns the lag of each partition that is being fetched. A client that is paused or has lost
// the broker fetches nothing, and still reports the lag that it knew before.
func (a *assignment) lag(now *clientReport, at time.Time) map[Partition]Lag {
	lag, connected := make(map[Partition]Lag, len(a.positions)), now.connected()
	if a.paused {
		return lag
	}
	for tp, p := range a.positions {
		if p.stopped {
			continue
		}
		if in, ok := now.Topics[tp.topic].Partitions[tp.number]; ok && in.Lag >= 0 && connected[in.Broker] {
			withheld := max(0, in.End-in.Stable)
			lag[p.id] = Lag{Records: in.Lag + withheld, Withheld: a.waits(p, in.Stable, withheld, at)}
		}
	}
	return lag
}

// waits returns how long the last stable offset of a partition has stood still although there are
// offsets behind it.
func (a *assignment) waits(p *position, stable, withheld int64, at time.Time) time.Duration {
	if withheld == 0 || stable != p.stable || p.stableSince.IsZero() {
		if p.reported {
			a.log.Info("the open transaction has ended", "topic", p.id.Topic, "partition", p.id.Number)
		}
		p.stable, p.stableSince, p.reported = stable, at, false
		return 0
	}
	d := at.Sub(p.stableSince)
	if d >= longTransaction && !p.reported {
		p.reported = true
		a.log.Warn("an open transaction withholds records", "topic", p.id.Topic, "partition", p.id.Number,
			"offset", stable, "withheld", withheld, "next", FindHanging)
	}
	return d
}

// add takes new partitions over, each from the position that the handler has for it.
func (a *assignment) add(tps []kafka.TopicPartition) error {
	err := a.load(tps)
	// librdkafka waits for this call even if nothing can be read.
	if failed := a.client.IncrementalAssign(tps); err == nil && failed != nil {
		err = fmt.Errorf("assign: %w", explain(failed))
	}
	if err != nil {
		return err
	}
	if a.paused {
		err = a.client.Pause(tps)
	} else {
		// A partition that was revoked while paused is still paused when it comes back.
		err = a.client.Resume(tps)
	}
	if err != nil {
		return fmt.Errorf("pause or resume new partitions: %w", explain(err))
	}
	// Without this, a partition in which nothing happens would show no committed offset.
	hint := make(map[Partition]int64)
	for _, tp := range tps {
		p := a.position(tp)
		hint[p.id] = p.next
	}
	a.storeHint(hint)
	return nil
}

// load looks up the IDs of the topics in Kafka and the positions in the handler. It sets the
// offsets in tps.
func (a *assignment) load(tps []kafka.TopicPartition) error {
	infos, err := a.admin.Topics(a.work, a.cc.Topics...)
	if missing, ok := errors.AsType[*MissingTopicsError](err); ok && infos != nil {
		// Another topic of the group may be missing, but not one of these.
		err = nil
		for _, tp := range tps {
			if slices.Contains(missing.Names, *tp.Topic) {
				err = missing
			}
		}
	}
	if err != nil {
		return fmt.Errorf("look up assigned topics: %w", err)
	}
	ids := make([]Partition, len(tps))
	for i, tp := range tps {
		ids[i] = Partition{Topic: *tp.Topic, TopicID: infos[*tp.Topic].ID, Number: tp.Partition}
	}
	offsets, err := a.handler.Assigned(a.work, ids)
	if err != nil {
		return fmt.Errorf("load positions: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, p := range ids {
		tps[i].Offset = kafka.Offset(offsets[p])
		a.positions[topicPartition{p.Topic, p.Number}] = &position{id: p, next: offsets[p]}
		a.ids[p.Topic] = p.TopicID
	}
	a.setHeld(a.positions)
	a.log.Info("partitions assigned", "partitions", len(ids), "now", len(a.positions))
	return nil
}

// remove gives partitions up and returns those that were assigned. lost reports whether the group
// has given them to other members already.
func (a *assignment) remove(tps []kafka.TopicPartition, lost bool) []Partition {
	var gone []Partition
	for _, tp := range tps {
		if p := a.position(tp); p != nil {
			delete(a.positions, topicPartition{*tp.Topic, tp.Partition})
			gone = append(gone, p.id)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	a.dropLag(gone)
	a.setHeld(a.positions)
	a.handler.Revoked(gone)
	a.log.Info("partitions revoked", "partitions", len(gone), "now", len(a.positions), "lost", lost)
	return gone
}

// end gives all partitions up. The client is closed afterwards.
func (a *assignment) end() {
	if len(a.positions) > 0 {
		var gone []Partition
		for _, p := range a.positions {
			gone = append(gone, p.id)
		}
		a.handler.Revoked(gone)
	}
	a.setHeld(nil)
	a.setLag(nil)
}

// offsets returns the positions of the partitions that are stopped, or of the others.
func (a *assignment) offsets(stopped bool) map[topicPartition]int64 {
	offsets := make(map[topicPartition]int64)
	for at, p := range a.positions {
		if p.stopped == stopped {
			offsets[at] = p.next
		}
	}
	return offsets
}

// stop stops fetching a partition that cannot be read, for the rest of the session.
func (a *assignment) stop(p *position) error {
	p.stopped = true
	if err := a.client.Pause([]kafka.TopicPartition{p.topicPartition()}); err != nil {
		return fmt.Errorf("pause a partition: %w", explain(err))
	}
	return nil
}

// seek makes the client go on at positions. It drops what the client has read of them already. As in
// an assignment, the offset comes without a leader epoch: the client takes that from the next batch.
func (a *assignment) seek(ps ...*position) error {
	tps := make([]kafka.TopicPartition, len(ps))
	for i, p := range ps {
		tps[i] = p.topicPartition()
	}
	return seek(a.client, tps)
}

// seekAll makes the client read everything again that is not collected yet.
func (a *assignment) seekAll() error {
	var ps []*position
	for _, p := range a.positions {
		if !p.stopped {
			ps = append(ps, p)
		}
	}
	return a.seek(ps...)
}

// topicPartition returns the position as the client takes it.
func (p *position) topicPartition() kafka.TopicPartition {
	return kafka.TopicPartition{Topic: &p.id.Topic, Partition: p.id.Number, Offset: kafka.Offset(p.next)}
}

// pause stops fetching. After an error the client is in an unknown state.
func (a *assignment) pause() error {
	if a.paused {
		return nil
	}
	a.paused = true
	a.setLag(nil)
	if err := a.client.Pause(a.topicPartitions()); err != nil {
		return fmt.Errorf("pause: %w", explain(err))
	}
	return nil
}

// resume fetches again after pause. After an error the client is in an unknown state.
func (a *assignment) resume() error {
	if !a.paused {
		return nil
	}
	a.paused = false
	if err := a.client.Resume(a.topicPartitions()); err != nil {
		return fmt.Errorf("resume: %w", explain(err))
	}
	return nil
}

func (a *assignment) topicPartitions() []kafka.TopicPartition {
	var tps []kafka.TopicPartition
	for at, p := range a.positions {
		if !p.stopped {
			tps = append(tps, kafka.TopicPartition{Topic: &at.topic, Partition: at.number})
		}
	}
	return tps
}

// storeHint leaves positions for the background commit.
func (a *assignment) storeHint(next map[Partition]int64) {
	tps := make([]kafka.TopicPartition, 0, len(next))
	for p, offset := range next {
		tps = append(tps, kafka.TopicPartition{Topic: &p.Topic, Partition: p.Number, Offset: kafka.Offset(offset)})
	}
	if _, err := a.client.StoreOffsets(tps); err != nil {
		// A partition is being revoked.
		a.log.Debug("store offsets", "err", err)
	}
}
