package broker

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats makes metrics of what librdkafka says of the producer and the consumer of one Config. Clients of a kind follow one another,
// and the counters go on from one to the next. A client that has gone, or has said nothing for long, has no gauges: an old value would
// pass for the present one. No broker is a label: the worst of them is what matters.
//
// Make it with NewStats, register it, and put it into the Config, whose copies share it.
type Stats struct {
	every time.Duration

	mu      sync.Mutex
	clients map[string]*clients // by kind
}

// NewStats makes statistics that are renewed every five seconds.
func NewStats() *Stats { return &Stats{every: 5 * time.Second, clients: map[string]*clients{}} }

const (
	kindProducer = "producer"
	kindConsumer = "consumer"
)

// clients are those of one kind, one at a time.
type clients struct {
	counts                            // of all that there were
	last                counts        // of the present one, as of its last statistics
	throttled, rtt, out window        // of all, but the quantiles of the present one
	now                 *clientReport // nil when the present one has said nothing
	at                  time.Time     // of now
}

// counts grow during a client's life.
type counts struct {
	Requests      int64 `json:"tx"`
	Timeouts      int64 `json:"req_timeouts"`
	Retries       int64 `json:"txretries"`
	SendErrors    int64 `json:"txerrs"`
	ReceiveErrors int64 `json:"rxerrs"`
	Disconnects   int64 `json:"disconnects"`
}

func (c *counts) all() []*int64 {
	return []*int64{&c.Requests, &c.Timeouts, &c.Retries, &c.SendErrors, &c.ReceiveErrors, &c.Disconnects}
}

// window is how long something took since the statistics before, in microseconds.
type window struct {
	Count int64 `json:"cnt"`
	Sum   int64 `json:"sum"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`

	recent int64 // of Count, those of the last statistics
}

// clientReport is what is used of librdkafka's statistics. Not int_latency, the time in a producer's queue: librdkafka reckons it from
// the message's time-out, of which ours have none, and comes to the machine's uptime.
type clientReport struct {
	Messages    int64                      `json:"msg_cnt"`
	MaxMessages int64                      `json:"msg_max"`
	Bytes       int64                      `json:"msg_size"`
	MaxBytes    int64                      `json:"msg_size_max"`
	Brokers     map[string]brokerReport    `json:"brokers"`
	Topics      map[string]partitionReport `json:"topics"`
}

type brokerReport struct {
	counts
	ID        int64  `json:"nodeid"` // -1 for what is no broker: an address to begin with, the way to the group's coordinator
	State     string `json:"state"`
	Throttled window `json:"throttle"` // in milliseconds
	RTT       window `json:"rtt"`
	Out       window `json:"outbuf_latency"`
}

type partitionReport struct {
	Partitions map[int32]struct {
		Broker       int64 `json:"broker"` // that it is fetched from
		FetchRecords int64 `json:"fetchq_cnt"`
		FetchBytes   int64 `json:"fetchq_size"`
		Lag          int64 `json:"consumer_lag_stored"` // -1 when it is not known
	} `json:"partitions"`
}

// connected are the IDs of the brokers with a connection that can be used.
func (r *clientReport) connected() map[int64]bool {
	ids := make(map[int64]bool, len(r.Brokers))
	for _, b := range r.Brokers {
		if b.ID >= 0 && b.State == "UP" {
			ids[b.ID] = true
		}
	}
	return ids
}

// millis is a client's setting: without a Stats it says nothing.
func (s *Stats) millis() int {
	if s == nil {
		return 0
	}
	return int(s.every.Milliseconds())
}

// next forgets the client before: a new one begins, or none does.
func (s *Stats) next(kind string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[kind]
	if c == nil {
		c = &clients{}
		s.clients[kind] = c
	}
	c.last, c.now = counts{}, nil
}

// take takes what a client says.
func (s *Stats) take(kind, text string) (*clientReport, error) {
	now := &clientReport{}
	if err := json.Unmarshal([]byte(text), now); err != nil {
		return nil, fmt.Errorf("read librdkafka's statistics: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[kind].take(now, time.Now())
	return now, nil
}

func (c *clients) take(now *clientReport, at time.Time) {
	var sum counts
	var throttled, rtt, out window
	for _, b := range now.Brokers {
		for i, n := range b.all() {
			*sum.all()[i] += *n
		}
		throttled.join(b.Throttled)
		rtt.join(b.RTT)
		out.join(b.Out)
	}
	for i, n := range sum.all() {
		*c.all()[i] += max(0, *n-*c.last.all()[i]) // less when a broker has left the cluster
	}
	c.throttled.follow(throttled)
	c.rtt.follow(rtt)
	c.out.follow(out)
	c.last, c.now, c.at = sum, now, at
}

// join adds another broker's window; the slower one's quantiles count.
func (w *window) join(o window) {
	*w = window{Count: w.Count + o.Count, Sum: w.Sum + o.Sum, P50: max(w.P50, o.P50), P99: max(w.P99, o.P99)}
}

// follow adds the next window.
func (w *window) follow(o window) {
	*w = window{Count: w.Count + o.Count, Sum: w.Sum + o.Sum, P50: o.P50, P99: o.P99, recent: o.Count}
}

func clientDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("kafka_client_"+name, help, []string{"client"}, nil)
}

var (
	clientCounters = []*prometheus.Desc{ // as in counts
		clientDesc("requests_total", "Requests sent to brokers."),
		clientDesc("request_timeouts_total", "Requests that no broker answered in time."),
		clientDesc("request_retries_total", "Requests sent again after a failure that may pass."),
		clientDesc("send_errors_total", "Requests that could not be sent, as when a connection breaks."),
		clientDesc("receive_errors_total", "Answers that could not be read, as when a connection breaks."),
		clientDesc("disconnects_total", "Connections to brokers that ended, for whatever reason."),
	}
	clientThrottled = clientDesc("throttled_seconds_total", "Time in seconds for which brokers held answers back because of a quota.")
	clientRTT       = clientDesc("rtt_seconds", "From sending a request until its answer, in seconds; the quantiles are of the last seconds and the slowest broker. "+
		"A consumer's fetch waits up to 0.1 s at the broker when there is nothing to read.")
	clientOut       = clientDesc("outbuf_seconds", "From a request's making until it is written to the connection, in seconds; the quantiles are of the last seconds and the slowest broker.")
	clientConnected = clientDesc("connected_brokers", "Brokers with a connection that can be used. Connections are made when they are needed.")
	clientMessages  = clientDesc("queue_messages", "Messages handed over and not acknowledged.")
	clientFull      = clientDesc("queue_ratio", "How full the producer's queue is, by messages or by bytes, whichever is nearer to its limit: from 0 to 1, at which it takes none.")
	clientFetched   = clientDesc("fetch_queue_records", "Records fetched and not yet taken: many mean that the service is slower than Kafka, none together with a lag that Kafka is slower.")
	clientFetchedBy = clientDesc("fetch_queue_bytes", "Size in bytes of the records fetched and not yet taken.")
)

// Describe has nothing to say: which kinds of clients there are shows later.
func (s *Stats) Describe(chan<- *prometheus.Desc) {}

// Collect shows what was said last.
func (s *Stats) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, c := range s.clients {
		now := c.now
		if now != nil && time.Since(c.at) > 3*s.every {
			now = nil
		}
		counter := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, kind)
		}
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, kind)
		}
		summary := func(d *prometheus.Desc, w window) {
			var quantiles map[float64]float64
			if now != nil && w.recent > 0 {
				quantiles = map[float64]float64{0.5: seconds(w.P50), 0.99: seconds(w.P99)}
			}
			ch <- prometheus.MustNewConstSummary(d, uint64(w.Count), seconds(w.Sum), quantiles, kind)
		}
		for i, n := range c.all() {
			counter(clientCounters[i], float64(*n))
		}
		counter(clientThrottled, float64(c.throttled.Sum)/1e3)
		summary(clientRTT, c.rtt)
		summary(clientOut, c.out)
		if now == nil {
			continue
		}
		gauge(clientConnected, float64(len(now.connected())))
		if kind == kindProducer {
			gauge(clientMessages, float64(now.Messages))
			gauge(clientFull, max(float64(now.Messages)/float64(now.MaxMessages), float64(now.Bytes)/float64(now.MaxBytes)))
			continue
		}
		var records, bytes int64
		for _, t := range now.Topics {
			for _, p := range t.Partitions {
				records, bytes = records+p.FetchRecords, bytes+p.FetchBytes
			}
		}
		gauge(clientFetched, float64(records))
		gauge(clientFetchedBy, float64(bytes))
	}
}

func seconds(microseconds int64) float64 { return float64(microseconds) / 1e6 }
