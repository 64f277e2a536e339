package lag

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeLog is a partition as Kafka knows it: the records that are left, each with offset and time, by offset.
type fakeLog []answer

// first is Kafka's answer: of the records that are not older than a time, the one with the lowest offset.
func (l fakeLog) first(time int64) answer {
	if i := slices.IndexFunc(l, func(r answer) bool { return r.time >= time }); i >= 0 {
		return l[i]
	}
	return answer{-1, -1, nil}
}

// rounds answers the searches of several logs, and counts how often it was asked.
type rounds struct {
	logs    map[place]fakeLog
	n       int
	queries int
}

func (r *rounds) ask(queries []query) []answer {
	r.n++
	r.queries += len(queries)
	var answers []answer
	for _, q := range queries {
		answers = append(answers, r.logs[q.place].first(q.time))
	}
	return answers
}

const midnight = 1_767_312_000_000

// The time of a record is found wherever the log knows it.
func TestSearch(t *testing.T) {
	t.Parallel()
	batches := fakeLog{{0, midnight, nil}, {1, midnight, nil}, {2, midnight, nil}, {3, midnight + 5000, nil}, {4, midnight + 5000, nil}, {5, midnight + 5001, nil}}
	compacted := fakeLog{{3, midnight, nil}, {10, midnight + 60_000, nil}, {20, midnight + 120_000, nil}}
	for _, tt := range []struct {
		name   string
		log    fakeLog
		offset int64
		end    int64
		want   int64
	}{
		{"the first", batches, 0, 6, midnight},
		{"in the middle of a batch", batches, 1, 6, midnight},
		{"the last of a batch", batches, 2, 6, midnight},
		{"the first of a batch", batches, 3, 6, midnight + 5000},
		{"the last of a batch, a millisecond before the next", batches, 4, 6, midnight + 5000},
		{"the last", batches, 5, 6, midnight + 5001},
		{"the only one", batches[:1], 0, 1, midnight},
		{"in the middle of the last batch", batches[:5], 4, 5, midnight + 5000},
		{"the log begins behind it", batches[3:], 1, 6, midnight + 5000},
		{"compaction has left it", compacted, 10, 21, midnight + 60_000},
		{"compaction took it: the one before", compacted, 11, 21, midnight + 60_000},
		{"compaction took all before it too: the next", compacted, 1, 21, midnight},
		{"only a transaction's marker is behind it", compacted, 21, 22, midnight + 120_000},
		{"producers' time, in the future", fakeLog{{0, midnight, nil}, {1, 2 * midnight, nil}}, 1, 2, 2 * midnight},
		{"producers' time, out of order: the latest up to it", fakeLog{{0, midnight + 9000, nil}, {1, midnight, nil}, {2, midnight + 9500, nil}}, 1, 3, midnight + 9000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := place{topic: "t"}
			r := &rounds{logs: map[place]fakeLog{p: tt.log}}
			var s searches
			got := s.find([]wanted{{target{p, tt.offset}, tt.end, midnight + 3_600_000}}, r.ask)
			if diff := cmp.Diff(map[target]int64{{p, tt.offset}: tt.want}, got, cmp.AllowUnexported(target{}, place{})); diff != "" {
				t.Errorf("times (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever the flow, the time is exact to the millisecond after a bounded number of rounds, and of few where the flow is even.
func TestSearchRounds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		gap        func() int64
		batch      int64
		mean, most int
	}{
		{"even", func() int64 { return 1000 }, 1, 4, 5},
		{"random", func() int64 { return int64(rand.ExpFloat64() * 1000) }, 1, 13, 50},
		{"bursts, and hours of nothing", func() int64 {
			if rand.IntN(1000) == 0 {
				return 8 * 3_600_000
			}
			return rand.Int64N(20)
		}, 1, 30, 70},
		{"batches", func() int64 { return int64(rand.ExpFloat64() * 60_000) }, 100, 30, 70},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const records = 5_000
			var log fakeLog
			for at := int64(midnight); len(log) < records; at += 1 + tt.gap() {
				for range tt.batch {
					log = append(log, answer{int64(len(log)), at, nil})
				}
			}
			p := place{topic: "t"}
			sum := 0
			for range 100 {
				r := &rounds{logs: map[place]fakeLog{p: log}}
				offset := rand.Int64N(records)
				var s searches
				got := s.find([]wanted{{target{p, offset}, records, log[records-1].time}}, r.ask)
				if got[target{p, offset}] != log[offset].time {
					t.Fatalf("offset %d is of %d, want %d", offset, got[target{p, offset}], log[offset].time)
				}
				sum += r.n
				if r.n > tt.most {
					t.Errorf("offset %d took %d rounds, want at most %d", offset, r.n, tt.most)
				}
			}
			if mean := sum / 100; mean > tt.mean {
				t.Errorf("a search takes %d rounds, want at most %d", mean, tt.mean)
			}
		})
	}
}

// Many searches share their rounds; what was found costs nothing, helps its neighbours, and is forgotten when nobody asks for it.
func TestSearchesTogether(t *testing.T) {
	t.Parallel()
	const records = 2_000
	r := &rounds{logs: make(map[place]fakeLog)}
	var all []wanted
	for n := range int32(20) {
		p := place{topic: "t", id: [16]byte{1}, partition: n}
		for o := range int64(records) {
			r.logs[p] = append(r.logs[p], answer{o, midnight + o*1000 + rand.Int64N(900), nil})
		}
		for range 3 * lanes {
			all = append(all, wanted{target{p, rand.Int64N(records)}, records, midnight + records*1000})
		}
	}
	var s searches
	check := func(all []wanted, most int) {
		t.Helper()
		r.n, r.queries = 0, 0
		got := s.find(all, r.ask)
		for _, w := range all {
			if want := r.logs[w.place][w.offset].time; got[w.target] != want {
				t.Errorf("partition %d offset %d is of %d, want %d", w.partition, w.offset, got[w.target], want)
			}
		}
		if r.n > most {
			t.Errorf("%d searches took %d rounds, want at most %d", len(all), r.n, most)
		}
	}
	check(all, 60)
	check(all, 0)
	check(all[:1], 0)
	first := slices.Clone(all[:1])
	first[0].offset = 100
	check(first, 30)
	alone := 0
	for range 20 { // the group reads on
		first[0].offset += 20
		check(first, 30)
		alone += r.queries
	}
	if alone > 20*4 {
		t.Errorf("to read on took %d queries in 20 polls, want at most 4 each", alone)
	}
	if len(s.found) != 1 {
		t.Errorf("%d searches are remembered, want 1", len(s.found))
	}
	if check(first, 0); s.find(nil, r.ask) == nil || len(s.found) != 0 {
		t.Errorf("%d searches are remembered, want none", len(s.found))
	}

	// The same partition of a topic made anew is another one.
	anew := wanted{target{place{topic: "t", id: [16]byte{2}}, 3}, 4, midnight + 99_000}
	r.logs[anew.place] = fakeLog{{3, midnight + 77_000, nil}}
	if got := s.find([]wanted{all[0], anew}, r.ask); got[anew.target] != midnight+77_000 {
		t.Errorf("in the topic made anew it is of %d, want %d", got[anew.target], midnight+77_000)
	}
}

// A partition that cannot be asked does not hold the others up, and goes on where it was.
func TestSearchFailure(t *testing.T) {
	t.Parallel()
	bad, good := place{topic: "bad"}, place{topic: "good"}
	log := fakeLog{{0, midnight, nil}, {1, midnight + 70_000, nil}, {2, midnight + 71_000, nil}, {3, midnight + 400_000, nil}}
	r := &rounds{logs: map[place]fakeLog{bad: log, good: log}}
	all := []wanted{{target{bad, 1}, 4, midnight + 500_000}, {target{good, 1}, 4, midnight + 500_000}}
	var s searches
	got := s.find(all, func(queries []query) []answer {
		answers := r.ask(queries)
		for i, q := range queries {
			if q.place == bad && r.n > 1 {
				answers[i] = answer{err: errors.New("no leader")}
			}
		}
		return answers
	})
	if want := (map[target]int64{{good, 1}: midnight + 70_000}); !cmp.Equal(want, got, cmp.AllowUnexported(target{}, place{})) {
		t.Errorf("found are %v, want %v", got, want)
	}
	if got := s.find(all, r.ask); got[target{bad, 1}] != midnight+70_000 {
		t.Errorf("once it answers it is of %d, want %d", got[target{bad, 1}], midnight+70_000)
	}

	// With time for a few rounds only, a search comes to its end in several polls, however long nothing answered before; that of a group
	// that reads on as well.
	for _, tt := range []struct {
		name         string
		moves        int64 // in each poll
		rounds, most int   // in a poll, and polls
	}{{"stuck", 0, 4, 2}, {"reading on", 1, 2, 4}} {
		p := place{topic: tt.name}
		var flow fakeLog
		for o := range int64(10_000) {
			flow = append(flow, answer{o, midnight + o*1000, nil})
		}
		r := &rounds{logs: map[place]fakeLog{p: flow}}
		var s searches
		offset, budget := int64(5_000), 0
		poll := func() map[target]int64 {
			n := 0
			return s.find([]wanted{{target{p, offset}, 10_000, flow[9_999].time}}, func(queries []query) []answer {
				if n++; n > budget {
					return slices.Repeat([]answer{{err: errors.New("no time")}}, len(queries))
				}
				return r.ask(queries)
			})
		}
		for range 2 * maxRounds {
			poll()
		}
		budget = tt.rounds
		polls, found := 0, false
		for ; !found && polls < tt.most; polls++ {
			var at int64
			if at, found = poll()[target{p, offset}]; found && at != flow[offset].time {
				t.Errorf("%s: offset %d is of %d, want %d", tt.name, offset, at, flow[offset].time)
			}
			offset += tt.moves
		}
		if !found {
			t.Errorf("%s: nothing is found in %d polls", tt.name, polls)
		}
	}

	// What no answer helps with comes to an end.
	for name, a := range map[string]answer{"nothing": {-1, -1, nil}, "one and the same": {0, math.MaxInt32, nil}} {
		n := 0
		got := s.find([]wanted{{target{place{topic: name}, 5}, 9, midnight}}, func(queries []query) []answer {
			n += len(queries)
			return slices.Repeat([]answer{a}, len(queries))
		})
		if n > maxRounds || len(got) > 0 {
			t.Errorf("%s: %d queries, found %v", name, n, got)
		}
	}
}
