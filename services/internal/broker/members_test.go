package broker

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/internal/testenv"
)

// Each member knows how many partitions the other one has, and where it runs.
func TestOthersOfAGroup(t *testing.T) {
	addr := testenv.SharedKafka(t).Addr
	topic := testenv.NewTopic(t, addr, 6)
	cc := group(topic)
	first, stopFirst := start(t, addr, cc, newMember(newStore()))
	poll(t, "the first member has all partitions", func() bool { return first.Assigned() == 6 })
	poll(t, "nobody else", func() bool {
		got, err := first.Others(t.Context())
		return err == nil && len(got) == 0
	})
	second, stopSecond := start(t, addr, cc, newMember(newStore()))
	poll(t, "both have partitions", func() bool { return first.Assigned() == 3 && second.Assigned() == 3 })
	other := []Member{{ClientID: "broker-test", Host: "/127.0.0.1", Partitions: 3}}
	for _, c := range []*Consumer{first, second} {
		poll(t, "the other member", func() bool {
			got, err := c.Others(t.Context())
			return err == nil && slices.Equal(other, got)
		})
	}
	stopSecond()
	stopFirst()
}

// While Kafka is away or does not name the group's coordinator, the others are not known. The request
// ends in time and harms nothing.
func TestOthersOfAGroupWithoutACoordinator(t *testing.T) {
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "topic"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	kafka.ControlKey(int16(kmsg.FindCoordinator), func(kmsg.Request) (kmsg.Response, error, bool) {
		kafka.KeepControl()
		return nil, nil, true
	})
	for name, addr := range map[string]string{"silent": kafka.ListenAddrs()[0], "away": deadAddr(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := NewConsumer(config(addr), group("topic"), admin(t, addr), logger(t))
			began := time.Now()
			if got, err := c.Others(t.Context()); err == nil {
				t.Errorf("the others are %v, want an error", got)
			}
			if took := time.Since(began); took > adminTimeout+10*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}
