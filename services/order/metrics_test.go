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
	"ordersystem.dev/services/order/ordertest"
)

// sample is what a histogram has.
type sample struct {
	Count     uint64
	Sum       float64
	Exemplars map[float64]string // by value
}

func histogram(t testing.TB, m prometheus.Metric) sample {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	h := d.GetHistogram()
	got := sample{h.GetSampleCount(), h.GetSampleSum(), map[float64]string{}}
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

// A batch counts after its commit, each record with its own age. The exemplar leads to the slowest.
func TestMetricsOfABatch(t *testing.T) {
	t.Parallel()
	c := member(t, t.TempDir())
	c.mustAssign(t, ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0))
	// The batch that fails begins at 10 s. The one that succeeds begins at 11 s and ends at 16 s.
	at := func(s time.Duration) time.Time { return ordertest.At.Add(s * time.Second) }
	times := []time.Time{at(10), at(11), at(16)}
	c.now = func() time.Time {
		now := times[0]
		times = times[1:]
		return now
	}
	early := contract.Event{ID: "b2", Type: contract.TypeUpdated, Time: at(-4), Order: ordertest.Order("B", 2, "b2")}
	m, err := early.Message()
	if err != nil {
		t.Fatal(err)
	}
	records := []broker.Record{
		ordertest.Event(t, "A", 1, "a1"), ordertest.Event(t, "A", 2, "a2"),
		{Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: m.Headers},
		ordertest.Event(t, "C", 2, "c2"), ordertest.Event(t, "A", 1, "a1"),
		ordertest.Raw(contract.TopicUpdated, "bad", "broken"),
	}
	// One is from a clock that is ahead by a minute, and the last has no time.
	for i, seconds := range []time.Duration{16, 17, 14, 13, -60} {
		records[i].Time = at(16 - seconds)
	}
	records[5].Time = time.Time{}
	for i := range records {
		records[i].Offset = int64(i)
	}
	letters := c.store.maxLetters
	c.store.maxLetters = 0
	if err := c.Apply(t.Context(), batch(records...)); !errors.Is(err, errLettersFull) {
		t.Fatal(err)
	}
	c.store.maxLetters = letters
	c.mustApply(t, batch(records...))

	for name, check := range map[string]struct {
		histogram prometheus.Histogram
		want      sample
	}{
		"order_event_age_seconds": {c.metrics.age, sample{
			5, 16 + 17 + 14 + 13 + 0, map[float64]string{17: "offset=1 partition=0 topic=order-updated-topic"},
		}},
		"order_visible_seconds": {c.metrics.visible, sample{
			3, 16 + 20 + 16, map[float64]string{20: "offset=2 partition=0 topic=order-updated-topic"},
		}},
		"order_apply_seconds":       {c.metrics.applySeconds, sample{1, 5, map[float64]string{}}},
		"order_apply_batch_records": {c.metrics.batchRecords, sample{1, 6, map[float64]string{}}},
	} {
		if diff := cmp.Diff(check.want, histogram(t, check.histogram)); diff != "" {
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
		r := broker.Record{Topic: topic.Name, Partition: math.MaxInt32, Offset: math.MaxInt64, Key: []byte("order")}
		for name, value := range exemplar(&r) {
			runes += utf8.RuneCountInString(name) + utf8.RuneCountInString(value)
		}
		if runes > prometheus.ExemplarMaxRunes {
			t.Errorf("%s: %d runes, at most %d are allowed", topic.Name, runes, prometheus.ExemplarMaxRunes)
		}
	}
}

// A value that the consumer does not know is absent. It is not 0 or -1.
func TestMetricsOfAConsumerThatHasNotBegun(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{"127.0.0.1:1"}}, Stats: broker.NewStats()}
	consumer := broker.NewConsumer(cfg, broker.ConsumerConfig{}, nil, slog.New(slog.DiscardHandler))
	reg.MustRegister(memberMetrics{consumer, &sharing{}})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
	}
	want := map[string]float64{
		"order_assigned_partitions": 0, "order_partitions_elsewhere": 0, "order_consumer_failing": 0,
		"order_rebalances_total": 0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// The metrics of a service that works, as Prometheus gets them.
func TestMetricsOfTheService(t *testing.T) {
	t.Parallel()
	for name, kafka := range map[string]func(t *testing.T) string{
		"fake":  func(t *testing.T) string { return testenv.Fake(t) },
		"kafka": declaredKafka,
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
			const exemplar = `# \{((topic="order-(created|updated)-topic"|partition="[0-9]+"|offset="[0-9]+"),?){3}\}` +
				` ` + number + ` ` + number + `$`
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
				`http_request_duration_seconds_bucket\{code="200",method="GET",` +
					`route="/order/order-details",le="0\.0005"\}`,
			} {
				ordertest.Eventually(t, pattern, scraped(pattern))
			}
			if lags := strings.Count(page, "\norder_consumer_lag{"); lags != 24 {
				t.Errorf("%d series of order_consumer_lag, want 24", lags)
			}
			if strings.Contains(page, id) || strings.Contains(page, addr) {
				t.Error("an order's ID or a broker's address is in a metric")
			}
			// The plain format has no room for exemplars.
			if got := get(t, s.ops+"/metrics"); strings.Contains(got.Body, " # {") {
				t.Error("exemplars in the plain format")
			}
		})
	}
}
