package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/internal/testenv"
)

// everySecond returns a configuration with statistics as often as librdkafka can report them.
func everySecond(addr string) Config {
	cfg := config(addr)
	cfg.Stats = NewStats()
	cfg.Stats.every = time.Second
	return cfg
}

// scrape returns what Prometheus gets, by "client name" or "client name quantile", without the
// beginning that all names have in common.
func scrape(t testing.TB, s *Stats) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := m.GetLabel()[0].GetValue() + " " + strings.TrimPrefix(f.GetName(), "kafka_client_")
			switch {
			case m.GetSummary() != nil:
				got[name+"_count"] = float64(m.GetSummary().GetSampleCount())
				got[name+"_sum"] = m.GetSummary().GetSampleSum()
				for _, q := range m.GetSummary().GetQuantile() {
					got[fmt.Sprint(name, " ", q.GetQuantile())] = q.GetValue()
				}
			default:
				got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		if !strings.HasPrefix(f.GetName(), "kafka_client_") || f.GetHelp() == "" {
			t.Errorf("%s: %q", f.GetName(), f.GetHelp())
		}
	}
	return got
}

// differ compares the values of got that are in want.
func differ(t testing.TB, when string, got, want map[string]float64) {
	t.Helper()
	got = maps.Clone(got)
	maps.DeleteFunc(got, func(name string, _ float64) bool { _, ok := want[name]; return !ok })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func TestStatsOutliveTheirClients(t *testing.T) {
	t.Parallel()
	s := NewStats()
	take := func(text string) {
		t.Helper()
		if _, err := s.take(kindProducer, text); err != nil {
			t.Fatal(err)
		}
	}
	if got := scrape(t, s); len(got) > 0 {
		t.Errorf("before the first client: %v", got)
	}
	s.open(kindProducer, "")
	const gauges = 3
	nothing := scrape(t, s)
	for name, v := range nothing {
		if v != 0 {
			t.Errorf("before the first report: %s is %v", name, v)
		}
	}
	if len(nothing) != 7+2*2 {
		t.Errorf("before the first report: %v", nothing)
	}

	take(`{"msg_cnt":5000,"msg_max":20000,"msg_size":3000,"msg_size_max":4000,"brokers":{
		"a:9092/1":{"nodeid":1,"state":"UP",
			"tx":100,"req_timeouts":1,"txretries":2,"txerrs":3,"rxerrs":4,"disconnects":5,
			"rtt":{"cnt":10,"sum":50000,"p50":4000,"p99":9000},
			"outbuf_latency":{"cnt":10,"sum":1000,"p50":90,"p99":200},
			"throttle":{"cnt":10,"sum":1500,"p50":0,"p99":900}},
		"b:9092/2":{"nodeid":2,"state":"UP","tx":10,"rtt":{"cnt":1,"sum":700000,"p50":700000,"p99":700000}},
		"c:9092/3":{"nodeid":3,"state":"DOWN","tx":0},
		"GroupCoordinator":{"nodeid":-1,"state":"UP","tx":1}}}`)
	first := map[string]float64{
		"producer requests_total": 111, "producer request_timeouts_total": 1,
		"producer request_retries_total": 2, "producer send_errors_total": 3,
		"producer receive_errors_total": 4, "producer disconnects_total": 5,
		"producer throttled_seconds_total": 1.5,
		"producer rtt_seconds_count":       11, "producer rtt_seconds_sum": 0.75,
		"producer rtt_seconds 0.5": 0.7, "producer rtt_seconds 0.99": 0.7,
		"producer outbuf_seconds_count": 10, "producer outbuf_seconds_sum": 0.001,
		"producer outbuf_seconds 0.5": 0.00009, "producer outbuf_seconds 0.99": 0.0002,
		"producer connected_brokers": 2, "producer queue_messages": 5000, "producer queue_ratio": 0.75,
	}
	if diff := cmp.Diff(first, scrape(t, s)); diff != "" {
		t.Errorf("after its first report (-want +got):\n%s", diff)
	}

	// Counters cover the whole life of a client, windows the time since its last report. The counts
	// of a broker that has left the cluster are missing.
	take(`{"msg_max":20000,"msg_size_max":4000,"brokers":{
		"a:9092/1":{"nodeid":1,"state":"UP","tx":105,"disconnects":6,
			"rtt":{"cnt":0,"sum":0,"p50":0,"p99":0},
			"outbuf_latency":{"cnt":5,"sum":1000,"p50":100,"p99":100}}}}`)
	got := scrape(t, s)
	differ(t, "after its second report", got, map[string]float64{
		"producer requests_total": 111, "producer disconnects_total": 6,
		"producer rtt_seconds_count": 11, "producer rtt_seconds_sum": 0.75,
		"producer outbuf_seconds_count": 15, "producer outbuf_seconds_sum": 0.002,
		"producer outbuf_seconds 0.99": 0.0001, "producer queue_ratio": 0,
	})
	if _, ok := got["producer rtt_seconds 0.99"]; ok {
		t.Error("a quantile of no requests")
	}
	take(`{"msg_max":1,"msg_size_max":1,"brokers":{"a:9092/1":{"nodeid":1,"state":"UP","tx":107,"disconnects":6}}}`)

	// The next client begins at 0.
	s.close(kindProducer, "")
	got = scrape(t, s)
	differ(t, "without a client", got, map[string]float64{
		"producer requests_total": 113, "producer disconnects_total": 6,
	})
	if len(got) != len(nothing) {
		t.Errorf("without a client: %v", got)
	}
	s.open(kindProducer, "")
	take(`{"msg_max":1,"msg_size_max":1,"brokers":{"a:9092/1":{"nodeid":1,"state":"UP","tx":7,"disconnects":1}}}`)
	got = scrape(t, s)
	differ(t, "with the next client", got, map[string]float64{
		"producer requests_total": 120, "producer disconnects_total": 7, "producer connected_brokers": 1,
	})

	// A report that is too old is not shown.
	s.clients[kindProducer].present[""].at = time.Now().Add(-16 * time.Second)
	stale := scrape(t, s)
	differ(t, "with a silent client", stale, map[string]float64{"producer requests_total": 120})
	if len(stale) != len(nothing) || len(got) != len(nothing)+gauges {
		t.Errorf("with a silent client: %v", stale)
	}
	if _, err := s.take(kindProducer, "no JSON"); err == nil {
		t.Error("no error for what is no JSON")
	}
}

// Two producers report in turn, as those of a relay do. What one has counted is not added to what the
// other has.
func TestStatsOfTwoProducers(t *testing.T) {
	t.Parallel()
	s := NewStats()
	take := func(name string, requests, queued, broker, rtt int) {
		t.Helper()
		text := fmt.Sprintf(`{"name":%q,"msg_cnt":%d,"msg_max":10,"msg_size_max":1,"brokers":{
			"b":{"nodeid":%d,"state":"UP","tx":%d,"rtt":{"cnt":1,"sum":%d,"p50":%[5]d,"p99":%[5]d}}}}`,
			name, queued, broker, requests, rtt)
		if _, err := s.take(kindProducer, text); err != nil {
			t.Fatal(err)
		}
	}
	s.open(kindProducer, "first")
	s.open(kindProducer, "second")
	for range 3 {
		take("first", 1000, 1, 1, 5_000_000)
		take("second", 10, 4, 2, 1_000_000)
	}
	differ(t, "with two producers", scrape(t, s), map[string]float64{
		"producer requests_total": 1010, "producer queue_messages": 5, "producer queue_ratio": 0.4,
		"producer connected_brokers": 2, "producer rtt_seconds 0.99": 5,
		"producer rtt_seconds_count": 6, "producer rtt_seconds_sum": 18,
	})
	s.close(kindProducer, "first")
	take("first", 2000, 1, 1, 5_000_000)
	differ(t, "with one of them", scrape(t, s), map[string]float64{
		"producer requests_total": 1010, "producer queue_messages": 4, "producer rtt_seconds 0.99": 1,
	})
}

func TestStatsOfClients(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		t.Parallel()
		topic := testenv.NewTopic(t, addr, 3)
		cfg := everySecond(addr)
		produce := func() {
			p := producerAs(t, cfg, "id")
			defer p.Close()
			publish(t, p, messages(topic, 1000, 7)...)
			poll(t, "the producer's statistics", func() bool {
				return scrape(t, cfg.Stats)["producer connected_brokers"] == 1
			})
		}
		produce()
		one := scrape(t, cfg.Stats)
		if _, ok := one["producer connected_brokers"]; ok {
			t.Error("the producer is closed, and has a connection")
		}
		produce()
		two := scrape(t, cfg.Stats)
		for _, name := range []string{
			"producer requests_total", "producer rtt_seconds_count",
			"producer rtt_seconds_sum", "producer outbuf_seconds_sum",
		} {
			if one[name] <= 0 || two[name] <= one[name] {
				t.Errorf("%s is %v after the first producer and %v after the second", name, one[name], two[name])
			}
		}
		// Requests get their responses within the test, so no sum exceeds its duration.
		for _, name := range []string{"producer rtt_seconds_sum", "producer outbuf_seconds_sum"} {
			if two[name] > two["producer requests_total"]*60 {
				t.Errorf("%s: %v", name, two)
			}
		}

		m := newMember(newStore())
		_, stop := startAs(t, cfg, group(topic), m)
		m.await(t, "all records", func() bool { return m.count() == 2000 })
		poll(t, "the consumer's statistics", func() bool {
			got := scrape(t, cfg.Stats)
			rtt := got["consumer rtt_seconds 0.5"]
			return got["consumer connected_brokers"] == 1 && got["consumer requests_total"] > 0 &&
				rtt > 0.05 && rtt < 60
		})
		stop()
		got := scrape(t, cfg.Stats)
		if _, ok := got["consumer fetch_queue_records"]; ok || got["consumer requests_total"] == 0 {
			t.Errorf("after the consumer's end: %v", got)
		}
	})
}

// The metrics show what a consumer has fetched and not processed. Its lag is what is left to apply.
func TestConsumerReportsItsLag(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		t.Parallel()
		const n = 400
		topic := testenv.NewTopic(t, addr, 1)
		testenv.Produce(t, addr, messages(topic, n, 1)...)
		cfg, cc := everySecond(addr), group(topic)
		cc.MaxRecords = 4
		m := newMember(newStore())
		var hang atomic.Pointer[chan struct{}]
		var broken atomic.Pointer[error]
		m.apply = func(context.Context, Batch) error {
			time.Sleep(50 * time.Millisecond)
			if wait := hang.Load(); wait != nil {
				<-*wait
			}
			if err := broken.Load(); err != nil {
				return *err
			}
			return nil
		}
		applied := func() int64 {
			m.mu.Lock()
			defer m.mu.Unlock()
			return int64(m.count())
		}
		begin := time.Now()
		c, stop := startAs(t, cfg, cc, m)
		only := func() int64 {
			for _, lag := range c.Lag() {
				return lag.Records
			}
			return math.MinInt64
		}
		var seen []int64
		fetched := false
		// The lag is up to about a second old.
		for last := int64(0); applied() < n; {
			lag := only()
			if now := applied(); lag != math.MinInt64 && (lag < n-now || lag > n-last) {
				t.Errorf("the lag is %d when %d to %d of %d are applied", lag, last, now, n)
			}
			if lag > 0 && !slices.Contains(seen, lag) {
				seen = append(seen, lag)
			}
			fetched = fetched || scrape(t, cfg.Stats)["consumer fetch_queue_records"] > 0
			// At most 20 batches of 4 are applied in a second.
			last = max(0, applied()-200)
			time.Sleep(10 * time.Millisecond)
		}
		if len(seen) < 3 || !fetched {
			t.Errorf("the lag was %v on the way, records in the fetch queue: %v", seen, fetched)
		}
		poll(t, "no lag", func() bool { return only() == 0 })
		poll(t, "it polls all the time", func() bool {
			at := c.LastPoll()
			return !at.Before(begin) && time.Since(at) < time.Second
		})

		// While it does not poll, the lag is unknown.
		wait := make(chan struct{})
		hang.Store(&wait)
		testenv.Produce(t, addr, messages(topic, 1, 1)...)
		// Without a partition there is no lag either, which a slow machine may bring about.
		poll(t, "a silent consumer shows no lag", func() bool {
			return len(c.Lag()) == 0 && time.Since(c.LastPoll()) > time.Second
		})
		hang.Store(nil)
		close(wait)
		poll(t, "it knows again", func() bool { return only() == 0 })

		// While it is paused it fetches nothing, so librdkafka would report the same lag for ever.
		failure := errors.New("disk full")
		broken.Store(&failure)
		testenv.Produce(t, addr, messages(topic, 1, 1)...)
		poll(t, "the store fails", func() bool { return errors.Is(c.Err(), failure) })
		testenv.Produce(t, addr, messages(topic, 50, 1)...)
		requests, rebalances := scrape(t, cfg.Stats)["consumer requests_total"], c.Rebalances()
		poll(t, "statistics while it is paused", func() bool {
			// Who has lost the partition and has it again is paused when Apply has failed again.
			if lag := only(); lag != math.MinInt64 && c.Rebalances() == rebalances {
				t.Fatalf("paused, with a lag of %d", lag)
			}
			return scrape(t, cfg.Stats)["consumer requests_total"] > requests
		})
		poll(t, "it polls while it is paused", func() bool { return time.Since(c.LastPoll()) < time.Second })
		broken.Store(nil)
		m.await(t, "all records", func() bool { return m.count() == n+52 })
		poll(t, "it has caught up", func() bool { return only() == 0 })

		// It reports only partitions that it has.
		stop()
		if lag := c.Lag(); len(lag) > 0 {
			t.Errorf("without partitions: %v", lag)
		}
	})
}

func TestConsumersReportTheLagOfTheirOwnPartitions(t *testing.T) {
	t.Parallel()
	addr := testenv.SharedKafka(t).Addr
	topic := testenv.NewTopic(t, addr, 4)
	cc, s := group(topic), newStore()
	first, _ := startAs(t, everySecond(addr), cc, newMember(s))
	poll(t, "all four", func() bool { return len(first.Lag()) == 4 })
	second, stop := startAs(t, everySecond(addr), cc, newMember(s))
	poll(t, "two each", func() bool {
		has, a, b := first.Assigned(), first.Lag(), second.Lag()
		if first.Assigned() == has && len(a) > has {
			t.Fatalf("%d partitions and the lag of %v", has, a)
		}
		maps.Copy(a, b)
		return len(b) == 2 && len(a) == 4 && first.Assigned() == 2
	})
	stop()
	poll(t, "all four again", func() bool { return len(first.Lag()) == 4 })
	for p, lag := range first.Lag() {
		if lag.Records != 0 || p.Topic != topic || p.TopicID == "" {
			t.Errorf("%v: %v", p, lag)
		}
	}
}

// A client without a broker knows no lag, though librdkafka goes on reporting the last one.
func TestStatsWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	k := testenv.StartKafka(t)
	cfg, topic := everySecond(k.Addr), testenv.NewTopic(t, k.Addr, 4)
	c, _ := startAs(t, cfg, group(topic), newMember(newStore()))
	poll(t, "the lag", func() bool { return len(c.Lag()) == 4 })
	before := scrape(t, cfg.Stats)
	k.Kill()
	poll(t, "no broker", func() bool {
		got := scrape(t, cfg.Stats)
		connected, ok := got["consumer connected_brokers"]
		return ok && connected == 0 && got["consumer disconnects_total"] > before["consumer disconnects_total"]
	})
	poll(t, "no lag is known", func() bool { return len(c.Lag()) == 0 })
	if err := k.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	poll(t, "the lag again", func() bool {
		return len(c.Lag()) == 4 && scrape(t, cfg.Stats)["consumer connected_brokers"] == 1
	})
}

// A consumer without Stats reports no lag, and makes librdkafka report nothing.
func TestWithoutStats(t *testing.T) {
	t.Parallel()
	var none *Stats
	none.open(kindConsumer, "")
	none.close(kindConsumer, "")
	if none.millis() != 0 {
		t.Error("librdkafka is asked for statistics without Stats")
	}
	c := NewConsumer(config("127.0.0.1:1"), group("t"), nil, quiet)
	c.setLag(map[Partition]Lag{{}: {Records: 1}})
	if c.Lag() != nil || !c.LastPoll().IsZero() {
		t.Errorf("lag %v, last poll %s", c.Lag(), c.LastPoll())
	}
}
