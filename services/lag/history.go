package lag

import (
	"slices"
	"time"
)

// historySize is the largest number of samples of a partition. At the default interval they reach
// back ten minutes on a busy topic, and hours on a quiet one.
const historySize = 128

// history remembers the end offsets of a partition and when they were seen. A record was appended
// after the last poll that did not see it and before the first that did. All times are by this
// process's clock, so a producer's wrong clock has no influence. They are durations since the
// collector was made, which a change of the wall clock does not touch.
//
// The zero value is empty. It is not safe for concurrent use.
type history struct{ samples []endSample }

// endSample is one end offset. Polls that see the same end share one sample, however many they are.
type endSample struct {
	end int64
	// first is when the first response with this end was received, last is when the last request
	// that got it was sent.
	first, last time.Duration
}

// add remembers the end that a request returned, with the times when the request was sent and its
// response received. It reports whether the log was cut: a leader without its last records was
// elected, and other records get their offsets.
func (h *history) add(end int64, sent, received time.Duration) (cut bool) {
	if n := len(h.samples); n > 0 {
		newest := &h.samples[n-1]
		switch {
		case end == newest.end:
			newest.last = sent
			return false
		case end < newest.end:
			h.samples, cut = h.samples[:0], true
		case n == historySize:
			h.samples = slices.Delete(h.samples, 0, 1)
		}
	}
	h.samples = append(h.samples, endSample{end, received, sent})
	return cut
}

// timeRange is when a record was appended: not before earliest and not after latest.
type timeRange struct {
	earliest, latest time.Duration
	// older means that the record came before the first sample, so earliest is unknown.
	older bool
	// guess assumes that the records between two samples came at an even pace.
	guess time.Duration
}

// appended returns when the record of an offset was appended. The offset must be below the end that
// was added last.
func (h *history) appended(offset int64) timeRange {
	i, _ := slices.BinarySearchFunc(h.samples, offset, func(s endSample, offset int64) int {
		if s.end > offset {
			return 1
		}
		return -1
	})
	after := h.samples[i]
	if i == 0 {
		return timeRange{older: true, latest: after.first, guess: after.first}
	}
	before := h.samples[i-1]
	part := (float64(offset-before.end) + 0.5) / float64(after.end-before.end)
	return timeRange{
		earliest: before.last, latest: after.first,
		guess: before.last + time.Duration(part*float64(after.first-before.last)),
	}
}
