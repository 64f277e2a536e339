package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// oneByOne is how many orders are sent one after the other, each when the last one is visible.
const oneByOne = 300

// visible measures how long after its answer an order can be looked up: one at a time, and at half of the rate that the whole system
// can take. The raw limit produces a message of the same bytes, consumes it and commits it to a bare SQLite, at the same rate.
func (b *bench) visible(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	dir, err := os.MkdirTemp(b.dir, "visible-")
	if err != nil {
		return err
	}
	cart, order, err := b.startBoth(ctx, dir, k.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(cart.stop(), order.stop()) }()
	raw, err := b.newRoundTrip(ctx, k.Addr, filepath.Join(dir, "raw"))
	if err != nil {
		return err
	}
	defer raw.close()

	capacity, err := b.capacity(ctx, cart, order)
	if err != nil {
		return fmt.Errorf("measure the capacity: %w", err)
	}
	half := capacity / 2
	progress("visible: the whole system takes %s, half of it is %s", perSecond.format(capacity), perSecond.format(half))

	rows := []row{
		{what: "one at a time, p50", unit: milliseconds}, {what: "one at a time, p99", unit: milliseconds},
		{what: "at half load, p50", unit: milliseconds, goal: goal{atMost: 2.5}}, {what: "at half load, p99", unit: milliseconds, goal: goal{atMost: 4}},
	}
	for n := range b.repeats {
		prefix := fmt.Sprintf("v%d-", n)
		ours := func(l *latencies) func(context.Context, int) error {
			client := newClient(1024) // a burst of arrivals must not have to connect
			return func(ctx context.Context, n int) error {
				return visibleOnce(ctx, client, cart, order, orderID(prefix, n), l)
			}
		}
		quiet()
		before := cart.cpu() + order.cpu()
		alone, loaded, err := measureBoth(ctx, half, b.span, ours)
		if err != nil {
			return err
		}
		cpu := perOrder(cart.cpu()+order.cpu()-before, len(alone.ms)+len(loaded.ms))
		quiet()
		rawAlone, rawLoaded, err := measureBoth(ctx, half, b.span, func(l *latencies) func(context.Context, int) error {
			return func(ctx context.Context, n int) error { return raw.once(ctx, prefix, n, l) }
		})
		if err != nil {
			return fmt.Errorf("raw: %w", err)
		}
		for i, r := range []struct {
			ours, raw *latencies
			p         float64
		}{{alone, rawAlone, 50}, {alone, rawAlone, 99}, {loaded, rawLoaded, 50}, {loaded, rawLoaded, 99}} {
			rows[i].ours, rows[i].raw = append(rows[i].ours, percentile(r.ours.ms, r.p)), append(rows[i].raw, percentile(r.raw.ms, r.p))
			if i >= 2 {
				rows[i].cpu = append(rows[i].cpu, cpu)
			}
		}
		progress("visible %d/%d: at half load p50 %s, p99 %s; raw %s, %s", n+1, b.repeats, milliseconds.format(rows[2].ours[n]),
			milliseconds.format(rows[3].ours[n]), milliseconds.format(rows[2].raw[n]), milliseconds.format(rows[3].raw[n]))
	}
	table(b.out, "Answered → visible", fmt.Sprintf(`From reading Cart's answer to a creation until Order has answered a look-up with it (sent at once, it waits with Prefer: wait), so one HTTP
round trip is in it. Half load: %s at a fixed rate, half of what the whole system, with both services, Kafka and the load on the same processors, accepts and shows per second.
Raw: librdkafka through its Go binding, produce → consume → one commit to a bare SQLite (synchronous=NORMAL, one transaction for all that is at hand), same bytes,
settings and rate. CPU: of both services, look-ups included.`, perSecond.format(half)), rows...)
	return nil
}

// measureBoth runs one call after the other first, then the open loop.
func measureBoth(ctx context.Context, rate float64, span time.Duration, calls func(*latencies) func(context.Context, int) error) (alone, loaded *latencies, err error) {
	alone, loaded = &latencies{}, &latencies{}
	do := calls(alone)
	for n := range oneByOne {
		if err := do(ctx, n); err != nil {
			return nil, nil, err
		}
	}
	do = calls(loaded)
	err = openLoop(ctx, rate, span, func(ctx context.Context, n int) error { return do(ctx, oneByOne+n) })
	return alone, loaded, err
}

func visibleOnce(ctx context.Context, client *http.Client, cart, order *service, id string, l *latencies) error {
	if err := create(ctx, client, cart.api, id); err != nil {
		return err
	}
	answered := time.Now()
	if err := awaitVisible(ctx, client, order, id, 1); err != nil {
		return err
	}
	l.add(time.Since(answered))
	return nil
}

// capacity is how many orders the whole system takes per second when it is given as many as it accepts: until the last one is applied.
func (b *bench) capacity(ctx context.Context, cart, order *service) (float64, error) {
	if _, _, err := b.closedLoop(ctx, cart.api, "warm-", b.span/2); err != nil {
		return 0, err
	}
	before, err := settled(ctx, cart, order)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	accepted, _, err := b.closedLoop(ctx, cart.api, "capacity-", b.span)
	if err != nil {
		return 0, err
	}
	err = order.awaitMetric(ctx, 5*time.Millisecond, "order_apply_batch_records_sum", func(applied float64) bool { return int(applied-before) >= accepted })
	return float64(accepted) / time.Since(begin).Seconds(), err
}

// settled waits until everything accepted is published and applied, and returns how many records that were.
func settled(ctx context.Context, cart, order *service) (applied float64, err error) {
	if err := cart.awaitMetric(ctx, 10*time.Millisecond, "cart_outbox_rows", func(rows float64) bool { return rows == 0 }); err != nil {
		return 0, err
	}
	acked, err := cart.metric(ctx, "cart_produce_ack_seconds_count")
	if err != nil {
		return 0, err
	}
	return acked, order.awaitMetric(ctx, 10*time.Millisecond, "order_apply_batch_records_sum", func(applied float64) bool { return applied >= acked })
}

// roundTrip is the raw limit: a producer, a consumer and a database, and as little between them as there can be.
type roundTrip struct {
	producer *kafka.Producer
	consumer *kafka.Consumer
	db       *rawDB
	stop     chan struct{}
	done     chan struct{}

	mu      sync.Mutex
	waiting map[string]chan struct{} // by key; closed when it is committed
	failed  error
}

func (b *bench) newRoundTrip(ctx context.Context, kafkaAddr, dir string) (*roundTrip, error) {
	db, err := b.openRaw(ctx, "order", dir, "NORMAL")
	if err != nil {
		return nil, err
	}
	r := &roundTrip{db: db, stop: make(chan struct{}), done: make(chan struct{}), waiting: map[string]chan struct{}{}}
	if r.producer, err = newRawProducer(kafkaAddr); err != nil {
		return nil, errors.Join(err, db.close())
	}
	if r.consumer, err = newRawConsumer(kafkaAddr); err == nil {
		_, err = assignAll(r.consumer, rawTopic, kafka.OffsetEnd)
	}
	if err != nil {
		r.producer.Close()
		return nil, errors.Join(err, db.close())
	}
	go func() {
		for range r.producer.Events() { // else the producer stands still
		}
	}()
	go r.consume()
	return r, nil
}

func (r *roundTrip) close() {
	close(r.stop)
	<-r.done
	r.consumer.Close()
	r.producer.Close()
	_ = r.db.close() // it is thrown away
}

// consume commits what is at hand in one transaction, until stop is closed.
func (r *roundTrip) consume() {
	defer close(r.done)
	var batch []orderRow
	for {
		select {
		case <-r.stop:
			return
		default:
		}
		wait := 100
		for len(batch) < batchRecords {
			m, ok := r.consumer.Poll(wait).(*kafka.Message)
			if !ok {
				break
			}
			wait = 0
			batch = append(batch, orderRow{id: string(m.Key), version: 1, eventID: string(m.Key), body: m.Value})
		}
		if len(batch) == 0 {
			continue
		}
		err := r.db.write(orderRows(batch))
		r.mu.Lock()
		r.failed = errors.Join(r.failed, err)
		for _, row := range batch {
			if done := r.waiting[row.id]; done != nil {
				close(done)
				delete(r.waiting, row.id)
			}
		}
		r.mu.Unlock()
		batch = batch[:0]
	}
}

func (r *roundTrip) once(ctx context.Context, prefix string, n int, l *latencies) error {
	m := event(prefix+strconv.Itoa(n), 1)
	done := make(chan struct{})
	r.mu.Lock()
	r.waiting[string(m.Key)] = done
	r.mu.Unlock()
	begin := time.Now()
	if err := r.producer.Produce(toKafka(rawTopic, m), nil); err != nil {
		return err
	}
	select {
	case <-done:
	case <-time.After(kafkaPatience):
		return fmt.Errorf("%s never came", m.Key)
	case <-ctx.Done():
		return ctx.Err()
	}
	l.add(time.Since(begin))
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}
