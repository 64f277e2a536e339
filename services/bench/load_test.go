package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
)

func TestClosedLoopCountsWhatWasAccepted(t *testing.T) {
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
	b := &bench{connections: 4}
	accepted, took, err := b.closedLoop(t.Context(), server.URL, "x-", 50*time.Millisecond)
	if err != nil || int64(accepted) != seen.Load() || accepted == 0 || took < 50*time.Millisecond {
		t.Errorf("accepted %d of %d in %s: %v", accepted, seen.Load(), took, err)
	}
}

func TestClosedLoopStopsAtARefusal(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "backlog is full", http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	b := &bench{connections: 4}
	if _, _, err := b.closedLoop(t.Context(), server.URL, "x-", time.Minute); err == nil || !strings.Contains(err.Error(), "backlog is full") {
		t.Errorf("error %v does not tell the answer", err)
	}
}

func TestOpenLoop(t *testing.T) {
	t.Parallel()
	t.Run("calls as often as it should, though answers are slow", func(t *testing.T) {
		t.Parallel()
		var calls atomic.Int64
		begin := time.Now()
		err := openLoop(t.Context(), 1000, 100*time.Millisecond, func(context.Context, int) error {
			calls.Add(1)
			time.Sleep(50 * time.Millisecond)
			return nil
		})
		if took := time.Since(begin); err != nil || calls.Load() != 100 || took > 5*time.Second {
			t.Errorf("%d calls in %s: %v", calls.Load(), took, err)
		}
	})
	t.Run("ends at the first failure", func(t *testing.T) {
		t.Parallel()
		refused := errors.New("refused")
		err := openLoop(t.Context(), 1000, time.Minute, func(_ context.Context, n int) error {
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

func TestMetricSumsItsSeries(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("# HELP rows x\n# TYPE rows gauge\nrows 41\nrows_total 7\nby_code{code=\"a b\"} 1\nby_code{code=\"c\"} 2.5\n"))
	}))
	t.Cleanup(server.Close)
	s := &service{name: "it", ops: server.URL}
	got := map[string]float64{}
	for _, name := range []string{"rows", "rows_total", "by_code"} {
		value, err := s.metric(t.Context(), name)
		if err != nil {
			t.Error(err)
		}
		got[name] = value
	}
	if diff := cmp.Diff(map[string]float64{"rows": 41, "rows_total": 7, "by_code": 3.5}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := s.metric(t.Context(), "row"); err == nil {
		t.Error("a metric that is not there has a value")
	}
}

func TestHistories(t *testing.T) {
	t.Parallel()
	const events = 4000
	version := map[string]int64{}
	kinds := map[string]int{}
	for m := range histories("h-", events) {
		row, err := newOrderRow(m)
		if err != nil {
			t.Fatal(err)
		}
		if row.version != version[row.id]+1 {
			t.Fatalf("order %s: version %d follows %d", row.id, row.version, version[row.id])
		}
		version[row.id] = row.version
		kinds[m.Topic]++
	}
	if diff := cmp.Diff(map[string]int{contract.TopicCreated: events / 4, contract.TopicUpdated: events * 3 / 4}, kinds); diff != "" {
		t.Error(diff)
	}
}

func TestOrdersAreDifferent(t *testing.T) {
	t.Parallel()
	ids := map[string]bool{}
	for m := range orders("o-", 1000) {
		ids[string(m.Key)] = true
	}
	if len(ids) != 1000 {
		t.Errorf("1000 orders have %d IDs", len(ids))
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ args, want string }{
		{"measure", `no command "measure"`},
		{"-only accept,speed", `no subject "speed"`},
		{"-repeats many", "invalid value"},
	} {
		if err := run(t.Context(), strings.Fields(tt.args)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("bench %s: error %v, want %q in it", tt.args, err, tt.want)
		}
	}
}

func decodeCreate(r *http.Request) (contract.CreateOrder, error) {
	body := make([]byte, r.ContentLength)
	if _, err := r.Body.Read(body); err != nil && err.Error() != "EOF" {
		return contract.CreateOrder{}, err
	}
	return contract.DecodeCreateOrder(body)
}
