package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// NewClient returns a client that keeps its connections: handshakes are not measured.
func NewClient(connections int) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		MaxIdleConns: connections, MaxIdleConnsPerHost: connections, DisableCompression: true,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}}
}

// Create creates an order at the Cart service with the URL api.
func Create(ctx context.Context, client *http.Client, api, id string) error {
	return ask(ctx, client, http.MethodPost, api+"/order/create-order", body(id), "")
}

// Update gives an order another status.
func Update(ctx context.Context, client *http.Client, api, id, status string) error {
	update := fmt.Sprintf(`{"orderId": %q, "status": %q}`, id, status)
	return ask(ctx, client, http.MethodPut, api+"/order/update-order", update, "")
}

// AwaitVisible returns as soon as a look-up at the Order service shows the order at that version.
func AwaitVisible(ctx context.Context, client *http.Client, api, id string, version int) error {
	url := fmt.Sprintf("%s/order/order-details?orderId=%s&minVersion=%d", api, id, version)
	return ask(ctx, client, http.MethodGet, url, "", "wait=20")
}

// ask sends a request and reads the whole response. Any other status than 200 is an error.
func ask(ctx context.Context, client *http.Client, method, url, body, prefer string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	if prefer != "" {
		req.Header.Set("Prefer", prefer)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %.200s", method, url, resp.Status, text)
	}
	return err
}
