package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"ordersystem.dev/services/internal/backoff"
)

const (
	// readableWait is how long a committed transaction may take to become readable. It takes
	// milliseconds.
	readableWait = 3 * time.Second
	// busyWait is how long a coordinator may be busy. It takes milliseconds, and seconds while brokers start.
	busyWait = 5 * time.Second
	// coordinatorMin and coordinatorMax are the pauses meanwhile.
	coordinatorMin = 5 * time.Millisecond
	coordinatorMax = 500 * time.Millisecond
)

// ErrUnreadable is returned by Transactions.AwaitReadable when Kafka has committed a transaction and has
// not ended it.
var ErrUnreadable = errors.New("committed records cannot be read: Kafka has not ended their transaction")

// Transactions makes sure that what was committed to some topics can be read. A Kafka that crashes may
// lose the markers of a transaction that it has committed: the restarted coordinator leaves out the
// partitions that have no leader yet, and counts the transaction as complete (seen with Kafka 4.3.1).
// Readers of committed records then wait for ever, and the next aborted transaction of the same ID would
// take the records with it.
//
// It uses franz-go, because librdkafka adds only those partitions to a transaction for which it has
// messages.
type Transactions struct {
	client *kgo.Client
	topics []string
	// id is what was taken last, and taken is how.
	id    string
	taken *kmsg.InitProducerIDResponse
	// producers has the producer IDs of the transactional IDs.
	producers map[int64]bool
	// foreign is set while other programs hold a transaction open where the last look was.
	foreign bool
}

// NewTransactions returns the Transactions of these topics, whether or not Kafka can be reached. They are
// not safe for concurrent use.
func NewTransactions(cfg Config, topics ...string) (*Transactions, error) {
	versions := kversion.Stable()
	// Later versions are for brokers and for the second protocol of KIP-890.
	versions.SetMaxKeyVersion(int16(kmsg.AddPartitionsToTxn), 3)
	versions.SetMaxKeyVersion(int16(kmsg.EndTxn), 4)
	client, err := newFranz(cfg, kgo.MaxVersions(versions))
	if err != nil {
		return nil, err
	}
	return &Transactions{client: client, topics: topics, producers: make(map[int64]bool)}, nil
}

// Close closes the connections.
func (t *Transactions) Close() { t.client.Close() }

// Take takes the transactional ID. Kafka aborts the transaction that an earlier producer has left open. Take
// waits for Kafka until ctx ends, but for a coordinator that is busy only for busyWait.
func (t *Transactions) Take(ctx context.Context, transactionalID string) error {
	init := kmsg.NewPtrInitProducerIDRequest()
	init.TransactionalID, init.TransactionTimeoutMillis = &transactionalID, int32(transactionTimeout.Milliseconds())
	taken, err := coordinate(ctx, t.client, init.RequestWith,
		func(resp *kmsg.InitProducerIDResponse) int16 { return resp.ErrorCode })
	if err != nil {
		return fmt.Errorf("take transactional ID %s: %w", transactionalID, err)
	}
	t.id, t.taken = transactionalID, taken
	t.producers[taken.ProducerID] = true
	return nil
}

// Complete commits a transaction without records on all partitions, with the transactional ID that was
// taken last. Its markers end what an earlier transaction of the ID has left open: the records of that one
// become readable. It waits as Take does. After an error they may be lost: Kafka aborts what Complete has
// begun. The error is ErrProducerFenced if another producer takes the ID meanwhile.
func (t *Transactions) Complete(ctx context.Context) error {
	begin := time.Now()
	if err := t.complete(ctx); err != nil {
		return fmt.Errorf("complete transactions of %s: %w", t.id, fenced(t.id, begin, err))
	}
	return nil
}

func (t *Transactions) complete(ctx context.Context) error {
	add := kmsg.NewPtrAddPartitionsToTxnRequest()
	add.TransactionalID = t.id
	add.ProducerID, add.ProducerEpoch = t.taken.ProducerID, t.taken.ProducerEpoch
	var err error
	if add.Topics, err = t.partitions(ctx); err != nil || len(add.Topics) == 0 {
		return err
	}
	if _, err := coordinate(ctx, t.client, add.RequestWith, func(resp *kmsg.AddPartitionsToTxnResponse) int16 {
		for _, topic := range resp.Topics {
			for _, p := range topic.Partitions {
				if p.ErrorCode != 0 && p.ErrorCode != kerr.OperationNotAttempted.Code {
					return p.ErrorCode
				}
			}
		}
		return 0
	}); err != nil {
		return err
	}
	end := kmsg.NewPtrEndTxnRequest()
	end.TransactionalID, end.Commit = t.id, true
	end.ProducerID, end.ProducerEpoch = t.taken.ProducerID, t.taken.ProducerEpoch
	_, err = coordinate(ctx, t.client, end.RequestWith,
		func(resp *kmsg.EndTxnResponse) int16 { return resp.ErrorCode })
	return err
}

// coordinate repeats a request to a coordinator until that responds, and for busyWait while it is busy or
// not there yet. All of these requests may be repeated. code returns the error code of a response.
func coordinate[R any](
	ctx context.Context, client kmsg.Requestor,
	request func(context.Context, kmsg.Requestor) (R, error), code func(R) int16,
) (R, error) {
	again := backoff.Backoff{Min: coordinatorMin, Max: coordinatorMax}
	for begin := time.Now(); ; {
		resp, err := request(ctx, client)
		// The look-up of a coordinator has its error codes in err.
		refused, _ := errors.AsType[*kerr.Error](err)
		if err == nil {
			if code(resp) == 0 {
				return resp, nil
			}
			refused = kerr.TypedErrorForCode(code(resp))
		}
		switch {
		case refused == nil:
			// Kafka does not respond. The producer logs what is wrong.
			begin = time.Now()
		case !refused.Retriable && refused.Code != kerr.ConcurrentTransactions.Code,
			time.Since(begin) >= busyWait:
			return resp, explain(kafka.NewError(kafka.ErrorCode(refused.Code), refused.Error(), false))
		}
		if !again.Wait(ctx) {
			return resp, errors.Join(err, context.Cause(ctx))
		}
	}
}

// partitions returns the partitions of the topics that exist.
func (t *Transactions) partitions(ctx context.Context) ([]kmsg.AddPartitionsToTxnRequestTopic, error) {
	topics, err := lookUp(ctx, t.client, t.topics)
	if err != nil {
		return nil, err
	}
	var found []kmsg.AddPartitionsToTxnRequestTopic
	for name, topic := range topics {
		if topic.ErrorCode == kerr.UnknownTopicOrPartition.Code {
			continue
		}
		if topic.ErrorCode != 0 {
			return nil, kafka.NewError(kafka.ErrorCode(topic.ErrorCode), name, false)
		}
		f := kmsg.NewAddPartitionsToTxnRequestTopic()
		f.Topic = name
		for _, p := range topic.Partitions {
			f.Partitions = append(f.Partitions, p.Partition)
		}
		found = append(found, f)
	}
	return found, nil
}

// AwaitReadable waits until readers of committed records can read up to these offsets, which are those
// after what was committed. The error is ErrUnreadable if that takes longer than readableWait: Complete
// ends what was left open. It does not wait for partitions on which only other programs hold a transaction
// open: what was committed there is safe.
func (t *Transactions) AwaitReadable(ctx context.Context, next map[Partition]int64) error {
	left := maps.Clone(next)
	again := backoff.Backoff{Min: time.Millisecond, Max: 50 * time.Millisecond}
	for begin := time.Now(); ; {
		// What is decided at the end is decided by a look that began then: this process may have stood still.
		late := time.Since(begin) >= readableWait
		stable, err := t.stableOffsets(ctx, left)
		if err != nil {
			return err
		}
		maps.DeleteFunc(left, func(p Partition, offset int64) bool { return stable[p] >= offset })
		// In most cases a marker is only a moment late, and who holds a transaction open is not asked.
		if len(left) > 0 && (late || t.foreign) {
			foreign, err := t.heldByOthers(ctx, left)
			if err != nil {
				return err
			}
			maps.DeleteFunc(left, func(p Partition, _ int64) bool { return foreign[p] })
			t.foreign = len(foreign) > 0
		}
		switch {
		case len(left) == 0:
			return nil
		case late:
			return ErrUnreadable
		case !again.Wait(ctx):
			return context.Cause(ctx)
		}
	}
}

// heldByOthers returns those of the partitions on which other programs hold a transaction open, and the
// IDs do not. It needs the permission to read them.
func (t *Transactions) heldByOthers(ctx context.Context, on map[Partition]int64) (map[Partition]bool, error) {
	byTopic := make(map[string][]int32)
	for p := range on {
		byTopic[p.Topic] = append(byTopic[p.Topic], p.Number)
	}
	req := kmsg.NewPtrDescribeProducersRequest()
	for topic, partitions := range byTopic {
		one := kmsg.NewDescribeProducersRequestTopic()
		one.Topic, one.Partitions = topic, partitions
		req.Topics = append(req.Topics, one)
	}
	resp, err := req.RequestWith(ctx, t.client)
	if err != nil {
		return nil, fmt.Errorf("look up open transactions: %w", err)
	}
	foreign := make(map[Partition]bool)
	for _, topic := range resp.Topics {
		for _, p := range topic.Partitions {
			if p.ErrorCode != 0 {
				err := kafka.NewError(kafka.ErrorCode(p.ErrorCode), "", false)
				return nil, fmt.Errorf("look up open transactions of %s/%d: %w",
					topic.Topic, p.Partition, explain(err))
			}
			ours, others := false, false
			for _, producer := range p.ActiveProducers {
				open := producer.CurrentTxnStartOffset >= 0
				ours = ours || open && t.producers[producer.ProducerID]
				others = others || open && !t.producers[producer.ProducerID]
			}
			if others && !ours {
				foreign[Partition{Topic: topic.Topic, Number: p.Partition}] = true
			}
		}
	}
	return foreign, nil
}

// stableOffsets returns the last stable offsets of partitions.
func (t *Transactions) stableOffsets(
	ctx context.Context, of map[Partition]int64,
) (map[Partition]int64, error) {
	byTopic := make(map[string][]kmsg.ListOffsetsRequestTopicPartition)
	for p := range of {
		one := kmsg.NewListOffsetsRequestTopicPartition()
		one.Partition, one.Timestamp = p.Number, -1
		byTopic[p.Topic] = append(byTopic[p.Topic], one)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	const readCommitted = 1
	req.ReplicaID, req.IsolationLevel = -1, readCommitted
	for topic, partitions := range byTopic {
		one := kmsg.NewListOffsetsRequestTopic()
		one.Topic, one.Partitions = topic, partitions
		req.Topics = append(req.Topics, one)
	}
	resp, err := req.RequestWith(ctx, t.client)
	if err != nil {
		return nil, fmt.Errorf("look up last stable offsets: %w", err)
	}
	stable := make(map[Partition]int64, len(of))
	for _, topic := range resp.Topics {
		for _, p := range topic.Partitions {
			if p.ErrorCode != 0 {
				err := kafka.NewError(kafka.ErrorCode(p.ErrorCode), "", false)
				return nil, fmt.Errorf("look up the last stable offset of %s/%d: %w",
					topic.Topic, p.Partition, explain(err))
			}
			stable[Partition{Topic: topic.Topic, Number: p.Partition}] = p.Offset
		}
	}
	return stable, nil
}
