package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"golang.org/x/sync/errgroup"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
)

const (
	settle          = 2 * time.Second // from the assignment, or from subscribing to topics that are not there, to the first event
	eventPatience   = 400 * time.Second
	defaultRefresh  = "5 min"
	declaredTopics  = "declared beforehand"
	automaticTopics = "made by the first event"
)

// deployment is one way to set topics and consumers up.
type deployment struct {
	topics   string // declaredTopics or automaticTopics
	protocol string // of the group: classic, or consumer for KIP-848
}

// delays are those of one fresh deployment, in milliseconds: from handing an event to the producer until the consumer has it.
type delays struct{ first, second, later float64 }

// firstEvent measures the delay that this project removes: a consumer of two topics, as the reference system has it, with the clients'
// and the broker's default settings, and then this system. The long waits are idle, so all deployments wait at the same time.
func (b *bench) firstEvent(ctx context.Context) error {
	defaults := map[string]string{"auto.create.topics.enable": "true"}
	for name := range localkafka.BrokerSettings() {
		if _, set := defaults[name]; !set {
			defaults[name] = "" // Kafka's own
		}
	}
	dir, err := os.MkdirTemp(b.dir, "kafka-")
	if err != nil {
		return err
	}
	k, err := localkafka.Start(ctx, localkafka.Options{Dir: dir, JVM: brokerJVM, Settings: defaults})
	if err != nil {
		return err
	}
	defer k.Stop()
	// The group's coordinator makes its topic when it is first asked, which is no part of this.
	if _, err := deploy(ctx, k.Addr, deployment{declaredTopics, "classic"}, "warm-up"); err != nil {
		return err
	}

	all := []deployment{{automaticTopics, "classic"}, {automaticTopics, "consumer"}, {declaredTopics, "classic"}, {declaredTopics, "consumer"}}
	results := make(map[deployment][]delays)
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	for i, d := range all {
		for n := range b.repeats {
			g.Go(func() error {
				// One after the other, that no two start at once.
				if !pause(gctx, time.Duration(n*len(all)+i)*time.Second) {
					return gctx.Err()
				}
				got, err := deploy(gctx, k.Addr, d, fmt.Sprintf("%s-%d-%d", d.protocol, i, n))
				if err != nil {
					return fmt.Errorf("topics %s, protocol %s: %w", d.topics, d.protocol, err)
				}
				mu.Lock()
				defer mu.Unlock()
				results[d] = append(results[d], got)
				progress("first-event: topics %s, protocol %s: first topic %s, second topic %s, later %s", d.topics, d.protocol,
					milliseconds.format(got.first), milliseconds.format(got.second), milliseconds.format(got.later))
				return nil
			})
		}
	}
	var system []coldStart
	g.Go(func() error {
		if !pause(gctx, time.Duration(b.repeats*len(all)+5)*time.Second) { // the others only wait by then
			return gctx.Err()
		}
		for n := range b.repeats {
			got, err := b.coldStart(gctx)
			if err != nil {
				return fmt.Errorf("this system: %w", err)
			}
			system = append(system, got)
			progress("first-event: this system %d/%d: ready %s, first creation %s, first update %s", n+1, b.repeats,
				milliseconds.format(got.ready), milliseconds.format(got.creation), milliseconds.format(got.update))
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	b.printFirstEvent(all, results, system)
	return nil
}

// deploy sets a fresh pair of topics up, with a consumer, and sends the first event of each, one after the other, and one more.
func deploy(ctx context.Context, addr string, d deployment, name string) (got delays, err error) {
	topics := []string{"created-" + name, "updated-" + name}
	if d.topics == declaredTopics {
		like := contract.Topics()[0]
		for _, topic := range topics {
			if err := localkafka.CreateTopics(ctx, addr, []contract.Topic{{Name: topic, Partitions: like.Partitions, Config: like.Config}}, 1); err != nil {
				return delays{}, err
			}
		}
	}
	consumer, err := kafka.NewConsumer(&kafka.ConfigMap{"bootstrap.servers": addr, "group.id": name, "group.protocol": d.protocol, "auto.offset.reset": "earliest"})
	if err != nil {
		return delays{}, err
	}
	seen := make(chan string, 16)
	stop := make(chan struct{})
	assigned := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- follow(consumer, topics, d, assigned, seen, stop) }()
	defer func() {
		close(stop)
		err = errors.Join(err, <-done)
	}()

	producer, err := kafka.NewProducer(&kafka.ConfigMap{"bootstrap.servers": addr, "acks": "all", "enable.idempotence": true})
	if err != nil {
		return delays{}, err
	}
	defer producer.Close()
	select { // a fair start: whoever can be assigned before the first event is, and settles
	case <-assigned:
	case err := <-done:
		done <- nil
		return delays{}, err
	case <-ctx.Done():
		return delays{}, ctx.Err()
	}
	pause(ctx, settle)

	for i, into := range []*float64{&got.first, &got.second, &got.later} {
		took, err := send(ctx, producer, topics[min(i, 1)], seen)
		if err != nil {
			return delays{}, err
		}
		*into = float64(took) / float64(time.Millisecond)
	}
	return got, nil
}

// follow consumes until stop is closed. It closes assigned once all topics that exist are assigned.
func follow(c *kafka.Consumer, topics []string, d deployment, assigned chan<- struct{}, seen chan<- string, stop <-chan struct{}) error {
	defer c.Close()
	if err := c.SubscribeTopics(topics, nil); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	waiting := true
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if waiting {
			parts, err := c.Assignment()
			if err != nil {
				return fmt.Errorf("ask for the assignment: %w", err)
			}
			if d.topics == automaticTopics || len(parts) == len(topics)*contract.Topics()[0].Partitions {
				waiting = false
				close(assigned)
			}
		}
		if m, ok := c.Poll(50).(*kafka.Message); ok && m.TopicPartition.Error == nil {
			seen <- string(m.Value)
		}
	}
}

// send sends one event and returns how long it took until the consumer had it.
func send(ctx context.Context, p *kafka.Producer, topic string, seen <-chan string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, eventPatience)
	defer cancel()
	value := fmt.Sprintf("%s %d", topic, time.Now().UnixNano())
	begin := time.Now()
	message := toKafka(topic, contract.Message{Key: []byte("order"), Value: []byte(value)})
	if err := p.Produce(message, nil); err != nil {
		return 0, fmt.Errorf("produce: %w", err)
	}
	for {
		select {
		case e := <-p.Events():
			if m, ok := e.(*kafka.Message); ok && m.TopicPartition.Error != nil {
				return 0, fmt.Errorf("deliver: %w", m.TopicPartition.Error)
			}
		case got := <-seen:
			if got == value {
				return time.Since(begin), nil
			}
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the event: %w", ctx.Err())
		}
	}
}

// coldStart is a first start of this system: nothing but Kafka with its declared topics is there. In milliseconds.
type coldStart struct {
	ready    float64 // from starting the programs until both are ready
	creation float64 // from sending the first creation until a look-up shows it
	update   float64 // likewise of the first update
	later    float64 // likewise of another update
	whole    float64 // from starting the programs until the first update is visible
}

func (b *bench) coldStart(ctx context.Context) (c coldStart, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp(b.dir, "cold-")
	if err != nil {
		return c, err
	}
	k, err := localkafka.Start(ctx, localkafka.Options{Dir: dir + "/kafka", JVM: brokerJVM})
	if err != nil {
		return c, err
	}
	defer k.Stop()
	if err := localkafka.CreateTopics(ctx, k.Addr, contract.Topics(), 1); err != nil {
		return c, err
	}
	// As for the others: the system is new, Kafka is not. One that has never given out a producer ID refuses the first request for
	// one, and librdkafka asks again half a second later.
	if _, err := deploy(ctx, k.Addr, deployment{declaredTopics, "classic"}, "warm-up"); err != nil {
		return c, err
	}
	begin := time.Now()
	cart, order, err := b.startBoth(ctx, dir, k.Addr)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, cart.stop(), order.stop()) }()
	since := func(t time.Time) float64 { return float64(time.Since(t)) / float64(time.Millisecond) }
	c.ready = since(begin)
	const id = "first-order"
	for version, into := range []*float64{&c.creation, &c.update, &c.later} {
		sent := time.Now()
		method, path, body := http.MethodPost, "/order/create-order", orderBody(id)
		if version > 0 {
			method, path, body = http.MethodPut, "/order/update-order", fmt.Sprintf(`{"orderId": %q, "status": "status %d"}`, id, version)
		}
		if err := ask(ctx, http.DefaultClient, method, cart.api+path, strings.NewReader(body), ""); err != nil {
			return c, err
		}
		if err := awaitVisible(ctx, http.DefaultClient, order, id, version+1); err != nil {
			return c, err
		}
		*into = since(sent)
		if version == 1 {
			c.whole = since(begin)
		}
	}
	return c, nil
}

func (b *bench) printFirstEvent(all []deployment, results map[deployment][]delays, system []coldStart) {
	column := func(d deployment, of func(delays) float64) spread {
		var xs []float64
		for _, r := range results[d] {
			xs = append(xs, of(r))
		}
		return spreadOf(xs)
	}
	cell := milliseconds.formatSpread
	first := func(d delays) float64 { return d.first }
	second := func(d delays) float64 { return d.second }
	fmt.Fprintf(b.out, `
### The first event of a new deployment

From handing an event to the producer until a consumer of both topics has it: median (min–max) of %d fresh deployments of each kind, with the clients' and the broker's
default settings. The event for the second topic is sent when the first topic's has come. A classic consumer finds a topic that appears later only when it
refreshes its metadata, every %s.

| topics | group protocol | first event, first topic | first event, second topic | any later event |
| --- | --- | --- | --- | --- |
`, b.repeats, defaultRefresh)
	names := map[string]string{"classic": "classic", "consumer": "KIP-848"}
	for _, d := range all {
		fmt.Fprintf(b.out, "| %s | %s | %s | %s | %s |\n", d.topics, names[d.protocol], cell(column(d, first)), cell(column(d, second)), cell(column(d, func(d delays) float64 { return d.later })))
	}
	var xs [5][]float64
	for _, c := range system {
		for i, x := range []float64{c.ready, c.creation, c.update, c.later, c.whole} {
			xs[i] = append(xs[i], x)
		}
	}
	fmt.Fprintf(b.out, `
This system, from a cold start on declared topics (from sending the request over HTTP to Cart until a look-up over HTTP at Order shows it):

| both services started → ready | first creation → visible | first update → visible | next update → visible | started → first update visible |
| --- | --- | --- | --- | --- |
|`)
	for _, x := range xs {
		fmt.Fprintf(b.out, " %s |", cell(spreadOf(x)))
	}
	b.printTargets(column(deployment{automaticTopics, "classic"}, second), column(deployment{declaredTopics, "classic"}, second), spreadOf(xs[1]), spreadOf(xs[2]))
}

// printTargets compares the second topic's first event, made by it and read by the classic protocol, with those of declared topics.
func (b *bench) printTargets(dynamic, declared, creation, update spread) {
	fmt.Fprint(b.out, "\n\n| target | result: median (least–most) | |\n| --- | --- | --- |\n")
	for _, against := range []struct {
		what  string
		other spread
	}{{"topics declared beforehand, the same clients", declared}, {"this system's first update, HTTP to HTTP", update}} {
		r := dynamic.median / against.other.median
		fmt.Fprintf(b.out, "| first event of a second topic, dynamic and classic, against %s | %s × (%s–%s) sooner | %s |\n", against.what,
			number(r), number(dynamic.low/against.other.high), number(dynamic.high/against.other.low), goal{atLeast: 100}.format(r))
	}
	fmt.Fprintf(b.out, "| this system's very first event, in ms | %s | %s |\n", milliseconds.formatSpread(creation), goal{atMost: 100}.format(creation.median))
}

// pause waits, and says whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
