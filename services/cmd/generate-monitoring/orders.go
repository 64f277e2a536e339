package main

import (
	"fmt"

	"ordersystem.dev/services/contract"
)

// What an order may take at each stage, of the slowest in a hundred: half a second from a client's request until everybody sees it.
const (
	acceptBudget  = 0.1
	publishBudget = 0.15
	applyBudget   = 0.25
	visibleBudget = 0.5
)

// What k8s/consumer-groups declares of the Order service.
const (
	orderGroup     = contract.GroupOrder
	orderObjective = 30 // seconds
)

const inNamespace = `namespace=~"$namespace"`

// of selects a service's series by the job that the chart's PodMonitor gives it.
func of(job string) string { return fmt.Sprintf(`job="%s",%s`, job, inNamespace) }

// writes are the requests that make or change an order.
var writes = of("cart") + `,method=~"POST|PUT"`

func quantile(q float64, histogram, selector string) string {
	return fmt.Sprintf("histogram_quantile(%g, sum by (le) (rate(%s_bucket{%s}[$__rate_interval])))", q, histogram, selector)
}

func quantiles(histogram, selector string) (all []query) {
	for _, q := range []float64{0.5, 0.95, 0.99} {
		all = append(all, query{expr: quantile(q, histogram, selector), legend: fmt.Sprintf("p%g", 100*q)})
	}
	return all
}

func perSecond(by, counter, selector string) string {
	return fmt.Sprintf("sum by (%s) (rate(%s{%s}[$__rate_interval]))", by, counter, selector)
}

// orderWayDashboard follows orders from the request to the look-up that shows them.
func orderWayDashboard() dashboard {
	stages := []struct {
		title, about, histogram, selector string
		budget                            float64
	}{
		{"Accepted", "From the request until the order and its event are on Cart's disk and the answer goes out.", "http_request_duration_seconds", writes, acceptBudget},
		{"Published", "From handing the event to the Kafka client until Kafka has it on all replicas. Before that it waits in the outbox.", "cart_produce_ack_seconds", inNamespace, publishBudget},
		{"Applied", "From Kafka's append until Order has it on its disk, of what was applied; the age of what still waits is beside it.", "order_event_age_seconds", inNamespace, applyBudget},
		{"Visible", "All of it: from accepting the order until a look-up shows it. By two machines' clocks where the services run on two.", "order_visible_seconds", inNamespace, visibleBudget},
	}
	var budget, graphs []panel
	for _, s := range stages {
		limits := []limit{{"green", 0}, {"yellow", s.budget / 2}, {"red", s.budget}}
		budget = append(budget, panel{
			kind: "stat", title: s.title + ", p99", width: 5, unit: "s", limits: limits, defaultValue: "none",
			about:   fmt.Sprintf("%s Its part of the budget is %g s.", s.about, s.budget),
			queries: []query{{expr: quantile(0.99, s.histogram, s.selector) + " >= 0"}}, // NaN: none
		})
		graphs = append(graphs, panel{
			kind: "timeseries", title: s.title, width: 6, unit: "s", about: s.about + " Dashed: the budget of the slowest in a hundred.",
			queries: quantiles(s.histogram, s.selector), limits: bad(s.budget),
		})
	}
	budget = append(budget, panel{
		kind: "stat", title: "Waits in Kafka now", width: 4, unit: "s", alert: "ConsumerGroupObjectiveBurnFast",
		about:   fmt.Sprintf("Age of the oldest event that Order has not read, by the lag operator. It grows while the times beside it, of what was done, say nothing. The objective is %d s.", orderObjective),
		queries: []query{{expr: fmt.Sprintf(`max(kafka_consumergroup_topic_max_lag_seconds{consumergroup="%s"})`, orderGroup)}},
		limits:  []limit{{"green", 0}, {"yellow", orderObjective / 2}, {"red", orderObjective}}, defaultValue: "not known",
	})
	heat := func(title, histogram, about string) panel {
		return panel{
			kind: "heatmap", title: title, width: 12, unit: "s", about: about,
			queries: []query{{expr: fmt.Sprintf("sum by (le) (increase(%s_bucket{%s}[$__rate_interval]))", histogram, inNamespace), legend: "{{le}}"}},
		}
	}
	return dashboard{
		name: "an-orders-way", title: "An order's way",
		about:     "From the client's request through Cart's outbox and Kafka to the look-up that shows it: how long each stage takes, how much passes, what falls out.",
		variables: []variable{namespace},
		rows: []row{
			{"Latency budget, now", budget},
			{"Latency", append(graphs,
				heat("Applied: all", "order_event_age_seconds", "Every event by its age when it was applied. Two bands: two kinds of partitions, or a consumer that pauses. A band that rises by a second a second is a backlog."),
				heat("Visible: all", "order_visible_seconds", "Every change of an order by the time until it could be seen. The points are single events: topic, partition and offset."),
			)},
			{"Flow", []panel{
				{
					kind: "timeseries", title: "Orders per second", width: 12, unit: "ops", about: "What was accepted, what Kafka acknowledged, and what was applied. The lines lie on each other, or something waits: in the outbox after the first, in the topic after the second.",
					queries: []query{
						{expr: "sum(rate(http_request_duration_seconds_count{" + writes + `,code=~"2.."}[$__rate_interval]))`, legend: "accepted"},
						{expr: "sum(rate(cart_produce_ack_seconds_count{" + inNamespace + "}[$__rate_interval]))", legend: "published"},
						{expr: "sum(rate(order_event_age_seconds_count{" + inNamespace + "}[$__rate_interval]))", legend: "applied"},
					},
				},
				{
					kind: "timeseries", title: "Waiting", width: 12, about: "Events in Cart's outbox, and records that Order has still to read, by the lag operator, which sees them while Order is away too.",
					queries: []query{
						{expr: "sum(cart_outbox_rows{" + inNamespace + "})", legend: "in the outbox"},
						{expr: fmt.Sprintf(`sum(max by (kafka_cluster, topic) (kafka_consumergroup_topic_lag{consumergroup="%s"}))`, orderGroup), legend: "in the topics"},
					},
				},
			}},
			{"What falls out", []panel{
				{
					kind: "timeseries", title: "Refused", width: 8, unit: "reqps", about: "Answers other than success, by code. 4xx is the client's, 409 an order that is there or does not change, 503 a full outbox.",
					queries: []query{{expr: perSecond("code", "http_request_duration_seconds_count", writes+`,code!~"2.."`) + " > 0", legend: "{{code}}"}},
				},
				{
					kind: "timeseries", title: "Delivery failures", width: 8, alert: "DeliveryFailing", about: "Messages that Kafka refused, by code. Each is sent again; an outage is no failure, but lets the outbox grow.",
					queries: []query{{expr: "sum by (code) (increase(cart_delivery_failures_total{" + inNamespace + "}[$__rate_interval])) > 0", legend: "{{code}}"}},
				},
				{
					kind: "timeseries", title: "Dead letters", width: 8, alert: "OrderDeadLetters", about: "Records that hold no order, by reason. They are kept in order-dead-letter-topic.", decimals: new(0),
					queries: []query{{expr: "sum by (reason) (increase(order_dead_letters_total{" + inNamespace + "}[$__rate_interval]))", legend: "{{reason}}"}},
				},
			}},
		},
	}
}

func cartDashboard() dashboard {
	return dashboard{
		name: "cart", title: "Cart", about: "The service that takes orders and publishes them.",
		variables: []variable{namespace},
		rows: []row{
			healthRow("cart", panel{
				kind: "stat", title: "Waiting for Kafka", width: 6, about: "Events that were accepted and are not in Kafka yet. At MAX_BACKLOG, a million unless set, orders are refused.",
				queries: []query{{expr: "max(cart_outbox_rows{" + inNamespace + "})"}}, limits: []limit{{"green", 0}, {"yellow", 10_000}, {"red", 500_000}},
			}),
			requestRow("cart"),
			{"Store and outbox", append(outboxPanels("cart"), panel{
				kind: "timeseries", title: "Requests per commit", width: 6, about: "Requests that shared one transaction, on average: rises with load, so that commits do not.",
				queries: []query{{expr: fmt.Sprintf("sum(rate(cart_commit_requests_sum{%[1]s}[$__rate_interval])) / sum(rate(cart_commit_requests_count{%[1]s}[$__rate_interval]))", inNamespace), legend: "requests"}},
			})},
			clientRow("cart"),
			runtimeRow("cart"),
		},
	}
}

func orderDashboard() dashboard {
	count := func(counter, legend string) query {
		return query{expr: "sum(rate(" + counter + "{" + inNamespace + "}[$__rate_interval]))", legend: legend}
	}
	return dashboard{
		name: "order", title: "Order", about: "The service that reads orders and answers look-ups and audits.",
		variables: []variable{namespace},
		rows: []row{
			healthRow("order", panel{
				kind: "stat", title: "Last poll", width: 6, unit: "s", about: "Time since the consumer last asked Kafka for records: below a second, or it hangs in a batch.",
				queries: []query{{expr: "max(time() - order_last_poll_timestamp_seconds{" + inNamespace + "})"}}, limits: []limit{{"green", 0}, {"yellow", 30}, {"red", 60}}, defaultValue: "no process",
			}),
			requestRow("order"),
			{"Consumer", []panel{
				{
					kind: "timeseries", title: "Events per second", width: 8, unit: "eps", about: "Applied; repeats that were passed over (a producer that starts again sends some twice); events overtaken by a newer one, as the topics are read side by side.",
					queries: []query{count("order_event_age_seconds_count", "applied"), count("order_duplicates_total", "repeats"), count("order_stale_events_total", "overtaken")},
				},
				{
					kind: "timeseries", title: "Age of events when applied", width: 8, unit: "s", about: "From Kafka's append until the order is on disk, of what was applied. High for minutes after the store was lost: then everything is read again. The age of what still waits is on \"Consumer lag\".",
					queries: quantiles("order_event_age_seconds", inNamespace), limits: bad(applyBudget),
				},
				{
					kind: "timeseries", title: "Unread records, by the client", width: 8, alert: "ConsumerGroupStalled", about: "As the consumer sees it; gone while it does not poll. The dashboard \"Consumer lag\" has the brokers' view, which stays.",
					queries: []query{{expr: "sum by (topic) (order_consumer_lag{" + inNamespace + "})", legend: "{{topic}}"}},
				},
				{
					kind: "timeseries", title: "Time per batch", width: 8, unit: "s", about: "One transaction for all orders of a batch and the position in the topics.",
					queries: quantiles("order_apply_seconds", inNamespace),
				},
				{
					kind: "timeseries", title: "Records per batch", width: 8, about: "Small batches: it keeps up. Large ones: it is catching up.",
					queries: []query{
						{expr: fmt.Sprintf("sum(rate(order_apply_batch_records_sum{%[1]s}[$__rate_interval])) / sum(rate(order_apply_batch_records_count{%[1]s}[$__rate_interval]))", inNamespace), legend: "mean"},
						{expr: quantile(0.99, "order_apply_batch_records", inNamespace), legend: "p99"},
					},
				},
				{
					kind: "timeseries", title: "Partitions and faults", width: 8, about: "Partitions that the pods have, changes of them, batches that the store refused (each is tried again), and whether anything keeps the consumer from work.",
					queries: []query{
						{expr: "sum(order_assigned_partitions{" + inNamespace + "})", legend: "partitions"},
						{expr: "sum(increase(order_rebalances_total{" + inNamespace + "}[$__rate_interval]))", legend: "rebalances"},
						{expr: "sum(increase(order_apply_failures_total{" + inNamespace + "}[$__rate_interval]))", legend: "refused batches"},
						{expr: "sum(increase(order_topics_recreated_total{" + inNamespace + "}[$__rate_interval]))", legend: "topics made anew"},
						{expr: "max(order_consumer_failing{" + inNamespace + "})", legend: "failing"},
					},
				},
			}},
			{"Dead letters", append([]panel{{
				kind: "timeseries", title: "By reason", width: 6, decimals: new(0), alert: "OrderDeadLetters", about: "Records that hold no order. They are kept in order-dead-letter-topic, and the orders around them are not delayed.",
				queries: []query{{expr: "sum by (reason) (increase(order_dead_letters_total{" + inNamespace + "}[$__rate_interval]))", legend: "{{reason}}"}},
			}}, outboxPanels("order")...)},
			{"Look-ups and audits", []panel{
				{
					kind: "timeseries", title: "Waiting look-ups", width: 12, about: "Look-ups that wait for their order to change (Prefer: wait).",
					queries: []query{{expr: "sum(order_waiting_lookups{" + inNamespace + "})", legend: "waiting"}},
				},
				{
					kind: "timeseries", title: "Audits", width: 12, unit: "recps", about: "Records read from topics for audits, and those that hold no order.",
					queries: []query{count("order_audit_records_total", "read"), count("order_audit_unusable_records_total", "without an order"), count("order_audit_reads_total", "audits")},
				},
			}},
			clientRow("order"),
			runtimeRow("order"),
		},
	}
}

// healthRow says whether a service works at all; own is what only this one has.
func healthRow(job string, own panel) row {
	return row{"Is it fine?", []panel{
		{
			kind: "stat", title: "Ready", width: 6, alert: "ServiceNotReady", about: "Pods that can do their work now, as /readyz says.",
			queries: []query{{expr: "sum(service_ready{" + of(job) + "}) or vector(0)"}}, limits: good(1),
		},
		{
			kind: "stat", title: "Failed requests", width: 6, unit: "percentunit", about: "Answers with 5xx of all in the last 5 minutes.", defaultValue: "none",
			queries: []query{{expr: fmt.Sprintf(`sum(rate(http_request_duration_seconds_count{%[1]s,code=~"5..|aborted"}[5m])) / sum(rate(http_request_duration_seconds_count{%[1]s}[5m]))`, of(job))}},
			limits:  []limit{{"green", 0}, {"yellow", 0.001}, {"red", 0.01}},
		},
		{
			kind: "stat", title: "Oldest in the outbox", width: 6, unit: "s", alert: "OutboxOld", about: "How long the oldest message waits for Kafka. 0: none waits.",
			queries: []query{{expr: "max(" + job + "_outbox_oldest_seconds{" + inNamespace + "})"}}, limits: []limit{{"green", 0}, {"yellow", outboxOld / 6}, {"red", outboxOld}}, defaultValue: "no process",
		},
		own,
	}}
}

func requestRow(job string) row {
	latency := func(q float64) query {
		return query{
			expr:   fmt.Sprintf("histogram_quantile(%g, sum by (le, method, route) (rate(http_request_duration_seconds_bucket{%s}[$__rate_interval])))", q, of(job)),
			legend: fmt.Sprintf("p%g {{method}} {{route}}", 100*q),
		}
	}
	return row{"Requests", []panel{
		{
			kind: "timeseries", title: "Per second", width: 8, unit: "reqps", about: "By what was asked for; \"other\" is a path or method that there is not.",
			queries: []query{{expr: perSecond("method, route", "http_request_duration_seconds_count", of(job)), legend: "{{method}} {{route}}"}},
		},
		{
			kind: "timeseries", title: "Answers", width: 8, unit: "reqps", stacked: true, about: "By status code; \"aborted\" is a connection that was broken off by a fault of ours.",
			queries: []query{{expr: perSecond("code", "http_request_duration_seconds_count", of(job)), legend: "{{code}}"}},
		},
		{
			kind: "timeseries", title: "Time to answer", width: 8, unit: "s", about: "Half of the requests, and all but the slowest in a hundred. A look-up that waits for a change counts with its wait.",
			queries: []query{latency(0.5), latency(0.99)},
		},
	}}
}

func outboxPanels(job string) []panel {
	return []panel{
		{
			kind: "timeseries", title: "Outbox", width: 6, about: "Messages that were accepted and are not in Kafka yet.",
			queries: []query{{expr: "sum(" + job + "_outbox_rows{" + inNamespace + "})", legend: "messages"}},
		},
		{
			kind: "timeseries", title: "Oldest in the outbox", width: 6, unit: "s", alert: "OutboxOld", about: "How long the oldest message waits for Kafka. It grows by a second each second while Kafka is away.", limits: bad(outboxOld),
			queries: []query{{expr: "max(" + job + "_outbox_oldest_seconds{" + inNamespace + "})", legend: "oldest"}},
		},
		{
			kind: "timeseries", title: "Acknowledged by Kafka", width: 6, unit: "s", alert: "DeliveryFailing", about: "From handing a message to the Kafka client until Kafka has it. Failures are not in it.",
			queries: quantiles(job+"_produce_ack_seconds", inNamespace),
		},
	}
}

// clientRow shows what librdkafka says of itself.
func clientRow(job string) row {
	each := func(counter, legend string) query {
		return query{expr: perSecond("client", counter, of(job)) + " > 0", legend: "{{client}} " + legend}
	}
	queue := panel{
		kind: "timeseries", title: "Queue to send", width: 6, unit: "percentunit", max: new(1.0), about: "How full the producer's queue is. Full for long: Kafka takes less than comes in.",
		queries: []query{{expr: "max by (client) (kafka_client_queue_ratio{" + of(job) + "})", legend: "{{client}}"}},
	}
	if job == "order" {
		queue = panel{
			kind: "timeseries", title: "Fetched ahead", width: 6, about: "Records that are fetched and not yet applied. Many, with lag: the store is slower than Kafka. None, with lag: Kafka or the network is slow.",
			queries: []query{{expr: "sum(kafka_client_fetch_queue_records{" + of(job) + "})", legend: "records"}},
		}
	}
	return row{"Kafka client", []panel{
		{
			kind: "timeseries", title: "Brokers", width: 6, about: "Brokers that the client is connected to. 0: it has lost Kafka.",
			queries: []query{{expr: "min by (client) (kafka_client_connected_brokers{" + of(job) + "})", legend: "{{client}}"}},
		},
		{
			kind: "timeseries", title: "Round trip", width: 6, unit: "s", about: "Of the producer's requests to the slowest broker, the slowest in a hundred. A consumer's say nothing: its fetches wait for records, by design.",
			queries: []query{
				{expr: "max by (client) (kafka_client_rtt_seconds{" + of(job) + `,client="producer",quantile="0.99"})`, legend: "{{client}}"},
				{expr: "max by (client) (kafka_client_outbuf_seconds{" + of(job) + `,client="producer",quantile="0.99"})`, legend: "{{client}} before it is sent"},
			},
		},
		{
			kind: "timeseries", title: "Faults", width: 6, unit: "eps", about: "Requests without an answer or sent again, and connections that broke or ended. Throttled: seconds that a quota made the client wait, per second.",
			queries: []query{
				each("kafka_client_request_timeouts_total", "time-outs"), each("kafka_client_request_retries_total", "retries"),
				each("kafka_client_send_errors_total", "send errors"), each("kafka_client_receive_errors_total", "receive errors"),
				each("kafka_client_disconnects_total", "disconnects"), each("kafka_client_throttled_seconds_total", "throttled"),
			},
		},
		queue,
	}}
}

func runtimeRow(job string) row {
	graph := func(title, unit, about, expr, legend string) panel {
		return panel{kind: "timeseries", title: title, width: 6, unit: unit, about: about, queries: []query{{expr: expr, legend: legend}}}
	}
	memory := graph("Memory", "bytes", "Of the process, librdkafka's and SQLite's included, and Go's part of it.", "process_resident_memory_bytes{"+of(job)+"}", "{{pod}}")
	memory.queries = append(memory.queries, query{expr: "go_memstats_heap_alloc_bytes{" + of(job) + "}", legend: "{{pod}} Go's heap"})
	return row{"Process", []panel{
		memory,
		graph("Processors", "short", "In use, on average over the interval.", "rate(process_cpu_seconds_total{"+of(job)+"}[$__rate_interval])", "{{pod}}"),
		graph("Goroutines", "short", "Grows with open requests; growth without an end is a leak.", "go_goroutines{"+of(job)+"}", "{{pod}}"),
		graph("Open files", "percentunit", "Of what the process may open.", fmt.Sprintf("process_open_fds{%[1]s} / process_max_fds{%[1]s}", of(job)), "{{pod}}"),
	}}
}
