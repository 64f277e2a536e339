package broker

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// membership is what the sessions of a consumer have in common: its configuration, and what they
// report of themselves. It is safe for concurrent use.
type membership struct {
	cfg     Config
	cc      ConsumerConfig
	admin   *Admin
	log     *slog.Logger
	trouble *trouble

	rebalances atomic.Int64
	// held are the partitions of this member. It is nil before the first assignment.
	held atomic.Pointer[map[topicPartition]bool]
	// polled is the time of the last poll, as Unix time in nanoseconds. 0 is never.
	polled  atomic.Int64
	failure atomic.Pointer[error]
	// lost is true when the present session had partitions and lost all brokers.
	lost atomic.Bool

	lagMu sync.Mutex
	// lag lacks the partitions whose lag is unknown.
	lag   map[Partition]Lag
	lagAt time.Time
}

func (m *membership) setLag(lag map[Partition]Lag) {
	m.lagMu.Lock()
	defer m.lagMu.Unlock()
	m.lag, m.lagAt = lag, time.Now()
}

// setHeld takes the partitions that this member has from now on.
func (m *membership) setHeld(positions map[topicPartition]*position) {
	held := make(map[topicPartition]bool, len(positions))
	for tp := range positions {
		held[tp] = true
	}
	m.held.Store(&held)
}

// holds returns the partitions of this member. They do not change.
func (m *membership) holds() map[topicPartition]bool {
	if held := m.held.Load(); held != nil {
		return *held
	}
	return nil
}

func (m *membership) dropLag(gone []Partition) {
	m.lagMu.Lock()
	defer m.lagMu.Unlock()
	for _, p := range gone {
		delete(m.lag, p)
	}
}

// fails records why no batch can be applied at the moment; works ends that.
func (m *membership) fails(err error) { m.failure.Store(&err) }
func (m *membership) works()          { m.failure.Store(nil) }
