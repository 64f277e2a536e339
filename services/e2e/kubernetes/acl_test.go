package kubernetes

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// rights lists everything that each user may do. It repeats strimzi/topics, so that a superfluous
// ACL there fails the test.
var rights = map[string][]string{
	"cart": {
		"Read topic order-created-topic", "Write topic order-created-topic", "Describe topic order-created-topic",
		"Read topic order-updated-topic", "Write topic order-updated-topic", "Describe topic order-updated-topic",
		"Describe group cart-rebuild",
		"Write transactionalId cart-relay", "Describe transactionalId cart-relay",
		"Write transactionalId cart-relay-2", "Describe transactionalId cart-relay-2",
		"Write transactionalId cart-poison", "Describe transactionalId cart-poison",
		// Kafka grants this with Write on any topic.
		"IdempotentWrite cluster",
	},
	"order": {
		"Read topic order-created-topic", "Describe topic order-created-topic",
		"Read topic order-updated-topic", "Describe topic order-updated-topic",
		"Read topic order-dead-letter-topic", "Write topic order-dead-letter-topic",
		"Describe topic order-dead-letter-topic",
		"Read group order-service", "Describe group order-service",
		"Describe group order-audit",
		"Write transactionalId order-dead-letters", "Describe transactionalId order-dead-letters",
		"Write transactionalId order-dead-letters-2", "Describe transactionalId order-dead-letters-2",
		"IdempotentWrite cluster",
	},
	"lag-operator": {
		"Describe topic order-created-topic", "Describe topic order-updated-topic",
		"Describe topic order-dead-letter-topic",
		"Describe topic __consumer_offsets", "Describe topic any-other-topic",
		"Describe group order-service", "Describe group order-audit", "Describe group cart-rebuild",
		"Describe group any-other-group",
	},
}

// resources are the names to try, by type of resource.
var resources = map[string][]string{
	"topic": {contract.TopicCreated, contract.TopicUpdated, contract.TopicDeadLetter, "__consumer_offsets",
		"any-other-topic"},
	"group":   {contract.GroupOrder, contract.GroupAudit, contract.GroupRebuild, "any-other-group"},
	"cluster": {""},
	"transactionalId": {contract.TransactionalIDsRelay[0], contract.TransactionalIDsRelay[1],
		contract.TransactionalIDsDeadLetters[0], contract.TransactionalIDsDeadLetters[1],
		contract.TransactionalIDPoison, "any-other-transaction"},
}

// attempt sends a request that needs one right. A user with the right gets another error or none.
// No attempt changes anything: each only validates, or is wrong in a way that the broker checks
// after the rights.
type attempt struct {
	operation, resource string
	ask                 func(ctx context.Context, broker *kgo.Broker, name string) error
}

var attempts = []attempt{
	{"Describe", "topic", func(ctx context.Context, broker *kgo.Broker, name string) error {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = &name
		req := kmsg.NewPtrMetadataRequest()
		req.Topics = append(req.Topics, topic)
		return ask(ctx, broker, req, func(resp *kmsg.MetadataResponse) int16 { return resp.Topics[0].ErrorCode })
	}},
	{"Read", "topic", func(ctx context.Context, broker *kgo.Broker, name string) error {
		topic, partition := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
		topic.Topic, topic.Partitions = name, append(topic.Partitions, partition)
		req := kmsg.NewPtrFetchRequest()
		req.MaxBytes, req.Topics = 1, append(req.Topics, topic)
		return ask(ctx, broker, req,
			func(resp *kmsg.FetchResponse) int16 { return resp.Topics[0].Partitions[0].ErrorCode })
	}},
	{"Write", "topic", func(ctx context.Context, broker *kgo.Broker, name string) error {
		topic, partition := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
		// The request has no batch: the broker would refuse an invalid one before it checks the
		// rights.
		partition.Records = []byte{}
		topic.Topic, topic.Partitions = name, append(topic.Partitions, partition)
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis, req.Topics = -1, 1000, append(req.Topics, topic)
		return ask(ctx, broker, req,
			func(resp *kmsg.ProduceResponse) int16 { return resp.Topics[0].Partitions[0].ErrorCode })
	}},
	{"Create", "topic", func(ctx context.Context, broker *kgo.Broker, name string) error {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, 1, 1
		req := kmsg.NewPtrCreateTopicsRequest()
		req.ValidateOnly, req.Topics = true, append(req.Topics, topic)
		return ask(ctx, broker, req, func(resp *kmsg.CreateTopicsResponse) int16 { return resp.Topics[0].ErrorCode })
	}},
	{"Delete", "topic", func(ctx context.Context, broker *kgo.Broker, name string) error {
		topic, partition := kmsg.NewDeleteRecordsRequestTopic(), kmsg.NewDeleteRecordsRequestTopicPartition()
		// The request deletes the records before offset 0.
		topic.Topic, topic.Partitions = name, append(topic.Partitions, partition)
		req := kmsg.NewPtrDeleteRecordsRequest()
		req.Topics = append(req.Topics, topic)
		return ask(ctx, broker, req,
			func(resp *kmsg.DeleteRecordsResponse) int16 { return resp.Topics[0].Partitions[0].ErrorCode })
	}},
	{"Alter", "topic", func(ctx context.Context, broker *kgo.Broker, name string) error {
		topic := kmsg.NewCreatePartitionsRequestTopic()
		topic.Topic, topic.Count = name, 100
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.ValidateOnly, req.Topics = true, append(req.Topics, topic)
		return ask(ctx, broker, req,
			func(resp *kmsg.CreatePartitionsResponse) int16 { return resp.Topics[0].ErrorCode })
	}},
	describeConfigs("topic", kmsg.ConfigResourceTypeTopic),
	alterConfigs("topic", kmsg.ConfigResourceTypeTopic, "retention.ms"),

	{"Describe", "group", func(ctx context.Context, broker *kgo.Broker, name string) error {
		group := kmsg.NewOffsetFetchRequestGroup()
		group.Group = name
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Groups = append(req.Groups, group)
		return ask(ctx, broker, req, func(resp *kmsg.OffsetFetchResponse) int16 { return resp.Groups[0].ErrorCode })
	}},
	{"Read", "group", func(ctx context.Context, broker *kgo.Broker, name string) error {
		req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		// No such member exists.
		req.Group, req.MemberID, req.MemberEpoch = name, "nobody", 7
		return ask(ctx, broker, req, func(resp *kmsg.ConsumerGroupHeartbeatResponse) int16 { return resp.ErrorCode })
	}},
	{"Delete", "group", func(ctx context.Context, broker *kgo.Broker, name string) error {
		topic, partition := kmsg.NewOffsetDeleteRequestTopic(), kmsg.NewOffsetDeleteRequestTopicPartition()
		topic.Topic, topic.Partitions = "any-other-topic", append(topic.Partitions, partition)
		req := kmsg.NewPtrOffsetDeleteRequest()
		req.Group, req.Topics = name, append(req.Topics, topic)
		return ask(ctx, broker, req, func(resp *kmsg.OffsetDeleteResponse) int16 { return resp.ErrorCode })
	}},
	describeConfigs("group", kmsg.ConfigResourceTypeGroupConfig),
	alterConfigs("group", kmsg.ConfigResourceTypeGroupConfig, "consumer.session.timeout.ms"),

	{"Describe", "cluster", func(ctx context.Context, broker *kgo.Broker, _ string) error {
		req := kmsg.NewPtrDescribeACLsRequest()
		req.ResourceType, req.ResourcePatternType, req.Operation, req.PermissionType = kmsg.ACLResourceTypeAny,
			kmsg.ACLResourcePatternTypeAny,
			kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
		return ask(ctx, broker, req, func(resp *kmsg.DescribeACLsResponse) int16 { return resp.ErrorCode })
	}},
	{"Alter", "cluster", func(ctx context.Context, broker *kgo.Broker, _ string) error {
		filter := kmsg.NewDeleteACLsRequestFilter() // matches nothing
		filter.ResourceType, filter.ResourceName, filter.ResourcePatternType = kmsg.ACLResourceTypeTopic,
			new("no-such-topic"), kmsg.ACLResourcePatternTypeLiteral
		filter.Operation, filter.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
		req := kmsg.NewPtrDeleteACLsRequest()
		req.Filters = append(req.Filters, filter)
		return ask(ctx, broker, req, func(resp *kmsg.DeleteACLsResponse) int16 { return resp.Results[0].ErrorCode })
	}},
	{"ClusterAction", "cluster", func(ctx context.Context, broker *kgo.Broker, _ string) error {
		marker, topic := kmsg.NewWriteTxnMarkersRequestMarker(), kmsg.NewWriteTxnMarkersRequestMarkerTopic()
		topic.Topic, topic.Partitions = "no-such-topic", []int32{0}
		marker.Topics = append(marker.Topics, topic)
		req := kmsg.NewPtrWriteTxnMarkersRequest()
		req.Markers = append(req.Markers, marker)
		return ask(ctx, broker, req, func(resp *kmsg.WriteTxnMarkersResponse) int16 {
			return resp.Markers[0].Topics[0].Partitions[0].ErrorCode
		})
	}},
	{"IdempotentWrite", "cluster", func(ctx context.Context, broker *kgo.Broker, _ string) error {
		req := kmsg.NewPtrInitProducerIDRequest()
		return ask(ctx, broker, req, func(resp *kmsg.InitProducerIDResponse) int16 { return resp.ErrorCode })
	}},
	describeConfigs("cluster", kmsg.ConfigResourceTypeBroker),
	alterConfigs("cluster", kmsg.ConfigResourceTypeBroker, "log.retention.ms"),

	{"Write", "transactionalId", func(ctx context.Context, broker *kgo.Broker, name string) error {
		req := kmsg.NewPtrInitProducerIDRequest()
		req.TransactionalID, req.TransactionTimeoutMillis = &name, -1
		return ask(ctx, broker, req, func(resp *kmsg.InitProducerIDResponse) int16 { return resp.ErrorCode })
	}},
	{"Describe", "transactionalId", func(ctx context.Context, broker *kgo.Broker, name string) error {
		req := kmsg.NewPtrDescribeTransactionsRequest()
		req.TransactionalIDs = append(req.TransactionalIDs, name)
		return ask(ctx, broker, req,
			func(resp *kmsg.DescribeTransactionsResponse) int16 { return resp.TransactionStates[0].ErrorCode })
	}},
}

func describeConfigs(resource string, kind kmsg.ConfigResourceType) attempt {
	return attempt{"DescribeConfigs", resource, func(ctx context.Context, broker *kgo.Broker, name string) error {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = kind, name
		req := kmsg.NewPtrDescribeConfigsRequest()
		req.Resources = append(req.Resources, r)
		return ask(ctx, broker, req,
			func(resp *kmsg.DescribeConfigsResponse) int16 { return resp.Resources[0].ErrorCode })
	}}
}

func alterConfigs(resource string, kind kmsg.ConfigResourceType, setting string) attempt {
	return attempt{"AlterConfigs", resource, func(ctx context.Context, broker *kgo.Broker, name string) error {
		config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		config.Name, config.Value = setting, new("6000")
		r := kmsg.NewIncrementalAlterConfigsRequestResource()
		r.ResourceType, r.ResourceName, r.Configs = kind, name, append(r.Configs, config)
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		req.ValidateOnly, req.Resources = true, append(req.Resources, r)
		return ask(ctx, broker, req,
			func(resp *kmsg.IncrementalAlterConfigsResponse) int16 { return resp.Resources[0].ErrorCode })
	}}
}

// noResponse reports that the broker did not respond at all.
type noResponse struct{ error }

func ask[R kmsg.Response](ctx context.Context, broker *kgo.Broker, req kmsg.Request, code func(R) int16) error {
	resp, err := broker.Request(ctx, req)
	if err != nil {
		return noResponse{err}
	}
	return kerr.ErrorForCode(code(resp.(R)))
}

func isRefused(err error) bool {
	for _, refusal := range []error{kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed,
		kerr.ClusterAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

// usersMayDoWhatTheyNeedAndNothingElse tries every operation on every resource as each user, with
// the user's certificate.
func usersMayDoWhatTheyNeedAndNothingElse(t *testing.T, s *strimzi) {
	for _, u := range s.users {
		if rights[u.Metadata.Name] == nil {
			t.Errorf("KafkaUser %s is unknown here", u.Metadata.Name)
		}
	}
	for user, may := range rights {
		t.Run(user, func(t *testing.T) { mayDo(t, s, user, may) })
	}
	// Without this, a broker that refuses everything would pass above, and so would wrong attempts.
	t.Run("the administrator may do everything", func(t *testing.T) {
		var everything []string
		for _, a := range attempts {
			for _, name := range resources[a.resource] {
				everything = append(everything, rightOf(a, name))
			}
		}
		mayDo(t, s, admin, everything)
	})
	for name, opts := range map[string][]kgo.Opt{
		"no client without a certificate": s.with(),
		"no client with another CA's certificate": (&strimzi{cluster: s.cluster, clusterCA: s.clusterCA,
			clientsCA: testenv.NewAuthority(t, "clients-ca"), forwarded: s.forwarded}).as(t, "cart"),
	} {
		t.Run(name, func(t *testing.T) {
			client, err := kgo.NewClient(append(opts, kgo.RetryTimeout(2*time.Second))...)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := client.Ping(t.Context()); err == nil {
				t.Error("the broker responds")
			}
		})
	}
}

func mayDo(t *testing.T, s *strimzi, user string, may []string) {
	// Later versions name topics by ID. A user without rights on a topic cannot know its ID.
	byName := kversion.Stable()
	byName.SetMaxKeyVersion(int16(kmsg.Fetch), 12)
	byName.SetMaxKeyVersion(int16(kmsg.Produce), 12)
	client, err := kgo.NewClient(append(s.as(t, user), kgo.MaxVersions(byName))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, right := range may {
		if !slices.ContainsFunc(attempts, func(a attempt) bool {
			return slices.ContainsFunc(resources[a.resource],
				func(name string) bool { return rightOf(a, name) == right })
		}) {
			t.Errorf("%q is not tried", right)
		}
	}
	for _, a := range attempts {
		for _, name := range resources[a.resource] {
			err := a.ask(t.Context(), client.Broker(0), name)
			if _, silent := errors.AsType[noResponse](err); silent {
				t.Errorf("%s: %v", rightOf(a, name), err)
			} else if want := !slices.Contains(may, rightOf(a, name)); isRefused(err) != want {
				t.Errorf("%s: refused is %t, want %t; the response is %v", rightOf(a, name), !want, want, err)
			}
		}
	}
}

// rightOf returns the right that an attempt needs, as rights has it.
func rightOf(a attempt, name string) string {
	return strings.TrimSpace(a.operation + " " + a.resource + " " + name)
}
