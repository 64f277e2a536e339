// Package testenv has what tests need around the services: a real Kafka broker, a fake one inside
// the process, a real PostgreSQL, and clients that share no code with the services.
//
// A test gets a real server where one can run and is skipped where none can. TEST_REQUIRE=1 makes
// that a failure.
package testenv

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/internal/localkafka"
)

// Fake starts a fake Kafka in this process, with the declared topics, and returns its address. It
// hides what real consumer groups and restarts cost. Tests of these use [StartKafka].
func Fake(t testing.TB) string {
	t.Helper()
	cluster, err := fakekafka.New("", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()[0]
}

// StartKafka starts a broker for this test alone. It has no topics.
func StartKafka(t testing.TB) *localkafka.Broker {
	t.Helper()
	return StartKafkaWith(t, localkafka.Options{})
}

// StartKafkaWith is [StartKafka] with options. The directory is temporary if it is not set, and the
// log goes to the test's output.
func StartKafkaWith(t testing.TB, options localkafka.Options) *localkafka.Broker {
	t.Helper()
	if options.Dir == "" {
		options.Dir = t.TempDir()
	}
	options.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	k, err := localkafka.Start(t.Context(), options)
	Require(t, err)
	t.Cleanup(func() {
		k.Kill()
		showWarnings(t, k)
	})
	return k
}

// sharedKafka is the broker of SharedKafka.
var sharedKafka struct {
	sync.Mutex
	dir string
	k   *localkafka.Broker
	err error
}

// SharedKafka returns the broker that the tests of a package share. It has the declared topics. The
// package needs
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
func SharedKafka(t testing.TB) *localkafka.Broker {
	t.Helper()
	shared := &sharedKafka
	shared.Lock()
	defer shared.Unlock()
	if !inMain {
		t.Fatal("SharedKafka: the package's TestMain does not call testenv.Main")
	}
	if shared.k == nil && shared.err == nil {
		shared.k, shared.err = startShared()
	}
	Require(t, shared.err)
	t.Cleanup(func() { showWarnings(t, shared.k) })
	return shared.k
}

// startShared starts the shared broker. Main ends it and removes its directory.
func startShared() (*localkafka.Broker, error) {
	dir, err := os.MkdirTemp("", "kafka-")
	if err != nil {
		return nil, err
	}
	sharedKafka.dir = dir
	// Not the test's context: the broker outlives the test.
	ctx := context.Background()
	// A busy machine must not fence a broker that no test kills.
	k, err := localkafka.Start(ctx, localkafka.Options{
		Dir: dir, Settings: map[string]string{"broker.session.timeout.ms": ""},
	})
	if err != nil {
		return nil, err
	}
	return k, localkafka.CreateTopics(ctx, k.Addr, contract.Topics(), 1)
}

// showWarnings adds the broker's last warnings to the output of a failed test.
func showWarnings(t testing.TB, k *localkafka.Broker) {
	if t.Failed() {
		t.Logf("kafka's last warnings:\n%s", k.Warnings())
	}
}

// NewTopic makes a topic of the test's own, with the settings of the order topics, and returns its
// name.
func NewTopic(t testing.TB, addr string, partitions int) string {
	t.Helper()
	topic := contract.Topic{
		Name:       "test-" + uuid.NewString(),
		Partitions: partitions,
		Config:     contract.Topics()[0].Config,
	}
	if err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{topic}, 1); err != nil {
		t.Fatal(err)
	}
	return topic.Name
}
