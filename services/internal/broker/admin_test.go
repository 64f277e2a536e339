package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

func TestAdminLooksTopicsUp(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		leaks(t)
		one, two := testenv.NewTopic(t, addr, 1), testenv.NewTopic(t, addr, 4)
		a := patientAdmin(t, config(addr))
		got, err := a.Topics(t.Context(), one, "missing-b", two, "missing-a")
		missing, ok := errors.AsType[*MissingTopicsError](err)
		if !ok || !slices.Equal(missing.Names, []string{"missing-a", "missing-b"}) {
			t.Errorf("error %v, want the two missing topics", err)
		}
		if len(got) != 2 || got[one].Partitions != 1 || got[two].Partitions != 4 ||
			got[one].ID == "" || got[one].ID == got[two].ID {
			t.Errorf("topics: %v", got)
		}
		if got, err := a.Topics(t.Context(), one); err != nil || len(got) != 1 {
			t.Errorf("one topic: %v, %v", got, err)
		}
	})
}

// Records behind an open transaction exist. What readers cannot get of them is known too.
func TestAdminKnowsWhatOpenTransactionsWithhold(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		topic := newTopic(t, addr, 3)
		for range 5 {
			// Each takes two offsets, with its marker.
			transaction(t, addr, topic, 1, true, "v")
		}
		testenv.DeleteRecords(t, addr, topic, map[int32]int64{1: 4})
		a := patientAdmin(t, config(addr))
		if err := a.Withheld(t.Context(), topic); err != nil {
			t.Errorf("no transaction is open: %v", err)
		}
		abort := testenv.Hang(t, addr, topic, 2)
		transaction(t, addr, topic, 2, true, "behind", "behind")
		infos, err := a.Topics(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		at := func(n int32) Partition { return Partition{topic, infos[topic].ID, n} }
		first, end, err := a.Bounds(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		want := []map[Partition]int64{{at(0): 0, at(1): 4, at(2): 0}, {at(0): 0, at(1): 10, at(2): 4}}
		if diff := cmp.Diff(want, []map[Partition]int64{first, end}); diff != "" {
			t.Errorf("first and end (-want +got):\n%s", diff)
		}
		withheld, _ := errors.AsType[*WithheldError](a.Withheld(t.Context(), topic))
		if diff := cmp.Diff(&WithheldError{Topic: topic, Partition: 2, Offsets: 4}, withheld); diff != "" {
			t.Errorf("withheld (-want +got):\n%s", diff)
		}
		abort()
		poll(t, "nothing is withheld", func() bool { return a.Withheld(t.Context(), topic) == nil })
		if _, _, err := a.Bounds(t.Context(), topic, "missing"); err == nil {
			t.Error("no error with a missing topic")
		} else if _, ok := errors.AsType[*MissingTopicsError](err); !ok {
			t.Errorf("with a missing topic: %v", err)
		}
	})
}

func TestAdminReportsThatKafkaIsUnreachable(t *testing.T) {
	leaks(t)
	addr := deadAddr(t)
	_, err := admin(t, addr).Topics(t.Context(), "topic")
	unreachable, ok := errors.AsType[*UnreachableError](err)
	if !ok || unreachable.Brokers != addr || !strings.Contains(err.Error(), "unreachable at "+addr) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := admin(t, addr).Topics(ctx, "topic"); err == nil {
		t.Error("no error after the context's end")
	}
}

// The broker that the client takes for the controller is away. The others serve look-ups as before.
func TestAdminNeedsNoCertainBroker(t *testing.T) {
	t.Parallel()
	brokers, err := localkafka.StartCluster(t.Context(), 3, localkafka.Options{Dir: t.TempDir()})
	testenv.Require(t, err)
	var addrs []string
	for _, b := range brokers {
		t.Cleanup(b.Kill)
		addrs = append(addrs, b.Addr)
	}
	a, err := NewAdmin(Config{Client: kafkaconfig.Client{Brokers: addrs}}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	lookUp := func(when string) {
		t.Helper()
		poll(t, "a look-up "+when, func() bool {
			_, err := a.Topics(t.Context(), "topic")
			_, missing := errors.AsType[*MissingTopicsError](err)
			return missing
		})
	}
	lookUp("before")
	controller, err := a.client.admin.ControllerID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	brokers[controller-1].Kill()
	lookUp(fmt.Sprintf("without broker %d", controller))
}

// While Kafka is away, look-ups that wait for it do not keep a processor busy: librdkafka would connect again and
// again.
func TestAdminWaitsForKafkaWithoutWork(t *testing.T) {
	// Not beside other tests, whose work would count.
	k := testenv.StartKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 1)
	a := patientAdmin(t, config(k.Addr))
	if _, err := a.Topics(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	a.timeout = adminTimeout
	k.Stop()
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, begin := used(), time.Now()
	for range 2 {
		_, err := a.Topics(t.Context(), topic)
		_, other := a.Replaced(t.Context(), map[Partition]Progress{{Topic: topic}: {Next: 1, Last: -1}})
		if err == nil || other == nil {
			t.Error("a look-up without Kafka has a result")
		}
	}
	if cpu, took := used()-before, time.Since(begin); cpu > took/10 {
		t.Errorf("%s of a processor in %s, want a tenth at most", cpu, took)
	}
	if err := k.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.timeout = time.Minute
	if _, err := a.Topics(t.Context(), topic); err != nil {
		t.Errorf("a look-up with Kafka back: %v", err)
	}
}

func TestAdminAwaitsTopics(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		declared := contract.Topics()[0]
		declared.Name = "late-" + uuid.NewString()
		states := make(chan error, 1000)
		found := make(chan map[string]TopicInfo)
		a := patientAdmin(t, config(addr))
		go func() {
			report := func(err error) { states <- err }
			infos, err := a.AwaitTopics(t.Context(), report, contract.TopicCreated, declared.Name)
			if err != nil {
				t.Error(err)
			}
			found <- infos
		}()
		missing, ok := errors.AsType[*MissingTopicsError](<-states)
		if !ok || !slices.Equal(missing.Names, []string{declared.Name}) {
			t.Errorf("first state %v", missing)
		}
		if err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{declared}, 1); err != nil {
			t.Fatal(err)
		}
		if got := <-found; len(got) != 2 {
			t.Errorf("found %v", got)
		}
		close(states)
		var last error
		for last = range states {
		}
		if last != nil {
			t.Errorf("last state %v", last)
		}

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.AwaitTopics(ctx, nil, "missing"); !errors.Is(err, context.Canceled) {
			t.Errorf("after the context's end: %v", err)
		}
	})
}

func TestARefusedPasswordIsTheReasonGiven(t *testing.T) {
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "cart", "right"), kfake.SeedTopics(1, "topic"),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cfg := Config{Client: kafkaconfig.Client{
		Brokers: cluster.ListenAddrs()[:1], Protocol: "sasl_plaintext", Mechanism: "PLAIN", Username: "cart",
	}}
	for password, want := range map[string]string{"wrong": "SASL authentication error", "right": ""} {
		cfg.Password = password
		a, err := NewAdmin(cfg, logger(t))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		poll(t, password+": "+want, func() bool {
			_, err := a.Topics(t.Context(), "topic")
			return (err == nil) == (want == "") && (err == nil || strings.Contains(err.Error(), want))
		})
	}
}

func TestAMissingWritePermissionIsNamed(t *testing.T) {
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "cart", "cart"), kfake.SeedTopics(1, "topic"),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cfg := Config{Client: kafkaconfig.Client{
		Brokers: cluster.ListenAddrs()[:1], Protocol: "sasl_plaintext",
		Mechanism: "PLAIN", Username: "cart", Password: "cart",
	}}
	p, err := NewProducer(cfg, "id", logger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	err = p.Fence(inTime(t))
	if err == nil || !strings.Contains(err.Error(), "no permission on the transactional ID") {
		t.Errorf("Fence: %v", err)
	}
}

// A log is the one that was read as long as everything newer lies behind what was read. Markers of
// transactions are newer than the last record, and are no reason.
func TestAdminKnowsWhetherALogIsTheOneThatWasRead(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 1)
		testenv.Produce(t, addr, messages(topic, 3, 1)...)
		transaction(t, addr, topic, 0, true, "3", "4")
		id, first, end := bounds(t, addr, topic)
		p := Partition{topic, id, 0}
		read := Progress{Next: end[p], Last: -1}
		at := map[int64]Progress{}
		pass := func(_ context.Context, records []Record) error {
			for i := range records {
				read.Pass(&records[i])
				at[records[i].Offset] = read
			}
			return nil
		}
		err := ReadTo(t.Context(), config(addr), logger(t), "reader", first, end, pass)
		if err != nil {
			t.Fatal(err)
		}
		if read.Last != 4 || read.Next != 6 {
			t.Fatalf("progress %+v, want the last record at 4 and a marker behind it", read)
		}
		// Kafka counts milliseconds.
		time.Sleep(2 * time.Millisecond)
		testenv.Produce(t, addr, messages(topic, 3, 1)...)
		older := at[2]
		older.Next, older.Last = 8, 7
		for _, tt := range []struct {
			name string
			read Progress
			want []Partition
		}{
			{"all that is there", read, nil},
			{"a part", at[2], nil},
			{"nothing", Progress{Last: -1}, nil},
			{"a position of an earlier release", Progress{Next: 9, Last: -1}, nil},
			{"a position behind the end", Progress{Next: 10, Last: -1}, []Partition{p}},
			{"other records at offsets that were read", older, []Partition{p}},
		} {
			got, err := patientAdmin(t, config(addr)).Replaced(t.Context(), map[Partition]Progress{p: tt.read})
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
			}
		}
	})
}
