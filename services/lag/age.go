package lag

import (
	"context"
	"maps"
	"slices"
	"time"
)

// ages finds out when records were appended. It asks the histories first. Where these do not reach
// back or have a gap, it searches by Kafka's timestamps. It is not safe for concurrent use.
type ages struct {
	// began is what the times in histories count from.
	began time.Time
	// interval is the time between two polls.
	interval  time.Duration
	histories map[topicPartition]*history
	searches  searches
}

// appendTime is when a group's first unread record was appended. That never changes for an offset,
// so it is found out once.
type appendTime struct {
	// known means that at is the time of the record at offset. Otherwise the record is not newer
	// than at, and may be older.
	known  bool
	offset int64
	at     time.Time
}

// unreadRecord is a group's first unread record of a partition.
type unreadRecord struct {
	target
	// end is the end of the log.
	end int64
	// appended is where find stores the time.
	appended *appendTime
}

// sample adds the ends of logs to their histories. sent and received are when the logs were asked
// for and when the responses were there. It returns the partitions whose logs were cut: nothing
// that was known of their records is valid any more.
func (a *ages) sample(logs map[string]*topicLogs, sent, received time.Time) (cut []topicPartition) {
	for name, t := range logs {
		for number, log := range t.logs {
			if log.err != nil {
				continue
			}
			p := topicPartition{name, t.id, number}
			h := a.histories[p]
			if h == nil {
				h = &history{}
				a.histories[p] = h
			}
			if h.add(log.end, sent.Sub(a.began), received.Sub(a.began)) {
				a.searches.forget(p)
				cut = append(cut, p)
			}
		}
	}
	return cut
}

// find sets the append times of records, for all groups together. The searches share requests and
// share a limited time; a search that does not finish goes on in the next poll.
func (a *ages) find(ctx context.Context, c *client, records []unreadRecord) []*ReadError {
	// sought is a record whose time the histories do not know well enough.
	type sought struct {
		*appendTime
		timeRange
	}
	open := make(map[target][]sought)
	var lookups []lookup
	for _, r := range records {
		if r.appended.known && r.appended.offset == r.offset {
			continue
		}
		between := a.histories[r.topicPartition].appended(r.offset)
		exact := !between.older && between.latest-between.earliest <= 2*a.interval
		*r.appended = appendTime{exact, r.offset, a.began.Add(between.guess)}
		if exact {
			continue
		}
		latest := a.began.Add(between.latest)
		r.appended.at = latest
		if open[r.target] == nil {
			lookups = append(lookups, lookup{r.target, r.end, latest.UnixMilli()})
		}
		open[r.target] = append(open[r.target], sought{r.appended, between})
	}

	failed := make(map[string]error)
	ctx, cancel := context.WithTimeout(ctx, 2*c.limit)
	defer cancel()
	times := a.searches.find(lookups, func(queries []offsetQuery) []offsetResult {
		results := listOffsets(ctx, c, readUncommitted, queries)
		for i, r := range results {
			if r.err != nil {
				failed[queries[i].topic] = r.err
			}
		}
		return results
	})
	for t, waiting := range open {
		ms, found := times[t]
		if !found {
			var bounded bool
			if ms, bounded = a.searches.latest(t); !bounded {
				continue
			}
		}
		for _, s := range waiting {
			s.known, s.at = found, a.clamp(time.UnixMilli(ms), s.timeRange)
		}
	}
	var errs []*ReadError
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		errs = append(errs, &ReadError{API: "ListOffsets", Topic: name, Err: failed[name]})
	}
	return errs
}

// clamp keeps a timestamp within the range that this process has seen itself. A timestamp is by the
// clock of a broker or a producer, which may be wrong.
func (a *ages) clamp(timestamp time.Time, seen timeRange) time.Time {
	if earliest := a.began.Add(seen.earliest); !seen.older && timestamp.Before(earliest) {
		timestamp = earliest
	}
	if latest := a.began.Add(seen.latest); timestamp.After(latest) {
		timestamp = latest
	}
	return timestamp
}
