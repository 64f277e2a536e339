package lag

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	t.Parallel()
	var h history
	for _, poll := range []struct {
		at  time.Duration // sent; the answer comes a second later
		end int64
	}{{0, 10}, {10, 10}, {20, 10}, {30, 14}, {40, 14}, {50, 20}} {
		if h.observe(poll.end, poll.at*time.Second, (poll.at+1)*time.Second) {
			t.Errorf("at %d the log is said to be cut", poll.end)
		}
	}
	for _, tt := range []struct {
		offset int64
		want   span
	}{
		{0, span{older: true, hi: 1 * time.Second, guess: 1 * time.Second}},
		{9, span{older: true, hi: 1 * time.Second, guess: 1 * time.Second}},
		{10, span{lo: 20 * time.Second, hi: 31 * time.Second, guess: 21375 * time.Millisecond}},
		{13, span{lo: 20 * time.Second, hi: 31 * time.Second, guess: 29625 * time.Millisecond}},
		{14, span{lo: 40 * time.Second, hi: 51 * time.Second, guess: 40*time.Second + 11*time.Second/12}},
		{19, span{lo: 40 * time.Second, hi: 51 * time.Second, guess: 51*time.Second - 11*time.Second/12}},
	} {
		got := h.appended(tt.offset)
		got.guess = got.guess.Round(time.Microsecond)
		tt.want.guess = tt.want.guess.Round(time.Microsecond)
		if got != tt.want {
			t.Errorf("offset %d was appended %+v, want %+v", tt.offset, got, tt.want)
		}
	}

	// An unclean election cuts the log: what was seen of the former records says nothing about those that get their offsets.
	if !h.observe(12, 60*time.Second, 61*time.Second) {
		t.Error("the log is not said to be cut")
	}
	if got, want := h.appended(11), (span{older: true, hi: 61 * time.Second, guess: 61 * time.Second}); got != want {
		t.Errorf("after the log was cut, offset 11 was appended %+v, want %+v", got, want)
	}
}

// Whatever the flow: a record's real time is in the span, and what is guessed is off by less than the span is wide. It forgets the oldest.
func TestHistoryHoldsTheTruth(t *testing.T) {
	t.Parallel()
	var h history
	var appended []time.Duration
	now := time.Duration(0)
	for range 2 * historySize {
		for range rand.IntN(4) {
			appended = append(appended, now+time.Duration(rand.Int64N(int64(time.Second))))
		}
		now += time.Second
		answered := now + time.Duration(rand.Int64N(int64(time.Second)))
		end := int64(len(appended))
		for range rand.IntN(2) { // comes while the request is on its way: the answer may have it
			appended = append(appended, now+time.Duration(rand.Int64N(int64(answered-now)+1)))
			end += rand.Int64N(2)
		}
		h.observe(min(end, int64(len(appended))), now, answered)
		now = answered
	}
	if len(h.seen) > historySize || h.seen[0].end == 0 {
		t.Fatalf("%d ends are kept, from %d on", len(h.seen), h.seen[0].end)
	}
	newest := h.seen[len(h.seen)-1].end
	for offset := range newest {
		got, at := h.appended(offset), appended[offset]
		if at > got.hi || !got.older && at < got.lo || got.guess > got.hi || got.guess < got.lo {
			t.Errorf("offset %d was appended at %v, not %+v", offset, at, got)
		}
		if older := offset < h.seen[0].end; got.older != older {
			t.Errorf("offset %d is older than the history: %v, want %v", offset, got.older, older)
		}
	}
}
