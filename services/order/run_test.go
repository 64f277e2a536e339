package order

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/service"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/order/ordertest"
)

func TestConfigFromEnv(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		env       map[string]string
		api, ops  string
		dir, errs string
	}{
		{"defaults", map[string]string{"KAFKA_BROKERS": "kafka:9092"}, ":7000", ":7001", "data/order", ""},
		{
			"ops follow the API",
			map[string]string{"KAFKA_BROKERS": "kafka:9092", "HTTP_ADDR": "127.0.0.1:17000"},
			"127.0.0.1:17000", "127.0.0.1:17001", "data/order", "",
		},
		{
			"all set",
			map[string]string{"KAFKA_BROKERS": "kafka:9092", "HTTP_ADDR": ":0", "OPS_ADDR": ":9", "DATA_DIR": "/d"},
			":0", ":9", "/d", "",
		},
		{
			"all errors at once",
			map[string]string{"HTTP_ADDR": "7000", "OPS_ADDR": ":x"},
			":7000", ":7001", "data/order", "HTTP_ADDR OPS_ADDR KAFKA_BROKERS",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := env.New(func(name string) string { return tt.env[name] })
			cfg := ConfigFromEnv(e)
			if cfg.API.Value != tt.api || cfg.Ops.Value != tt.ops || cfg.DataDir != tt.dir {
				t.Errorf("config = %+v", cfg)
			}
			for variable := range strings.FieldsSeq(tt.errs) {
				if e.Err() == nil || !strings.Contains(e.Err().Error(), variable) {
					t.Errorf("the error does not name %s: %v", variable, e.Err())
				}
			}
			if tt.errs == "" && e.Err() != nil {
				t.Error(e.Err())
			}
		})
	}
}

// instance is the whole service in this process.
type instance struct {
	api, ops string
	stop     context.CancelFunc
	done     chan error
}

func start(t testing.TB, kafka, dir string) *instance {
	t.Helper()
	return startAs(t, plaintext(kafka), dir)
}

// plaintext is the configuration of a Kafka that asks for no user.
func plaintext(kafka string) broker.Config {
	return broker.Config{Client: kafkaconfig.Client{Brokers: []string{kafka}}}
}

// startAs returns the service once its addresses are bound. It ends with the test.
func startAs(t testing.TB, kafka broker.Config, dir string) *instance {
	t.Helper()
	return startOn(t, kafka, database{dir: dir})
}

// startOn is startAs on a database.
func startOn(t testing.TB, kafka broker.Config, at database) *instance {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &instance{stop: stop, done: make(chan error, 1)}
	cfg := Config{
		Endpoints: service.Endpoints{
			API: env.Addr{Value: "127.0.0.1:0", Variable: "HTTP_ADDR"},
			Ops: env.Addr{Value: "127.0.0.1:0", Variable: "OPS_ADDR"},
		},
		DataDir: at.dir, DatabaseURL: at.url, Kafka: kafka,
	}
	bound := make(chan struct{})
	go func() {
		s.done <- Run(ctx, cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), func(api, ops net.Addr) {
			s.api, s.ops = "http://"+api.String(), "http://"+ops.String()
			close(bound)
		})
	}()
	t.Cleanup(func() { s.end(t) })
	select {
	case <-bound:
	case err := <-s.done:
		t.Fatalf("Run: %v", err)
	}
	return s
}

// end stops the service, once.
func (s *instance) end(t testing.TB) {
	t.Helper()
	s.stop()
	if s.done == nil {
		return
	}
	select {
	case err := <-s.done:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	// Kubernetes kills a pod that has not ended by then.
	case <-time.After(30 * time.Second):
		t.Error("Run does not end")
	}
	s.done = nil
}

func (s *instance) ready(t testing.TB) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := get(t, s.ops+"/readyz")
		if got.Status == http.StatusOK {
			return
		}
		if last = got.Body; time.Now().After(deadline) {
			t.Fatalf("waited in vain to be ready: %s", last)
		}
	}
}

func (s *instance) details(t testing.TB, query string) response {
	t.Helper()
	return get(t, s.detailsURL(query), "Prefer", "wait=30")
}

func (s *instance) detailsURL(query string) string { return s.api + "/order/order-details?" + query }

// waiting returns the response to a look-up that waits when this call returns.
func (s *instance) waiting(t testing.TB, query string) <-chan response {
	t.Helper()
	got := getting(t, s.detailsURL(query), "Prefer", "wait=30")
	ordertest.Eventually(t, "a look-up that waits", func() bool {
		return strings.Contains(get(t, s.ops+"/metrics").Body, "order_waiting_lookups 1\n")
	})
	return got
}

// audited is get for an audit, until that is not refused for now: on a machine that stalls Kafka may need longer
// than an audit waits for it.
func audited(t testing.TB, url string, headers ...string) (got response) {
	t.Helper()
	ordertest.Eventually(t, "an audit", func() bool {
		got = get(t, url, headers...)
		return got.Status != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == ""
	})
	return got
}

// message is an event as Cart produces it.
func message(t testing.TB, id string, version int64, eventID string) contract.Message {
	t.Helper()
	r := ordertest.Event(t, id, version, eventID)
	return contract.Message{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
}

// The whole way of an order, on a fake Kafka. The next tests go it on real ones.
func TestService(t *testing.T) {
	t.Parallel()
	kafka := testenv.Fake(t)
	theWholeWay(t, kafka, plaintext(kafka))
}

func TestServiceOnRealKafka(t *testing.T) {
	t.Parallel()
	kafka := declaredKafka(t)
	theWholeWay(t, kafka, plaintext(kafka))
}

// declaredKafka starts a broker with the declared topics. Two services beside one Kafka would take
// each other's transactional IDs, so each test that runs one has a broker of its own.
func declaredKafka(t *testing.T) (addr string) {
	t.Helper()
	k := testenv.StartKafka(t)
	if err := localkafka.CreateTopics(t.Context(), k.Addr, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	return k.Addr
}

// With mutual TLS and only the ACLs that strimzi/ declares. Then the certificate is renewed too
// late.
func TestServiceOnSecureKafka(t *testing.T) {
	t.Parallel()
	k := testenv.StartSecureKafka(t)
	if err := localkafka.CreateTopics(t.Context(), k.Addr, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	k.Allow(t, "order",
		"transactional-id "+contract.TransactionalIDsDeadLetters[0]+" Write",
		"transactional-id "+contract.TransactionalIDsDeadLetters[1]+" Write",
		"topic "+contract.TopicCreated+" Read", "topic "+contract.TopicUpdated+" Read",
		"topic "+contract.TopicDeadLetter+" Read", "topic "+contract.TopicDeadLetter+" Write",
		"group "+contract.GroupOrder+" Read", "group "+contract.GroupAudit+" Describe")
	u := k.NewUser(t, "order")
	cfg := broker.ConfigFromEnv(env.New(func(name string) string { return u.Env()[name] }))
	theWholeWay(t, k.Addr, cfg)

	s := startAs(t, cfg, t.TempDir())
	s.ready(t)
	testenv.Produce(t, k.Addr, message(t, "R", 1, "r1"))
	if got := s.details(t, "orderId=R"); got.Status != 200 {
		t.Errorf("before the certificate is refused: %+v", got)
	}
	k.Clients = testenv.NewAuthority(t, "clients-ca-2")
	k.Certify(t, k.Clients)
	k.Restart(t)
	testenv.Produce(t, k.Addr, message(t, "R", 2, "r2"))
	ordertest.Eventually(t, "the broker refuses the certificate", func() bool {
		return strings.Contains(get(t, s.ops+"/metrics").Body, "order_consumer_failing 1\n")
	})
	if got := get(t, s.ops+"/readyz"); got.Status != 200 {
		t.Errorf("/readyz while the certificate is refused: %+v", got)
	}
	if got := get(t, s.api+"/order/order-details?orderId=R"); got.Status != 200 || got.Header.Get("ETag") != `"1"` {
		t.Errorf("a look-up while the certificate is refused: %+v", got)
	}
	u.Renew(t)
	if got := s.details(t, "orderId=R&minVersion=2"); got.Status != 200 {
		t.Errorf("after the renewal: %+v", got)
	}
	ordertest.Eventually(t, "no failure", func() bool {
		return strings.Contains(get(t, s.ops+"/metrics").Body, "order_consumer_failing 0\n")
	})
	bad := contract.Message{Topic: contract.TopicCreated, Key: []byte("bad"), Value: []byte("broken")}
	letters := len(testenv.ReadAll(t, k.Addr, contract.TopicDeadLetter))
	testenv.Produce(t, k.Addr, bad)
	ordertest.Eventually(t, "a dead letter by the new producer", func() bool {
		return len(testenv.ReadAll(t, k.Addr, contract.TopicDeadLetter)) > letters
	})
	if got := audited(t, s.api+"/order/getAllOrderIdsFromTopic?topicName="+contract.TopicUpdated); got.Status != 200 {
		t.Errorf("an audit by a new reader: %+v", got)
	}
}

// theWholeWay runs the service as one user. The test itself may do everything on that Kafka.
func theWholeWay(t *testing.T, kafka string, user broker.Config) {
	dir := t.TempDir()
	testenv.Produce(t, kafka, message(t, "before", 1, "b1"))
	s := startAs(t, user, dir)
	if got := get(t, s.ops+"/healthz"); got.Status != 200 {
		t.Errorf("/healthz before it is ready: %+v", got)
	}
	s.ready(t)
	if got := get(t, s.api+"/order/order-details?orderId=before"); got.Status != 200 {
		t.Errorf("it is ready and does not know an earlier order: %+v", got)
	}

	// A creation and its update.
	testenv.Produce(t, kafka, message(t, "A", 1, "a1"))
	if got := s.details(t, "orderId=A"); got.Status != 200 || got.Header.Get("ETag") != `"1"` {
		t.Errorf("after its creation: %+v", got)
	}
	testenv.Produce(t, kafka, message(t, "A", 2, "a2"))
	if got := s.details(t, "orderId=A&minVersion=2"); got.Status != 200 ||
		!strings.Contains(got.Body, `"status":"by a2"`) {
		t.Errorf("after its update: %+v", got)
	}

	// A bad record and a tombstone go to the dead-letter topic and delay nothing.
	bad := contract.Message{
		Topic: contract.TopicCreated, Key: []byte("A"), Value: []byte("broken"),
		Headers: []contract.Header{{Key: "h", Value: []byte{1}}},
	}
	tombstone := contract.Message{Topic: contract.TopicCreated, Key: []byte("A")}
	testenv.Produce(t, kafka, bad, tombstone, message(t, "after", 1, "x1"))
	if got := s.details(t, "orderId=after"); got.Status != 200 {
		t.Errorf("behind a bad record: %+v", got)
	}
	var letters []testenv.Record
	ordertest.Eventually(t, "two dead letters", func() bool {
		letters = testenv.ReadAll(t, kafka, contract.TopicDeadLetter)
		return len(letters) == 2
	})
	for _, l := range letters {
		if string(l.Key) != "A" || (l.Value != nil && string(l.Value) != "broken") {
			t.Errorf("a dead letter came out as key %q, value %q", l.Key, l.Value)
		}
	}

	// The audit reads the topics themselves.
	audit := s.api + "/order/getAllOrderIdsFromTopic?topicName="
	if got := audited(t, audit+contract.TopicCreated); got.Status != 200 ||
		!strings.Contains(got.Body, "'order-created-topic': 3") {
		t.Errorf("audit of the created topic: %+v", got)
	}
	testenv.Produce(t, kafka, message(t, "B", 2, "b2"))
	if got := audited(t, audit+contract.TopicUpdated, "Cache-Control", "no-cache"); got.Status != 200 ||
		!strings.Contains(got.Body, "'order-updated-topic': 2") {
		t.Errorf("audit of the updated topic: %+v", got)
	}

	for path, want := range map[string]string{
		"/metrics":       `order_dead_letters_total{reason="tombstone"} 1`,
		"/openapi.yaml":  "openapi: 3.1",
		"/asyncapi.yaml": "asyncapi: 3",
	} {
		if got := get(t, s.ops+path); got.Status != 200 || !strings.Contains(got.Body, want) {
			t.Errorf("%s has no %q: %.2000s", path, want, got.Body)
		}
	}

	// A stop ends look-ups that wait. The next start goes on where the last one ended.
	waiting := s.waiting(t, "orderId=never")
	s.end(t)
	if got := <-waiting; got.Status != 503 {
		t.Errorf("a look-up while the service stops: %+v", got)
	}
	testenv.Produce(t, kafka, message(t, "A", 3, "a3"))
	s = startAs(t, user, dir)
	s.ready(t)
	if got := get(t, s.api+"/order/order-details?orderId=A&minVersion=3"); got.Status != 200 {
		t.Errorf("after the next start: %+v", got)
	}
	if got := len(testenv.ReadAll(t, kafka, contract.TopicDeadLetter)); got != 2 {
		t.Errorf("%d dead letters after the next start, want the same 2", got)
	}
	s.end(t)

	// A store that is lost is rebuilt from Kafka alone.
	before := hashOf(t, dir)
	dir = t.TempDir()
	s = startAs(t, user, dir)
	s.ready(t)
	s.end(t)
	if diff := cmp.Diff(before, hashOf(t, dir)); diff != "" {
		t.Errorf("the rebuilt store is another (-want +got):\n%s", diff)
	}
}

func hashOf(t testing.TB, dir string) string {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := openStore(t.Context(), "", dir, contract.OrderTopics(), log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	return hash(t, s) + fmt.Sprint(s.state(t))
}

// Not parallel: it counts what is open in the whole process.
func TestNothingIsLeftAfterTheStop(t *testing.T) {
	kafka := testenv.Fake(t)
	files := func() int {
		fds, err := os.ReadDir("/dev/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	goroutinesBefore, filesBefore := runtime.NumGoroutine(), files()
	s := start(t, kafka, t.TempDir())
	s.ready(t)
	testenv.Produce(t, kafka, message(t, "A", 1, "a1"))
	if got := s.details(t, "orderId=A"); got.Status != 200 {
		t.Errorf("%+v", got)
	}
	if got := get(t, s.api+"/order/getAllOrderIdsFromTopic?topicName="+contract.TopicCreated); got.Status != 200 {
		t.Errorf("%+v", got)
	}
	s.end(t)
	http.DefaultClient.CloseIdleConnections()
	left := func() bool { return runtime.NumGoroutine() > goroutinesBefore || files() > filesBefore }
	for deadline := time.Now().Add(time.Minute); left(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d files before, %d and %d after:\n%s", goroutinesBefore, filesBefore,
				runtime.NumGoroutine(), files(), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// A topic that is recreated under a running service is read from its beginning.
func TestTopicRecreatedUnderTheService(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t).Addr
	create := func() {
		if err := localkafka.CreateTopics(t.Context(), kafka, contract.Topics(), 1); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	s := start(t, kafka, dir)
	ordertest.Eventually(t, "the missing topics", func() bool {
		return strings.Contains(get(t, s.ops+"/readyz").Body,
			"missing topics: order-created-topic, order-dead-letter-topic, order-updated-topic")
	})
	create()
	s.ready(t)
	testenv.Produce(t, kafka, message(t, "A", 1, "a1"), message(t, "B", 1, "b1"))
	if got := s.details(t, "orderId=B"); got.Status != 200 {
		t.Errorf("before: %+v", got)
	}
	audit := s.api + "/order/getAllOrderIdsFromTopic?topicName=" + contract.TopicCreated
	if got := audited(t, audit); !strings.Contains(got.Body, "'order-created-topic': 2") {
		t.Errorf("audit before: %+v", got)
	}

	if err := localkafka.DeleteTopic(t.Context(), kafka, contract.TopicCreated); err != nil {
		t.Fatal(err)
	}
	create()
	testenv.Produce(t, kafka, message(t, "C", 1, "c1"))
	if got := s.details(t, "orderId=C"); got.Status != 200 {
		t.Errorf("an order of the new topic: %+v", got)
	}
	if got := get(t, s.api+"/order/order-details?orderId=A"); got.Status != 200 {
		t.Errorf("an order that only the old topic had: %+v", got)
	}
	if got := audited(t, audit); !strings.Contains(got.Body, "'order-created-topic': 1") {
		t.Errorf("audit of the new topic: %+v", got)
	}
	// A client may read the new topic before the next look at the topics' IDs.
	ordertest.Eventually(t, "the recreated topic is counted once", func() bool {
		return strings.Contains(get(t, s.ops+"/metrics").Body, "order_topics_recreated_total 1\n")
	})
	s.end(t)
	s = start(t, kafka, dir)
	s.ready(t)
}

func TestServiceReportsWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	// A port behind which there is no Kafka.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := start(t, ln.Addr().String(), t.TempDir())
	ordertest.Eventually(t, "the reason", func() bool {
		return strings.Contains(get(t, s.ops+"/readyz").Body, "Kafka is unreachable")
	})
	if got := get(t, s.ops+"/metrics"); !strings.Contains(got.Body, "\nservice_ready 0\n") {
		t.Errorf("service_ready is not 0: %.3000s", got.Body)
	}
	if got := get(t, s.api+"/order/order-details?orderId=A"); got.Status != 503 {
		t.Errorf("a look-up: %+v", got)
	}
	audit := s.api + "/order/getAllOrderIdsFromTopic?topicName=" + contract.TopicCreated
	if got := get(t, audit); got.Status != 503 || got.Body != "The topic cannot be read: Kafka is unreachable." {
		t.Errorf("an audit: %+v", got)
	}
	begin := time.Now()
	s.end(t)
	// Requests may drain for 10 s. The rest is for a slow machine.
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("without Kafka it took %s to stop", took)
	}
}

// While a service stops, the partitions of a member that was killed may still be with nobody. Look-ups
// that wait get the orders of those too.
func TestAStopWaitsForOrdersThatComeLate(t *testing.T) {
	t.Parallel()
	for range 5 {
		kafka := testenv.Fake(t)
		s := start(t, kafka, t.TempDir())
		s.ready(t)
		waiting := s.waiting(t, "orderId=A")
		stopped := time.Now()
		s.stop()
		// The session of a killed member, on brokers with the declared settings.
		time.Sleep(6 * time.Second)
		testenv.Produce(t, kafka, message(t, "A", 1, "a1"))
		produced := time.Since(stopped)
		got := <-waiting
		if got.Status == http.StatusOK {
			return
		}
		if produced < stopPatience-time.Second {
			t.Fatalf("an order that came %s after the stop: %+v", produced, got)
		}
		t.Logf("this machine was too busy: it produced the order %s after the stop", produced)
	}
	t.Error("the order came too late each time")
}

func TestSecondServiceOnTheSameStoreWaits(t *testing.T) {
	t.Parallel()
	kafka, dir := testenv.Fake(t), t.TempDir()
	first := start(t, kafka, dir)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	log := writer(func(line []byte) {
		if bytes.Contains(line, []byte("another process has the lock")) {
			stop()
		}
	})
	err := Run(ctx, Config{
		Endpoints: service.Endpoints{API: env.Addr{Value: "127.0.0.1:0"}, Ops: env.Addr{Value: "127.0.0.1:0"}},
		DataDir:   dir, Kafka: plaintext(kafka),
	}, slog.New(slog.NewTextHandler(log, nil)), func(_, _ net.Addr) {
		t.Error("the second runs on the store of the first")
		stop()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want %v", err, context.Canceled)
	}
	first.ready(t)
}

type writer func(line []byte)

func (w writer) Write(line []byte) (int, error) {
	w(line)
	return len(line), nil
}
