package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"time"

	"ordersystem.dev/services/contract"
)

// state is what both services must tell alike of an order.
type state struct {
	OrderID     string
	Version     int64 // 0 when nothing was answered yet
	Status      string
	TotalAmount contract.Amount
}

func (s state) String() string {
	return fmt.Sprintf("%s version %d, status %q, total %s", s.OrderID, s.Version, s.Status, s.TotalAmount)
}

func (c *checker) place(ctx context.Context, deadline time.Time, last state) (state, error) {
	body := map[string]any{"orderId": last.OrderID, "itemsNum": 3}
	got, err := c.change(ctx, deadline, request{method: http.MethodPost, url: c.cart + "/order/create-order"}, body)
	if err != nil {
		return state{}, err
	}
	return got, compare("answered", got, state{last.OrderID, 1, contract.StatusNew, got.TotalAmount})
}

// update gives the order a status of this run alone, so that it is another one than before even when -id is updated again.
func (c *checker) update(ctx context.Context, deadline time.Time, last state) (state, error) {
	want := state{last.OrderID, last.Version + 1, "checked-" + c.tag, last.TotalAmount}
	r := request{method: http.MethodPut, url: c.cart + "/order/update-order"}
	if last.Version > 0 {
		r.header = map[string]string{"If-Match": fmt.Sprintf("%q", fmt.Sprint(last.Version))}
	}
	got, err := c.change(ctx, deadline, r, map[string]any{"orderId": want.OrderID, "status": want.Status})
	if err != nil {
		return state{}, err
	}
	if last.Version == 0 {
		want.Version, want.TotalAmount = max(2, got.Version), got.TotalAmount
	}
	return got, compare("answered", got, want)
}

// change asks Cart for a change. The key makes it one change, however often the request is sent.
func (c *checker) change(ctx context.Context, deadline time.Time, r request, body map[string]any) (state, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return state{}, err
	}
	header := map[string]string{"Accept": "application/json", "Content-Type": "application/json", "Idempotency-Key": `"` + rand.Text() + `"`}
	maps.Copy(header, r.header)
	r.body, r.header, r.patience = string(text), header, tryFor
	var answer struct{ Order state }
	err = c.client.do(ctx, deadline, r, func(body io.Reader) error { return decode(body, &answer) })
	return answer.Order, err
}

// find waits until Order knows the order at the version that Cart answered, and compares the two.
func (c *checker) find(ctx context.Context, deadline time.Time, last state) (state, error) {
	query := url.Values{"orderId": {last.OrderID}, "minVersion": {fmt.Sprint(max(1, last.Version))}}
	r := request{method: http.MethodGet, url: c.order + "/order/order-details?" + query.Encode(), patience: tryFor}
	for {
		r.header = map[string]string{"Accept": "application/json"}
		if wait := int(min(tryFor, time.Until(deadline)).Seconds() - 0.5); wait > 0 { // its answer is to come before patience ends
			r.header["Prefer"] = fmt.Sprintf("wait=%d", wait)
		}
		var got state
		err := c.client.do(ctx, deadline, r, func(body io.Reader) error { return decode(body, &got) })
		if err == nil {
			want := last
			if last.Version == 0 {
				want = state{last.OrderID, max(1, got.Version), got.Status, got.TotalAmount}
			}
			return got, compare("found", got, want)
		}
		const pause = 100 * time.Millisecond
		if !notYet(err) || time.Until(deadline) <= pause {
			return state{}, err
		}
		time.Sleep(pause)
	}
}

// notYet says whether the order may only not have arrived.
func notYet(err error) bool {
	e, ok := errors.AsType[*answerError](err)
	return ok && (e.status == http.StatusNotFound || e.status == http.StatusPreconditionFailed)
}

func compare(what string, got, want state) error {
	if got != want {
		return fmt.Errorf("%s is %s; want %s", what, got, want)
	}
	return nil
}

// decode reads a whole answer, which is one JSON value.
func decode(body io.Reader, into any) error {
	text, err := io.ReadAll(body)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("the answer is not what the contract says: %w: %.200q", err, text)
	}
	return nil
}
