package fakekafka_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("FAKEKAFKA_DIR"); dir != "" {
		serve(dir)
	}
	os.Exit(m.Run())
}

// serve runs in the process that a test kills.
func serve(dir string) {
	cluster, err := fakekafka.New(dir, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(cluster.ListenAddrs()[0])
	select {}
}

// A kill at any moment loses nothing that was acknowledged. That includes topic IDs, by which the
// Order store keeps its offsets.
func TestKillKeepsWhatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	type state struct {
		Created, Updated []testenv.Record
		Offsets          map[string]map[int32]int64
		ID               kadm.TopicID
	}
	var want state
	for life := range 3 {
		addr, kill := start(t, dir)
		got := state{
			Created: testenv.ReadAll(t, addr, contract.TopicCreated),
			Updated: testenv.ReadAll(t, addr, contract.TopicUpdated),
			Offsets: testenv.CommittedOffsets(t, addr, contract.GroupOrder),
			ID:      topicID(t, addr),
		}
		if life == 0 {
			want.ID = got.ID
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("after kill %d (-want +got):\n%s", life, diff)
		}
		var messages []contract.Message
		for i := range 1000 {
			topic := []string{contract.TopicCreated, contract.TopicUpdated}[i%2]
			messages = append(messages,
				contract.Message{Topic: topic, Key: fmt.Append(nil, i%100), Value: fmt.Append(nil, life, i),
					Headers: []contract.Header{{Key: "ce_id", Value: fmt.Append(nil, i)}}})
		}
		testenv.Produce(t, addr, messages...)
		commit(t, addr, int64(100*life+1))
		want.Created = testenv.ReadAll(t, addr, contract.TopicCreated)
		want.Updated = testenv.ReadAll(t, addr, contract.TopicUpdated)
		want.Offsets = map[string]map[int32]int64{contract.TopicCreated: {3: int64(100*life + 1)}}
		if n := len(want.Created) + len(want.Updated); n != 1000*(life+1) {
			t.Fatalf("the topics hold %d records after %d were written", n, 1000*(life+1))
		}
		kill()
	}
}

// New refuses a directory whose topics have other settings than the declared ones.
func TestNewRefusesOtherTopics(t *testing.T) {
	declared := contract.Topics()[0]
	for _, tt := range []struct {
		name       string
		partitions int
		config     map[string]string
		want       string
	}{
		{"other partitions", 3, declared.Config, "3 partitions, declared are 12"},
		{"other config", declared.Partitions, map[string]string{"cleanup.policy": "delete"}, "with another"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			old, err := kfake.NewCluster(kfake.DataDir(dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := old.CreateTopic(declared.Name, int32(tt.partitions), tt.config); err != nil {
				t.Fatal(err)
			}
			old.Close()
			cluster, err := fakekafka.New(dir, 0)
			if err == nil {
				cluster.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestNewTakenPort(t *testing.T) {
	first, err := fakekafka.New("", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	var port int
	if _, err := fmt.Sscanf(first.ListenAddrs()[0], "127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	if _, err := fakekafka.New("", port); err == nil {
		t.Error("two clusters listen on one port")
	}
}

func start(t *testing.T, dir string) (addr string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FAKEKAFKA_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if !strings.HasPrefix(line, "127.0.0.1:") {
		t.Fatalf("the fake said %q, %v", line, err)
	}
	return strings.TrimSpace(line), kill
}

func admin(t *testing.T, addr string) *kadm.Client {
	t.Helper()
	client, err := kadm.NewOptClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func topicID(t *testing.T, addr string) kadm.TopicID {
	t.Helper()
	topics, err := admin(t, addr).ListTopics(t.Context(), contract.TopicCreated)
	if err != nil {
		t.Fatal(err)
	}
	return topics[contract.TopicCreated].ID
}

func commit(t *testing.T, addr string, offset int64) {
	t.Helper()
	offsets := make(kadm.Offsets)
	offsets.AddOffset(contract.TopicCreated, 3, offset, -1)
	if err := admin(t, addr).CommitAllOffsets(t.Context(), contract.GroupOrder, offsets); err != nil {
		t.Fatal(err)
	}
}
