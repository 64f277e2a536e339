package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"ordersystem.dev/services/internal/backoff"
)

// welcome is printed once both services are ready. It has the ports of Cart, of Order and of the
// lag collector, the address of Kafka and the folder of the data.
const welcome = `
The order system runs. Try, in another terminal:

  curl -X POST http://localhost:%[1]d/Order/create-order -d '{"OrderId": "test-order-101", "ItemsNum": 3}'
  curl -X PUT http://localhost:%[1]d/Order/update-order -d '{"orderId": "test-order-101", "status": "Shipped"}'
  curl 'http://localhost:%[2]d/order/order-details?orderId=test-order-101'
  curl 'http://localhost:%[2]d/order/getAllOrderIdsFromTopic?topicName=order-updated-topic'

How many seconds the Order service is behind, among the other metrics of lag:

  curl http://localhost:%[3]d/metrics | grep kafka_consumergroup_topic_max_lag_seconds

Kafka clients reach its broker at %[4]s. Stop it with Ctrl-C. The orders stay in %[5]s; delete that
folder to start without them.

`

// addrs are the addresses at which a service listens.
type addrs struct{ api, ops net.Addr }

// into returns a callback that sends the addresses of a service to a channel.
func into(c chan<- addrs) func(api, ops net.Addr) {
	return func(api, ops net.Addr) { c <- addrs{api, ops} }
}

// awaitReady waits until a service listens and reports that it is ready. It reports whether that
// happened before ctx ended.
func awaitReady(ctx context.Context, listening <-chan addrs) (a addrs, ready bool) {
	select {
	case a = <-listening:
	case <-ctx.Done():
		return a, false
	}
	url := fmt.Sprintf("http://localhost:%d/readyz", port(a.ops))
	for !respondsOK(ctx, url) {
		if !backoff.Sleep(ctx, 50*time.Millisecond) {
			return a, false
		}
	}
	return a, true
}

// respondsOK reports whether a GET gets the status 200.
func respondsOK(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// port returns the port of a TCP address.
func port(a net.Addr) int { return a.(*net.TCPAddr).Port }
