package cart

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// compared is a reconciler that has a Kafka with the declared topics.
type compared struct {
	*reconciler
	t     *testing.T
	kafka string
	log   *bytes.Buffer
}

func newCompared(t *testing.T) *compared {
	t.Helper()
	kafka := testenv.Fake(t)
	if err := localkafka.CreateTopics(t.Context(), kafka, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{kafka}}}
	admin, err := broker.NewAdmin(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	c, _ := running(t, t.TempDir(), 100)
	var lines bytes.Buffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	r := &compared{newReconciler(cfg, admin, c.store, log, prometheus.NewRegistry()), t, kafka, &lines}
	close(r.whole)
	return r
}

// lostSoFar checks how many offsets are lost.
func (r *compared) lostSoFar(when string, want float64) {
	r.t.Helper()
	if got := metric(r.t, r.lost).GetCounter().GetValue(); got != want {
		r.t.Errorf("%s: %v offsets are lost, want %v", when, got, want)
	}
}

// untilReachable does what asks Kafka, and again while Kafka seems to be unreachable: on a machine that stalls it
// may need longer than a look-up waits for it.
func (r *compared) untilReachable(do func(context.Context) error) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		err := do(r.t.Context())
		if err == nil {
			return
		}
		if _, unreachable := errors.AsType[*broker.UnreachableError](err); !unreachable || time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
}

func (r *compared) end() (end map[broker.Partition]int64) {
	r.t.Helper()
	r.untilReachable(func(ctx context.Context) (err error) {
		_, end, err = r.admin.Bounds(ctx, contract.OrderTopics()...)
		return err
	})
	return end
}

// A comparison that fails begins again after seconds, and may do so for hours.
func TestALossIsCountedOnceHoweverOftenTheStoreIsCompared(t *testing.T) {
	t.Parallel()
	r := newCompared(t)
	end := r.end()
	var some broker.Partition
	for some = range end {
		break
	}
	for loss := range 2 {
		before := float64(5 * loss)
		r.untilReachable(r.run)
		r.lostSoFar("the store agrees with the topics", before)
		if err := r.store.setPublished(t.Context(), map[broker.Partition]int64{some: end[some] + 5}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := r.start(t.Context(), end); err != nil {
				t.Fatal(err)
			}
			r.lostSoFar("the comparison has begun", before+5)
		}
	}
	clear(r.counted)
	for range 2 {
		r.deleted(nil, map[broker.Partition]int64{some: 5})
		r.lostSoFar("the log begins later", 15)
	}
}

// Cart notices while it runs that a topic was recreated, that a log has lost its end, or that partitions
// were added. It counts what was there before, and not what came since.
func TestTopicsThatChangeWhileCartRunsAreNoticed(t *testing.T) {
	t.Parallel()
	r := newCompared(t)
	look := func(when string, lost float64) {
		t.Helper()
		r.untilReachable(r.look)
		r.lostSoFar(when, lost)
	}
	r.untilReachable(r.run)
	message := contract.Message{Topic: contract.TopicCreated, Key: []byte("a"), Value: []byte("{}")}
	testenv.Produce(t, r.kafka, message, message, message)
	look("three records came", 0)

	if err := localkafka.DeleteTopic(t.Context(), r.kafka, contract.TopicCreated); err != nil {
		t.Fatal(err)
	}
	if err := r.look(t.Context()); err == nil {
		t.Error("a look at a topic that is missing is no error")
	}
	if err := localkafka.CreateTopics(t.Context(), r.kafka, contract.Topics(), 1); err != nil {
		t.Fatal(err)
	}
	// The relay goes on in the new log, and stores its positions with the ID of the former topic.
	at := testenv.Produce(t, r.kafka, message)[0]
	place := broker.Partition{Topic: at.Topic, Number: at.Partition}
	err := r.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		return r.store.writePublished(tx, map[broker.Partition]int64{place: at.Offset + 1})
	})
	if err != nil {
		t.Fatal(err)
	}
	look("the topic was recreated", 3)
	look("nothing has changed since", 3)
	// The next start reads the new log from its beginning.
	from, err := r.start(t.Context(), r.end())
	if err != nil {
		t.Fatal(err)
	}
	for p, next := range from {
		if next != 0 {
			t.Errorf("the next comparison begins at %d in %v, want 0", next, p)
		}
	}
	if len(from) != 24 {
		t.Errorf("the store has the positions of %d partitions, want 24", len(from))
	}
	r.lostSoFar("the next start compares", 3)

	for p := range r.seen {
		if p.Topic == at.Topic && p.Number == at.Partition {
			r.seen[p] += 5
			place = p
		}
	}
	if err := r.store.setPublished(t.Context(), r.seen); err != nil {
		t.Fatal(err)
	}
	look("the log has lost its end", 8)
	if from, err := r.store.publishedPositions(t.Context()); err != nil || from[place] != at.Offset+1 {
		t.Errorf("the position is %d, %v, want the end of the log", from[place], err)
	}

	if strings.Contains(r.log.String(), "declared number of partitions") {
		t.Errorf("all topics are as they were declared, and Cart logs:\n%s", r.log)
	}
	testenv.AddPartition(t, r.kafka, contract.TopicCreated)
	look("a partition was added", 8)
	got := metric(t, r.partitions.WithLabelValues(contract.TopicCreated)).GetGauge().GetValue()
	if got != 13 || strings.Count(r.log.String(), "declared number of partitions") != 1 {
		t.Errorf("cart_topic_partitions is %v, want 13 and a line in the log:\n%s", got, r.log)
	}
}

// Compaction keeps the last record of an order. If that is not the newest version, the newest one follows.
func TestTheNewestVersionOfAnOrderIsTheLastOne(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		// published are the versions in the topic, stored is that of the store, and waits is one in the outbox.
		published     []int64
		stored, waits int64
		want          []int64
	}{
		"as it should be":                      {[]int64{2, 3}, 3, 0, nil},
		"an older version is behind":           {[]int64{2, 3, 2}, 3, 0, []int64{3}},
		"the same, and the next one waits":     {[]int64{2, 3, 2}, 4, 4, []int64{4}},
		"the same, and what is there waits":    {[]int64{2, 3, 2}, 3, 3, []int64{3}},
		"all of them were published again":     {[]int64{2, 3, 2, 3}, 3, 0, nil},
		"the topic has what the store has not": {[]int64{2, 3}, 2, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newCompared(t)
			event := func(version int64) contract.Message {
				m, err := newEvent(contract.TypeUpdated, contract.Order{
					OrderID: "order", CustomerID: "c", OrderDate: time.Unix(0, 0).UTC(), Currency: "USD",
					Status: fmt.Sprint("v", version), Version: version, TotalAmount: 2,
					Items: []contract.Item{{ProductID: "P", Quantity: 2, Price: 1}},
				}, "", time.Unix(0, 0)).Message()
				if err != nil {
					t.Fatal(err)
				}
				return m
			}
			begin := r.end()
			for p := range begin {
				begin[p] = 0
			}
			if err := r.store.setPublished(t.Context(), begin); err != nil {
				t.Fatal(err)
			}
			if err := r.store.restore(t.Context(), map[string]orderState{
				"order": {tt.stored, event(tt.stored).Value},
			}); err != nil {
				t.Fatal(err)
			}
			if tt.waits > 0 {
				if err := r.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
					ledger, err := r.store.box.Lock(tx)
					if err != nil {
						return err
					}
					return ledger.Add(time.Now(), []contract.Message{event(tt.waits)})
				}); err != nil {
					t.Fatal(err)
				}
			}
			for _, version := range tt.published {
				testenv.Produce(t, r.kafka, event(version))
			}
			r.untilReachable(r.run)
			var got []int64
			err := r.store.db.Query(t.Context(), "SELECT value FROM outbox ORDER BY id", func(rows *sql.Rows) error {
				var value []byte
				if err := rows.Scan(&value); err != nil {
					return err
				}
				o, err := contract.DecodeOrder(value)
				got = append(got, o.Version)
				return err
			})
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("what is published next: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}
