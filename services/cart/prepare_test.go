package cart

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/service"
	"ordersystem.dev/services/internal/testenv"
)

// newPreparation is that of a new store and a fake Kafka without records.
func newPreparation(t *testing.T) *preparation {
	t.Helper()
	c, _ := running(t, t.TempDir(), 100)
	log := slog.New(slog.DiscardHandler)
	cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{testenv.Fake(t)}}}
	admin, err := broker.NewAdmin(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	r := newReconciler(cfg, admin, c.store, log, prometheus.NewRegistry())
	r.end()
	return &preparation{
		kafka: cfg, admin: admin, store: c.store, reconciler: r,
		doubtful: newDoubtful(prometheus.NewRegistry()), log: log,
	}
}

// If the service were ready for an instant, it would get requests that it has to refuse.
func TestANewStoreIsNotReadyBeforeItIsRebuilt(t *testing.T) {
	t.Parallel()
	p := newPreparation(t)

	var reasons []error
	if err := p.fill(t.Context(), func(reason error) { reasons = append(reasons, reason) }); err != nil {
		t.Fatal(err)
	}
	for i, reason := range reasons {
		if reason == nil {
			t.Errorf("reason %d is nil, which makes the service ready before the end of the rebuild: %v", i, reasons)
		}
	}
	// A machine that stalls makes Kafka look unreachable at first.
	seen := slices.IndexFunc(reasons, func(reason error) bool {
		_, unreachable := errors.AsType[*broker.UnreachableError](reason)
		return !unreachable
	})
	if seen < 0 || !errors.Is(reasons[seen], errRebuilding) {
		t.Errorf("reasons are %v, want %v from the moment on that the topics are there", reasons, errRebuilding)
	}
}

func TestAServiceIsReadyOnlyAfterItsAPIIsOpen(t *testing.T) {
	t.Parallel()
	p := newPreparation(t)

	for _, store := range []string{"new", "whole"} {
		var ready service.Readiness
		p.reconciler.whole = make(chan struct{})
		opened := 0
		err := p.run(t.Context(), &ready, func() {
			if opened++; ready.Err() == nil {
				t.Errorf("%s store: ready before the API is open", store)
			}
		})
		if err != nil || ready.Err() != nil || opened != 1 {
			t.Errorf("%s store: run returns %v, readiness is %v, the API was opened %d times; want it open and ready",
				store, err, ready.Err(), opened)
		}
	}
}

// The topics exist and Kafka goes away while they are read.
func TestARebuildThatWaitsForKafkaShowsIt(t *testing.T) {
	kafkaDir := t.TempDir()
	kafka, err := fakekafka.New(kafkaDir, 0)
	if err != nil {
		t.Fatal(err)
	}
	addr := kafka.ListenAddrs()[0]
	testenv.Produce(t, addr, event(t, "a", 1))
	fetched := testenv.MuteFetches(kafka)
	s := start(t, filepath.Join(t.TempDir(), "cart"), addr)
	<-fetched
	s.until(t, s.ops+"/readyz", 503, errRebuilding.Error())
	kafka.Close()
	s.until(t,
		s.ops+"/readyz", 503,
		errRebuilding.Error()+": waiting for Kafka: describe topics: Kafka is unreachable at "+addr)

	port := netip.MustParseAddrPort(addr).Port()
	kafka, err = fakekafka.New(kafkaDir, int(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	s.until(t, s.ops+"/readyz", 200, "ready")
}

// Nothing is published before the store is compared with the topics, and a transaction of another program hangs
// there.
func TestAComparisonThatWaitsForATransactionShowsIt(t *testing.T) {
	kafka := testenv.Fake(t)
	dir := filepath.Join(t.TempDir(), "cart")
	s := start(t, dir, kafka)
	s.until(t, s.ops+"/readyz", 200, "ready")
	s.stop()

	abort := testenv.Hang(t, kafka, contract.TopicCreated, 3)
	where := "waiting for an open transaction on " + contract.TopicCreated + "/3"
	for attempt := 1; ; attempt++ {
		begin := time.Now()
		s = start(t, dir, kafka)
		code, body := 0, ""
		for deadline := begin.Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			code, body = s.ask(t, http.MethodGet, s.ops+"/readyz", "")
			if code == 200 || strings.Contains(body, errComparing.Error()+": "+where) || time.Now().After(deadline) {
				break
			}
		}
		if code == 503 && strings.Contains(body, errComparing.Error()+": "+where) {
			break
		}
		// A machine that stalls may use up the patience of a start before the relay begins to compare.
		if took := time.Since(begin); code != 200 || took < beginPatience || attempt == 5 {
			t.Fatalf("at start %d, after %s: %d %q, want 503 and %q", attempt, took, code, body, where)
		}
		s.stop()
	}
	for deadline := time.Now().Add(30 * time.Second); !s.log.Has(where); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s the log has no %q:\n%s", where, s.log)
		}
	}
	if !s.log.Has("TransactionHanging.md") {
		t.Errorf("the log does not name the next step:\n%s", s.log)
	}
	abort()
	s.until(t, s.ops+"/readyz", 200, "ready")
}

// A store that was restored from a backup lacks what the topics have. Kafka responds, but late.
func TestASlowKafkaIsWaitedForBeforeOrdersAreTaken(t *testing.T) {
	for attempt := 1; !slowKafkaIsWaitedFor(t); attempt++ {
		if attempt == 5 {
			t.Fatal("the patience of each start was used up")
		}
	}
}

// slowKafkaIsWaitedFor reports false if the machine stalled for so long that Cart took orders before it had
// compared the store: its look-up of the topics has failed, or it has waited for the relay for beginPatience.
func slowKafkaIsWaitedFor(t *testing.T) bool {
	kafka, err := fakekafka.New("", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	addr, dir := kafka.ListenAddrs()[0], filepath.Join(t.TempDir(), "cart")
	s := start(t, dir, addr)
	s.until(t, s.ops+"/readyz", 200, "ready")
	if code, body := s.ask(t, "POST", s.api+create, `{"orderId":"a","itemsNum":2}`); code != 200 {
		t.Fatal(code, body)
	}
	s.until(t, s.ops+"/metrics", 200, "\ncart_outbox_rows 0\n")
	s.stop()
	testenv.Produce(t, addr, event(t, "a", 2))
	testenv.DelayMetadata(kafka, 2*time.Second)

	begin := time.Now()
	s = start(t, dir, addr)
	for deadline := begin.Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		code, body := s.ask(t, "PUT", s.api+put, `{"orderId":"a","status":"paid"}`)
		if code == 200 {
			break
		}
		if code != 503 || time.Now().After(deadline) {
			t.Fatalf("an update: %d %q, want 503 until the store is compared with the topics", code, body)
		}
	}
	took := time.Since(begin)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, body := s.ask(t, "GET", s.ops+"/metrics", ""); strings.Contains(body, "\ncart_outbox_rows 0\n") {
			break
		}
		_, reason := s.ask(t, "GET", s.ops+"/readyz", "")
		conflict := strings.Contains(reason, "were changed here and by another Cart")
		if conflict && took >= beginPatience {
			s.stop()
			return false
		}
		if conflict || time.Now().After(deadline) {
			t.Fatalf("the update, accepted after %s, is not published: %s", took, reason)
		}
	}
	s.until(t, s.ops+"/readyz", 200, "ready")
	updates := testenv.ReadAll(t, addr, contract.TopicUpdated)
	last := updates[len(updates)-1]
	e, err := contract.DecodeEvent(last.Topic, last.Offset, last.Key, last.Value, last.Headers)
	if err != nil || e.Order.Version != 3 {
		t.Errorf("the update has version %d, %v, want 3: the topics had 2", e.Order.Version, err)
	}
	return true
}

// A load balancer must learn of the stop while requests that are under way are still served.
func TestAStopShowsWhileTheAPIDrains(t *testing.T) {
	kafka := testenv.Fake(t)
	s := start(t, filepath.Join(t.TempDir(), "cart"), kafka)
	s.until(t, s.ops+"/readyz", 200, "ready")

	body, send := io.Pipe()
	reading := make(chan struct{})
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(reading) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.api+create, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Expect", "100-continue")
	status := make(chan int, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	// The handler waits for the body.
	<-reading

	stopped := make(chan struct{})
	go func() { defer close(stopped); s.stop() }()
	s.until(t, s.ops+"/readyz", 503, "stopping")
	if _, err := io.Copy(send, strings.NewReader(`{"orderId":"last","itemsNum":1}`)); err != nil {
		t.Fatal(err)
	}
	send.Close()
	if got := <-status; got != 200 {
		t.Errorf("the request that was under way gets %d, want 200", got)
	}
	<-stopped
	if got := len(testenv.ReadAll(t, kafka, contract.TopicCreated)); got != 1 {
		t.Errorf("%d records are published after the stop, want that of the last order", got)
	}
}
