package load

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
)

func TestClosedCountsAcceptedOrders(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var req contract.CreateOrder
		req, err := decodeCreate(r)
		if err != nil || req.ItemsNum != itemsPerOrder {
			t.Errorf("request %+v: %v", req, err)
		}
		seen.Add(1)
	}))
	t.Cleanup(server.Close)
	accepted, took, err := Closed(t.Context(), server.URL, "x-", 4, 50*time.Millisecond)
	if err != nil || int64(accepted) != seen.Load() || accepted == 0 || took < 50*time.Millisecond {
		t.Errorf("accepted %d of %d in %s: %v", accepted, seen.Load(), took, err)
	}
}

func TestClosedStopsAtARefusal(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "backlog is full", http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	_, _, err := Closed(t.Context(), server.URL, "x-", 4, time.Minute)
	if err == nil || !strings.Contains(err.Error(), "backlog is full") {
		t.Errorf("error %v does not have the text of the response", err)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	t.Run("calls as often as it should, also with slow responses", func(t *testing.T) {
		t.Parallel()
		var calls atomic.Int64
		begin := time.Now()
		err := Open(t.Context(), 1000, 100*time.Millisecond, func(context.Context, int) error {
			calls.Add(1)
			time.Sleep(50 * time.Millisecond)
			return nil
		})
		// One after another, 100 calls take 5 s.
		if took := time.Since(begin); err != nil || calls.Load() != 100 || took > 5*time.Second {
			t.Errorf("%d calls in %s: %v", calls.Load(), took, err)
		}
	})
	t.Run("ends at the first failure", func(t *testing.T) {
		t.Parallel()
		refused := errors.New("refused")
		err := Open(t.Context(), 1000, time.Minute, func(_ context.Context, n int) error {
			if n == 3 {
				return refused
			}
			return nil
		})
		if !errors.Is(err, refused) {
			t.Errorf("error %v", err)
		}
	})
}

// An order's versions come in sequence, and a quarter of the events are creations.
func TestHistories(t *testing.T) {
	t.Parallel()
	const events = 4000
	version := map[string]int64{}
	kinds := map[string]int{}
	for m := range Histories("h-", events) {
		e, err := contract.DecodeEvent(m.Topic, 0, m.Key, m.Value, m.Headers)
		if err != nil {
			t.Fatal(err)
		}
		id := e.Order.OrderID
		if e.Order.Version != version[id]+1 {
			t.Fatalf("order %s: version %d follows %d", id, e.Order.Version, version[id])
		}
		version[id] = e.Order.Version
		kinds[m.Topic]++
	}
	want := map[string]int{contract.TopicCreated: events / 4, contract.TopicUpdated: events * 3 / 4}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Error(diff)
	}
}

func TestOrdersHaveDifferentIDs(t *testing.T) {
	t.Parallel()
	ids := map[string]bool{}
	for m := range Orders("o-", 1000) {
		ids[string(m.Key)] = true
	}
	if len(ids) != 1000 {
		t.Errorf("1000 orders have %d IDs", len(ids))
	}
}

func decodeCreate(r *http.Request) (contract.CreateOrder, error) {
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, body); err != nil {
		return contract.CreateOrder{}, err
	}
	return contract.DecodeCreateOrder(body)
}
