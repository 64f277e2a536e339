package lag

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeLog is the log of a partition: the records that are left, each with offset and time, by
// offset.
type fakeLog []offsetResult

// first returns what Kafka responds: the record with the lowest offset that is not older than a
// time.
func (l fakeLog) first(time int64) offsetResult {
	if i := slices.IndexFunc(l, func(r offsetResult) bool { return r.time >= time }); i >= 0 {
		return l[i]
	}
	return offsetResult{-1, -1, nil}
}

// rounds responds to the searches in several logs. It counts calls and queries.
type rounds struct {
	logs    map[topicPartition]fakeLog
	n       int
	queries int
}

func (r *rounds) ask(queries []offsetQuery) []offsetResult {
	r.n++
	r.queries += len(queries)
	var results []offsetResult
	for _, q := range queries {
		results = append(results, r.logs[q.topicPartition].first(q.time))
	}
	return results
}

const midnight = 1_767_312_000_000

// A search finds the time of a record, or the nearest that the log still knows.
func TestSearch(t *testing.T) {
	t.Parallel()
	batches := fakeLog{
		{0, midnight, nil},
		{1, midnight, nil},
		{2, midnight, nil},
		{3, midnight + 5000, nil},
		{4, midnight + 5000, nil},
		{5, midnight + 5001, nil},
	}
	outOfOrder := fakeLog{{0, midnight + 9000, nil}, {1, midnight, nil}, {2, midnight + 9500, nil}}
	compacted := fakeLog{{3, midnight, nil}, {10, midnight + 60_000, nil}, {20, midnight + 120_000, nil}}
	for _, tt := range []struct {
		name   string
		log    fakeLog
		offset int64
		end    int64
		// want is the time, or minus the latest time if the time cannot be found.
		want int64
	}{
		{"the first", batches, 0, 6, midnight},
		{"in the middle of a batch", batches, 1, 6, midnight},
		{"the last of a batch", batches, 2, 6, midnight},
		{"the first of a batch", batches, 3, 6, midnight + 5000},
		{"the last of a batch, a millisecond before the next", batches, 4, 6, midnight + 5000},
		{"the last", batches, 5, 6, midnight + 5001},
		{"the only one", batches[:1], 0, 1, midnight},
		{"in the middle of the last batch", batches[:5], 4, 5, midnight + 5000},
		{"the log begins behind it, so the record may have no timestamp", batches[3:], 1, 6, -midnight - 5000},
		{"compaction has left it", compacted, 10, 21, midnight + 60_000},
		{"compaction took it: the one before", compacted, 11, 21, midnight + 60_000},
		{"compaction took all before it too, or they have no timestamps", compacted, 1, 21, -midnight},
		{"it has no timestamp, and neither has any before it", fakeLog{{0, -1, nil}, {1, -1, nil}, {2, midnight, nil}},
			1, 3, -midnight},
		{"only a transaction's marker is behind it", compacted, 21, 22, midnight + 120_000},
		{"producers' time, in the future", fakeLog{{0, midnight, nil}, {1, 2 * midnight, nil}}, 1, 2, 2 * midnight},
		{"producers' time, out of order: the latest up to it", outOfOrder, 1, 3, midnight + 9000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := topicPartition{topic: "t"}
			r := &rounds{logs: map[topicPartition]fakeLog{p: tt.log}}
			var s searches
			got := s.find([]lookup{{target{p, tt.offset}, tt.end, midnight + 3_600_000}}, r.ask)
			want := map[target]int64{{p, tt.offset}: tt.want}
			if tt.want < 0 {
				want = map[target]int64{}
				if ms, known := s.latest(target{p, tt.offset}); ms != -tt.want || !known {
					t.Errorf("the latest time is %d, known %v, want %d", ms, known, -tt.want)
				}
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(target{}, topicPartition{})); diff != "" {
				t.Errorf("times (-want +got):\n%s", diff)
			}
		})
	}
}

// At any pace, the time is exact to the millisecond after a limited number of rounds, and after few
// if the pace is even.
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
					log = append(log, offsetResult{int64(len(log)), at, nil})
				}
			}
			p := topicPartition{topic: "t"}
			sum := 0
			for range 100 {
				r := &rounds{logs: map[topicPartition]fakeLog{p: log}}
				offset := rand.Int64N(records)
				var s searches
				got := s.find([]lookup{{target{p, offset}, records, log[records-1].time}}, r.ask)
				if got[target{p, offset}] != log[offset].time {
					t.Fatalf("the time of offset %d is %d, want %d", offset, got[target{p, offset}], log[offset].time)
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

// Many searches share their rounds. What was found costs nothing and helps its neighbours. It is
// forgotten when it is not looked up any more.
func TestSearchesTogether(t *testing.T) {
	t.Parallel()
	const records = 2_000
	r := &rounds{logs: make(map[topicPartition]fakeLog)}
	var all []lookup
	for n := range int32(20) {
		p := topicPartition{topic: "t", id: [16]byte{1}, partition: n}
		for o := range int64(records) {
			r.logs[p] = append(r.logs[p], offsetResult{o, midnight + o*1000 + rand.Int64N(900), nil})
		}
		for range 3 * maxLookups {
			all = append(all, lookup{target{p, rand.Int64N(records)}, records, midnight + records*1000})
		}
	}
	var s searches
	check := func(all []lookup, most int) {
		t.Helper()
		r.n, r.queries = 0, 0
		got := s.find(all, r.ask)
		for _, w := range all {
			if want := r.logs[w.topicPartition][w.offset].time; got[w.target] != want {
				t.Errorf("the time of partition %d, offset %d is %d, want %d", w.partition, w.offset, got[w.target],
					want)
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
	for range 20 {
		// The group reads on.
		first[0].offset += 20
		check(first, 30)
		alone += r.queries
	}
	if alone > 20*4 {
		t.Errorf("a group that reads on took %d queries in 20 polls, want at most 4 in each", alone)
	}
	if len(s.found) != 1 {
		t.Errorf("%d searches are remembered, want 1", len(s.found))
	}
	if check(first, 0); s.find(nil, r.ask) == nil || len(s.found) != 0 {
		t.Errorf("%d searches are remembered, want none", len(s.found))
	}

	// The same partition of a recreated topic is another one.
	recreated := lookup{target{topicPartition{topic: "t", id: [16]byte{2}}, 3}, 4, midnight + 99_000}
	r.logs[recreated.topicPartition] = fakeLog{{3, midnight + 77_000, nil}}
	if got := s.find([]lookup{all[0], recreated}, r.ask); got[recreated.target] != midnight+77_000 {
		t.Errorf("in the recreated topic the time is %d, want %d", got[recreated.target], midnight+77_000)
	}
}

// A partition that cannot be read does not delay the others. Its search continues where it was.
func TestSearchFailure(t *testing.T) {
	t.Parallel()
	bad, good := topicPartition{topic: "bad"}, topicPartition{topic: "good"}
	log := fakeLog{
		{0, midnight, nil},
		{1, midnight + 70_000, nil},
		{2, midnight + 71_000, nil},
		{3, midnight + 400_000, nil},
	}
	r := &rounds{logs: map[topicPartition]fakeLog{bad: log, good: log}}
	all := []lookup{{target{bad, 1}, 4, midnight + 500_000}, {target{good, 1}, 4, midnight + 500_000}}
	var s searches
	got := s.find(all, func(queries []offsetQuery) []offsetResult {
		results := r.ask(queries)
		for i, q := range queries {
			if q.topicPartition == bad && r.n > 1 {
				results[i] = offsetResult{err: errors.New("no leader")}
			}
		}
		return results
	})
	want := map[target]int64{{good, 1}: midnight + 70_000}
	if !cmp.Equal(want, got, cmp.AllowUnexported(target{}, topicPartition{})) {
		t.Errorf("found %v, want %v", got, want)
	}
	if got := s.find(all, r.ask); got[target{bad, 1}] != midnight+70_000 {
		t.Errorf("after the failure the time is %d, want %d", got[target{bad, 1}], midnight+70_000)
	}

	// If a poll has time for a few rounds only, a search takes several polls. Earlier polls without
	// any response do not count. The same holds for a group that reads on.
	for _, tt := range []struct {
		name string
		// moves is how far the group reads in each poll.
		moves int64
		// rounds is the limit of a poll, most the limit of polls.
		rounds, most int
	}{{"stuck", 0, 4, 2}, {"reading on", 1, 2, 4}} {
		p := topicPartition{topic: tt.name}
		var flow fakeLog
		for o := range int64(10_000) {
			flow = append(flow, offsetResult{o, midnight + o*1000, nil})
		}
		r := &rounds{logs: map[topicPartition]fakeLog{p: flow}}
		var s searches
		offset, budget := int64(5_000), 0
		poll := func() map[target]int64 {
			n := 0
			return s.find(
				[]lookup{{target{p, offset}, 10_000, flow[9_999].time}},
				func(queries []offsetQuery) []offsetResult {
					if n++; n > budget {
						return slices.Repeat([]offsetResult{{err: errors.New("no time")}}, len(queries))
					}
					return r.ask(queries)
				},
			)
		}
		for range 2 * maxRounds {
			poll()
		}
		budget = tt.rounds
		polls, found := 0, false
		for ; !found && polls < tt.most; polls++ {
			var at int64
			if at, found = poll()[target{p, offset}]; found && at != flow[offset].time {
				t.Errorf("%s: the time of offset %d is %d, want %d", tt.name, offset, at, flow[offset].time)
			}
			offset += tt.moves
		}
		if !found {
			t.Errorf("%s: nothing was found in %d polls", tt.name, polls)
		}
	}

	// A search that no response helps ends.
	for name, result := range map[string]offsetResult{
		"nothing":           {-1, -1, nil},
		"always one record": {0, math.MaxInt32, nil},
		"no timestamp":      {5, -1, nil},
	} {
		n := 0
		got := s.find(
			[]lookup{{target{topicPartition{topic: name}, 5}, 9, midnight}},
			func(queries []offsetQuery) []offsetResult {
				n += len(queries)
				return slices.Repeat([]offsetResult{result}, len(queries))
			},
		)
		if n > maxRounds || len(got) > 0 {
			t.Errorf("%s: %d queries, found %v", name, n, got)
		}
	}
}
