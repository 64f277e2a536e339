package lag

import (
	"slices"
	"time"
)

// historySize bounds a partition's history: ten minutes of a busy topic at the default interval, hours of a quiet one.
const historySize = 128

// history remembers a partition's end offsets by the time at which they were seen, which tells when a record was appended: after the last
// poll that did not see it, and before the first that did. The clock is this process' own, so no other one can be wrong.
// Times are since the collector's beginning.
type history struct{ seen []seenEnd }

// seenEnd is one end offset. A partition to which nothing is appended keeps one of them, however long that lasts.
type seenEnd struct {
	end         int64
	first, last time.Duration // an answer with it was received first, was last asked for
}

// observe adds the answer to a request of sent, at received. It says whether the log was cut.
func (h *history) observe(end int64, sent, received time.Duration) (cut bool) {
	if n := len(h.seen); n > 0 {
		last := &h.seen[n-1]
		switch {
		case end == last.end:
			last.last = sent
			return false
		case end < last.end: // a leader without the log's last records was elected: other records get their offsets
			h.seen, cut = h.seen[:0], true
		case n == historySize:
			h.seen = slices.Delete(h.seen, 0, 1)
		}
	}
	h.seen = append(h.seen, seenEnd{end, received, sent})
	return cut
}

// span is when a record was appended: not before lo and not after hi. Between them the records are taken to have come evenly.
type span struct {
	lo, hi time.Duration
	older  bool // before the history begins: there is no lo
	guess  time.Duration
}

// appended is when the record of an offset was appended. It has to be below the end that was observed last.
func (h *history) appended(offset int64) span {
	i, _ := slices.BinarySearchFunc(h.seen, offset, func(s seenEnd, offset int64) int {
		if s.end > offset {
			return 1
		}
		return -1
	})
	hi := h.seen[i]
	if i == 0 {
		return span{older: true, hi: hi.first, guess: hi.first}
	}
	lo := h.seen[i-1]
	part := (float64(offset-lo.end) + 0.5) / float64(hi.end-lo.end)
	return span{lo: lo.last, hi: hi.first, guess: lo.last + time.Duration(part*float64(hi.first-lo.last))}
}
