package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// errUnknown means that Cart does not have one of the orders.
var errUnknown = errors.New("no order of Cart has this ID")

// cartError is an answer of Cart, or none, after which it makes no sense to go on.
type cartError struct{ error }

func (e *cartError) Unwrap() error { return e.error }

// republish has Cart, whose operations endpoints are at addr, publish the newest version of orders again, and
// waits until Kafka has them. It returns errUnknown, after which none was published, or a *cartError.
func republish(ctx context.Context, addr string, orderIDs ...string) error {
	what := fmt.Sprintf("%q", orderIDs[0])
	if len(orderIDs) > 1 {
		what = fmt.Sprintf("%d orders", len(orderIDs))
	}
	fail := func(err error) error { return &cartError{fmt.Errorf("have Cart publish %s again: %w", what, err)} }
	target := strings.TrimSuffix(addr, "/") + "/republish?" + url.Values{"orderId": orderIDs}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, http.NoBody)
	if err != nil {
		return fail(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fail(fmt.Errorf("%w (-cart has the address of Cart's operations port)", err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	text := strings.TrimSpace(string(body))
	lines := strings.Split(text, "\n")
	switch {
	case err != nil:
		return fail(err)
	case resp.StatusCode == http.StatusNotFound && strings.HasPrefix(text, "no order "):
		return errUnknown
	// The status comes before the work is done, so only the last line says that it is.
	case resp.StatusCode != http.StatusOK || !strings.HasPrefix(lines[len(lines)-1], "done: "):
		return fail(fmt.Errorf("the answer is %s: %s", resp.Status, text))
	}
	return nil
}
