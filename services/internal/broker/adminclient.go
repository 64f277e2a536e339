package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/internal/backoff"
)

// adminClient is one client of an Admin, made with one set of TLS files.
type adminClient struct {
	// carrier is a producer that produces nothing. An admin client alone never hands out its
	// errors: a refused password shows as a time-out, and its queue of events grows.
	carrier *kafka.Producer
	admin   *kafka.AdminClient
	files   *pems
	logs    *logs
	trouble *trouble
	// done is closed when the last event has been read.
	done chan struct{}
}

// newAdminClient makes a client, whether or not Kafka can be reached.
func newAdminClient(
	cfg Config, files *pems, log *slog.Logger, trouble *trouble,
) (*adminClient, error) {
	c := &adminClient{files: files, logs: newLogs(log), trouble: trouble, done: make(chan struct{})}
	var err error
	c.carrier, err = kafka.NewProducer(settingsWith(cfg, files, c.logs.settings(kafka.ConfigMap{
		"queue.buffering.max.messages": 1,
		"go.events.channel.size":       10,
		"go.produce.channel.size":      0,
	})))
	if err != nil {
		c.logs.close()
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	go func() {
		defer close(c.done)
		for event := range c.carrier.Events() {
			if e, ok := event.(kafka.Error); ok {
				c.trouble.report(e)
			}
		}
	}()
	if c.admin, err = kafka.NewAdminClientFromProducer(c.carrier); err != nil {
		c.close()
		return nil, fmt.Errorf("make admin client: %w", err)
	}
	return c, nil
}

func (c *adminClient) close() {
	c.carrier.Close()
	c.logs.close()
	<-c.done
}

// refresh waits for any broker, and has it tell which brokers there are. An operation begins with that. The request of
// librdkafka 2.15 that follows goes to one broker, which was the controller when the client last knew. Without this it
// would fail for minutes after that one has gone, whatever the others do, and keep most of a processor busy: while it
// waits, it has librdkafka connect again as soon as an attempt has failed, without reconnect.backoff.ms
// (rd_kafka_broker_find_by_nodeid0, RD_KAFKA_OP_CONNECT).
func (c *adminClient) refresh(ctx context.Context) error {
	// librdkafka does not know contexts.
	const wait = 2 * time.Second
	for ctx.Err() == nil {
		if _, err := c.admin.GetMetadata(nil, false, int(wait.Milliseconds())); err == nil {
			return nil
		}
		backoff.Sleep(ctx, pollWait)
	}
	return c.explained(ctx.Err())
}

// explained returns an *UnreachableError if no broker responded, with the reason that the client
// met. A broker that responded with an error can be reached.
func (c *adminClient) explained(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) && !is(err, kafka.ErrTimedOut, kafka.ErrTransport,
		kafka.ErrAllBrokersDown, kafka.ErrResolve, kafka.ErrRequestTimedOut, kafka.ErrDestroy) {
		return explain(err)
	}
	return &UnreachableError{Brokers: c.trouble.brokers, Err: cmp.Or(c.trouble.reason(), explain(err))}
}
