package broker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

var (
	// ErrProducerFenced is returned by Producer.Publish when another producer has taken the
	// transactional ID. A caller must not take it back by itself: the two would fence each other
	// for ever.
	ErrProducerFenced = errors.New("fenced: another producer has taken transactional ID")
	// ErrFenced is returned by Handler.Apply when another member has written the position of a
	// partition, so that this member must not go on with it.
	ErrFenced = errors.New("fenced: another member has written this partition's offset")
	// ErrTruncated is returned by ReadTo when a log has lost its end, so that what was read may not be
	// in it. Once the log has grown again, it has other records there.
	ErrTruncated = errors.New("the log has lost its end")
)

// MissingTopicsError means that Kafka responds and does not have these topics.
type MissingTopicsError struct{ Names []string }

func (e *MissingTopicsError) Error() string {
	return "missing topics: " + strings.Join(e.Names, ", ")
}

// UnreachableError means that Kafka does not respond, or refuses this client.
type UnreachableError struct {
	// Brokers are the configured addresses, separated by commas.
	Brokers string
	// Err is the last reason that the client met.
	Err error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("Kafka is unreachable at %s: %v", e.Brokers, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// DamagedError means that a broker has stored a batch whose CRC is wrong: its disk has changed it.
type DamagedError struct {
	Place
	// Records and Bytes are the size of the batch, as far as it can be believed.
	Records int32
	Bytes   int
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s/%d is damaged at offset %d: the batch's CRC is wrong", e.Topic, e.Partition, e.Offset)
}

// meanings holds a name for each error code, for labels of metrics. Where librdkafka's own text
// does not show what to do about the error, it also holds a text.
var meanings = map[kafka.ErrorCode]struct{ name, text string }{
	kafka.ErrClusterAuthorizationFailed: {"CLUSTER_AUTHORIZATION_FAILED", ""},
	kafka.ErrTopicAuthorizationFailed: {
		"TOPIC_AUTHORIZATION_FAILED",
		"no permission on the topic: a producer needs the ACL Write, a consumer Read, a relay both",
	},
	kafka.ErrTransactionalIDAuthorizationFailed: {
		"TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
		"no permission on the transactional ID: a producer needs the ACLs Write and Describe",
	},
	kafka.ErrConcurrentTransactions: {
		"CONCURRENT_TRANSACTIONS",
		"Kafka cannot end an earlier transaction of this transactional ID: a partition has no leader",
	},
	kafka.ErrCoordinatorNotAvailable: {
		"COORDINATOR_NOT_AVAILABLE",
		"Kafka has no coordinator: __transaction_state or __consumer_offsets lacks replicas in sync",
	},
	kafka.ErrFenced:               {"_FENCED", ""},
	kafka.ErrProducerFenced:       {"PRODUCER_FENCED", ""},
	kafka.ErrInvalidProducerEpoch: {"INVALID_PRODUCER_EPOCH", ""},
	kafka.ErrGroupAuthorizationFailed: {
		"GROUP_AUTHORIZATION_FAILED",
		"no permission on the consumer group: a member needs the ACL Read, a reader Describe",
	},
	kafka.ErrSaslAuthenticationFailed: {"SASL_AUTHENTICATION_FAILED", "Kafka refuses the user or the password"},
	kafka.ErrAuthentication:           {"_AUTHENTICATION", "Kafka refuses the user or the password"},
	kafka.ErrSsl: {
		"_SSL",
		"the TLS handshake fails: check the CA, the client's certificate and the port",
	},
	kafka.ErrUnknownTopicOrPart: {
		"UNKNOWN_TOPIC_OR_PARTITION",
		"the topic or partition does not exist: create it by declaration",
	},
	kafka.ErrUnknownTopic:     {"_UNKNOWN_TOPIC", "the topic does not exist: create it by declaration"},
	kafka.ErrUnknownPartition: {"_UNKNOWN_PARTITION", "the partition does not exist"},
	kafka.ErrUnknownTopicID:   {"UNKNOWN_TOPIC_ID", "the topic was deleted, and perhaps recreated"},
	kafka.ErrMsgSizeTooLarge: {
		"MSG_SIZE_TOO_LARGE",
		"the message is larger than the topic's max.message.bytes",
	},
	kafka.ErrRecordListTooLarge: {
		"RECORD_LIST_TOO_LARGE",
		"the batch is larger than the topic's segment.bytes",
	},
	kafka.ErrInvalidRecord:    {"INVALID_RECORD", "the topic's settings refuse the message"},
	kafka.ErrInvalidTimestamp: {"INVALID_TIMESTAMP", "the topic's settings refuse the message's time"},
	kafka.ErrPolicyViolation:  {"POLICY_VIOLATION", ""},
	kafka.ErrUnsupportedVersion: {
		"UNSUPPORTED_VERSION",
		"the broker is too old: the new consumer protocol needs Kafka 4.0",
	},
	kafka.ErrUnsupportedFeature: {
		"_UNSUPPORTED_FEATURE",
		"the broker is too old: the new consumer protocol needs Kafka 4.0",
	},
	kafka.ErrUnsupportedAssignor: {
		"UNSUPPORTED_ASSIGNOR",
		"the broker lacks the assignor: add range to its group.consumer.assignors",
	},
	kafka.ErrAllBrokersDown:  {"_ALL_BROKERS_DOWN", "no broker can be reached"},
	kafka.ErrTransport:       {"_TRANSPORT", ""},
	kafka.ErrResolve:         {"_RESOLVE", "the brokers' name is unknown"},
	kafka.ErrTimedOut:        {"_TIMED_OUT", ""},
	kafka.ErrRequestTimedOut: {"REQUEST_TIMED_OUT", ""},
	kafka.ErrMsgTimedOut:     {"_MSG_TIMED_OUT", ""},
	kafka.ErrNotEnoughReplicas: {
		"NOT_ENOUGH_REPLICAS",
		"fewer replicas are in sync than min.insync.replicas",
	},
	kafka.ErrFatal:      {"_FATAL", ""},
	kafka.ErrPurgeQueue: {"_PURGE_QUEUE", "not sent before the producer closed"},
	kafka.ErrPurgeInflight: {
		"_PURGE_INFLIGHT",
		"sent, but not acknowledged before the producer closed",
	},
	kafka.ErrMaxPollExceeded: {
		"_MAX_POLL_EXCEEDED",
		"one batch took longer than a member may be silent: its partitions went to others",
	},
}

// Code returns the name of an error for the label of a metric: one of a bounded set, and "" for
// nil.
func Code(err error) string {
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[kafka.Error](err)
	if !ok {
		return "OTHER"
	}
	if m, ok := meanings[e.Code()]; ok {
		return m.name
	}
	return "CODE_" + strconv.Itoa(int(e.Code()))
}

// explain puts the meaning of an error in front of it, where there is one.
func explain(err error) error {
	if e, ok := errors.AsType[kafka.Error](err); ok {
		if m := meanings[e.Code()]; m.text != "" {
			return fmt.Errorf("%s (%s: %w)", m.text, m.name, err)
		}
	}
	return err
}

// is reports whether an error has one of these codes.
func is(err error, codes ...kafka.ErrorCode) bool {
	e, ok := errors.AsType[kafka.Error](err)
	for _, c := range codes {
		if ok && e.Code() == c {
			return true
		}
	}
	return false
}
