package main

import (
	"fmt"
	"slices"
)

// cartDashboard shows the Cart service.
func cartDashboard() dashboard {
	return dashboard{
		name: "cart", title: "Cart", about: "The service that takes orders and publishes them.",
		variables: []variable{namespace, release},
		rows: []row{
			healthRow("cart", panel{
				kind: "stat", title: "Waiting for Kafka", width: 6,
				about: "Events that were accepted and are not in Kafka yet. " +
					"At MAX_BACKLOG, a million unless set, or MAX_BACKLOG_BYTES, orders are refused.",
				queries: []query{{expr: "max(cart_outbox_rows{" + inNamespace + "})"}},
				limits:  []limit{{"green", 0}, {"yellow", 10_000}, {"red", 500_000}},
			}),
			requestRow("cart"),
			{"Store and outbox", slices.Concat(outboxPanels("cart"), cartPanels(), storePanels("cart"))},
			clientRow("cart"),
			runtimeRow("cart"),
		},
	}
}

// cartPanels show what only Cart has in its store.
func cartPanels() []panel {
	return []panel{
		{
			kind: "timeseries", title: "Published records that Kafka lost", width: 6, decimals: new(0),
			alert: "CartRecordsLost",
			about: "Cart compares the topics with what it has published, before its relay begins and every 5 s.",
			queries: []query{{
				expr: "sum(cart_published_records_lost_total{" + inNamespace + "})", legend: "offsets",
			}},
		},
		{
			kind: "timeseries", title: "Partitions of the order topics", width: 6, decimals: new(0),
			alert: "CartTopicPartitions",
			about: "It never changes: an order whose versions are in two partitions can be seen out of order.",
			queries: []query{{
				expr: "max by (topic) (cart_topic_partitions{" + inNamespace + "})", legend: "{{topic}}",
			}},
		},
		{
			kind: "timeseries", title: "Orders in doubt after a rebuild", width: 6, decimals: new(0),
			alert:   "CartOrdersInDoubt",
			about:   "Orders that a rebuilt store may lack: a record that is no event has their key.",
			queries: []query{{expr: "sum(cart_orders_in_doubt_total{" + inNamespace + "})", legend: "orders"}},
		},
		{
			kind: "timeseries", title: "Requests per commit", width: 6,
			about: "Requests that shared one transaction, on average. " +
				"It rises with the load, so that the number of commits does not.",
			queries: []query{{expr: mean("cart_commit_requests", inNamespace), legend: "requests"}},
		},
	}
}

// orderDashboard shows the Order service.
func orderDashboard() dashboard {
	return dashboard{
		name: "order", title: "Order", about: "The service that reads orders and responds to look-ups and audits.",
		variables: []variable{namespace, release},
		rows: []row{
			healthRow("order", panel{
				kind: "stat", title: "Last poll", width: 6, unit: "s",
				about: "Time since the consumer last asked Kafka for records. " +
					"Above a second, it hangs in a batch.",
				queries:      []query{{expr: "max(time() - order_last_poll_timestamp_seconds{" + inNamespace + "})"}},
				limits:       []limit{{"green", 0}, {"yellow", 30}, {"red", 60}},
				defaultValue: "no process",
			}),
			requestRow("order"),
			{"Consumer", consumerPanels()},
			{"Dead letters", append([]panel{{
				kind: "timeseries", title: "By reason", width: 6, decimals: new(0),
				alert: "OrderDeadLetters",
				about: "Records that hold no order. They are kept in order-dead-letter-topic. " +
					"The orders around them are not delayed.",
				queries: []query{deadLetters()},
			}}, outboxPanels("order")...)},
			{"Look-ups and audits", append(lookupPanels(), storePanels("order")...)},
			clientRow("order"),
			runtimeRow("order"),
		},
	}
}

// orderRate returns the rate of one of Order's counters.
func orderRate(counter, legend string) query {
	return query{expr: fmt.Sprintf("sum(%s)", rate(counter, inNamespace)), legend: legend}
}

// consumerPanels show how Order reads the topics.
func consumerPanels() []panel {
	increases := func(counter, legend string) query {
		return query{expr: fmt.Sprintf("sum(%s)", increase(counter, inNamespace)), legend: legend}
	}
	return []panel{
		{
			kind: "timeseries", title: "Events per second", width: 8, unit: "eps",
			about: "Applied; repeats that were skipped (a producer that starts again sends some twice); " +
				"events overtaken by a newer one, since the topics are read side by side.",
			queries: []query{
				orderRate("order_event_age_seconds_count", "applied"),
				orderRate("order_duplicates_total", "repeats"),
				orderRate("order_stale_events_total", "overtaken"),
			},
		},
		{
			kind: "timeseries", title: "Age of events when applied", width: 8, unit: "s",
			about: "From Kafka's append until the order is on disk. Only applied events count. " +
				"High for minutes after the store was lost: then everything is read again. " +
				"The age of events that wait is on \"Consumer lag\".",
			queries: quantiles("order_event_age_seconds", inNamespace),
			limits:  bad(applyBudget),
		},
		{
			kind: "timeseries", title: "Unread records, by the client", width: 8,
			alert: "ConsumerGroupStalled",
			about: "As the consumer sees it. It is missing while the consumer does not poll. " +
				"The dashboard \"Consumer lag\" has the brokers' view, which stays.",
			queries: []query{{
				expr: "sum by (topic) (order_consumer_lag{" + inNamespace + "})", legend: "{{topic}}",
			}},
		},
		{
			kind: "timeseries", title: "Time per batch", width: 8, unit: "s",
			about:   "One transaction for all orders of a batch and the position in the topics.",
			queries: quantiles("order_apply_seconds", inNamespace),
		},
		{
			kind: "timeseries", title: "Records per batch", width: 8,
			about: "Small batches: the service keeps up. Large batches: it is catching up.",
			queries: []query{
				{expr: mean("order_apply_batch_records", inNamespace), legend: "mean"},
				{expr: quantile(0.99, "order_apply_batch_records", inNamespace), legend: "p99"},
			},
		},
		{
			kind: "timeseries", title: "Partitions and rebalances", width: 8,
			alert: "OrderLogReplaced",
			about: "Partitions that the pods have, rebalances, and what made Order read a partition from its start.",
			queries: []query{
				{expr: "sum(order_assigned_partitions{" + inNamespace + "})", legend: "partitions"},
				increases("order_rebalances_total", "rebalances"),
				increases("order_topics_recreated_total", "topics recreated"),
				increases("order_logs_replaced_total", "logs replaced"),
			},
		},
		{
			kind: "timeseries", title: "Partitions of other members", width: 8, decimals: new(0),
			alert: "OrderGroupShared",
			about: "Partitions that other members of the group hold, if each has a store of its own. " +
				"Order is not ready then: its store lacks what they read.",
			queries: []query{{
				expr: "max(order_partitions_elsewhere{" + inNamespace + "})", legend: "partitions",
			}},
		},
		{
			kind: "timeseries", title: "Records deleted unread", width: 8, decimals: new(0),
			alert: "OrderRecordsDeleted",
			about: "Offsets that were deleted from the order topics before Order had read them. " +
				"A new Order counts all that was ever deleted.",
			queries: []query{increases("order_records_deleted_total", "offsets")},
		},
		{
			kind: "timeseries", title: "Withheld by open transactions", width: 8, unit: "s",
			alert: "OrderRecordsWithheld",
			about: "How long an open transaction has kept Order from reading on. " +
				"Cart's transactions take milliseconds.",
			queries: []query{{
				expr: "max by (topic) (order_withheld_seconds{" + inNamespace + "})", legend: "{{topic}}",
			}},
			limits: bad(withheldLong),
		},
		{
			kind: "timeseries", title: "Consumer failing", width: 8, decimals: new(0),
			alert: "OrderConsumerFailing",
			about: "Pods that anything keeps from reading a partition, or from storing what they have read. " +
				"A batch that the store refuses is tried again.",
			queries: []query{
				{expr: "sum(order_consumer_failing{" + inNamespace + "})", legend: "pods that fail"},
				increases("order_apply_failures_total", "refused batches"),
			},
		},
	}
}

// lookupPanels show the requests of Order that take long by design.
func lookupPanels() []panel {
	return []panel{
		{
			kind: "timeseries", title: "Waiting look-ups", width: 12,
			about: "Look-ups that wait for their order to change (Prefer: wait), at most half as many as there may " +
				"be connections. More get their response at once.",
			queries: []query{
				{expr: "sum(order_waiting_lookups{" + inNamespace + "})", legend: "waiting"},
				orderRate("order_waits_refused_total", "not granted, per second"),
			},
		},
		{
			kind: "timeseries", title: "Audits", width: 12, unit: "recps",
			about: "Records read from topics for audits, and those that hold no order.",
			queries: []query{
				orderRate("order_audit_records_total", "read"),
				orderRate("order_audit_unusable_records_total", "without an order"),
				orderRate("order_audit_reads_total", "audits"),
			},
		},
	}
}

// healthRow shows whether a service works at all. own is a panel that only this service has.
func healthRow(job string, own panel) row {
	failed := fmt.Sprintf("sum(rate(http_request_duration_seconds_count{%[1]s,code=~\"5..|aborted\"}[5m])) / "+
		"sum(rate(http_request_duration_seconds_count{%[1]s}[5m]))", of(job))
	return row{"Is it fine?", []panel{
		{
			kind: "stat", title: "Ready", width: 6,
			alert:   "ServiceNotReady",
			about:   "Pods that can do their work now, as /readyz reports.",
			queries: []query{{expr: "sum(service_ready{" + of(job) + "}) or vector(0)"}},
			limits:  good(1),
		},
		{
			kind: "stat", title: "Failed requests", width: 6, unit: "percentunit",
			about:        "Responses with 5xx among all of the last 5 minutes.",
			queries:      []query{{expr: failed}},
			limits:       []limit{{"green", 0}, {"yellow", 0.001}, {"red", 0.01}},
			defaultValue: "none",
		},
		{
			kind: "stat", title: "Oldest in the outbox", width: 6, unit: "s",
			alert:        "OutboxOld",
			about:        "How long the oldest message waits for Kafka. 0: none waits.",
			queries:      []query{{expr: "max(" + job + "_outbox_oldest_seconds{" + inNamespace + "})"}},
			limits:       []limit{{"green", 0}, {"yellow", outboxOld / 6}, {"red", outboxOld}},
			defaultValue: "no process",
		},
		own,
	}}
}

// requestRow shows the requests to a service.
func requestRow(job string) row {
	latency := func(q float64) query {
		buckets := perSecond("le, method, route", "http_request_duration_seconds_bucket", of(job))
		return query{
			expr:   fmt.Sprintf("histogram_quantile(%g, %s)", q, buckets),
			legend: fmt.Sprintf("p%g {{method}} {{route}}", 100*q),
		}
	}
	requests := func(by string) string { return perSecond(by, "http_request_duration_seconds_count", of(job)) }
	return row{"Requests", []panel{
		{
			kind: "timeseries", title: "Per second", width: 6, unit: "reqps",
			about:   "By method and route. \"other\" is a path or method that does not exist.",
			queries: []query{{expr: requests("method, route"), legend: "{{method}} {{route}}"}},
		},
		{
			kind: "timeseries", title: "Responses", width: 6, unit: "reqps", stacked: true,
			about: "By status code. \"aborted\" is a connection that the service broke off by a fault of its own. " +
				"\"gone\" is a client that left before the end of the response, or took it too slowly; " +
				"a failure of the service keeps its code.",
			queries: []query{{expr: requests("code"), legend: "{{code}}"}},
		},
		{
			kind: "timeseries", title: "Time to respond", width: 6, unit: "s",
			about: "Half of the requests, and all but the slowest in a hundred. " +
				"A look-up that waits for its order counts with its wait.",
			queries: []query{latency(0.5), latency(0.99)},
		},
		{
			kind: "timeseries", title: "Connections", width: 6, unit: "percentunit",
			about: "Of those that the API takes. At 100 % the next one waits, " +
				"until one is closed or has had no request for a second.",
			queries: []query{{
				expr:   fmt.Sprintf("http_connections{%[1]s} / http_connections_limit{%[1]s}", of(job)),
				legend: "{{pod}}",
			}},
		},
		{
			kind: "timeseries", title: "Age of the issuer's keys", width: 6, unit: "s",
			alert: "AuthKeysOld",
			about: "Since they were read last. They are read every 5 minutes, if the API asks for tokens.",
			queries: []query{{
				expr: "time() - (auth_keys_read_timestamp_seconds{" + of(job) + "} > 0)", legend: "{{pod}}",
			}},
			limits: bad(authKeysOld),
		},
		{
			kind: "timeseries", title: "Time left of the certificate", width: 6, unit: "s",
			alert: "CertificateExpiring",
			about: "Until the certificate of the API expires, if it has one. A renewed one is taken without a restart.",
			queries: []query{{
				expr: "http_certificate_not_after_timestamp_seconds{" + of(job) + "} - time()", legend: "{{pod}}",
			}},
		},
	}}
}

// outboxPanels show the outbox of a service.
func outboxPanels(job string) []panel {
	return []panel{
		{
			kind: "timeseries", title: "Outbox", width: 6,
			about:   "Messages that were accepted and are not in Kafka yet.",
			queries: []query{{expr: "max(" + job + "_outbox_rows{" + inNamespace + "})", legend: "messages"}},
		},
		{
			kind: "timeseries", title: "Oldest in the outbox", width: 6, unit: "s",
			alert: "OutboxOld",
			about: "How long the oldest message waits for Kafka. " +
				"It grows by a second each second while Kafka is away.",
			queries: []query{{
				expr: "max(" + job + "_outbox_oldest_seconds{" + inNamespace + "})", legend: "oldest",
			}},
			limits: bad(outboxOld),
		},
		{
			kind: "timeseries", title: "Acknowledged by Kafka", width: 6, unit: "s",
			alert: "DeliveryFailing",
			about: "From handing a message to the Kafka client until Kafka has it. " +
				"Failures do not count.",
			queries: quantiles(job+"_produce_ack_seconds", inNamespace),
		},
		{
			kind: "timeseries", title: "Publishes the outbox", width: 6, decimals: new(0),
			about: "One replica does, the one that holds the lease. None for seconds: it has changed. " +
				"None for long: the replicas cannot reach the database or Kafka.",
			queries: []query{{expr: job + "_outbox_lease_held{" + inNamespace + "} > 0", legend: "{{pod}}"}},
		},
	}
}

// storePanels show whether the store of a service can be used, and what it can still take.
func storePanels(job string) []panel {
	// Replicas that share a database all show the same.
	bytes := func(metric string) string { return "max(" + job + "_" + metric + "{" + inNamespace + "})" }
	return []panel{
		{
			kind: "timeseries", title: "Store", width: 6, unit: "bytes",
			alert: "StoreNearlyFull",
			about: "What the store holds, what it can still take, and the size of the messages in the outbox. " +
				"PostgreSQL does not say the first two.",
			queries: []query{
				{expr: bytes("store_bytes"), legend: "store"},
				{expr: bytes("store_left_bytes"), legend: "room"},
				{expr: bytes("outbox_bytes"), legend: "outbox"},
			},
		},
		{
			kind: "timeseries", title: "Database", width: 6, decimals: new(0),
			alert:   "DatabaseDown",
			about:   "1 where the database can be used. At 0, requests get 503 until it can.",
			queries: []query{{expr: job + "_database_up{" + inNamespace + "}", legend: "{{pod}}"}},
		},
	}
}

// clientRow shows librdkafka's own statistics.
func clientRow(job string) row {
	each := func(counter, legend string) query {
		return query{expr: perSecond("client", counter, of(job)) + " > 0", legend: "{{client}} " + legend}
	}
	rtt := func(metric string) string {
		return fmt.Sprintf(`max by (client) (%s{%s,client="producer",quantile="0.99"})`, metric, of(job))
	}
	queue := panel{
		kind: "timeseries", title: "Queue to send", width: 6, unit: "percentunit", max: new(1.0),
		about:   "How full the producer's queue is. Full for long: Kafka takes less than arrives.",
		queries: []query{{expr: "max by (client) (kafka_client_queue_ratio{" + of(job) + "})", legend: "{{client}}"}},
	}
	// Order consumes: what it fetched ahead matters, not its queue to send.
	if job == "order" {
		queue = panel{
			kind: "timeseries", title: "Fetched ahead", width: 6,
			about: "Records that are fetched and not yet applied. " +
				"Many, with lag: the store is slower than Kafka. None, with lag: Kafka or the network is slow.",
			queries: []query{{expr: "sum(kafka_client_fetch_queue_records{" + of(job) + "})", legend: "records"}},
		}
	}
	return row{"Kafka client", []panel{
		{
			kind: "timeseries", title: "Brokers", width: 6,
			about: "Brokers that the client is connected to. 0: it has lost Kafka.",
			queries: []query{{
				expr: "min by (client) (kafka_client_connected_brokers{" + of(job) + "})", legend: "{{client}}",
			}},
		},
		{
			kind: "timeseries", title: "Round trip", width: 6, unit: "s",
			about: "Of the producer's requests to the slowest broker, the slowest in a hundred. " +
				"Those of a consumer mean nothing: its fetches wait for records, by design.",
			queries: []query{
				{expr: rtt("kafka_client_rtt_seconds"), legend: "{{client}}"},
				{expr: rtt("kafka_client_outbuf_seconds"), legend: "{{client}} before it is sent"},
			},
		},
		{
			kind: "timeseries", title: "Faults", width: 6, unit: "eps",
			about: "Requests without a response or sent again, and connections that broke or ended. " +
				"Throttled: seconds that a quota made the client wait, per second.",
			queries: []query{
				each("kafka_client_request_timeouts_total", "time-outs"),
				each("kafka_client_request_retries_total", "retries"),
				each("kafka_client_send_errors_total", "send errors"),
				each("kafka_client_receive_errors_total", "receive errors"),
				each("kafka_client_disconnects_total", "disconnects"),
				each("kafka_client_throttled_seconds_total", "throttled"),
			},
		},
		queue,
	}}
}

// runtimeRow shows the process of a service.
func runtimeRow(job string) row {
	graph := func(title, unit, about string, queries ...query) panel {
		return panel{kind: "timeseries", title: title, width: 6, unit: unit, about: about, queries: queries}
	}
	metric := func(name string) query { return query{expr: name + "{" + of(job) + "}", legend: "{{pod}}"} }
	heap := query{expr: metric("go_memstats_heap_alloc_bytes").expr, legend: "{{pod}} Go's heap"}
	return row{"Process", []panel{
		graph("Memory", "bytes",
			"Of the process, with that of librdkafka and SQLite, and Go's part of it.",
			metric("process_resident_memory_bytes"), heap),
		graph("Processors", "short", "In use, on average over the interval.",
			query{expr: rate("process_cpu_seconds_total", of(job)), legend: "{{pod}}"}),
		graph("Goroutines", "short", "They grow with open requests. Growth without an end is a leak.",
			metric("go_goroutines")),
		graph("Open files", "percentunit", "Of what the process may open.",
			query{expr: fmt.Sprintf("process_open_fds{%[1]s} / process_max_fds{%[1]s}", of(job)), legend: "{{pod}}"}),
	}}
}
