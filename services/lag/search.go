package lag

import (
	"maps"
	"math"
	"slices"
)

// searches find the timestamps of records through Kafka's time index, so no record is read. Kafka
// returns the first record that is not older than a given time. Moving that time up and down leads
// to the wanted record.
//
// If the broker sets timestamps (LogAppendTime), they never decrease within a log and the result is
// exact. If producers set them, the result is the largest timestamp up to the record.
//
// If compaction removed the record, the result is the timestamp of the record before it. The
// records of one batch share a timestamp, so Kafka's responses do not show whether an offset is
// missing or is in the middle of a batch. The result is never too late. The same holds for a record
// without a timestamp. If no record up to it has one, there is no result.
//
// The zero value is ready to use. It is not safe for concurrent use.
type searches struct {
	found map[target]*bracket
}

// target is the record at an offset, or the next one if it no longer exists.
type target struct {
	topicPartition
	offset int64
}

// lookup is a target whose timestamp is to be found.
type lookup struct {
	target
	// end is the end of the log.
	end int64
	// before is a time when the record certainly existed, in milliseconds since 1970. It is only a
	// hint, because clocks differ.
	before int64
}

// bracket is what is known of a record's timestamp: lo <= timestamp < hi.
type bracket struct {
	// lo and hi are in milliseconds since 1970, or unknownTime and anyTime.
	lo, hi int64
	// below and above are offsets near these times, for interpolation. Records from below on are
	// not before lo, records before above are before hi.
	below, above int64
	// hint and step lead to a hi while it is unknown.
	hint, step int64
	// rounds counts the requests so far.
	rounds int
	// done means that lo is the timestamp.
	done bool
}

const (
	unknownTime = math.MinInt64
	anyTime     = math.MaxInt64
	// maxLookups is how many records of one partition are searched at the same time. Each costs a
	// request, since Kafka allows one time per partition and request.
	maxLookups = 8
	// maxRounds ends a search that Kafka's responses do not help. Halving sixty years down to a
	// millisecond in every other round takes fewer.
	maxRounds = 100
)

// find searches for all targets together. It returns the timestamps that it found, in milliseconds
// since 1970. Targets that an earlier call found cost no request; targets that this call does not
// name are forgotten. If ask returns an error for a partition, the search in it goes on in the next
// call.
func (s *searches) find(all []lookup, ask func([]offsetQuery) []offsetResult) map[target]int64 {
	open := s.start(all)
	for len(open) > 0 {
		var queries []offsetQuery
		asked := make(map[offsetQuery]bool)
		for _, p := range slices.SortedFunc(maps.Keys(open), topicPartition.compare) {
			for _, l := range open[p][:min(maxLookups, len(open[p]))] {
				if q := (offsetQuery{p, s.found[l.target].next(l.offset)}); !asked[q] {
					asked[q] = true
					queries = append(queries, q)
				}
			}
		}
		for i, result := range ask(queries) {
			q := queries[i]
			if result.err != nil {
				for _, l := range open[q.topicPartition][:min(maxLookups, len(open[q.topicPartition]))] {
					s.found[l.target].rounds--
				}
				delete(open, q.topicPartition)
				continue
			}
			// One result narrows the searches for all records of its partition.
			for _, l := range open[q.topicPartition] {
				s.found[l.target].learn(l.offset, q.time, result)
			}
		}
		for p, lookups := range open {
			open[p] = slices.DeleteFunc(lookups, func(l lookup) bool {
				b := s.found[l.target]
				return b.done || b.rounds >= maxRounds
			})
			if len(open[p]) == 0 {
				delete(open, p)
			}
		}
	}
	times := make(map[target]int64)
	for t, b := range s.found {
		if b.done {
			times[t] = b.lo
		}
	}
	return times
}

// latest returns the time, in milliseconds since 1970, after which a target was certainly not
// appended although its own time was not found. known is false if there is none.
func (s *searches) latest(t target) (ms int64, known bool) {
	b := s.found[t]
	return b.hi - 1, b.hi != anyTime
}

// start replaces the known targets by those of all and keeps what was found of them. It returns
// those that are not done, by partition.
func (s *searches) start(all []lookup) (open map[topicPartition][]lookup) {
	former := s.found
	s.found = make(map[target]*bracket, len(all))
	open = make(map[topicPartition][]lookup)
	var fresh []lookup
	for _, l := range all {
		if s.found[l.target] != nil {
			continue
		}
		b := former[l.target]
		if b == nil {
			b = &bracket{lo: unknownTime, hi: anyTime, above: l.end, hint: l.before, step: 60_000}
			fresh = append(fresh, l)
		}
		s.found[l.target] = b
		if !b.done {
			open[l.topicPartition] = append(open[l.topicPartition], l)
		}
	}
	if len(fresh) > 0 {
		s.narrow(fresh, former)
	}
	return open
}

// narrow gives new targets the bounds that were found for their neighbours, done or not. A group
// that reads on has another target in each poll. Without its neighbours each search would start
// from nothing and might never have the time to finish.
func (s *searches) narrow(fresh []lookup, former map[target]*bracket) {
	byPartition := make(map[topicPartition][]lookup)
	for _, l := range fresh {
		byPartition[l.topicPartition] = append(byPartition[l.topicPartition], l)
	}
	for t, f := range former {
		below, above := f.below, f.above
		if f.done {
			below, above = t.offset, t.offset
		}
		for _, l := range byPartition[t.topicPartition] {
			b := s.found[l.target]
			if f.lo != unknownTime && below < l.offset && f.lo >= b.lo {
				b.lo, b.below = f.lo, below
			}
			if f.hi != anyTime && above > l.offset && f.hi <= b.hi {
				b.hi, b.above = f.hi, above
			}
		}
	}
}

// forget drops what was found in a log that was cut.
func (s *searches) forget(p topicPartition) {
	maps.DeleteFunc(s.found, func(t target, _ *bracket) bool { return t.topicPartition == p })
}

// next returns the time to ask for.
func (b *bracket) next(offset int64) int64 {
	b.rounds++
	switch {
	case b.lo == unknownTime:
		// Time 0 finds the log's first record.
		return 0
	case b.hi == anyTime && b.hint > b.lo:
		return b.hint + 1
	case b.hi == anyTime:
		// Clocks differ, or producers set timestamps in the future.
		b.step *= 4
		return b.lo + b.step
	}
	// Interpolation and halving take turns. The first is fast if records came at an even pace, the
	// second is fast enough always.
	t := b.lo + (b.hi-b.lo)/2
	if b.rounds%2 == 0 && b.above > b.below {
		part := float64(offset-b.below) / float64(b.above-b.below)
		t = b.lo + int64(float64(b.hi-b.lo)*part)
	}
	return min(max(t, b.lo+1), b.hi-1)
}

// learn narrows the bracket by a result for the time asked. The record of the result is not older
// than asked. All records before it are older.
func (b *bracket) learn(offset, asked int64, r offsetResult) {
	switch {
	case r.offset >= 0 && r.time < 0:
		// The record has no timestamp, so it proves nothing.
		b.rounds = maxRounds
	case r.offset == offset:
		b.lo, b.hi = r.time, r.time+1
	case r.offset >= 0 && r.offset < offset:
		if r.time >= b.lo {
			b.lo, b.below = min(r.time, b.hi-1), r.offset
		}
	case asked == 0 && r.offset >= 0:
		// This is the first record with a timestamp, and the target is before it. Compaction may have
		// removed the target, or it may have no timestamp. So only the latest time is known.
		b.hi, b.above, b.rounds = min(b.hi, r.time+1), r.offset, maxRounds
	case asked == 0:
		// No record has a timestamp.
		b.rounds = maxRounds
	case asked < b.hi:
		b.hi = max(asked, b.lo+1)
		if r.offset >= 0 {
			b.above = r.offset
		}
	}
	b.done = b.lo != unknownTime && b.hi != anyTime && b.hi-b.lo == 1
}
