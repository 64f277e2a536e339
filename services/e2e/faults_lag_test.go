package e2e

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/backoff"
	"ordersystem.dev/services/internal/testenv"
)

// lagWatch asks the collector for the lag of Order all the time, and Kafka for what it must be.
type lagWatch struct {
	t         testing.TB
	collector *process
	stop      context.CancelFunc
	asking    sync.WaitGroup
	// shown is in the order of time.
	shown []lagShown
	// offsets ends the other half of it, and returns what Kafka has said.
	offsets func() []testenv.GroupOffsets
}

// lagShown is the result of one poll of the collector.
type lagShown struct {
	// poll is when it began, and seen when its result was seen first.
	poll, seen time.Time
	lag        map[faults.TopicPartition]int64
}

// watchLag starts a collector, and to compare it with Kafka.
func watchLag(t testing.TB, kafka string) *lagWatch {
	t.Helper()
	w := &lagWatch{t: t, collector: startCollector(t, kafka, contract.GroupOrder, "")}
	w.offsets = testenv.WatchOffsets(t, kafka, contract.GroupOrder, contract.OrderTopics()...)
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	w.asking.Go(func() {
		var last time.Time
		for backoff.Sleep(ctx, 100*time.Millisecond) {
			// A collector that does not respond in time shows nothing wrong.
			if now, err := w.scrape(); err == nil && now.poll.After(last) {
				last = now.poll
				w.shown = append(w.shown, now)
			}
		}
	})
	return w
}

// scrape returns what the collector shows now.
func (w *lagWatch) scrape() (lagShown, error) {
	got, err := send(http.MethodGet, w.collector.ops+"/metrics", "")
	if err != nil {
		return lagShown{}, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(got.body))
	if err != nil {
		return lagShown{}, err
	}
	now := lagShown{seen: time.Now(), lag: map[faults.TopicPartition]int64{}}
	for _, m := range families["lag_collector_last_success_timestamp_seconds"].GetMetric() {
		// A float64 is exact to less than a microsecond.
		now.poll = time.UnixMicro(int64(math.Floor(m.GetGauge().GetValue() * 1e6)))
	}
	for _, m := range families["kafka_consumergroup_lag"].GetMetric() {
		partition, err := strconv.ParseInt(labelOf(m, "partition"), 10, 32)
		if err != nil {
			return lagShown{}, err
		}
		at := faults.TopicPartition{Topic: labelOf(m, "topic"), Partition: int32(partition)}
		now.lag[at] = int64(m.GetGauge().GetValue())
	}
	return now, nil
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// moment is longer than Order takes to commit what it has read.
const moment = 3 * time.Second

// check ends the collector and compares all that it has shown with Kafka. A poll reads the commits and the
// ends of the logs one after the other, so what they were at some moment of it is right. While brokers are
// parted, each has a state of its own, and nothing is compared.
func (w *lagWatch) check(done []faults.Span) {
	w.t.Helper()
	offsets := w.offsets()
	w.stop()
	w.asking.Wait()
	w.collector.stop()
	compared, wrong := 0, 0
	for _, shown := range w.shown {
		now := during(offsets, shown.poll, shown.seen)
		// Order commits an early offset for a moment when its store is replaced. It may lie between two samples.
		around := during(offsets, shown.poll.Add(-moment), shown.seen.Add(moment))
		parted := slices.ContainsFunc(done, func(f faults.Span) bool {
			return brokersApart[f.Name] != nil && f.Begin.Before(shown.seen) && f.End.After(shown.poll)
		})
		if now == nil || around == nil || parted {
			continue
		}
		for at, lag := range shown.lag {
			of := func(offsets map[string]map[int32]int64) int64 { return offsets[at.Topic][at.Partition] }
			least, most := of(now[0].Committed), of(now[0].Committed)
			for _, o := range around {
				least, most = min(least, of(o.Committed)), max(most, of(o.Committed))
			}
			low, high := max(0, of(now[0].Stable)-most), of(now[len(now)-1].Stable)-least
			if compared++; lag >= low && lag <= high {
				continue
			}
			if wrong++; wrong <= 5 {
				w.t.Errorf("the collector showed a lag of %d in %s/%d at %s, and it was from %d to %d",
					lag, at.Topic, at.Partition, shown.poll.Format("15:04:05.000"), low, high)
			}
		}
	}
	w.t.Logf("the collector showed %d lags in %d polls, %d of them wrong", compared, len(w.shown), wrong)
	if compared < 24 {
		w.t.Errorf("only %d lags could be compared with Kafka", compared)
	}
}

// during returns the offsets from the last ones before a poll to the first ones after it was seen, or nil if
// there are not both.
func during(offsets []testenv.GroupOffsets, poll, seen time.Time) []testenv.GroupOffsets {
	first, last := -1, -1
	for i, o := range offsets {
		if o.End.Before(poll) {
			first = i
		}
		if last < 0 && o.Begin.After(seen) {
			last = i
		}
	}
	if first < 0 || last < 0 {
		return nil
	}
	return offsets[first : last+1]
}
