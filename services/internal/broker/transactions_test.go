package broker

import (
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// A broker that crashes may forget that a partition belongs to a transaction which it has committed. The
// next holder of the transactional ID ends it, and the records can be read.
func TestATransactionWithoutItsMarkersIsCompleted(t *testing.T) {
	t.Parallel()
	addr := testenv.StartKafkaWith(t, localkafka.Options{Settings: map[string]string{
		// Without it, the broker takes records for a partition of which the coordinator does not know.
		"transaction.partition.verification.enable": "false",
	}}).Addr
	topic := testenv.NewTopic(t, addr, 2)
	producer := produceWithoutCoordinator(t, addr, topic, "relay")
	testenv.Produce(t, addr, message(topic, "key", "behind"))

	transactions, err := NewTransactions(config(addr), topic, "no-such-topic")
	if err != nil {
		t.Fatal(err)
	}
	defer transactions.Close()
	transactions.producers[producer] = true
	next := map[Partition]int64{{Topic: topic, Number: 0}: 1}
	if err := transactions.AwaitReadable(inTime(t), next); !errors.Is(err, ErrUnreadable) {
		t.Errorf("AwaitReadable of a record without its marker: %v, want ErrUnreadable", err)
	}
	if err := complete(t, transactions, "relay"); err != nil {
		t.Fatal(err)
	}
	if err := transactions.AwaitReadable(inTime(t), next); err != nil {
		t.Errorf("after Complete: %v", err)
	}
	if got := testenv.ReadAll(t, addr, topic); len(got) != 2 {
		t.Errorf("%d records can be read, want 2", len(got))
	}
}

// What another program holds open is not waited for: a relay that goes on loses nothing by it.
func TestAForeignTransactionIsNotWaitedFor(t *testing.T) {
	each(t, func(t *testing.T, addr string) {
		topic := testenv.NewTopic(t, addr, 2)
		abort := testenv.Hang(t, addr, topic, 0)
		transactions, err := NewTransactions(config(addr), topic)
		if err != nil {
			t.Fatal(err)
		}
		defer transactions.Close()
		next := map[Partition]int64{{Topic: topic, Number: 0}: 1}
		defer abort()
		if err := complete(t, transactions, t.Name()); err != nil {
			t.Fatal(err)
		}
		if err := transactions.AwaitReadable(inTime(t), next); err != nil {
			t.Errorf("AwaitReadable behind a foreign transaction: %v", err)
		}
		quickest := readableWait
		for range 5 {
			begin := time.Now()
			if err := transactions.AwaitReadable(inTime(t), next); err != nil {
				t.Errorf("AwaitReadable again: %v", err)
			}
			quickest = min(quickest, time.Since(begin))
		}
		if quickest >= readableWait {
			t.Error("AwaitReadable waits for a foreign transaction that it has seen")
		}
	})
}

// A foreign transaction that was seen hides nothing: neither while it is open nor after its end.
func TestAForeignTransactionHidesNoLostMarker(t *testing.T) {
	t.Parallel()
	addr := testenv.StartKafkaWith(t, localkafka.Options{Settings: map[string]string{
		"transaction.partition.verification.enable": "false",
	}}).Addr
	topic := testenv.NewTopic(t, addr, 2)
	transactions, err := NewTransactions(config(addr), topic)
	if err != nil {
		t.Fatal(err)
	}
	defer transactions.Close()
	lost := func() int64 {
		t.Helper()
		transactions.producers[produceWithoutCoordinator(t, addr, topic, "relay")] = true
		return testenv.HighWatermarks(t, addr, topic)[0]
	}
	await := func(next int64) error {
		return transactions.AwaitReadable(inTime(t), map[Partition]int64{{Topic: topic, Number: 0}: next})
	}
	abort := testenv.Hang(t, addr, topic, 0)
	if err := await(1); err != nil {
		t.Errorf("behind a foreign transaction: %v", err)
	}
	next := lost()
	if err := await(next); !errors.Is(err, ErrUnreadable) {
		t.Errorf("a record without its marker behind a foreign transaction: %v, want ErrUnreadable", err)
	}
	if err := complete(t, transactions, "relay"); err != nil {
		t.Fatal(err)
	}
	if err := await(next); err != nil {
		t.Errorf("after Complete, behind a foreign transaction: %v", err)
	}
	abort()
	if err := await(lost()); !errors.Is(err, ErrUnreadable) {
		t.Errorf("a record without its marker after a foreign transaction: %v, want ErrUnreadable", err)
	}
}

// A broker writes a marker late, and is asked for the open transactions when all of them have just ended.
// Nobody else held one, so the records are not taken for safe.
func TestALateMarkerIsNoForeignTransaction(t *testing.T) {
	t.Parallel()
	cluster, err := fakekafka.New("", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	addr := cluster.ListenAddrs()[0]
	topic := testenv.NewTopic(t, addr, 1)
	abort := testenv.Hang(t, addr, topic, 0)
	cluster.ControlKey(int16(kmsg.DescribeProducers), func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.DescribeProducersResponse)
		resp.Topics = []kmsg.DescribeProducersResponseTopic{{
			Topic: topic, Partitions: []kmsg.DescribeProducersResponseTopicPartition{{}},
		}}
		return resp, nil, true
	})
	transactions, err := NewTransactions(config(addr), topic)
	if err != nil {
		t.Fatal(err)
	}
	defer transactions.Close()
	defer abort()
	next := map[Partition]int64{{Topic: topic, Number: 0}: 1}
	if err := transactions.AwaitReadable(inTime(t), next); !errors.Is(err, ErrUnreadable) {
		t.Errorf("AwaitReadable: %v, want ErrUnreadable", err)
	}
}

// Who may not read a topic cannot see whose transaction is open, and does not guess.
func TestOpenTransactionsAreSeenWithTheRightToRead(t *testing.T) {
	t.Parallel()
	k := testenv.StartSecureKafka(t)
	topic := newTopic(t, k.Addr, 1)
	k.Allow(t, "u", "topic "+topic+" Write")
	transactions, err := NewTransactions(userConfig(k.NewUser(t, "u")), topic)
	if err != nil {
		t.Fatal(err)
	}
	defer transactions.Close()
	defer testenv.Hang(t, k.Addr, topic, 0)()
	next := map[Partition]int64{{Topic: topic, Number: 0}: 1}
	if err := transactions.AwaitReadable(inTime(t), next); Code(err) != "TOPIC_AUTHORIZATION_FAILED" {
		t.Errorf("without the right: %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	k.Allow(t, "u", "topic "+topic+" Read")
	poll(t, "the foreign transaction is seen", func() bool {
		return transactions.AwaitReadable(inTime(t), next) == nil
	})
}

// A coordinator that stays busy is an error with its code, which the relay logs and counts.
func TestABusyCoordinatorIsReported(t *testing.T) {
	for name, code := range map[string]int16{
		"COORDINATOR_NOT_AVAILABLE": kerr.CoordinatorNotAvailable.Code,
		"CONCURRENT_TRANSACTIONS":   kerr.ConcurrentTransactions.Code,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, err := fakekafka.New("", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			cluster.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
				resp.ErrorCode = code
				return resp, nil, true
			})
			transactions, err := NewTransactions(config(cluster.ListenAddrs()[0]))
			if err != nil {
				t.Fatal(err)
			}
			defer transactions.Close()
			if err := transactions.Take(inTime(t), "relay"); Code(err) != name {
				t.Errorf("Take: %v, want %s", err, name)
			}
		})
	}
}

// Kafka ends a transaction that is open for too long, as of a process that stood still. Nobody has taken its ID.
func TestATransactionThatTookTooLongIsNotFenced(t *testing.T) {
	t.Parallel()
	cluster, err := fakekafka.New("", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	addr := cluster.ListenAddrs()[0]
	var refuseFrom time.Time
	cluster.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if refuseFrom.IsZero() {
			refuseFrom = time.Now().Add(transactionTimeout + time.Second)
		}
		if time.Now().Before(refuseFrom) {
			return nil, errors.New("no response"), true
		}
		resp := req.ResponseKind().(*kmsg.EndTxnResponse)
		resp.ErrorCode = kerr.InvalidProducerEpoch.Code
		return resp, nil, true
	})
	transactions, err := NewTransactions(config(addr), testenv.NewTopic(t, addr, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer transactions.Close()
	err = complete(t, transactions, "relay")
	if Code(err) != "INVALID_PRODUCER_EPOCH" || errors.Is(err, ErrProducerFenced) {
		t.Errorf("Complete with an epoch that is over after %s: %v, want no ErrProducerFenced", transactionTimeout, err)
	}
}

func complete(t *testing.T, transactions *Transactions, transactionalID string) error {
	t.Helper()
	if err := transactions.Take(inTime(t), transactionalID); err != nil {
		return err
	}
	return transactions.Complete(inTime(t))
}

// produceWithoutCoordinator writes a record to partition 0 in a transaction of which the coordinator
// does not know. It returns the ID of the producer.
func produceWithoutCoordinator(t *testing.T, addr, topic, transactionalID string) (producerID int64) {
	t.Helper()
	versions := kversion.Stable()
	// The first version that adds the partition by itself is 12.
	versions.SetMaxKeyVersion(int16(kmsg.Produce), 11)
	client, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.MaxVersions(versions))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	init := kmsg.NewPtrInitProducerIDRequest()
	init.TransactionalID, init.TransactionTimeoutMillis = &transactionalID, 10_000
	producer, err := init.RequestWith(inTime(t), client)
	if err != nil || producer.ErrorCode != 0 {
		t.Fatalf("InitProducerID: %v, %+v", err, producer)
	}
	record := kmsg.Record{Key: []byte("key"), Value: []byte("committed")}
	body := record.AppendTo(nil)[1:]
	record.Length = int32(len(body))
	batch := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: 1 << 4, ProducerID: producer.ProducerID,
		ProducerEpoch: producer.ProducerEpoch, NumRecords: 1, Records: record.AppendTo(nil),
	}
	const lengthEnd, crcEnd = 12, 21
	batch.Length = int32(len(batch.AppendTo(nil)) - lengthEnd)
	batch.CRC = int32(crc32.Checksum(batch.AppendTo(nil)[crcEnd:], crc32.MakeTable(crc32.Castagnoli)))
	produce := kmsg.NewPtrProduceRequest()
	produce.TransactionID, produce.Acks, produce.TimeoutMillis = &transactionalID, -1, 10_000
	partition := kmsg.NewProduceRequestTopicPartition()
	partition.Records = batch.AppendTo(nil)
	to := kmsg.NewProduceRequestTopic()
	to.Topic, to.Partitions = topic, []kmsg.ProduceRequestTopicPartition{partition}
	produce.Topics = append(produce.Topics, to)
	resp, err := produce.RequestWith(inTime(t), client)
	if err != nil || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatalf("produce: %v, %+v", err, resp)
	}
	return producer.ProducerID
}
