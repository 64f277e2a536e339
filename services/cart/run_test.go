package cart

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// instance is a running Cart service.
type instance struct {
	api, ops string
	log      *testenv.Lines
	stop     func()
}

func start(t *testing.T, dir, kafka string) instance {
	t.Helper()
	return startAs(t, dir, map[string]string{"KAFKA_BROKERS": kafka})
}

func startAs(t *testing.T, dir string, kafka map[string]string) instance {
	t.Helper()
	vars := map[string]string{"HTTP_ADDR": "127.0.0.1:0", "OPS_ADDR": "127.0.0.1:0", "DATA_DIR": dir}
	maps.Copy(vars, kafka)
	e := env.New(func(name string) string { return vars[name] })
	cfg := ConfigFromEnv(e)
	if err := e.Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	bound, ended := make(chan instance, 1), make(chan error, 1)
	lines := new(testenv.Lines)
	log := slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), lines), nil))
	go func() {
		ended <- Run(ctx, cfg, log, func(api, ops net.Addr) {
			bound <- instance{api: "http://" + api.String(), ops: "http://" + ops.String(), log: lines}
		})
	}()
	select {
	case s := <-bound:
		s.stop = sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
			http.DefaultClient.CloseIdleConnections()
		})
		t.Cleanup(s.stop)
		return s
	case err := <-ended:
		t.Fatalf("Run: %v", err)
	}
	return instance{}
}

func (s instance) ask(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// until waits for a response of an endpoint with this status, and with text in its body.
func (s instance) until(t *testing.T, url string, status int, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		code, body := s.ask(t, http.MethodGet, url, "")
		if code == status && strings.Contains(body, text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d %q after a minute, want %d %q", url, code, body, status, text)
		}
	}
}

func TestALostStoreIsRebuiltFromTheTopics(t *testing.T) {
	kafka := testenv.Fake(t)
	dir := filepath.Join(t.TempDir(), "cart")
	before, filesBefore := runtime.NumGoroutine(), openFiles(t)
	s := start(t, dir, kafka)
	s.until(t, s.ops+"/readyz", 200, "ready")
	for i := range 20 {
		s.ask(t, "POST", s.api+create, fmt.Sprintf(`{"orderId":"o%d","itemsNum":2}`, i))
		for j := range i % 3 {
			request := fmt.Sprintf(`{"orderId":"o%d","status":"s%d"}`, i, j)
			if code, body := s.ask(t, "PUT", s.api+put, request); code != 200 {
				t.Fatal(code, body)
			}
		}
	}
	s.until(t, s.ops+"/metrics", 200, "cart_outbox_rows 0\n")
	s.stop()
	want := stored(t, dir)

	// A rebuild takes the orders of a plain JSON producer too, and skips records that are no
	// events. It counts those that may stand in the place of an order.
	plain := `{"OrderId":"plain","CustomerId":"c","OrderDate":"2026-01-02T03:04:05Z",` +
		`"Items":[{"ProductId":"P","Quantity":1,"Price":10.5}],"TotalAmount":10.5,"Currency":"USD","Status":"new"}`
	testenv.Produce(t, kafka,
		contract.Message{Topic: contract.TopicCreated, Key: []byte("plain"), Value: []byte(plain)},
		contract.Message{Topic: contract.TopicCreated, Key: []byte("x"), Value: []byte("no order")},
		contract.Message{Topic: contract.TopicUpdated, Key: []byte("y")},
		contract.Message{Topic: contract.TopicUpdated, Key: []byte("o1"), Value: []byte("no order")},
		contract.Message{Topic: contract.TopicCreated, Key: []byte("o0")},
		contract.Message{Topic: contract.TopicUpdated, Key: []byte(" no order ID ")},
		// After a failure the relay publishes older records again.
		event(t, "repeated", 1), event(t, "repeated", 3), event(t, "repeated", 2))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir, kafka)
	s.until(t, s.ops+"/readyz", 200, "ready")
	// The keys x and y. Of o1 there is an update, and of o0 its creation.
	s.until(t, s.ops+"/metrics", 200, "\ncart_orders_in_doubt_total 2\n")
	if code, body := s.ask(t, "POST", s.api+create, `{"orderId":"o7","itemsNum":2}`); code != 409 {
		t.Errorf("an order that the topics hold, created again: %d %q, want 409", code, body)
	}
	s.stop()
	got := stored(t, dir)
	if got["plain"] == "" {
		t.Error("the plain producer's order is not there")
	}
	if v, _, _ := strings.Cut(got["repeated"], " "); v != "3" {
		t.Errorf("an order whose older versions came again is restored at version %s, want 3", v)
	}
	delete(got, "plain")
	delete(got, "repeated")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rebuilt store (-want +got):\n%s", diff)
	}
	deadline := time.Now().Add(time.Minute)
	for ; runtime.NumGoroutine() > before || openFiles(t) > filesBefore; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d files before, %d and %d after:\n%s",
				before, filesBefore, runtime.NumGoroutine(), openFiles(t), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// event returns an order at a version, as the service publishes it.
func event(t *testing.T, id string, version int64) contract.Message {
	t.Helper()
	o, kind := newOrder(contract.CreateOrder{OrderID: id, ItemsNum: 1}, noon), contract.TypeCreated
	if o.Version = version; version > 1 {
		kind = contract.TypeUpdated
	}
	m, err := newEvent(kind, o, "", noon).Message()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// openFiles counts the file descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func stored(t *testing.T, dir string) map[string]string {
	t.Helper()
	c, stop := running(t, dir, 1)
	defer stop()
	all := map[string]string{}
	for _, row := range rows(t, c.store, "SELECT order_id || ' ' || version || ' ' || CAST(body AS TEXT) FROM orders") {
		id, rest, _ := strings.Cut(row, " ")
		all[id] = rest
	}
	return all
}

func TestWithoutKafkaOnlyAWholeStoreIsReady(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().String()
	ln.Close()
	dir := filepath.Join(t.TempDir(), "cart")

	s := start(t, dir, nobody)
	s.until(t, s.ops+"/readyz", 503, "unreachable")
	if code, _ := s.ask(t, "POST", s.api+create, `{"orderId":"a","itemsNum":2}`); code != 503 {
		t.Errorf("a new store without Kafka takes an order: %d, want 503", code)
	}
	s.stop()

	kafka := testenv.Fake(t)
	s = start(t, dir, kafka)
	s.until(t, s.ops+"/readyz", 200, "ready")
	s.stop()

	s = start(t, dir, nobody)
	s.until(t, s.ops+"/readyz", 200, "ready")
	if code, body := s.ask(t, "POST", s.ops+"/republish", ""); code != 503 || !strings.Contains(body, "needs Kafka") {
		t.Errorf("publishing orders again without Kafka: %d %q, want 503", code, body)
	}
	if code, body := s.ask(t, "POST", s.api+create, `{"orderId":"a","itemsNum":2}`); code != 200 {
		t.Errorf("a whole store without Kafka: %d %q, want the order taken", code, body)
	}
	s.stop()

	s = start(t, dir, kafka)
	s.until(t, s.ops+"/metrics", 200, "cart_outbox_rows 0\n")
	if got := len(testenv.ReadAll(t, kafka, contract.TopicCreated)); got != 1 {
		t.Errorf("%d records once Kafka is there, want 1", got)
	}
}

// The service uses mutual TLS and only the ACLs that strimzi/ gives it. It rebuilds its store and
// publishes. Then its certificate is renewed too late: it takes orders all the time, and publishes
// them once the certificate is there.
func TestServiceOnSecureKafka(t *testing.T) {
	k := testenv.StartSecureKafka(t)
	if err := localkafka.CreateTopics(t.Context(), k.Addr, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	testenv.Produce(t, k.Addr, event(t, "before", 1), event(t, "before", 2))
	k.Allow(t, "cart",
		"transactional-id "+contract.TransactionalIDsRelay[0]+" Write",
		"transactional-id "+contract.TransactionalIDsRelay[1]+" Write",
		"topic "+contract.TopicCreated+" Read", "topic "+contract.TopicCreated+" Write",
		"topic "+contract.TopicUpdated+" Read", "topic "+contract.TopicUpdated+" Write",
		"group "+contract.GroupRebuild+" Describe")
	u := k.NewUser(t, "cart")
	s := startAs(t, filepath.Join(t.TempDir(), "cart"), u.Env())
	s.until(t, s.ops+"/readyz", 200, "ready")
	if code, body := s.ask(t, "PUT", s.api+put, `{"orderId":"before","status":"known"}`); code != 200 {
		t.Errorf("an update of an order from the topics: %d %q", code, body)
	}

	taken, stop := 0, make(chan struct{})
	var clients sync.WaitGroup
	clients.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ; taken++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			request := fmt.Sprintf(`{"orderId":"o%d","itemsNum":2}`, taken)
			if code, body := s.ask(t, "POST", s.api+create, request); code != 200 {
				t.Errorf("order %d: %d %q", taken, code, body)
			}
			if code, body := s.ask(t, "GET", s.ops+"/readyz", ""); code != 200 {
				t.Errorf("/readyz at order %d: %d %q", taken, code, body)
			}
		}
	})
	k.Clients = testenv.NewAuthority(t, "clients-ca-2")
	k.Certify(t, k.Clients)
	k.Restart(t)
	published := len(testenv.ReadAll(t, k.Addr, contract.TopicCreated))
	// That no record comes can only be seen by waiting. A wrong record would take milliseconds.
	time.Sleep(2 * time.Second)
	if got := len(testenv.ReadAll(t, k.Addr, contract.TopicCreated)); got != published {
		t.Errorf("%d records were published with a certificate that is refused", got-published)
	}
	u.Renew(t)
	// The clients are recreated while orders keep coming.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if len(testenv.ReadAll(t, k.Addr, contract.TopicCreated)) > published || time.Now().After(deadline) {
			break
		}
	}
	close(stop)
	clients.Wait()
	s.until(t, s.ops+"/metrics", 200, "cart_outbox_rows 0\n")
	for i, r := range testenv.ReadAll(t, k.Addr, contract.TopicUpdated) {
		e, err := contract.DecodeEvent(r.Topic, r.Offset, r.Key, r.Value, r.Headers)
		// The last update may be repeated.
		if want := min(2+int64(i), 3); err != nil || e.Order.Version != want {
			t.Errorf("an update of the order from the topics: version %d, want %d; %v", e.Order.Version, want, err)
		}
	}
	got := map[string]bool{}
	for _, r := range testenv.ReadAll(t, k.Addr, contract.TopicCreated) {
		got[string(r.Key)] = true
	}
	if len(got) != taken+1 || taken == 0 {
		t.Errorf("%d orders in the topic, want the %d that were taken and the one before", len(got), taken)
	}
}

// One service has published an order, and the other has no Kafka.
func TestMetrics(t *testing.T) {
	kafka := testenv.Fake(t)
	s := start(t, filepath.Join(t.TempDir(), "cart"), kafka)
	s.until(t, s.ops+"/readyz", 200, "ready")
	if code, body := s.ask(t, "POST", s.api+create, `{"orderId":"exemplary","itemsNum":2}`); code != 200 {
		t.Fatal(code, body)
	}
	for _, series := range []string{
		"cart_produce_ack_seconds_count 1\n",
		"cart_outbox_rows 0\n", "cart_outbox_oldest_seconds 0\n",
		"service_ready 1\n",
		`http_request_duration_seconds_count{code="200",method="POST",route="/order/create-order"} 1` + "\n",
		`kafka_client_connected_brokers{client="producer"} 1` + "\n",
	} {
		s.until(t, s.ops+"/metrics", 200, "\n"+series)
	}
	// A quantile covers the last seconds and is absent if there was no request in them. So requests
	// keep coming.
	stop := make(chan struct{})
	var client sync.WaitGroup
	defer func() { close(stop); client.Wait() }()
	client.Go(func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			s.ask(t, "POST", s.api+create, `{"orderId":"`+rand.Text()+`","itemsNum":2}`)
		}
	})
	s.until(t, s.ops+"/metrics", 200, "\n"+`kafka_client_rtt_seconds{client="producer",quantile="0.99"} 0.`)
	_, body := s.ask(t, "GET", s.ops+"/metrics", "")
	for what, text := range map[string]string{
		"a client that Cart does not have": `client="consumer"`,
		"an order's ID":                    "exemplary",
		"a broker's address":               kafka,
	} {
		if strings.Contains(body, text) {
			t.Errorf("the metrics contain %s, %s:\n%s", what, text, body)
		}
	}

	alone := start(t, filepath.Join(t.TempDir(), "cart"), "127.0.0.1:1")
	for _, series := range []string{
		"service_ready 0\n",
		`kafka_client_connected_brokers{client="producer"} 0` + "\n",
		`kafka_client_requests_total{client="producer"} 0` + "\n",
	} {
		alone.until(t, alone.ops+"/metrics", 200, "\n"+series)
	}
}
