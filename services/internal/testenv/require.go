package testenv

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"

	"ordersystem.dev/services/contract"
)

// Require ends the test when a server could not be started: it is skipped when a program is missing on this machine, and failed
// for any other reason, or when TEST_REQUIRE=1 asks for every test to run.
func Require(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if _, missing := errors.AsType[*MissingError](err); missing && os.Getenv("TEST_REQUIRE") != "1" {
		t.Skipf("%v (TEST_REQUIRE=1 makes this a failure)", err)
	}
	t.Fatal(err)
}

// RequireCluster ends the test likewise when KUBECONFIG names no Kubernetes cluster: never is it the one that happens to be kubectl's
// current one.
func RequireCluster(t testing.TB) {
	t.Helper()
	if os.Getenv("KUBECONFIG") == "" {
		Require(t, &MissingError{Program: "a Kubernetes cluster", Install: "kind, then `make kind`, and set KUBECONFIG"})
	}
}

// Docker is the client that make takes too.
func Docker() string { return cmp.Or(os.Getenv("DOCKER"), "docker") }

// StartKafka starts a broker for this test alone. It has no topics.
func StartKafka(t testing.TB) *Kafka {
	t.Helper()
	k, err := Start(t.Context(), Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	Require(t, err)
	t.Cleanup(func() {
		k.Kill()
		showLog(t, k)
	})
	return k
}

var shared struct {
	sync.Mutex
	main bool // Main runs, so there is someone to clean up
	dir  string
	k    *Kafka
	err  error
}

// SharedKafka returns the broker that the tests of a package share; it has the declared topics. The package needs
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
func SharedKafka(t testing.TB) *Kafka {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if !shared.main {
		t.Fatal("SharedKafka: the package's TestMain does not call testenv.Main")
	}
	if shared.k == nil && shared.err == nil {
		shared.k, shared.err = startShared()
	}
	Require(t, shared.err)
	t.Cleanup(func() { showLog(t, shared.k) })
	return shared.k
}

func startShared() (*Kafka, error) {
	dir, err := os.MkdirTemp("", "kafka-")
	if err != nil {
		return nil, err
	}
	shared.dir = dir
	ctx := context.Background() // not the test's: the broker outlives it
	k, err := Start(ctx, Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	return k, CreateTopics(ctx, k.Addr, contract.Topics(), 1)
}

// Main runs a package's tests and ends the broker that they share.
func Main(m *testing.M) {
	shared.main = true
	code := m.Run()
	if shared.k != nil {
		shared.k.Kill()
	}
	os.RemoveAll(shared.dir)
	os.Exit(code)
}

func showLog(t testing.TB, k *Kafka) {
	if t.Failed() {
		log, _ := os.ReadFile(k.LogFile())
		t.Logf("kafka's last warnings:\n%s", tail(log, 20, "WARN|ERROR|FATAL"))
	}
}
