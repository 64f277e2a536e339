package localkafka_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/twmb/franz-go/pkg/kadm"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("LOCALKAFKA_OWNER_OF"); dir != "" {
		ownBroker(dir)
	}
	testenv.Main(m)
}

// A broker that was stopped or killed starts again at the same address with all its data.
func TestKafkaStartAgain(t *testing.T) {
	k := testenv.StartKafka(t)
	addr := k.Addr
	if err := localkafka.CreateTopics(t.Context(), addr, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	want := testenv.Produce(t, addr,
		contract.Message{Topic: contract.TopicCreated, Key: []byte("a"), Value: []byte("1")},
		contract.Message{Topic: contract.TopicCreated, Key: []byte("b"), Value: []byte("2")})
	slices.SortFunc(want, func(a, b testenv.Record) int { return int(a.Partition - b.Partition) })
	offsets := make(kadm.Offsets)
	offsets.AddOffset(contract.TopicCreated, 0, 7, -1)
	if err := adminOf(t, addr).CommitAllOffsets(t.Context(), "readers", offsets); err != nil {
		t.Fatal(err)
	}
	// Topics have LogAppendTime: the producer's time and the broker's differ.
	ignoreTime := cmpopts.IgnoreFields(testenv.Record{}, "Time")

	for _, end := range []struct {
		name string
		end  func()
	}{{"stopped", k.Stop}, {"killed", k.Kill}} {
		t.Run(end.name, func(t *testing.T) {
			if err := k.StartAgain(t.Context()); err == nil {
				t.Error("a running broker was started again")
			}
			end.end()
			if conn, err := net.Dial("tcp", addr); err == nil {
				conn.Close()
				t.Error("something still accepts connections")
			}
			if err := k.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if k.Addr != addr {
				t.Errorf("the address was %s and is %s", addr, k.Addr)
			}
			if diff := cmp.Diff(want, testenv.ReadAll(t, addr, contract.TopicCreated), ignoreTime); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			committed := map[string]map[int32]int64{contract.TopicCreated: {0: 7}}
			if diff := cmp.Diff(committed, testenv.CommittedOffsets(t, addr, "readers")); diff != "" {
				t.Errorf("committed offsets (-want +got):\n%s", diff)
			}
		})
	}
}

// Three brokers are one cluster: the others have what one of them acknowledged before it was killed.
func TestKafkaCluster(t *testing.T) {
	brokers, err := localkafka.StartCluster(t.Context(), 3, localkafka.Options{Dir: t.TempDir()})
	testenv.Require(t, err)
	for _, b := range brokers {
		t.Cleanup(b.Kill)
	}
	first, second := brokers[0], brokers[1]
	// One broker after the other learns of a topic.
	topic := contract.Topics()[0]
	topics := []contract.Topic{topic}
	for n := range 8 {
		more := topic
		more.Name = fmt.Sprint(topic.Name, n)
		topics = append(topics, more)
	}
	if err := localkafka.CreateTopics(t.Context(), first.Addr, topics, 3); err != nil {
		t.Fatal(err)
	}
	want := testenv.Produce(t, first.Addr, contract.Message{Topic: topic.Name, Key: []byte("a"), Value: []byte("1")})
	first.Kill()
	await(t, "other leaders", func() bool {
		ends, err := adminOf(t, second.Addr).ListEndOffsets(t.Context(), topic.Name)
		return err == nil && ends.Error() == nil
	})
	ignoreTime := cmpopts.IgnoreFields(testenv.Record{}, "Time")
	if diff := cmp.Diff(want, testenv.ReadAll(t, second.Addr, topic.Name), ignoreTime); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if err := first.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	metadata, err := adminOf(t, first.Addr).BrokerMetadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := metadata.Brokers.NodeIDs(), []int32{1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("the cluster has the brokers %v, want %v", got, want)
	}
}

// A broker that neither reaches the others nor is reached by them leaves the replicas in sync. Clients still
// reach it, and it does not know that. The others go on, and it is in sync with them again once it is back.
func TestABrokerIsCutOff(t *testing.T) {
	testenv.RequireCuts(t)
	brokers, err := localkafka.StartCluster(t.Context(), 3, localkafka.Options{
		Dir: t.TempDir(), Groups: 60_000, Settings: map[string]string{"min.insync.replicas": "2"},
	})
	testenv.Require(t, err)
	var addrs []string
	for _, b := range brokers {
		t.Cleanup(b.Kill)
		addrs = append(addrs, b.Addr)
	}
	topic := contract.Topics()[0]
	if err := localkafka.CreateTopics(t.Context(), addrs[0], []contract.Topic{topic}, 3); err != nil {
		t.Fatal(err)
	}
	// inSync reports whether, as a broker knows it, each partition has these replicas in sync.
	inSync := func(addr string, want ...int32) bool {
		// The first request of a client goes to this address, and later ones to any broker.
		topics, err := adminOf(t, addr).ListTopics(t.Context(), topic.Name)
		if err == nil {
			err = topics.Error()
		}
		for _, p := range topics[topic.Name].Partitions {
			slices.Sort(p.ISR)
			if !slices.Equal(p.ISR, want) {
				return false
			}
		}
		return err == nil
	}
	alone, others := brokers[0], brokers[1:]
	await(t, "all replicas in sync", func() bool { return inSync(alone.Addr, 1, 2, 3) })
	var ways []testenv.Way
	for _, b := range others {
		ways = append(ways, testenv.Between(alone, b), testenv.Between(b, alone))
	}
	testenv.Cut(t, func() {
		for _, b := range others {
			await(t, "replicas in sync without the first one", func() bool { return inSync(b.Addr, 2, 3) })
		}
		if !inSync(alone.Addr, 1, 2, 3) {
			t.Error("the first broker knows what the others do")
		}
		testenv.Produce(t, others[0].Addr, contract.Message{Topic: topic.Name, Key: []byte("a"), Value: []byte("1")})
	}, ways...)
	testenv.AwaitNews(t, addrs...)
	await(t, "all replicas in sync again", func() bool { return inSync(alone.Addr, 1, 2, 3) })
}

// A broker ends with the process that started it, even if that process is killed.
func TestKafkaEndsWithItsOwner(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a parent-death signal")
	}
	// Skips where no broker can run.
	testenv.SharedKafka(t)
	dir := t.TempDir()
	// A broker does not need the folder in which its owner was started.
	gone := t.TempDir()
	t.Chdir(gone)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), "LOCALKAFKA_OWNER_OF="+dir)
	owner.Stderr = t.Output()
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(io.LimitReader(out, 3)); string(text) != "up\n" {
		t.Fatalf("the owner said %q, %v", text, err)
	}
	if _, pid, err := localkafka.Running(dir); pid == 0 || err != nil {
		t.Fatalf("no broker runs: %v", err)
	}
	owner.Process.Kill()
	owner.Wait()
	await(t, "the broker to end", func() bool {
		_, pid, err := localkafka.Running(dir)
		return err == nil && pid == 0
	})
}

// ownBroker runs in the process that TestKafkaEndsWithItsOwner kills.
func ownBroker(dir string) {
	if _, err := localkafka.Start(context.Background(), localkafka.Options{Dir: dir}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("up")
	select {}
}

func TestStartRefuses(t *testing.T) {
	// Skips where no broker can run.
	testenv.SharedKafka(t)
	dir := t.TempDir()
	k, err := localkafka.Start(t.Context(), localkafka.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Kill()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		name    string
		options localkafka.Options
		want    string
	}{
		{"a taken port", localkafka.Options{Dir: t.TempDir(), Port: taken.Addr().(*net.TCPAddr).Port},
			"listen on " + taken.Addr().String()},
		{"a directory in use", localkafka.Options{Dir: dir}, "already works on it"},
		{"a broker that ends at once",
			localkafka.Options{Dir: t.TempDir(), Settings: map[string]string{"num.io.threads": "none"}},
			"num.io.threads"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := localkafka.Start(t.Context(), tt.options)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

// The values are those of docs/design.md. Tests of the manifests compare them with the same file.
func TestBrokerSettings(t *testing.T) {
	want := map[string]string{
		"auto.create.topics.enable":                "false",
		"group.consumer.heartbeat.interval.ms":     "500",
		"group.consumer.min.heartbeat.interval.ms": "500",
		"group.consumer.session.timeout.ms":        "6000",
		"group.consumer.min.session.timeout.ms":    "3000",
		"group.consumer.assignment.interval.ms":    "0",
		"group.initial.rebalance.delay.ms":         "0",
	}
	if diff := cmp.Diff(want, localkafka.BrokerSettings()); diff != "" {
		t.Errorf("declared settings (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, only(want, brokerConfig(t, testenv.SharedKafka(t).Addr))); diff != "" {
		t.Errorf("settings of a real broker (-want +got):\n%s", diff)
	}
	// The other settings do not matter to kfake: it rebalances at once and never creates a topic by
	// itself.
	known := map[string]string{
		"group.consumer.heartbeat.interval.ms": "500",
		"group.consumer.session.timeout.ms":    "6000",
	}
	if diff := cmp.Diff(known, only(want, brokerConfig(t, testenv.Fake(t)))); diff != "" {
		t.Errorf("settings of the fake (-want +got):\n%s", diff)
	}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}
