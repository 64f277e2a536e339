package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/backoff"
)

// audit looks for every acknowledged order in its topic. Cart publishes a moment after it responds,
// or when Kafka is back. Missing orders are therefore looked for again until -timeout.
func (c *checker) audit(ctx context.Context) {
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		begin := time.Now()
		total, missing, err := c.auditUntilFound(ctx, begin.Add(c.timeout), topic)
		if err != nil {
			c.report.fail("audit "+topic, err)
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(missing)) {
			c.report.fail("audit "+topic, fmt.Errorf("%s at version %d is not there", id, missing[id]))
		}
		expected := len(c.report.expected(topic))
		c.report.audited(topic, total, expected-len(missing), expected, time.Since(begin))
	}
}

// auditUntilFound repeats the audit of a topic until no order is missing or the deadline is near.
// It returns the last result.
func (c *checker) auditUntilFound(
	ctx context.Context, deadline time.Time, topic string,
) (total int, missing map[string]int64, err error) {
	pause := backoff.Backoff{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	r := request{
		method:   http.MethodGet,
		url:      c.order + "/order/getAllOrderIdsFromTopic?topicName=" + url.QueryEscape(topic),
		header:   map[string]string{"Accept": "application/json"},
		patience: c.timeout,
	}
	for {
		formerTotal, former := total, missing
		total, missing, err = c.auditOnce(ctx, deadline, r, topic)
		if former != nil && r.cutOff(err) {
			// It says less than the audit before it.
			return formerTotal, former, nil
		}
		wait := pause.Next()
		if err != nil || len(missing) == 0 || time.Until(deadline) <= wait {
			return total, missing, err
		}
		backoff.Sleep(ctx, wait)
	}
}

// auditOnce reads one audit to its end, however large. It returns the orders that the topic should
// have and does not, with their least versions.
func (c *checker) auditOnce(
	ctx context.Context, deadline time.Time, r request, topic string,
) (total int, missing map[string]int64, err error) {
	err = c.client.do(ctx, deadline, r, func(body io.Reader) (err error) {
		missing = c.report.expected(topic)
		total, err = readAudit(body, topic, func(id string, version int64) {
			if least, ok := missing[id]; ok && version >= least {
				delete(missing, id)
			}
		})
		return err
	})
	// Order responds with 404 if the topic is empty.
	if e, ok := errors.AsType[*statusError](err); ok && e.status == http.StatusNotFound {
		return 0, c.report.expected(topic), nil
	}
	return total, missing, err
}

// readAudit reads {"message": "Total orders in topic 'T': N", "orders": [...]}. It returns an error
// unless there are N orders.
func readAudit(body io.Reader, topic string, each func(id string, version int64)) (total int, err error) {
	in, announced := json.NewDecoder(body), -1
	for {
		token, err := in.Token()
		if err != nil {
			return 0, fmt.Errorf("the response has no orders: %w", err)
		}
		if text, ok := token.(string); ok {
			// Other strings than the message do not match.
			_, _ = fmt.Sscanf(text, "Total orders in topic '"+topic+"': %d", &announced)
		}
		if token == json.Delim('[') {
			break
		}
	}
	for ; in.More(); total++ {
		var o state
		if err := in.Decode(&o); err != nil {
			return 0, fmt.Errorf("order %d of the response: %w", total+1, err)
		}
		each(o.OrderID, o.Version)
	}
	for range "]}" {
		if _, err := in.Token(); err != nil {
			return 0, fmt.Errorf("the response does not end as it should: %w", err)
		}
	}
	if announced != total {
		return 0, fmt.Errorf("the response has %d orders and announces %d", total, announced)
	}
	return total, nil
}
