package order

import (
	"errors"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/testenv"
)

// observed is what a histogram has.
type observed struct {
	Count     uint64
	Sum       float64
	Exemplars map[float64]string // by value
}

func histogram(t testing.TB, m prometheus.Metric) observed {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	h := d.GetHistogram()
	got := observed{h.GetSampleCount(), h.GetSampleSum(), map[float64]string{}}
	for _, b := range h.GetBucket() {
		if e := b.GetExemplar(); e != nil {
			got.Exemplars[e.GetValue()] = labels(e.GetLabel())
		}
	}
	if len(h.GetPositiveSpan())+len(h.GetNegativeSpan()) == 0 && h.GetZeroCount() == 0 {
		t.Errorf("%s is no native histogram as well", m.Desc())
	}
	return got
}

func labels(pairs []*dto.LabelPair) string {
	var all []string
	for _, l := range pairs {
		all = append(all, l.GetName()+"="+l.GetValue())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// A batch counts at its end, each record with its own age, and the slowest leads to its record.
func TestMetricsOfABatch(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	c.mustAssign(t, one(contract.TopicCreated, 0), one(contract.TopicUpdated, 0))
	times := []time.Time{at.Add(10 * time.Second), at.Add(11 * time.Second), at.Add(16 * time.Second)} // a failure, a begin, an end
	c.now = func() time.Time {
		now := times[0]
		times = times[1:]
		return now
	}
	early := contract.Event{ID: "b2", Type: contract.TypeUpdated, Time: at.Add(-4 * time.Second), Order: anOrder("B", 2, "b2")}
	m, err := early.Message()
	if err != nil {
		t.Fatal(err)
	}
	records := []broker.Record{
		event(t, "A", 1, "a1"), event(t, "A", 2, "a2"), {Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: m.Headers},
		event(t, "C", 2, "c2"), event(t, "A", 1, "a1"), raw(contract.TopicUpdated, "bad", "broken"),
	}
	for i, ago := range []time.Duration{16 * time.Second, 17 * time.Second, 14 * time.Second, 13 * time.Second, -time.Minute, 0} {
		records[i].Offset, records[i].Time = int64(i), at.Add(16*time.Second-ago) // one by a clock that is ahead
	}
	records[5].Time = time.Time{} // one without a time
	letters := c.store.maxLetters
	c.store.maxLetters = 0
	if err := c.Apply(t.Context(), batch(records...)); !errors.Is(err, errLettersFull) {
		t.Fatal(err)
	}
	c.store.maxLetters = letters
	c.mustApply(t, batch(records...))

	for name, check := range map[string]struct {
		h    prometheus.Histogram
		want observed
	}{
		"order_event_age_seconds":   {c.metrics.age, observed{5, 16 + 17 + 14 + 13 + 0, map[float64]string{17: "offset=1 partition=0 topic=order-updated-topic"}}},
		"order_visible_seconds":     {c.metrics.visible, observed{3, 16 + 20 + 16, map[float64]string{20: "offset=2 partition=0 topic=order-updated-topic"}}},
		"order_apply_seconds":       {c.metrics.applySeconds, observed{1, 5, map[float64]string{}}},
		"order_apply_batch_records": {c.metrics.batchRecords, observed{1, 6, map[float64]string{}}},
	} {
		if diff := cmp.Diff(check.want, histogram(t, check.h)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got := count(t, c.metrics.applyFailures); got != 1 {
		t.Errorf("order_apply_failures_total is %v, want 1", got)
	}
}

// A longer exemplar makes client_golang panic.
func TestExemplarsAreShortEnough(t *testing.T) {
	t.Parallel()
	for _, topic := range contract.Topics() {
		runes := 0
		for name, value := range exemplar(&broker.Record{Topic: topic.Name, Partition: math.MaxInt32, Offset: math.MaxInt64, Key: []byte("order")}) {
			runes += utf8.RuneCountInString(name) + utf8.RuneCountInString(value)
		}
		if runes > prometheus.ExemplarMaxRunes {
			t.Errorf("%s: %d runes, at most %d are allowed", topic.Name, runes, prometheus.ExemplarMaxRunes)
		}
	}
}

// What the consumer does not know is not shown, rather than as 0 or -1.
func TestMetricsOfAConsumerThatHasNotBegun(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{"127.0.0.1:1"}}, Stats: broker.NewStats()}
	reg.MustRegister(memberMetrics{broker.NewConsumer(cfg, broker.ConsumerConfig{}, nil, slog.New(slog.DiscardHandler))})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
	}
	if diff := cmp.Diff(map[string]float64{"order_assigned_partitions": 0, "order_consumer_failing": 0, "order_rebalances_total": 0}, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// What Prometheus gets of a service that works.
func TestMetricsOfTheService(t *testing.T) {
	t.Parallel()
	for name, kafka := range map[string]func(t *testing.T) string{
		"fake":  func(t *testing.T) string { return testenv.Fake(t) },
		"kafka": func(t *testing.T) string { return testenv.SharedKafka(t).Addr },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := kafka(t)
			s := start(t, addr, t.TempDir())
			s.ready(t)
			id := "exemplary-" + name
			testenv.Produce(t, addr, message(t, id, 1, "e1"))
			if got := s.details(t, "orderId="+id); got.Status != 200 {
				t.Errorf("%+v", got)
			}
			var page string
			scraped := func(pattern string) func() bool {
				re := regexp.MustCompile("(?m)^" + pattern)
				return func() bool {
					got := get(t, s.ops+"/metrics", "Accept", "application/openmetrics-text")
					page = got.Body
					return got.Status == 200 && re.MatchString(page)
				}
			}
			const number = `[0-9.e+-]+`
			const exemplar = `# \{((topic="order-(created|updated)-topic"|partition="[0-9]+"|offset="[0-9]+"),?){3}\} ` + number + ` ` + number + `$`
			for _, pattern := range []string{
				`order_event_age_seconds_bucket\{le="[^"]+"\} [0-9]+ ` + exemplar,
				`order_visible_seconds_bucket\{le="[^"]+"\} [0-9]+ ` + exemplar,
				`order_consumer_lag\{partition="11",topic="order-updated-topic"\} 0(\.0)?$`,
				`order_last_poll_timestamp_seconds 1\.[0-9]+e\+09$`,
				`order_assigned_partitions 24(\.0)?$`,
				`order_rebalances_total [1-9]`,
				`service_ready 1(\.0)?$`,
				`order_outbox_rows 0(\.0)?$`,
				`order_outbox_oldest_seconds 0(\.0)?$`,
				`kafka_client_connected_brokers\{client="consumer"\} 1(\.0)?$`,
				`kafka_client_connected_brokers\{client="producer"\} 1(\.0)?$`,
				`kafka_client_rtt_seconds\{client="consumer",quantile="0.99"\} 0\.`,
				`http_request_duration_seconds_bucket\{code="200",method="GET",route="/order/order-details",le="0\.0005"\}`,
			} {
				eventually(t, pattern, scraped(pattern))
			}
			if lags := strings.Count(page, "\norder_consumer_lag{"); lags != 24 {
				t.Errorf("%d series of order_consumer_lag, want 24", lags)
			}
			if strings.Contains(page, id) || strings.Contains(page, addr) {
				t.Error("an order's ID or a broker's address is in a metric")
			}
			// Without a word on exemplars there are none: the plain format has no room for them.
			if got := get(t, s.ops+"/metrics"); strings.Contains(got.Body, " # {") {
				t.Error("exemplars in the plain format")
			}
		})
	}
}
