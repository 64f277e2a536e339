package localkafka_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// onBoth runs a test on the fake and on a real broker.
func onBoth(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("fake", func(t *testing.T) { test(t, testenv.Fake(t)) })
	t.Run("real", func(t *testing.T) { test(t, testenv.SharedKafka(t).Addr) })
}

func TestDeclaredTopics(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		for _, topic := range contract.Topics() {
			config, partitions := topicAsIs(t, addr, topic.Name)
			if diff := cmp.Diff(topic.Config, only(topic.Config, config)); diff != "" {
				t.Errorf("config of %s (-want +got):\n%s", topic.Name, diff)
			}
			if partitions != topic.Partitions {
				t.Errorf("%s has %d partitions, want %d", topic.Name, partitions, topic.Partitions)
			}
		}
	})
}

func TestCreateTopics(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		declared := contract.Topic{Name: testenv.NewTopic(t, addr, 2), Partitions: 2,
			Config: maps.Clone(contract.Topics()[0].Config)}
		otherPartitions, otherConfig := declared, declared
		otherPartitions.Partitions = 3
		otherConfig.Config = map[string]string{"cleanup.policy": "delete"}
		for _, tt := range []struct {
			name  string
			topic contract.Topic
			want  string
		}{
			{"as declared", declared, ""},
			{"other partitions", otherPartitions, "it has 2 partitions, declared are 3"},
			{"other config", otherConfig, `its cleanup.policy is "compact", declared is "delete"`},
		} {
			t.Run(tt.name, func(t *testing.T) {
				err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{tt.topic}, 1)
				if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("error is %v, want %q", err, tt.want)
				}
			})
		}
	})
}

func TestDeleteTopic(t *testing.T) {
	onBoth(t, func(t *testing.T, addr string) {
		topic := contract.Topic{Name: testenv.NewTopic(t, addr, 1), Partitions: 1}
		testenv.Produce(t, addr, contract.Message{Topic: topic.Name, Key: []byte("k"), Value: []byte("v")})
		if err := localkafka.DeleteTopic(t.Context(), addr, topic.Name); err != nil {
			t.Fatal(err)
		}
		if err := localkafka.DeleteTopic(t.Context(), addr, topic.Name); err == nil {
			t.Error("a topic was deleted twice")
		}
		if err := localkafka.CreateTopics(t.Context(), addr, []contract.Topic{topic}, 1); err != nil {
			t.Fatal(err)
		}
		if got := testenv.ReadAll(t, addr, topic.Name); len(got) != 0 {
			t.Errorf("the recreated topic holds %d records", len(got))
		}
	})
}

func adminOf(t *testing.T, addr string) *kadm.Client {
	t.Helper()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	return admin
}

func topicAsIs(t *testing.T, addr, name string) (config map[string]string, partitions int) {
	t.Helper()
	admin := adminOf(t, addr)
	configs, err1 := admin.DescribeTopicConfigs(t.Context(), name)
	topics, err2 := admin.ListTopics(t.Context(), name)
	if err := errors.Join(err1, err2, topics.Error()); err != nil {
		t.Fatal(err)
	}
	return configMap(configs), len(topics[name].Partitions)
}

func brokerConfig(t *testing.T, addr string) map[string]string {
	t.Helper()
	admin := adminOf(t, addr)
	brokers, err := admin.ListBrokers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	configs, err := admin.DescribeBrokerConfigs(t.Context(), brokers[0].NodeID)
	if err != nil {
		t.Fatal(err)
	}
	return configMap(configs)
}

func configMap(configs kadm.ResourceConfigs) map[string]string {
	m := make(map[string]string)
	for _, c := range configs[0].Configs {
		m[c.Key] = c.MaybeValue()
	}
	return m
}

func only(names, from map[string]string) map[string]string {
	m := make(map[string]string)
	for name := range names {
		if value, ok := from[name]; ok {
			m[name] = value
		}
	}
	return m
}
