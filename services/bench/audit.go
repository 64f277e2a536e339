package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"ordersystem.dev/services/contract"
)

// newRecords is how many records come between two audits that read only what is new.
const newRecords = 1000

// audit measures how fast the Order service tells what a topic holds: all of it read again, and only what is new since the last time. The
// raw limit consumes the topic and throws the records away.
func (b *bench) audit(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	progress("audit: producing %s records", grouped(int64(b.audited)))
	if _, err := produceAll(ctx, k.Addr, contract.TopicCreated, orders("audit-", b.audited)); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "audit-")
	if err != nil {
		return err
	}
	order, err := startService(ctx, "order", b.order, dir, k.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = order.stop() }()
	progress("audit: waiting until the view has caught up")
	if _, err := order.ready(ctx); err != nil {
		return err
	}
	total := b.audited
	// The raw limit of an audit that reads everything is a consumer; of one that reads what is new, the audit that reads everything.
	all := row{what: "everything, until the count is known", unit: perSecond, goal: goal{atLeast: 0.4}}
	allWhole := row{what: "everything, until the last order is received", unit: perSecond}
	fresh := row{what: "what is new, until the count is known", unit: milliseconds, sooner: true, goal: goal{atLeast: 100}}
	freshWhole := row{what: "what is new, until the last order is received", unit: milliseconds, sooner: true}
	for n := range b.repeats {
		quiet()
		before, begin := ownCPU(), time.Now()
		read, err := consumeAll(ctx, k.Addr, contract.TopicCreated)
		if err != nil {
			return err
		}
		if read != total {
			return fmt.Errorf("%d records were produced and %d are in the topic", total, read)
		}
		rawRate, rawCPU := float64(total)/time.Since(begin).Seconds(), perOrder(ownCPU()-before, total)

		quiet()
		cpu := order.cpu()
		counted, whole, err := askAudit(ctx, order, total, true)
		if err != nil {
			return err
		}
		allCPU := perOrder(order.cpu()-cpu, total)
		for _, r := range []struct {
			row  *row
			took time.Duration
		}{{&all, counted}, {&allWhole, whole}} {
			r.row.ours, r.row.raw = append(r.row.ours, float64(total)/r.took.Seconds()), append(r.row.raw, rawRate)
			r.row.cpu, r.row.rawCPU = append(r.row.cpu, allCPU), append(r.row.rawCPU, rawCPU)
		}

		if _, err := produceAll(ctx, k.Addr, contract.TopicCreated, orders(fmt.Sprintf("new-%d-", n), newRecords)); err != nil {
			return err
		}
		total += newRecords
		quiet()
		newCounted, newWhole, err := askAudit(ctx, order, total, false)
		if err != nil {
			return err
		}
		ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		fresh.ours, fresh.raw = append(fresh.ours, ms(newCounted)), append(fresh.raw, ms(counted))
		freshWhole.ours, freshWhole.raw = append(freshWhole.ours, ms(newWhole)), append(freshWhole.raw, ms(whole))
		progress("audit %d/%d: raw %s, everything %s (%s with the answer), what is new %s (%s)", n+1, b.repeats, perSecond.format(rawRate), perSecond.format(all.ours[n]),
			perSecond.format(allWhole.ours[n]), milliseconds.format(ms(newCounted)), milliseconds.format(ms(newWhole)))
	}
	table(b.out, "Audit", fmt.Sprintf(`%s records of as many orders in one topic. Everything: with Cache-Control: no-cache, so the topic is read again into a new index. What is new: %s records came since the last audit.
The count stands at the beginning of the answer, with the reading done; all orders follow, which is the longer part. Raw: for everything, a bare consumer (librdkafka through its Go binding) that throws the
records away; for what is new, the audit of everything. CPU: of the service, answer included.`, grouped(int64(b.audited)), grouped(newRecords)), all, allWhole, fresh, freshWhole)
	return nil
}

// askAudit asks for an audit, checks its count, and reads it to its end.
func askAudit(ctx context.Context, order *service, want int, everything bool) (counted, whole time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, order.api+"/order/getAllOrderIdsFromTopic?topicName="+contract.TopicCreated, http.NoBody)
	if err != nil {
		return 0, 0, err
	}
	if everything {
		req.Header.Set("Cache-Control", "no-cache")
	}
	client := newClient(1)
	client.Timeout = 0 // the context has one
	defer client.CloseIdleConnections()
	begin := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	head := make([]byte, 200)
	if _, err := io.ReadFull(res.Body, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, 0, err
	}
	counted = time.Since(begin)
	if res.StatusCode != http.StatusOK || !strings.Contains(string(head), "': "+strconv.Itoa(want)+`"`) {
		return 0, 0, fmt.Errorf("the audit should count %d orders, and answers %s: %.100s", want, res.Status, head)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return counted, time.Since(begin), err
}
