package broker

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats makes metrics of librdkafka's statistics of the producers and the consumer of one Config.
// Clients of one kind share their metrics, and the counters continue when one follows another. A
// client that is closed, or has reported nothing for three intervals, has no part in the gauges: an
// old value would look like a present one. There is no label for brokers: what matters is the
// slowest one.
//
// Make it with NewStats, register it, and put it into the Config. The copies of that share it.
type Stats struct {
	// every is the interval at which clients report.
	every time.Duration

	mu sync.Mutex
	// clients are by kind.
	clients map[string]*clients
}

// NewStats returns statistics that are renewed every five seconds.
func NewStats() *Stats {
	return &Stats{every: 5 * time.Second, clients: map[string]*clients{}}
}

// These are the values of the label "client".
const (
	kindProducer = "producer"
	kindConsumer = "consumer"
)

// clients are the clients of one kind.
type clients struct {
	// counts and the windows are the sums over all clients, with those that are closed.
	counts
	throttled, rtt, out window
	// present are the clients that are not closed, by librdkafka's names.
	present map[string]*client
}

// client is the last report of a client.
type client struct {
	counts
	rtt, out window
	// report is nil before the first one.
	report *clientReport
	// at is when it was made.
	at time.Time
}

// counts grow during the life of a client. The tags of this and the other report types are
// librdkafka's names.
type counts struct {
	Requests      int64 `json:"tx"`
	Timeouts      int64 `json:"req_timeouts"`
	Retries       int64 `json:"txretries"`
	SendErrors    int64 `json:"txerrs"`
	ReceiveErrors int64 `json:"rxerrs"`
	Disconnects   int64 `json:"disconnects"`
}

// all returns the fields in the order of clientCounters.
func (c *counts) all() []*int64 {
	return []*int64{&c.Requests, &c.Timeouts, &c.Retries, &c.SendErrors, &c.ReceiveErrors, &c.Disconnects}
}

// window is how long something took since the report before, in microseconds.
type window struct {
	Count int64 `json:"cnt"`
	Sum   int64 `json:"sum"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
}

// clientReport is the part of librdkafka's statistics that is used. It lacks int_latency, the time
// in the queue of a producer: librdkafka computes it from the time-out of a message. Messages here
// have none, so the result would be the uptime of the machine.
type clientReport struct {
	// Name is that of the client.
	Name        string                     `json:"name"`
	Messages    int64                      `json:"msg_cnt"`
	MaxMessages int64                      `json:"msg_max"`
	Bytes       int64                      `json:"msg_size"`
	MaxBytes    int64                      `json:"msg_size_max"`
	Brokers     map[string]brokerReport    `json:"brokers"`
	Topics      map[string]partitionReport `json:"topics"`
}

type brokerReport struct {
	counts
	// ID is -1 for a connection to no particular broker: to a configured address, or to the
	// coordinator of a group.
	ID    int64  `json:"nodeid"`
	State string `json:"state"`
	// Throttled is in milliseconds, unlike the others.
	Throttled window `json:"throttle"`
	RTT       window `json:"rtt"`
	Out       window `json:"outbuf_latency"`
}

type partitionReport struct {
	Partitions map[int32]struct {
		// Broker is the ID of the one that it is fetched from.
		Broker       int64 `json:"broker"`
		FetchRecords int64 `json:"fetchq_cnt"`
		FetchBytes   int64 `json:"fetchq_size"`
		// Lag ends at the last stable offset. It is -1 when it is unknown.
		Lag int64 `json:"consumer_lag_stored"`
		// Stable is the last stable offset, and End is the high watermark.
		Stable int64 `json:"ls_offset"`
		End    int64 `json:"hi_offset"`
	} `json:"partitions"`
}

// connected returns the IDs of the brokers with a connection that can be used.
func (r *clientReport) connected() map[int64]bool {
	ids := make(map[int64]bool, len(r.Brokers))
	for _, b := range r.Brokers {
		if b.ID >= 0 && b.State == "UP" {
			ids[b.ID] = true
		}
	}
	return ids
}

// millis returns the interval for the setting of a client. Without a Stats it is 0, and clients
// report nothing.
func (s *Stats) millis() int {
	if s == nil {
		return 0
	}
	return int(s.every.Milliseconds())
}

// open takes a new client, by librdkafka's name.
func (s *Stats) open(kind, name string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[kind]
	if c == nil {
		c = &clients{present: map[string]*client{}}
		s.clients[kind] = c
	}
	c.present[name] = &client{}
}

// close forgets a client. Its counts stay.
func (s *Stats) close(kind, name string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients[kind].present, name)
}

// take takes the report of a client, a JSON text.
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

// take adds what has changed since the last report of the same client.
func (c *clients) take(now *clientReport, at time.Time) {
	from := c.present[now.Name]
	if from == nil {
		return
	}
	next := client{report: now, at: at}
	var throttled window
	for _, b := range now.Brokers {
		for i, n := range b.all() {
			*next.all()[i] += *n
		}
		throttled.join(b.Throttled)
		next.rtt.join(b.RTT)
		next.out.join(b.Out)
	}
	for i, n := range next.all() {
		// The sum is less than before when a broker has left the cluster.
		*c.all()[i] += max(0, *n-*from.all()[i])
	}
	c.throttled.join(throttled)
	c.rtt.join(next.rtt)
	c.out.join(next.out)
	*from = next
}

// join adds another window. The quantiles are those of the slower one.
func (w *window) join(o window) {
	*w = window{Count: w.Count + o.Count, Sum: w.Sum + o.Sum, P50: max(w.P50, o.P50), P99: max(w.P99, o.P99)}
}

func clientDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("kafka_client_"+name, help, []string{"client"}, nil)
}

var (
	// clientCounters are in the order of counts.all.
	clientCounters = []*prometheus.Desc{
		clientDesc("requests_total", "Requests sent to brokers."),
		clientDesc("request_timeouts_total", "Requests without a response in time."),
		clientDesc("request_retries_total", "Requests sent again after a failure that may pass."),
		clientDesc("send_errors_total", "Requests that could not be sent, as when a connection breaks."),
		clientDesc("receive_errors_total", "Responses that could not be read, as when a connection breaks."),
		clientDesc("disconnects_total", "Connections to brokers that ended, for any reason."),
	}
	clientThrottled = clientDesc("throttled_seconds_total",
		"Time in seconds for which brokers delayed responses because of a quota.")
	clientRTT = clientDesc("rtt_seconds",
		"Time in seconds from sending a request to its response. "+
			"The quantiles are of the last seconds and the slowest broker. "+
			"A consumer's fetch waits up to 0.1 s at the broker when there is nothing to read.")
	clientOut = clientDesc("outbuf_seconds",
		"Time in seconds from making a request to writing it to the connection. "+
			"The quantiles are of the last seconds and the slowest broker.")
	clientConnected = clientDesc("connected_brokers",
		"Brokers with a connection of a client that can be used. Connections are made when they are needed.")
	clientMessages = clientDesc("queue_messages",
		"Messages handed over and not acknowledged.")
	clientFull = clientDesc("queue_ratio",
		"How full the fullest queue of a producer is, by messages or by bytes, whichever is nearer to its limit: "+
			"from 0 to 1. At 1 it accepts no more.")
	clientFetched = clientDesc("fetch_queue_records",
		"Records fetched and not yet processed. Many mean that the service is slower than Kafka; "+
			"none together with a lag mean that Kafka is slower.")
	clientFetchedBytes = clientDesc("fetch_queue_bytes",
		"Size in bytes of the records fetched and not yet processed.")
)

// Describe sends nothing: which kinds of clients there are is not known yet.
func (s *Stats) Describe(chan<- *prometheus.Desc) {}

// Collect sends the sums of the reports, and the gauges of the last ones.
func (s *Stats) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, c := range s.clients {
		counter := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, kind)
		}
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, kind)
		}
		summary := func(d *prometheus.Desc, all, last window) {
			var quantiles map[float64]float64
			if last.Count > 0 {
				quantiles = map[float64]float64{0.5: seconds(last.P50), 0.99: seconds(last.P99)}
			}
			ch <- prometheus.MustNewConstSummary(d, uint64(all.Count), seconds(all.Sum), quantiles, kind)
		}
		last, rtt, out := c.last(3 * s.every)
		for i, n := range c.all() {
			counter(clientCounters[i], float64(*n))
		}
		counter(clientThrottled, float64(c.throttled.Sum)/1e3)
		summary(clientRTT, c.rtt, rtt)
		summary(clientOut, c.out, out)
		if len(last) == 0 {
			continue
		}
		connected := map[int64]bool{}
		var messages, records, bytes int64
		var full float64
		for _, r := range last {
			maps.Copy(connected, r.connected())
			messages += r.Messages
			if kind == kindProducer {
				full = max(full, float64(r.Messages)/float64(r.MaxMessages), float64(r.Bytes)/float64(r.MaxBytes))
			}
			for _, t := range r.Topics {
				for _, p := range t.Partitions {
					records, bytes = records+p.FetchRecords, bytes+p.FetchBytes
				}
			}
		}
		gauge(clientConnected, float64(len(connected)))
		if kind == kindProducer {
			gauge(clientMessages, float64(messages))
			gauge(clientFull, full)
			continue
		}
		gauge(clientFetched, float64(records))
		gauge(clientFetchedBytes, float64(bytes))
	}
}

// last returns the last reports of the present clients that are not older than maxAge, and their
// windows together.
func (c *clients) last(maxAge time.Duration) (reports []*clientReport, rtt, out window) {
	for _, p := range c.present {
		if p.report != nil && time.Since(p.at) <= maxAge {
			reports = append(reports, p.report)
			rtt.join(p.rtt)
			out.join(p.out)
		}
	}
	return reports, rtt, out
}

func seconds(microseconds int64) float64 { return float64(microseconds) / 1e6 }
