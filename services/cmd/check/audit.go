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
)

// audit looks for every order that was answered in its topic. Cart publishes a moment after it answers, or when Kafka is back, so
// what is missing is looked for until -timeout.
func (c *checker) audit(ctx context.Context) {
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		begin := time.Now()
		deadline := begin.Add(c.timeout)
		for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
			total, missing, err := c.auditTopic(ctx, deadline, topic)
			if err != nil {
				c.fail("audit "+topic, err)
				break
			}
			if len(missing) > 0 && time.Until(deadline) > pause {
				time.Sleep(pause)
				continue
			}
			for _, id := range slices.Sorted(maps.Keys(missing)) {
				c.fail("audit "+topic, fmt.Errorf("%s at version %d is not there", id, missing[id]))
			}
			answered := len(c.answered[topic])
			fmt.Fprintf(c.stdout, "audited %s total %d, of this run %d/%d %s\n", topic, total, answered-len(missing), answered, short(time.Since(begin)))
			break
		}
	}
}

// auditTopic reads one audit to its end, however large, and returns which of the answered orders are not in it.
func (c *checker) auditTopic(ctx context.Context, deadline time.Time, topic string) (total int, missing map[string]int64, err error) {
	r := request{
		method: http.MethodGet, url: c.order + "/order/getAllOrderIdsFromTopic?topicName=" + url.QueryEscape(topic),
		header: map[string]string{"Accept": "application/json"}, patience: c.timeout,
	}
	err = c.client.do(ctx, deadline, r, func(body io.Reader) (err error) {
		missing = maps.Clone(c.answered[topic])
		total, err = readAudit(body, topic, func(id string, version int64) {
			if least, ok := missing[id]; ok && version >= least {
				delete(missing, id)
			}
		})
		return err
	})
	if e, ok := errors.AsType[*answerError](err); ok && e.status == http.StatusNotFound {
		return 0, c.answered[topic], nil // the topic is empty
	}
	return total, missing, err
}

// readAudit reads {"message": "Total orders in topic 'T': N", "orders": [...]}, which must have as many orders as it says.
func readAudit(body io.Reader, topic string, each func(id string, version int64)) (total int, err error) {
	in, said := json.NewDecoder(body), -1
	for {
		token, err := in.Token()
		if err != nil {
			return 0, fmt.Errorf("the answer has no orders: %w", err)
		}
		if text, ok := token.(string); ok {
			_, _ = fmt.Sscanf(text, "Total orders in topic '"+topic+"': %d", &said) // else it is not the message
		}
		if token == json.Delim('[') {
			break
		}
	}
	for ; in.More(); total++ {
		var o state
		if err := in.Decode(&o); err != nil {
			return 0, fmt.Errorf("order %d of the answer: %w", total+1, err)
		}
		each(o.OrderID, o.Version)
	}
	for range "]}" {
		if _, err := in.Token(); err != nil {
			return 0, fmt.Errorf("the answer does not end as it should: %w", err)
		}
	}
	if said != total {
		return 0, fmt.Errorf("the answer has %d orders and says %d", total, said)
	}
	return total, nil
}
