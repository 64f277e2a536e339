package lag

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// reading is what one poll reads, in seconds after the first, and the partition that follows from
// it.
type reading struct {
	at                            int
	committed, start, stable, end int64
	// alone means that no member of the group reads the topic.
	alone bool
	// appended is when the first unread record was appended. With vague, it may be older.
	appended int
	vague    bool
	want     string
}

// describe returns a partition in short: records, age, status, and what differs from the usual.
func describe(p Partition, began time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %v %s", p.Records, p.Age, p.Status)
	if p.AgeUnknown {
		b.WriteString(" or older")
	}
	if p.Uncommitted {
		b.WriteString(" uncommitted")
	}
	if math.IsNaN(p.Headroom) {
		b.WriteString(" room=none")
	} else if p.Headroom != 1 {
		fmt.Fprintf(&b, " room=%.3g", p.Headroom)
	}
	if !p.LastProgress.IsZero() {
		fmt.Fprintf(&b, " moved@%v", p.LastProgress.Sub(began).Seconds())
	}
	if p.Close > 0 {
		fmt.Fprintf(&b, " close=%v", p.Close.Round(time.Second))
	}
	if p.Close < 0 {
		b.WriteString(" close=never")
	}
	if p.Lost != 0 {
		fmt.Fprintf(&b, " lost=%d", p.Lost)
	}
	if p.Rewinds != 0 {
		fmt.Fprintf(&b, " rewinds=%d", p.Rewinds)
	}
	return b.String()
}

// Polls are ten seconds apart, and patience is a minute.
func TestPartition(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		polls []reading
	}{
		{"empty: nothing was ever written", []reading{
			{at: 0, want: "0 0s ok room=none"},
			{at: 300, want: "0 0s ok room=none"},
		}},
		{"emptied: retention deleted all after it was read", []reading{
			{at: 0, committed: 7, start: 0, stable: 7, end: 7, want: "0 0s ok"},
			{at: 10, committed: 7, start: 7, stable: 7, end: 7, want: "0 0s ok room=none"},
		}},
		{"keeping up", []reading{
			{at: 0, committed: 10, stable: 10, end: 10, want: "0 0s ok"},
			{at: 10, committed: 18, stable: 20, end: 20, appended: 9, want: "2 1s ok room=0.9 moved@10 close=never"},
			{at: 20, committed: 30, stable: 30, end: 30, want: "0 0s ok moved@20"},
		}},
		{"no commit: lag is unknown, and there are no values", []reading{
			{at: 0, committed: -1, stable: 100, end: 100, want: "0 0s no_commit room=none close=never"},
			{at: 300, committed: -1, stable: 100, end: 100, want: "0 0s no_commit room=none close=never"},
			{at: 310, committed: 90, stable: 100, end: 100, appended: 300,
				want: "10 10s ok room=0.9 moved@310 close=never"},
		}},
		{"no commit, and nothing that could be read: ok", []reading{
			{at: 0, committed: -1, start: 40, stable: 40, end: 40, want: "0 0s ok room=none close=never"},
			// The records are those of an open transaction.
			{at: 10, committed: -1, start: 40, stable: 40, end: 50, want: "0 0s ok room=none close=never"},
			{at: 20, committed: -1, start: 40, stable: 50, end: 50, want: "0 0s no_commit room=none close=never"},
			{at: 30, committed: -1, start: 50, stable: 50, end: 50, want: "0 0s ok room=none close=never"},
		}},
		{"a commit that is deleted, and a lower one later: no rewind", []reading{
			{at: 0, committed: 50, stable: 50, end: 50, want: "0 0s ok"},
			{at: 10, committed: -1, stable: 50, end: 50, want: "0 0s no_commit room=none moved@10 close=never"},
			{at: 20, committed: 10, stable: 50, end: 50, appended: 20, want: "40 0s ok room=0.2 moved@20 close=never"},
		}},
		{"idle producer: the age of what is unread grows with time alone", []reading{
			{at: 0, committed: 9, stable: 10, end: 10, appended: -5, want: "1 5s ok room=0.9 close=never"},
			{at: 30, committed: 9, stable: 10, end: 10, appended: -5, want: "1 35s ok room=0.9 close=never"},
			{at: 59, committed: 9, stable: 10, end: 10, appended: -5, want: "1 1m4s ok room=0.9 close=never"},
			{at: 60, committed: 9, stable: 10, end: 10, appended: -5, want: "1 1m5s stalled room=0.9 close=never"},
		}},
		{"idle topic: a group that has read all is never stalled, and gets patience for the next record", []reading{
			{at: 0, committed: 10, stable: 10, end: 10, want: "0 0s ok"},
			{at: 3600, committed: 10, stable: 10, end: 10, want: "0 0s ok"},
			{at: 3610, committed: 10, stable: 11, end: 11, appended: 3605, want: "1 5s ok room=0.909 close=never"},
			{at: 3664, committed: 10, stable: 11, end: 11, appended: 3605, want: "1 59s ok room=0.909 close=never"},
			{at: 3665, committed: 10, stable: 11, end: 11, appended: 3605,
				want: "1 1m0s stalled room=0.909 close=never"},
			{at: 3675, committed: 11, stable: 11, end: 11, want: "0 0s ok moved@3675"},
		}},
		{"dead group: no member reads", []reading{
			{at: 0, committed: 10, stable: 10, end: 10, alone: true, want: "0 0s ok"},
			{at: 10, committed: 10, stable: 30, end: 30, alone: true, appended: 5,
				want: "20 5s ok room=0.333 close=never"},
			{at: 70, committed: 10, stable: 50, end: 50, alone: true, appended: 5,
				want: "40 1m5s stopped room=0.2 close=never"},
			// A member has joined.
			{at: 80, committed: 10, stable: 50, end: 50, appended: 5, want: "40 1m15s stalled room=0.2 close=never"},
			{at: 90, committed: 40, stable: 50, end: 50, appended: 70, want: "10 20s ok room=0.8 moved@90 close=1m20s"},
		}},
		{"a consumer that is no member moves too", []reading{
			{at: 0, committed: 10, stable: 100, end: 100, alone: true, appended: -600,
				want: "90 10m0s ok room=0.1 close=never"},
			{at: 60, committed: 20, stable: 100, end: 100, alone: true, appended: -600,
				want: "80 11m0s slow room=0.2 moved@60 close=8m0s"},
		}},
		{"restart of the collector: nothing is stalled before patience has passed", []reading{
			{at: 0, committed: 10, stable: 100, end: 100, appended: -9000, want: "90 2h30m0s ok room=0.1 close=never"},
			{at: 50, committed: 10, stable: 100, end: 100, appended: -9000,
				want: "90 2h30m50s ok room=0.1 close=never"},
			{at: 60, committed: 10, stable: 100, end: 100, appended: -9000,
				want: "90 2h31m0s stalled room=0.1 close=never"},
		}},
		{"an age that may be larger: only the proven part counts", []reading{
			{at: 0, committed: 10, stable: 100, end: 100, appended: -20, vague: true,
				want: "90 20s ok or older room=0.1 close=never"},
			{at: 30, committed: 20, stable: 100, end: 100, appended: -20, vague: true,
				want: "80 50s ok or older room=0.2 moved@30 close=4m0s"},
			// This is not slow: the record was as old before.
			{at: 60, committed: 30, stable: 100, end: 100, appended: -900,
				want: "70 16m0s ok room=0.3 moved@60 close=3m30s"},
			{at: 120, committed: 30, stable: 100, end: 100, appended: 60, vague: true,
				want: "70 1m0s stalled or older room=0.3 moved@60 close=never"},
		}},
		{"restart of the collector: earlier losses are a status, but not counted", []reading{
			{at: 0, committed: 10, start: 50, stable: 100, end: 100, appended: -5, want: "50 5s ok room=0 close=never"},
			{at: 10, committed: 10, start: 60, stable: 100, end: 100, appended: 0,
				want: "40 10s lost room=-1.25 close=40s"},
			{at: 20, committed: 10, start: 60, stable: 100, end: 100, appended: 0,
				want: "40 20s lost room=-1.25 close=1m20s lost=10"},
		}},
		{"deleted behind the group between the reads of its commit and of the start: not lost", []reading{
			{at: 0, committed: 150, start: 300, stable: 400, end: 400, appended: -5,
				want: "100 5s ok room=0 close=never"},
			{at: 10, committed: 400, start: 600, stable: 700, end: 700, appended: 5,
				want: "100 5s ok room=0 moved@10 close=never"},
			{at: 20, committed: 700, start: 700, stable: 700, end: 700, want: "0 0s ok room=none moved@20"},
		}},
		{"retention passed the group: each record counts as lost once", []reading{
			{at: 0, committed: 10, start: 0, stable: 100, end: 100, appended: -5,
				want: "90 5s ok room=0.1 close=never"},
			{at: 10, committed: 10, start: 10, stable: 100, end: 100, appended: -5,
				want: "90 15s ok room=0 close=never"},
			{at: 20, committed: 10, start: 30, stable: 100, end: 100, appended: 5,
				want: "70 15s ok room=0 close=1m10s"},
			{at: 30, committed: 10, start: 30, stable: 100, end: 100, appended: 5,
				want: "70 25s lost room=-0.286 close=1m45s lost=20"},
			{at: 40, committed: 10, start: 35, stable: 100, end: 100, appended: 5,
				want: "65 35s lost room=-0.385 close=1m44s lost=20"},
			{at: 45, committed: 10, start: 35, stable: 100, end: 100, appended: 5,
				want: "65 40s lost room=-0.385 close=1m57s lost=25"},
			{at: 50, committed: 35, start: 35, stable: 100, end: 100, appended: 5,
				want: "65 45s ok room=0 moved@50 close=2m10s lost=25"},
			{at: 60, committed: 90, start: 80, stable: 100, end: 100, appended: 50,
				want: "10 10s ok room=0.5 moved@60 close=8s lost=25"},
			{at: 70, committed: 90, start: 100, stable: 100, end: 100, want: "0 0s ok room=none moved@60 lost=25"},
			{at: 80, committed: 90, start: 100, stable: 100, end: 100, want: "0 0s lost room=none moved@60 lost=35"},
		}},
		{"commit beyond the end: lost at the second poll, since the first may ask a new leader", []reading{
			{at: 0, committed: 100, stable: 100, end: 100, want: "0 0s ok"},
			{at: 10, committed: 100, stable: 90, end: 90, want: "0 0s ok"},
			{at: 20, committed: 100, stable: 100, end: 100, want: "0 0s ok"},
			{at: 30, committed: 100, stable: 5, end: 5, want: "0 0s ok"},
			{at: 40, committed: 100, stable: 6, end: 6, want: "0 0s lost"},
			{at: 50, committed: 100, stable: 100, end: 100, want: "0 0s ok"},
		}},
		{"transactions: records from an open one on cannot be read yet", []reading{
			{at: 0, committed: 10, stable: 10, end: 30, appended: -1000, want: "0 0s ok"},
			{at: 10, committed: 8, stable: 10, end: 30, appended: 5,
				want: "2 5s rewound room=0.267 moved@10 close=never rewinds=1"},
			{at: 20, committed: 10, stable: 31, end: 31, appended: 0,
				want: "21 20s ok room=0.323 moved@20 close=never rewinds=1"},
		}},
		{"read_uncommitted: a commit beyond the last stable offset proves it, so the lag counts to the end", []reading{
			{at: 0, committed: 150, stable: 100, end: 1_000_000, alone: true, appended: -5,
				want: "999850 5s ok uncommitted room=0.00015 close=never"},
			// It stays known when the group is behind the last stable offset.
			{at: 10, committed: 300_000, stable: 400_000, end: 1_000_000, alone: true, appended: 0,
				want: "700000 10s ok uncommitted room=0.3 moved@10 close=23s"},
			{at: 20, committed: 400_000, stable: 400_000, end: 1_000_000, alone: true, appended: 0,
				want: "600000 20s ok uncommitted room=0.4 moved@20 close=30s"},
			// The group waits for the transaction, so it was set to read_committed meanwhile.
			{at: 30, committed: 400_000, stable: 400_000, end: 1_000_000, alone: true, want: "0 0s ok moved@20"},
			{at: 40, committed: 400_000, stable: 400_001, end: 1_000_000, alone: true, appended: 40,
				want: "1 0s ok room=0.4 moved@20 close=never"},
		}},
		{"a commit beyond the end proves nothing about transactions", []reading{
			{at: 0, committed: 60, stable: 10, end: 50, alone: true, want: "0 0s ok"},
			{at: 10, committed: 60, stable: 70, end: 90, alone: true, appended: 10,
				want: "10 0s ok room=0.667 close=never"},
		}},
		{"replay: the age is that of the next record, and rewound ends at the former offset", []reading{
			{at: 0, committed: 1000, stable: 1000, end: 1000, want: "0 0s ok"},
			{at: 10, committed: 0, stable: 1000, end: 1000, appended: -86400,
				want: "1000 24h0m10s rewound room=0 moved@10 close=never rewinds=1"},
			{at: 20, committed: 600, stable: 1000, end: 1000, appended: -43200,
				want: "400 12h0m20s rewound room=0.6 moved@20 close=7s rewinds=1"},
			{at: 30, committed: 500, stable: 1100, end: 1100, appended: -50000,
				want: "600 13h53m50s rewound room=0.455 moved@30 close=never rewinds=2"},
			{at: 40, committed: 999, stable: 1100, end: 1100, appended: 0,
				want: "101 40s rewound room=0.908 moved@40 close=2s rewinds=2"},
			{at: 50, committed: 1000, stable: 1100, end: 1100, appended: 20,
				want: "100 30s ok room=0.909 moved@50 close=4s rewinds=2"},
		}},
		{"rewound, and then no progress: stalled is worse", []reading{
			{at: 0, committed: 100, stable: 100, end: 100, want: "0 0s ok"},
			{at: 10, committed: 0, stable: 100, end: 100, appended: -100,
				want: "100 1m50s rewound room=0 moved@10 close=never rewinds=1"},
			{at: 69, committed: 0, stable: 100, end: 100, appended: -100,
				want: "100 2m49s rewound room=0 moved@10 close=never rewinds=1"},
			{at: 70, committed: 0, stable: 100, end: 100, appended: -100,
				want: "100 2m50s stalled room=0 moved@10 close=never rewinds=1"},
		}},
		{"slow: it reads and falls behind", []reading{
			{at: 0, committed: 0, stable: 100, end: 100, appended: -20, want: "100 20s ok room=0 close=never"},
			{at: 30, committed: 5, stable: 400, end: 400, appended: 0,
				want: "395 30s ok room=0.0125 moved@30 close=never"},
			{at: 59, committed: 9, stable: 700, end: 700, appended: 10,
				want: "691 49s ok room=0.0129 moved@59 close=never"},
			{at: 60, committed: 10, stable: 700, end: 700, appended: 10,
				want: "690 50s slow room=0.0143 moved@60 close=never"},
			{at: 120, committed: 600, stable: 710, end: 710, appended: 110,
				want: "110 10s ok room=0.845 moved@120 close=11s"},
		}},
		{"not slow: it caught up in between", []reading{
			{at: 0, committed: 0, stable: 100, end: 100, appended: -12, want: "100 12s ok room=0 close=never"},
			{at: 30, committed: 100, stable: 100, end: 100, want: "0 0s ok moved@30"},
			{at: 60, committed: 110, stable: 700, end: 700, appended: 35,
				want: "590 25s ok room=0.157 moved@60 close=never"},
		}},
		{"not slow: the age is the same as before", []reading{
			{at: 0, committed: 0, stable: 100, end: 100, appended: -30, want: "100 30s ok room=0 close=never"},
			{at: 60, committed: 50, stable: 150, end: 150, appended: 25,
				want: "100 35s ok room=0.333 moved@60 close=never"},
		}},
		{"catching up", []reading{
			{at: 0, committed: 0, stable: 1000, end: 1000, appended: -900, want: "1000 15m0s ok room=0 close=never"},
			{at: 10, committed: 200, stable: 1100, end: 1100, appended: -700,
				want: "900 11m50s ok room=0.182 moved@10 close=1m30s"},
			{at: 60, committed: 1000, stable: 1500, end: 1500, appended: -100,
				want: "500 2m40s ok room=0.667 moved@60 close=1m0s"},
			// It has shown a pause of 50 s.
			{at: 159, committed: 1000, stable: 1500, end: 1500, appended: -100,
				want: "500 4m19s ok room=0.667 moved@60 close=never"},
			{at: 160, committed: 1000, stable: 1500, end: 1500, appended: -100,
				want: "500 4m20s stalled room=0.667 moved@60 close=never"},
		}},
		{"clock skew: a record with a time in the future is new", []reading{
			{at: 0, committed: 5, stable: 10, end: 10, appended: 600, want: "5 0s ok room=0.5 close=never"},
			{at: 10, committed: 5, stable: 10, end: 10, appended: 600, want: "5 0s ok room=0.5 close=never"},
		}},
		{"partition growth: a new partition has no commit at first", []reading{
			{at: 0, committed: -1, want: "0 0s ok room=none close=never"},
			{at: 10, committed: 0, stable: 3, end: 3, appended: 9, want: "3 1s ok room=0 moved@10 close=never"},
			{at: 20, committed: 3, stable: 3, end: 3, want: "0 0s ok moved@20"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			second := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
			var tr track
			for _, poll := range tt.polls {
				p := tr.next(3, facts{
					at: second(poll.at), committed: poll.committed,
					start: poll.start, stable: poll.stable, end: poll.end,
					subscribed: !poll.alone, appended: second(poll.appended), vague: poll.vague,
				}, time.Minute, 10*time.Second)
				if got := describe(p, began); got != poll.want || p.Number != 3 || p.Committed != poll.committed ||
					!p.Since.Equal(began) {
					t.Errorf("after %d s the partition is %q (number %d, committed %d), want %q", poll.at, got,
						p.Number, p.Committed, poll.want)
				}
			}
		})
	}
}

// committer is a group that is polled every 5 s, in a topic that gets a record each second.
type committer struct {
	track
	began     time.Time
	now       int
	committed int64
	// rhythm is what an earlier process has seen.
	rhythm time.Duration
}

// run lets a time pass in which the group commits all records every so many seconds, or never if
// every is 0. It returns for how long the group was stopped.
func (c *committer) run(d time.Duration, every int) (stopped time.Duration) {
	for range int(d / (5 * time.Second)) {
		c.now += 5
		if every > 0 && c.now%every == 0 {
			c.committed = int64(c.now)
		}
		if c.poll() == StatusStopped {
			stopped += 5 * time.Second
		}
	}
	return stopped
}

// idle lets a time pass in which no records come.
func (c *committer) idle(d time.Duration) {
	for range int(d / (5 * time.Second)) {
		c.began = c.began.Add(5 * time.Second)
		c.poll()
	}
}

func (c *committer) poll() Status {
	at := func(second int64) time.Time { return c.began.Add(time.Duration(second) * time.Second) }
	return c.next(0, facts{
		at: at(int64(c.now)), committed: c.committed, stable: int64(c.now), end: int64(c.now), rhythm: c.rhythm,
		appended: at(c.committed),
	}, time.Minute, 5*time.Second).Status
}

// The patience before a group is stopped follows the rhythm of its commits. A consumer that is no
// member and commits every 90 s, as Flink and Spark do, is not stopped while it keeps its rhythm.
func TestPatienceFollowsTheRhythm(t *testing.T) {
	t.Parallel()
	check := func(what string, got, low, high time.Duration) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s: stopped for %v, want %v to %v", what, got, low, high)
		}
	}
	const minute, hour = time.Minute, time.Hour
	c := &committer{began: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	// Two moves are needed before anything of the rhythm is known.
	check("until two commits were seen", c.run(3*minute, 90), 0, minute)
	check("while it keeps its rhythm", c.run(hour, 90), 0, 0)
	check("twice its rhythm after the last commit", c.run(3*minute, 0), 0, 5*time.Second)
	check("from then on", c.run(hour, 0), hour, hour)
	c.run(3*minute, 90)
	check("after an outage", c.run(hour, 90), 0, 0)
	check("an outage is no rhythm: twice the rhythm", c.run(3*minute, 0), 0, 5*time.Second)
	check("an outage is no rhythm: from then on", c.run(hour, 0), hour, hour)

	fast := &committer{began: c.began}
	check("a minute is the least", fast.run(hour, 5), 0, 0)
	check("a minute after the last commit", fast.run(minute, 0), 0, 5*time.Second)
	check("a minute after the last commit, from then on", fast.run(minute, 0), minute, minute)

	idle := &committer{began: c.began}
	idle.run(10*minute, 5)
	for range 2 {
		idle.idle(2 * hour)
		idle.run(10*time.Second, 5)
	}
	check("time in which all is read is no pause", idle.run(2*minute, 0), minute, minute+5*time.Second)

	again := &committer{began: c.began, rhythm: 90 * time.Second}
	check("a collector that has been told the rhythm", again.run(hour, 90), 0, 0)
}

// Kafka returns the position that a share group had before its last acknowledgement.
func TestPositionOfAShareGroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		track track
		// position, left and end are what Kafka returns at each poll, want is the position that counts.
		polls []struct{ position, left, end, want int64 }
	}{
		{"as Kafka has it while something is left", track{}, []struct{ position, left, end, want int64 }{
			{0, 10, 10, 0}, {0, 6, 10, 0}, {4, 6, 10, 4},
		}},
		{"nothing is left", track{}, []struct{ position, left, end, want int64 }{
			{4, 6, 10, 4}, {4, 0, 10, 10}, {4, 6, 16, 10}, {10, 4, 16, 10}, {12, 4, 16, 12},
		}},
		{"records that come during the poll", track{}, []struct{ position, left, end, want int64 }{
			{4, 6, 10, 4}, {4, 0, 13, 10}, {4, 3, 13, 10},
		}},
		{"the first poll knows no earlier end", track{}, []struct{ position, left, end, want int64 }{
			{4, 0, 10, 4}, {4, 0, 10, 10},
		}},
		{"an earlier process knew", track{acknowledged: 10}, []struct{ position, left, end, want int64 }{
			{4, 2, 12, 10},
		}},
		{"offsets that were reset", track{}, []struct{ position, left, end, want int64 }{
			{4, 6, 10, 4}, {4, 0, 10, 10}, {2, 8, 10, 2}, {2, 8, 10, 2},
		}},
		{"a log that was cut", track{}, []struct{ position, left, end, want int64 }{
			{4, 6, 10, 4}, {4, 0, 10, 10}, {4, 2, 6, 4},
		}},
		{"a Kafka that does not count", track{}, []struct{ position, left, end, want int64 }{
			{4, -1, 10, 4}, {4, -1, 12, 4},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for i, poll := range tt.polls {
				f := facts{share: true, committed: poll.position, left: poll.left, end: poll.end, stable: poll.end}
				f = tt.track.sharePosition(f)
				tt.track.next(0, f, Patience, time.Second)
				if f.committed != poll.want {
					t.Errorf("poll %d: the position is %d, want %d", i, f.committed, poll.want)
				}
			}
		})
	}
}
