package lag

import (
	"maps"
	"math"
	"slices"
)

// place is a partition of a topic that is not another when it is deleted and made anew.
type place struct {
	topic     string
	id        [16]byte
	partition int32
}

// query asks a partition for its first record that is not older than a time, in milliseconds since 1970.
type query struct {
	place
	time int64
}

// Times with a meaning of their own, to Kafka.
const (
	timeEnd   = -1
	timeStart = -2
)

// answer is a record's offset and time; both are -1 when there is none.
type answer struct {
	offset, time int64
	err          error
}

// searches find the times of records, by Kafka's index of times and so without reading any: the first record not older than a time is
// known for any time, and going up and down with that time leads to the record. Where the broker sets the time (LogAppendTime) it never
// goes down in a log, and what is found is true. Where producers do, it is the latest time of all records up to that one.
//
// Of a record that compaction took, it finds the time of the one before: the records of one batch share a time, so Kafka's answers do not
// tell whether an offset is missing or in the middle of a batch. It is never too late a time.
type searches struct {
	found map[target]*bracket
}

// target is a record, or if there is none any more the next one.
type target struct {
	place
	offset int64
}

// wanted is a target that Kafka is to be asked for.
type wanted struct {
	target
	end    int64 // of the log
	before int64 // when it is there for sure, milliseconds since 1970: a hint, since clocks differ
}

// bracket is what is known of a record's time: lo <= time < hi.
type bracket struct {
	lo, hi       int64
	below, above int64 // offsets with about these times, for interpolation: records from below on are not before lo, those before above are before hi
	hint, step   int64 // where hi could be while it is not known
	rounds       int
	done         bool
}

const (
	unknownTime = math.MinInt64
	anyTime     = math.MaxInt64
	// lanes is how many records of one partition are sought at the same time. Kafka takes one time per partition and request.
	lanes = 8
	// maxRounds is more than it takes to halve sixty years down to a millisecond every other round.
	maxRounds = 100
)

// find looks for all targets together and returns the time of each record that it found, in milliseconds since 1970. What was found before
// costs nothing; what is not asked for is forgotten. A partition that answers with an error is left for the next time.
func (s *searches) find(all []wanted, ask func([]query) []answer) map[target]int64 {
	former := s.found
	s.found = make(map[target]*bracket, len(all))
	var fresh []wanted
	open := make(map[place][]wanted)
	for _, w := range all {
		if s.found[w.target] != nil {
			continue
		}
		b := former[w.target]
		if b == nil {
			b = &bracket{lo: unknownTime, hi: anyTime, above: w.end, hint: w.before, step: 60_000}
			fresh = append(fresh, w)
		}
		s.found[w.target] = b
		if !b.done {
			open[w.place] = append(open[w.place], w)
		}
	}
	if len(fresh) > 0 {
		s.narrow(fresh, former)
	}
	for len(open) > 0 {
		var queries []query
		asked := make(map[query]bool)
		for _, p := range slices.SortedFunc(maps.Keys(open), comparePlaces) {
			for _, w := range open[p][:min(lanes, len(open[p]))] {
				if q := (query{p, s.found[w.target].next(w.offset)}); !asked[q] {
					asked[q] = true
					queries = append(queries, q)
				}
			}
		}
		for i, a := range ask(queries) {
			q := queries[i]
			if a.err != nil {
				for _, w := range open[q.place][:min(lanes, len(open[q.place]))] {
					s.found[w.target].rounds--
				}
				delete(open, q.place)
				continue
			}
			for _, w := range open[q.place] { // an answer says something about each of them
				s.found[w.target].learn(w.offset, q.time, a)
			}
		}
		for p, ws := range open {
			open[p] = slices.DeleteFunc(ws, func(w wanted) bool { b := s.found[w.target]; return b.done || b.rounds >= maxRounds })
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

// forget forgets what was found in a log that was cut.
func (s *searches) forget(p place) {
	maps.DeleteFunc(s.found, func(t target, _ *bracket) bool { return t.place == p })
}

// narrow lets targets begin with what was found of their neighbours, done or not: a group that reads on has a next one in each poll, and
// would begin in each anew if there is no time to come to the end.
func (s *searches) narrow(fresh []wanted, former map[target]*bracket) {
	byPlace := make(map[place][]wanted)
	for _, w := range fresh {
		byPlace[w.place] = append(byPlace[w.place], w)
	}
	for t, f := range former {
		below, above := f.below, f.above
		if f.done {
			below, above = t.offset, t.offset
		}
		for _, w := range byPlace[t.place] {
			b := s.found[w.target]
			if f.lo != unknownTime && below < w.offset && f.lo >= b.lo {
				b.lo, b.below = f.lo, below
			}
			if f.hi != anyTime && above > w.offset && f.hi <= b.hi {
				b.hi, b.above = f.hi, above
			}
		}
	}
}

// next is the time to ask for.
func (b *bracket) next(offset int64) int64 {
	b.rounds++
	switch {
	case b.lo == unknownTime:
		return 0 // the log's first record
	case b.hi == anyTime && b.hint > b.lo:
		return b.hint + 1
	case b.hi == anyTime: // clocks differ, or producers set times that are still to come
		b.step *= 4
		return b.lo + b.step
	}
	// Interpolation finds a record of an even flow at once, halving does whatever the flow is like: in turns.
	t := b.lo + (b.hi-b.lo)/2
	if b.rounds%2 == 0 && b.above > b.below {
		t = b.lo + int64(float64(b.hi-b.lo)*(float64(offset-b.below)/float64(b.above-b.below)))
	}
	return min(max(t, b.lo+1), b.hi-1)
}

// learn takes an answer in: all records before the one found are older than the time asked for, and the one found is not.
func (b *bracket) learn(offset, asked int64, a answer) {
	switch {
	case a.offset == offset:
		b.lo, b.hi = a.time, a.time+1
	case a.offset >= 0 && a.offset < offset:
		if a.time >= b.lo {
			b.lo, b.below = min(a.time, b.hi-1), a.offset
		}
	case asked == 0 && a.offset >= 0: // there is none before it any more
		b.lo, b.hi = a.time, a.time+1
	case asked == 0: // no record has a time
		b.rounds = maxRounds
	case asked < b.hi:
		b.hi = max(asked, b.lo+1)
		if a.offset >= 0 {
			b.above = a.offset
		}
	}
	b.done = b.lo != unknownTime && b.hi != anyTime && b.hi-b.lo == 1
}

func comparePlaces(a, b place) int {
	if a.topic != b.topic {
		if a.topic < b.topic {
			return -1
		}
		return 1
	}
	return int(a.partition - b.partition)
}
