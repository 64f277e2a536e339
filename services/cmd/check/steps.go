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
	"ordersystem.dev/services/internal/backoff"
)

// state is the part of an order that both services must return alike.
type state struct {
	OrderID string
	// Version is 0 until a service has returned the order.
	Version     int64
	Status      string
	TotalAmount contract.Amount
}

func (s state) String() string {
	return fmt.Sprintf("%s version %d, status %q, total %s", s.OrderID, s.Version, s.Status, s.TotalAmount)
}

// place creates the order and returns it.
func (c *checker) place(ctx context.Context, deadline time.Time, last state) (state, error) {
	create := request{method: http.MethodPost, url: c.cart + "/order/create-order"}
	got, err := c.askCart(ctx, deadline, create, map[string]any{"orderId": last.OrderID, "itemsNum": 3})
	if err != nil {
		return state{}, err
	}
	return got, compare("Cart", got, state{last.OrderID, 1, contract.StatusNew, got.TotalAmount})
}

// update gives the order a status that only this run uses. It is therefore a new status even if -id
// is updated again.
func (c *checker) update(ctx context.Context, deadline time.Time, last state) (state, error) {
	want := state{last.OrderID, last.Version + 1, "checked-" + c.tag, last.TotalAmount}
	r := request{method: http.MethodPut, url: c.cart + "/order/update-order"}
	// Cart refuses the update if another client has updated the order in between.
	if last.Version > 0 {
		r.header = map[string]string{"If-Match": fmt.Sprintf("%q", fmt.Sprint(last.Version))}
	}
	got, err := c.askCart(ctx, deadline, r, map[string]any{"orderId": want.OrderID, "status": want.Status})
	if err != nil {
		return state{}, err
	}
	// The order was placed before this run, so that its version and total are unknown.
	if last.Version == 0 {
		want.Version, want.TotalAmount = max(2, got.Version), got.TotalAmount
	}
	return got, compare("Cart", got, want)
}

// askCart requests a creation or an update and returns the order. The key makes it happen once,
// however often the request is sent.
func (c *checker) askCart(ctx context.Context, deadline time.Time, r request, body map[string]any) (state, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return state{}, err
	}
	header := map[string]string{
		"Accept": "application/json", "Content-Type": "application/json", "Idempotency-Key": `"` + rand.Text() + `"`,
	}
	maps.Copy(header, r.header)
	r.body, r.header, r.patience = string(text), header, tryFor
	var response struct{ Order state }
	err = c.client.do(ctx, deadline, r, func(body io.Reader) error { return decode(body, &response) })
	return response.Order, err
}

// find waits until Order has the version that Cart returned last, and compares the two.
func (c *checker) find(ctx context.Context, deadline time.Time, last state) (state, error) {
	query := url.Values{"orderId": {last.OrderID}, "minVersion": {fmt.Sprint(max(1, last.Version))}}
	r := request{
		method: http.MethodGet, url: c.order + "/order/order-details?" + query.Encode(), patience: tryFor,
	}
	var former error
	for {
		r.header = map[string]string{"Accept": "application/json"}
		// Order must respond before the client's patience ends.
		if wait := int(min(tryFor, time.Until(deadline)).Seconds() - 0.5); wait > 0 {
			r.header["Prefer"] = fmt.Sprintf("wait=%d", wait)
		}
		var got state
		err := c.client.do(ctx, deadline, r, func(body io.Reader) error { return decode(body, &got) })
		if err == nil {
			want := last
			if last.Version == 0 {
				want = state{last.OrderID, max(1, got.Version), got.Status, got.TotalAmount}
			}
			return got, compare("Order", got, want)
		}
		if former != nil && r.cutOff(err) {
			// It says less than the try before it.
			return state{}, former
		}
		former = err
		const pause = 100 * time.Millisecond
		if !notYet(err) || time.Until(deadline) <= pause {
			return state{}, err
		}
		backoff.Sleep(ctx, pause)
	}
}

// notYet reports whether an error may mean that the order has not arrived yet.
func notYet(err error) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && (e.status == http.StatusNotFound || e.status == http.StatusPreconditionFailed)
}

// compare returns an error unless the service returned the wanted order.
func compare(service string, got, want state) error {
	if got != want {
		return fmt.Errorf("%s returned %s; want %s", service, got, want)
	}
	return nil
}

// decode reads a whole response, which is one JSON value.
func decode(body io.Reader, into any) error {
	text, err := io.ReadAll(body)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("the response is not what the contract says: %w: %.200q", err, text)
	}
	return nil
}
