package testenv

import (
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Hang leaves a transaction of one record open on each of the partitions, and returns what aborts
// it.
func Hang(t testing.TB, addr, topic string, partitions ...int32) (abort func()) {
	t.Helper()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(addr), kgo.TransactionalID("open-"+topic), kgo.TransactionTimeout(10*time.Minute),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	var records []*kgo.Record
	for _, n := range partitions {
		records = append(records, &kgo.Record{Topic: topic, Partition: n, Key: []byte("key"), Value: []byte("open")})
	}
	err = client.BeginTransaction()
	if err := errors.Join(err, client.ProduceSync(t.Context(), records...).FirstErr()); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := client.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
	}
}
