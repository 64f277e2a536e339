package lag

import (
	"math"
	"time"
)

// facts are what one poll read of a group's partition.
type facts struct {
	at                 time.Time // by this process' clock, before the first request
	committed          int64     // -1: no commit
	start, stable, end int64
	reader             bool      // a member of the group reads the topic
	appended           time.Time // when the first unread record was; of no meaning when all is read
	vague              bool      // it may have been appended earlier
}

// firstUnread is the offset at which the group goes on, if it does: what retention took cannot be read any more.
func firstUnread(committed, start int64) int64 { return max(committed, start) }

// unread says whether there is a record that the group can read and has not.
func (f facts) unread() bool {
	return f.committed >= 0 && firstUnread(f.committed, f.start) < f.stable
}

// track is what is remembered of a group's partition from poll to poll.
type track struct {
	since     time.Time // the first poll that read it; zero before
	committed int64     // as the last poll read it, -1: no commit
	progress  time.Time // when committed was seen to move, zero: not yet
	regain    int64     // where the commit was before it went back; 0 once it is there again
	start     int64     // of the log, as the last poll read it; 0 before the first
	gone      int64     // offsets below were gone before the last poll asked for the commit
	counted   int64     // offsets below are in lost, or were gone before this process began
	beyond    int       // polls in a row that found the commit beyond the log's end
	lost      int64
	rewinds   int64
	recent    []moment // those of the last patience, and one before

	// When the record of an offset was appended does not change, so it is found out once. Until it is known it is not after appended.
	known    bool
	knownFor int64
	appended time.Time
}

// moment is one poll's result.
type moment struct {
	at        time.Time
	committed int64
	records   int64
	age       time.Duration
	vague     bool // it may be more
}

// next is the partition as one more poll found it. It depends on nothing but its arguments and what was read before. Nobody is said to
// be stalled or stopped before it has had patience to move; a poll and the next are interval apart.
func (t *track) next(number int32, f facts, patience, interval time.Duration) Partition {
	if t.since.IsZero() {
		t.since, t.committed, t.counted = f.at, f.committed, f.start
	}
	// The commit is read before the start: a group may have read, committed and deleted (Kafka Streams does) what lies between the two. Only
	// a commit below the start of an earlier poll has lost something, so nothing is told to be lost in the first poll after a restart.
	t.gone, t.start = min(f.start, t.start), f.start
	p := Partition{Number: number, Committed: f.committed, Headroom: math.NaN(), Since: t.since}
	if f.committed >= 0 {
		p.Records = max(0, f.stable-firstUnread(f.committed, f.start))
		p.Headroom = headroom(f)
		if f.committed >= t.gone {
			p.Headroom = max(0, p.Headroom)
		}
	}
	if f.unread() {
		p.Age, p.AgeUnknown = max(0, f.at.Sub(f.appended)), f.vague
	}
	t.follow(f)
	t.remember(moment{f.at, f.committed, p.Records, p.Age, p.AgeUnknown}, patience)
	p.LastProgress, p.Lost, p.Rewinds = t.progress, t.lost, t.rewinds
	p.Status = t.status(f, p.Age, patience, interval)
	p.Close = t.untilRead(f.committed, p.Records)
	return p
}

// follow takes in how the commit moved.
func (t *track) follow(f facts) {
	if f.committed != t.committed {
		t.progress = f.at
		if f.committed < 0 || f.committed < t.committed {
			t.recent = t.recent[:0] // no pace can be told across that
		}
	}
	switch {
	case f.committed >= 0 && f.committed < t.committed:
		t.rewinds++
		t.regain = max(t.regain, t.committed)
	case f.committed < 0:
		t.regain = 0
	}
	if f.committed >= t.regain {
		t.regain = 0
	}
	if from := max(f.committed, t.counted); f.committed >= 0 && from < t.gone {
		t.lost += t.gone - from
		t.counted = t.gone
	}
	if f.committed > f.end {
		t.beyond++
	} else {
		t.beyond = 0
	}
	t.committed = f.committed
}

func (t *track) remember(m moment, patience time.Duration) {
	if m.committed < 0 {
		return
	}
	old := 0
	for old+1 < len(t.recent) && m.at.Sub(t.recent[old+1].at) >= patience {
		old++
	}
	t.recent = append(t.recent[:0], t.recent[old:]...)
	t.recent = append(t.recent, m)
}

// status is the worst that is true.
func (t *track) status(f facts, age, patience, interval time.Duration) Status {
	moved := t.since
	if t.progress.After(moved) {
		moved = t.progress
	}
	waits := f.unread() && age >= patience && f.at.Sub(moved) >= patience
	switch {
	case f.committed >= 0 && f.committed < t.gone, t.beyond >= 2: // once, it may be a new leader that does not know yet how far its log is replicated
		return StatusLost
	case waits && !f.reader:
		return StatusStopped
	case waits:
		return StatusStalled
	case f.committed < 0 && f.start < f.stable:
		return StatusNoCommit
	case f.committed < 0: // there is nothing that it could have read
		return StatusOK
	case t.regain > 0:
		return StatusRewound
	case t.slow(patience, interval):
		return StatusSlow
	}
	return StatusOK
}

// slow says whether the group has read for as long as patience and has fallen back further, without having been nearly done in between.
func (t *track) slow(patience, interval time.Duration) bool {
	first, last := t.recent[0], t.recent[len(t.recent)-1]
	if last.at.Sub(first.at) < patience || last.committed == first.committed || last.age-first.age <= interval {
		return false
	}
	for _, m := range t.recent {
		if m.age <= interval || m.vague {
			return false
		}
	}
	return true
}

// untilRead is how long it takes to read all at the pace of the last patience: 0 when that is done, -1 when the rest does not become less.
func (t *track) untilRead(committed, records int64) time.Duration {
	switch {
	case committed < 0:
		return -1
	case records == 0:
		return 0
	}
	first, last := t.recent[0], t.recent[len(t.recent)-1]
	gone, took := first.records-last.records, last.at.Sub(first.at)
	seconds := float64(records) / float64(gone) * took.Seconds()
	if gone <= 0 || seconds > math.MaxInt64/float64(time.Second) {
		return -1
	}
	return time.Duration(seconds * float64(time.Second))
}

// headroom is NaN when there is nothing in the log.
func headroom(f facts) float64 {
	switch {
	case f.end <= f.start:
		return math.NaN()
	case f.committed >= f.stable:
		return 1
	}
	return float64(f.committed-f.start) / float64(f.end-f.start)
}
