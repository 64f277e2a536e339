package lag

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	t.Parallel()
	const second = time.Second
	var h history
	for _, poll := range []struct {
		// at is when the request is sent, in seconds. The response comes a second later.
		at  time.Duration
		end int64
	}{{0, 10}, {10, 10}, {20, 10}, {30, 14}, {40, 14}, {50, 20}} {
		if h.add(poll.end, poll.at*time.Second, (poll.at+1)*time.Second) {
			t.Errorf("add(%d) reports a cut log", poll.end)
		}
	}
	for _, tt := range []struct {
		offset int64
		want   timeRange
	}{
		{0, timeRange{older: true, latest: 1 * second, guess: 1 * second}},
		{9, timeRange{older: true, latest: 1 * second, guess: 1 * second}},
		{10, timeRange{earliest: 20 * second, latest: 31 * second, guess: 21375 * time.Millisecond}},
		{13, timeRange{earliest: 20 * second, latest: 31 * second, guess: 29625 * time.Millisecond}},
		{14, timeRange{earliest: 40 * second, latest: 51 * second, guess: 40*second + 11*second/12}},
		{19, timeRange{earliest: 40 * second, latest: 51 * second, guess: 51*second - 11*second/12}},
	} {
		got := h.appended(tt.offset)
		got.guess = got.guess.Round(time.Microsecond)
		tt.want.guess = tt.want.guess.Round(time.Microsecond)
		if got != tt.want {
			t.Errorf("offset %d was appended %+v, want %+v", tt.offset, got, tt.want)
		}
	}

	// An unclean election cuts the log. What was seen of the former records is not true of those
	// that get their offsets.
	if !h.add(12, 60*time.Second, 61*time.Second) {
		t.Error("add reports no cut log")
	}
	if got, want := h.appended(11), (timeRange{older: true, latest: 61 * second, guess: 61 * second}); got != want {
		t.Errorf("after the log was cut, offset 11 was appended %+v, want %+v", got, want)
	}
}

// At any pace, the range holds the real time of a record, and so does the interval round the guess.
// The oldest samples are forgotten.
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
		received := now + time.Duration(rand.Int64N(int64(time.Second)))
		end := int64(len(appended))
		for range rand.IntN(2) {
			// A record that comes while the request is under way may be in the response or not.
			appended = append(appended, now+time.Duration(rand.Int64N(int64(received-now)+1)))
			end += rand.Int64N(2)
		}
		h.add(min(end, int64(len(appended))), now, received)
		now = received
	}
	if len(h.samples) > historySize || h.samples[0].end == 0 {
		t.Fatalf("%d samples are kept, from end %d on", len(h.samples), h.samples[0].end)
	}
	newest := h.samples[len(h.samples)-1].end
	for offset := range newest {
		got, at := h.appended(offset), appended[offset]
		if at > got.latest || !got.older && at < got.earliest || got.guess > got.latest || got.guess < got.earliest {
			t.Errorf("offset %d was appended at %v, which is not in %+v", offset, at, got)
		}
		if older := offset < h.samples[0].end; got.older != older {
			t.Errorf("offset %d is older than the history: %v, want %v", offset, got.older, older)
		}
	}
}
