package order

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/order/ordertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// batch returns the records as a batch that moves each of their partitions behind its last record.
func batch(records ...broker.Record) broker.Batch {
	b := broker.Batch{Records: records, Next: map[broker.Partition]int64{}}
	for _, r := range records {
		b.Next[ordertest.Partition(r.Topic, r.Partition)] = r.Offset + 1
	}
	return b
}

// mostWaiting is how many look-ups may wait in these tests.
const mostWaiting = 100

// database is where a store is: at the URL of a PostgreSQL, or else in dir.
type database struct{ url, dir string }

// each runs a test on each kind of database. fresh returns an empty one.
func each(t *testing.T, test func(t *testing.T, fresh func() database)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, func() database { return database{dir: t.TempDir()} })
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, func() database { return database{url: testenv.Postgres(t)} })
	})
}

// member returns a consumer on the store in dir, as Run makes it.
func member(t testing.TB, dir string) *topicConsumer {
	t.Helper()
	return memberOn(t, database{dir: dir})
}

// memberOn returns a consumer on the store in a database, as Run makes it.
func memberOn(t testing.TB, at database) *topicConsumer {
	t.Helper()
	log, reg := slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry()
	s, err := openStore(t.Context(), at.url, at.dir, contract.OrderTopics(), log, reg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return newTopicConsumer(s, newWaiters(mostWaiting, reg), newCatchUp(), newMetrics(reg), log, logs{
		bounds: func(context.Context, ...string) (first, end map[broker.Partition]int64, err error) { return },
		replaced: func(context.Context, map[broker.Partition]broker.Progress) ([]broker.Partition, error) {
			return nil, nil
		},
	}, func() {})
}

func (c *topicConsumer) mustAssign(t testing.TB, ps ...broker.Partition) map[broker.Partition]int64 {
	t.Helper()
	next, err := c.Assigned(t.Context(), ps)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func (c *topicConsumer) mustApply(t testing.TB, b broker.Batch) {
	t.Helper()
	if err := c.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func count(t testing.TB, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// hash returns a hash over all orders. A rebuilt store must have that of the store that it
// replaces.
func (s *store) hash(ctx context.Context) (string, error) {
	sum := sha256.New()
	const query = "SELECT order_id, version, body FROM orders ORDER BY order_id"
	err := s.db.Query(ctx, query, func(rows *sql.Rows) error {
		var id string
		var version int64
		var body []byte
		err := rows.Scan(&id, &version, &body)
		fmt.Fprintf(sum, "%d %s %d %d %s\n", len(id), id, version, len(body), body)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hash the orders: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
