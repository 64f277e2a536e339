package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/fakekafka"
	"ordersystem.dev/services/internal/testenv"
)

// runWith returns what a run prints, and its error.
func runWith(ctx context.Context, brokers string) (string, error) {
	vars := map[string]string{"KAFKA_BROKERS": brokers}
	var stdout bytes.Buffer
	err := run(ctx, env.New(func(name string) string { return vars[name] }), slog.New(slog.DiscardHandler), &stdout)
	return stdout.String(), err
}

// The printed positions are right, and no record there is an event of the contract.
func TestPoisonIsWhereItIsPrinted(t *testing.T) {
	t.Parallel()
	kafka, err := fakekafka.New("", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	addr := kafka.ListenAddrs()[0]
	var got [3]string
	for i := range got {
		if got[i], err = runWith(t.Context(), addr); err != nil {
			t.Error(err)
		}
	}
	var want []string
	for _, r := range testenv.ReadAll(t, addr, contract.TopicCreated) {
		want = append(want, fmt.Sprintf("poisoned order-created-topic partition %d offset %d\n", r.Partition, r.Offset))
		_, err := contract.DecodeEvent(r.Topic, r.Offset, r.Key, r.Value, r.Headers)
		if e, ok := errors.AsType[*contract.DecodeError](err); !ok || e.Reason != contract.ReasonUndecodable {
			t.Errorf("the record is %q: %v", r.Value, err)
		}
	}
	slices.Sort(got[:])
	slices.Sort(want)
	if diff := cmp.Diff(want, got[:]); diff != "" {
		t.Errorf("printed positions (-in the topic +printed):\n%s", diff)
	}
}

func TestPoisonWithoutKafka(t *testing.T) {
	t.Parallel()
	for brokers, want := range map[string]string{
		"":            "KAFKA_BROKERS is not set",
		"127.0.0.1:1": "describe topics: Kafka is unreachable at 127.0.0.1:1",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := runWith(ctx, brokers)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("KAFKA_BROKERS=%q: error %v, want %q in it", brokers, err, want)
		}
		if _, wrong := errors.AsType[*env.Error](err); wrong != (brokers == "") {
			t.Errorf("KAFKA_BROKERS=%q: error %T", brokers, err)
		}
	}
}
