package broker

import (
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
)

func TestRecordHasAllOfAMessage(t *testing.T) {
	t.Parallel()
	topic, at := "topic", time.Unix(1_700_000_000, 0)
	m := &kafka.Message{
		TopicPartition: kafka.TopicPartition{Topic: &topic, Partition: 3, Offset: 7},
		Timestamp:      at,
		Key:            []byte("key"),
		Value:          []byte("value"),
		Headers: []kafka.Header{
			{Key: "ce_id", Value: []byte("1")}, {Key: "empty", Value: []byte{}}, {Key: "nil"},
		},
	}
	want := Record{
		Topic: "topic", Partition: 3, Offset: 7, Time: at, Key: []byte("key"), Value: []byte("value"),
		Headers: []contract.Header{
			{Key: "ce_id", Value: []byte("1")}, {Key: "empty", Value: []byte{}}, {Key: "nil"},
		},
	}
	if diff := cmp.Diff(want, record(m)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	m.Headers = nil
	if got := record(m).Headers; got != nil {
		t.Errorf("a message without headers has %v", got)
	}
}

// A batch that a handler may still hold is not changed when partitions are revoked.
func TestBatchWithoutPartitions(t *testing.T) {
	t.Parallel()
	at := func(n int32) Partition { return Partition{Topic: "topic", TopicID: "id", Number: n} }
	batch := func() Batch {
		return Batch{
			Records: []Record{
				{Topic: "topic", Partition: 0, Offset: 4}, {Topic: "topic", Partition: 1, Offset: 8},
				{Topic: "other", Partition: 0, Offset: 2}, {Topic: "topic", Partition: 0, Offset: 5},
			},
			Next: map[Partition]int64{at(0): 6, at(1): 9, {Topic: "other", TopicID: "id"}: 3},
		}
	}
	b := batch()
	want := Batch{
		Records: []Record{
			{Topic: "topic", Partition: 1, Offset: 8}, {Topic: "other", Partition: 0, Offset: 2},
		},
		Next: map[Partition]int64{at(1): 9, {Topic: "other", TopicID: "id"}: 3},
	}
	if diff := cmp.Diff(want, b.without([]Partition{at(0), at(7)})); diff != "" {
		t.Errorf("without a partition (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(batch(), b.without(nil)); diff != "" {
		t.Errorf("without none (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(batch(), b); diff != "" {
		t.Errorf("the batch itself has changed (-want +got):\n%s", diff)
	}
}
