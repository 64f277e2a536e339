package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ordersystem.dev/services/bench/limit"
	"ordersystem.dev/services/bench/load"
	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
)

// newRecords is how many records come between two audits that read only what is new.
const newRecords = 1000

// audit measures how fast the Order service counts the orders of a topic: with the whole topic read
// again, and with only the new records read. The bare limit of the first consumes the topic and
// throws the records away. The limit of the second is the first.
func (b *bench) audit(ctx context.Context) error {
	k, err := b.startKafka(ctx)
	if err != nil {
		return err
	}
	defer k.Stop()
	progress("audit: producing %s records", grouped(int64(b.audited)))
	_, err = limit.Produce(ctx, k.Addr, contract.TopicCreated, load.Orders("audit-", b.audited))
	if err != nil {
		return err
	}
	return b.with(ctx, b.order, filepath.Join(b.dir, "audit"), k.Addr, func(order *service) error {
		progress("audit: waiting until the view has caught up")
		if _, err := order.ready(ctx); err != nil {
			return err
		}
		return b.auditRepeatedly(ctx, k.Addr, order)
	})
}

// auditRepeatedly measures all repeats at one Order, which knows the whole topic already.
func (b *bench) auditRepeatedly(ctx context.Context, kafka string, order *service) error {
	// The count is known before the orders are written. A client that needs only the count can stop
	// there, so both times are measured.
	all := result{what: "everything, until the count is known", unit: perSecond, goal: goal{atLeast: 0.4}}
	allWhole := result{what: "everything, until the last order is received", unit: perSecond}
	fresh := result{
		what: "what is new, until the count is known", unit: milliseconds, sooner: true, goal: goal{atLeast: 100},
	}
	freshWhole := result{what: "what is new, until the last order is received", unit: milliseconds, sooner: true}
	binding := result{what: "raw by the Go binding, against raw from C", unit: perSecond}
	total := b.audited
	for n := range b.repeats {
		quiet()
		raw, read, err := limit.Consume(ctx, kafka, contract.TopicCreated)
		if err != nil {
			return err
		}
		if read != total {
			return fmt.Errorf("%d records were produced and %d are in the topic", total, read)
		}
		quiet()
		fromC, read, err := limit.ConsumeFromC(kafka, contract.TopicCreated)
		if err != nil {
			return err
		}
		if read != total {
			return fmt.Errorf("%d records were produced and %d are read from C", total, read)
		}
		binding.add(raw, fromC)
		quiet()
		before := order.cpu()
		counted, whole, err := askAudit(ctx, order, total, true)
		if err != nil {
			return err
		}
		cpu := order.cpu() - before
		all.add(stats.Rate(total, counted, cpu), raw)
		allWhole.add(stats.Rate(total, whole, cpu), raw)

		added := load.Orders(fmt.Sprintf("new-%d-", n), newRecords)
		if _, err := limit.Produce(ctx, kafka, contract.TopicCreated, added); err != nil {
			return err
		}
		total += newRecords
		quiet()
		newCounted, newWhole, err := askAudit(ctx, order, total, false)
		if err != nil {
			return err
		}
		fresh.addTimes(newCounted, counted)
		freshWhole.addTimes(newWhole, whole)
		progress("audit %d/%d: raw %s, from C %s, everything %s (%s with all orders), what is new %s (%s)",
			n+1, b.repeats, perSecond.format(raw.Value), perSecond.format(fromC.Value),
			perSecond.format(all.ours[n]), perSecond.format(allWhole.ours[n]), milliseconds.format(fresh.ours[n]),
			milliseconds.format(freshWhole.ours[n]))
	}
	printTable(b.out, "Audit", fmt.Sprintf(
		`%s records of as many orders in one topic. Everything: with Cache-Control: no-cache, so that the
topic is read again into a new index. What is new: %s records came since the last audit. The count
is at the beginning of the response, after the reading. All orders follow, which is the longer part.
Raw: for everything, a bare consumer (librdkafka through its Go binding) that throws the records
away; for what is new, the audit of everything. CPU: of the service, response included. The last row has what
the binding costs: a consumer in C takes the records in batches, and looks at their headers too.`,
		grouped(int64(b.audited)), grouped(newRecords)), all, allWhole, fresh, freshWhole, binding)
	return nil
}

// askAudit requests an audit, checks its count and reads the response to its end.
func askAudit(
	ctx context.Context, order *service, want int, everything bool,
) (counted, whole time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	url := order.api + "/order/getAllOrderIdsFromTopic?topicName=" + contract.TopicCreated
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, 0, err
	}
	if everything {
		req.Header.Set("Cache-Control", "no-cache")
	}
	client := load.NewClient(1)
	// The context has the timeout.
	client.Timeout = 0
	defer client.CloseIdleConnections()
	begin := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	// The message with the count is in the first bytes; the orders follow.
	head := make([]byte, 200)
	if _, err := io.ReadFull(resp.Body, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, 0, err
	}
	counted = time.Since(begin)
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(head), "': "+strconv.Itoa(want)+`"`) {
		return 0, 0, fmt.Errorf("the audit must count %d orders; the response is %s: %.100s", want, resp.Status, head)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return counted, time.Since(begin), err
}
