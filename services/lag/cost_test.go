package lag_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/lag"
)

const (
	benchGroups     = 1000
	benchPartitions = 12
	// benchRecords is the number of records of each partition.
	benchRecords = 5000
)

// BenchmarkCost measures what it costs to watch 1,000 groups of 12 partitions each, in one topic
// and in 100 topics.
//
//	go test ./services/lag -run '^$' -bench Cost -benchtime 50x
//
// Measured are a poll after the first one, with nothing moving and every second group behind; the
// first poll, which searches for the ages of all that is unread; and a scrape. With the flags of
// TestScenarios a scrape of the other tools is measured too, which asks the broker. The broker runs
// in a process of its own, so CPU and memory are those of the collector and the benchmark.
func BenchmarkCost(b *testing.B) {
	k, err := localkafka.Start(b.Context(), localkafka.Options{Dir: b.TempDir(), JVM: []string{"-Xmx1g"}})
	testenv.Require(b, err)
	b.Cleanup(k.Kill)
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(k.Addr))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(admin.Close)
	for _, topics := range []int{1, 100} {
		b.Run(fmt.Sprintf("topics=%d", topics), func(b *testing.B) {
			fill(b, k.Addr, admin, topics)
			l := &lab{tools: kafkaconfig.Client{Brokers: []string{k.Addr}}}
			b.Run("poll", func(b *testing.B) { benchmarkPoll(b, l.config(time.Millisecond, prefix(topics)), false) })
			b.Run("first", func(b *testing.B) { benchmarkPoll(b, l.config(time.Minute, prefix(topics)), true) })
			b.Run("scrape", func(b *testing.B) { benchmarkScrape(b, l.config(time.Minute, prefix(topics))) })
			for _, e := range startExporters(b, l.tools) {
				b.Run(e.name, func(b *testing.B) {
					var s *scrape
					for b.Loop() {
						if s = e.scrape(); s == nil {
							b.Fatal("no response")
						}
					}
					b.ReportMetric(float64(len(s.series)), "series")
				})
			}
		})
	}
}

func prefix(topics int) string { return fmt.Sprintf("of-%d-", topics) }

// fill creates topics with records, and groups that have committed: one half at the end, the others
// anywhere.
func fill(b *testing.B, addr string, admin *kadm.Client, topics int) {
	b.Helper()
	begin := time.Now()
	var all []string
	for i := range topics {
		all = append(all, fmt.Sprint(prefix(topics), i))
	}
	made, err := admin.CreateTopics(
		b.Context(),
		benchPartitions,
		1,
		map[string]*string{"message.timestamp.type": new("LogAppendTime")},
		all...)
	if err = errors.Join(err, made.Error()); err != nil {
		b.Fatal(err)
	}
	producer, err := kgo.NewClient(
		kgo.SeedBrokers(addr),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		// The broker learns of a topic after the controller.
		kgo.UnknownTopicRetries(100),
	)
	if err != nil {
		b.Fatal(err)
	}
	defer producer.Close()
	const batches = 50
	// The topics have as many records in all, however many topics there are.
	records := benchRecords / topics
	for range batches {
		var batch []*kgo.Record
		for _, t := range all {
			for p := range int32(benchPartitions) {
				for range records / batches {
					batch = append(batch, &kgo.Record{Topic: t, Partition: p, Value: []byte("value")})
				}
			}
		}
		if err := producer.ProduceSync(b.Context(), batch...).FirstErr(); err != nil {
			b.Fatal(err)
		}
		// Without pauses all records would be of the same age.
		time.Sleep(100 * time.Millisecond)
	}
	var committing sync.WaitGroup
	next := make(chan int)
	for range 8 {
		committing.Go(func() {
			for g := range next {
				var offsets kadm.Offsets
				for p := range int32(benchPartitions) {
					at := int64(records)
					if g%2 == 1 {
						at = rand.Int64N(int64(records))
					}
					offsets.AddOffset(all[g%topics], p, at, -1)
				}
				if err := admin.CommitAllOffsets(b.Context(), fmt.Sprint(prefix(topics), g), offsets); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for g := range benchGroups {
		next <- g
	}
	close(next)
	committing.Wait()
	b.Logf("made %d topics and %d groups in %v", topics, benchGroups, time.Since(begin).Round(time.Second))
}

// benchmarkPoll measures polls one right after the other, or the first poll of each of many
// collectors.
func benchmarkPoll(b *testing.B, cfg lag.Config, first bool) {
	b.ReportAllocs()
	var asked requests
	c, end := poll(b, cfg, &asked)
	if !first {
		<-c.Polled()
		asked.reset()
	}
	cpu := processCPU(b)
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		if first && i > 0 {
			end()
			c, end = poll(b, cfg, &asked)
		}
		<-c.Polled()
	}
	b.StopTimer()
	if err := c.Err(); err != nil {
		b.Fatal(err)
	}
	n := 0
	for _, g := range c.Snapshot().Groups {
		for _, t := range g.Topics {
			n += len(t.Partitions)
		}
	}
	if n != benchGroups*benchPartitions {
		b.Errorf("the snapshot has %d partitions", n)
	}
	b.ReportMetric(float64((processCPU(b)-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	b.ReportMetric(rss(b), "rss-MB")
	asked.report(b)
	end()
}

// poll runs a collector until end is called.
func poll(b *testing.B, cfg lag.Config, hooks ...kgo.Hook) (c *lag.Collector, end func()) {
	b.Helper()
	c, err := lag.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	c.SetHooks(hooks...)
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	return c, func() {
		cancel()
		running.Wait()
	}
}

// benchmarkScrape measures scrapes of one poll.
func benchmarkScrape(b *testing.B, cfg lag.Config) {
	b.ReportAllocs()
	c, end := poll(b, cfg)
	defer end()
	<-c.Polled()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	handler := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	cpu := processCPU(b)
	var w *httptest.ResponseRecorder
	for b.Loop() {
		w = httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
	b.ReportMetric(float64((processCPU(b)-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(w.Body.Len())/1e6, "MB")
	b.ReportMetric(float64(len(parseSeries(w.Body.Bytes()))), "series")
	b.ReportMetric(rss(b), "rss-MB")
	request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	request.Header.Set("Accept-Encoding", "gzip")
	w = httptest.NewRecorder()
	handler.ServeHTTP(w, request)
	b.ReportMetric(float64(w.Body.Len())/1e6, "gzip-MB")
	_, _ = io.Copy(io.Discard, w.Body)
}

// requests counts requests by API, and their bytes.
type requests struct {
	mu            sync.Mutex
	count         map[string]int
	written, read int
}

// OnBrokerE2E counts a request. The client calls it after each one.
func (r *requests) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil {
		r.count = make(map[string]int)
	}
	r.count[kmsg.NameForKey(key)]++
	r.written += e2e.BytesWritten
	r.read += e2e.BytesRead
}

func (r *requests) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count, r.written, r.read = nil, 0, 0
}

func (r *requests) report(b *testing.B) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for api, n := range r.count {
		b.ReportMetric(float64(n)/float64(b.N), api+"/op")
	}
	b.ReportMetric(float64(r.written)/1000/float64(b.N), "sent-kB/op")
	b.ReportMetric(float64(r.read)/1000/float64(b.N), "received-kB/op")
}

// processCPU returns the CPU time that this process has used.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// rss returns the resident memory of the process in MB, 0 where there is no /proc.
func rss(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if after, ok := strings.CutPrefix(lines.Text(), "VmRSS:"); ok {
			var kb float64
			if _, err := fmt.Sscan(after, &kb); err == nil {
				return kb / 1000
			}
		}
	}
	return 0
}
