package lag

import (
	"math"
	"slices"
	"time"
)

// Patience is the least time that a group must not have moved before it is stalled or stopped. It is
// also the period over which its pace is measured.
const Patience = time.Minute

// maxPauses is the number of pauses between commits that a rhythm is made of.
const maxPauses = 8

// facts are what one poll read of a group's partition.
type facts struct {
	// at is when the poll began, before its first request, by this process's clock.
	at time.Time
	// committed is -1 if there is no commit.
	committed          int64
	start, stable, end int64
	// subscribed means that a member of the group reads the topic.
	subscribed bool
	// appended is when the first unread record was appended. It is meaningless if all is read.
	appended time.Time
	// vague means that the record may be older than appended.
	vague bool
	// uncommitted means that the group reads records of open transactions too. See isolation.
	uncommitted bool
	// share means that the group is a share group. It acknowledges records in any order, and
	// committed is its position: all records before it are acknowledged. left is how many records are
	// not, or -1 if Kafka does not know.
	share bool
	left  int64
	// rhythm is the time between two commits that the group has shown elsewhere: in other partitions,
	// or to an earlier process. It counts until the partition shows one of its own.
	rhythm time.Duration
}

// limit returns the offset up to which the group can read: the last stable offset, or the high
// watermark for a group that does not wait for transactions.
func (f facts) limit() int64 {
	if f.uncommitted {
		return f.end
	}
	return f.stable
}

// firstUnread returns the offset at which the group would continue. Records that retention deleted
// cannot be read any more.
func firstUnread(committed, start int64) int64 { return max(committed, start) }

// records returns the number of records that the group can read and has not read.
func (f facts) records() int64 {
	if f.committed < 0 {
		return 0
	}
	records := max(0, f.limit()-firstUnread(f.committed, f.start))
	if f.share && f.left >= 0 {
		return min(f.left, records)
	}
	return records
}

// unread reports whether there is a record that the group can read and has not read.
func (f facts) unread() bool { return f.records() > 0 }

// headroom returns the part of the log that retention can delete before it deletes an unread
// record. It is NaN if the log is empty.
func (f facts) headroom() float64 {
	switch {
	case f.end <= f.start:
		return math.NaN()
	case f.committed >= f.limit():
		return 1
	}
	return float64(f.committed-f.start) / float64(f.end-f.start)
}

// track is what is remembered of a group's partition from poll to poll. The zero value has seen no
// poll.
type track struct {
	// since is the time of the first poll.
	since time.Time
	// committed is the committed offset at the last poll, -1 if there was none.
	committed int64
	// uncommitted means that the group was seen to read records of open transactions.
	uncommitted bool
	// progress is when committed was last seen to move, zero if it has not.
	progress time.Time
	// former is what an earlier process knew, zero if nothing.
	former Standing
	// unmoved is since when committed has not moved although there were unread records, as far as is
	// known. It is the last poll if all was read.
	unmoved time.Time
	// pauses are the last times between two moves of the commit in which records were unread, newest
	// last.
	pauses []time.Duration
	// regain is the offset from which the commit went back, 0 if it is reached again.
	regain int64
	// start is the first offset of the log at the last poll, and end its end.
	start, end int64
	// acknowledged is an offset below which a share group has acknowledged all, as its count of what is
	// left has shown. See sharePosition.
	acknowledged int64
	// gone is the offset below which all was deleted before the last poll read the commit.
	gone int64
	// counted is the offset below which deleted records are in lost, or were deleted before this
	// process started.
	counted int64
	// beyond is the number of polls in a row that found the commit beyond the log's end.
	beyond int
	// lost and rewinds are counters since this process started.
	lost, rewinds int64
	// recent are the polls of the last patience, and one before them.
	recent []moment
}

// moment is the result of one poll.
type moment struct {
	at        time.Time
	committed int64
	records   int64
	age       time.Duration
	// vague means that the age may be larger.
	vague bool
}

// next returns the partition as one more poll found it. The result depends only on the arguments
// and on earlier calls. A group is stalled or stopped only after it has not moved for patience, and
// for twice its rhythm. interval is the time between two polls.
func (t *track) next(number int32, f facts, patience, interval time.Duration) Partition {
	if t.since.IsZero() {
		t.since, t.committed, t.counted = f.at, f.committed, f.start
		t.unmoved = f.at
		if !t.former.Since.IsZero() && t.former.Committed == f.committed {
			t.unmoved = t.former.Since
		}
	}
	f = t.isolation(f)
	if f.uncommitted != t.uncommitted {
		// A pace across a change of what can be read means nothing.
		t.uncommitted, t.recent = f.uncommitted, t.recent[:0]
	}
	// A poll reads the commit before the start of the log. In between, a group may read, commit and
	// delete records, as Kafka Streams does. So only a commit below the start of an earlier poll
	// proves a loss, and the first poll after a restart never reports one.
	t.gone, t.start, t.end = min(f.start, t.start), f.start, f.end
	p := Partition{
		Number: number, Committed: f.committed, Uncommitted: f.uncommitted, Headroom: math.NaN(), Since: t.since,
	}
	if f.committed >= 0 {
		p.Records = f.records()
		p.Headroom = f.headroom()
		if f.committed >= t.gone {
			p.Headroom = max(0, p.Headroom)
		}
	}
	t.pause(f)
	if f.unread() {
		p.Age, p.AgeUnknown = max(0, f.at.Sub(f.appended)), f.vague
	} else {
		// When a transaction ends that was open for long, old records can suddenly be read.
		t.unmoved = f.at
	}
	t.follow(f)
	p.Patience = max(patience, 2*t.rhythm(f.rhythm))
	t.remember(moment{f.at, f.committed, p.Records, p.Age, p.AgeUnknown}, patience)
	p.Unmoved, p.LastProgress, p.Lost, p.Rewinds = t.unmoved, t.progress, t.lost, t.rewinds
	p.Status = t.status(f, p, patience, interval)
	p.Close = t.untilRead(f.committed, p.Records)
	return p
}

// isolation returns the facts with what is known of the group's isolation level. Kafka does not show
// it. A commit beyond the last stable offset proves read_uncommitted. That stays known while the
// group is behind, until it waits exactly at the last stable offset, as with read_committed.
func (t *track) isolation(f facts) facts {
	f.uncommitted = t.uncommitted
	switch {
	case f.share:
		// share.isolation.level is read_uncommitted by default.
		f.uncommitted = true
	case f.stable < f.committed && f.committed <= f.end:
		f.uncommitted = true
	case f.committed == f.stable && f.stable < f.end && f.committed == t.committed:
		f.uncommitted = false
	}
	return f
}

// sharePosition returns the facts of a share group with its position. Kafka writes down the position from
// before an acknowledgement, not the one from after it, so what it returns is one acknowledgement old: for
// ever if no other one follows. The number of records that are left is not. If it is 0, all is acknowledged
// that was in the log at the last poll.
func (t *track) sharePosition(f facts) facts {
	if f.left == 0 {
		t.acknowledged = max(t.acknowledged, t.end)
	}
	if f.left > f.end-t.acknowledged {
		// The group's offsets were reset, or the log was cut.
		t.acknowledged = 0
	}
	f.committed = max(f.committed, t.acknowledged)
	return f
}

// follow takes in how the commit moved since the last poll.
func (t *track) follow(f facts) {
	if f.committed != t.committed {
		t.progress, t.unmoved = f.at, f.at
		if f.committed < 0 || f.committed < t.committed {
			// A pace across a rewind means nothing.
			t.recent = t.recent[:0]
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

// pause takes in the time that the group has taken for a move of its commit, if it began with
// another one that was seen. Time in which all was read does not count.
func (t *track) pause(f facts) {
	if t.progress.IsZero() || f.committed <= t.committed {
		return
	}
	if len(t.pauses) == maxPauses {
		t.pauses = slices.Delete(t.pauses, 0, 1)
	}
	t.pauses = append(t.pauses, f.at.Sub(t.unmoved))
}

// rhythm returns the time that the group regularly takes between two commits: the second longest of
// its last pauses, since one outage is no rhythm. elsewhere counts while there are no two pauses.
func (t *track) rhythm(elsewhere time.Duration) time.Duration {
	switch len(t.pauses) {
	case 0:
		return elsewhere
	case 1:
		return max(elsewhere, t.pauses[0])
	}
	return slices.Sorted(slices.Values(t.pauses))[len(t.pauses)-2]
}

// remember adds a poll and drops those that are older than patience, except for the newest of them.
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

// status returns the worst status that applies.
func (t *track) status(f facts, p Partition, patience, interval time.Duration) Status {
	waits := f.unread() && p.Age >= p.Patience && f.at.Sub(t.unmoved) >= p.Patience
	switch {
	case f.committed >= 0 && f.committed < t.gone:
		return StatusLost
	case t.beyond >= 2:
		// After one poll it may still be a new leader that does not know yet how far its log is
		// replicated.
		return StatusLost
	case waits && !f.subscribed:
		return StatusStopped
	case waits:
		return StatusStalled
	case f.committed < 0 && f.start < f.stable:
		return StatusNoCommit
	case f.committed < 0:
		// There is nothing that the group could have read.
		return StatusOK
	case t.regain > 0:
		return StatusRewound
	case t.slow(patience, interval):
		return StatusSlow
	}
	return StatusOK
}

// slow reports whether the group has read for as long as patience and has fallen behind further,
// without having nearly caught up in between.
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

// untilRead returns how long it takes to read all records at the recent pace: 0 if all are read, -1
// if their number does not decrease or there is no commit.
func (t *track) untilRead(committed, records int64) time.Duration {
	switch {
	case committed < 0:
		return -1
	case records == 0:
		return 0
	}
	first, last := t.recent[0], t.recent[len(t.recent)-1]
	closed, took := first.records-last.records, last.at.Sub(first.at)
	seconds := float64(records) / float64(closed) * took.Seconds()
	if closed <= 0 || seconds > math.MaxInt64/float64(time.Second) {
		return -1
	}
	return time.Duration(seconds * float64(time.Second))
}
