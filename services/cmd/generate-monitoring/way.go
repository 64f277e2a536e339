package main

import (
	"fmt"

	"ordersystem.dev/services/contract"
)

// The seconds that an order may take at each stage, of the slowest in a hundred: half a second from
// a client's request until every client sees it.
const (
	acceptBudget  = 0.1
	publishBudget = 0.15
	applyBudget   = 0.25
	visibleBudget = 0.5
)

// What k8s/consumer-groups declares of the Order service.
const (
	orderGroup = contract.GroupOrder
	// orderObjective is in seconds.
	orderObjective = 30
)

// stage is one stage of an order's way.
type stage struct {
	title, about, histogram, selector string
	// budget is in seconds.
	budget float64
}

// stages are in the order in which an order passes them.
var stages = []stage{
	{
		"Accepted", "From the request until the order and its event are on Cart's disk and Cart responds.",
		"http_request_duration_seconds", writes, acceptBudget,
	},
	{
		"Published", "From handing the event to the Kafka client until Kafka has it on all replicas. " +
			"Before that it waits in the outbox.",
		"cart_produce_ack_seconds", inNamespace, publishBudget,
	},
	{
		"Applied", "From Kafka's append until Order has it on its disk. Only applied events count. " +
			"The age of those that wait is beside it.",
		"order_event_age_seconds", inNamespace, applyBudget,
	},
	{
		"Visible", "The whole way: from accepting the order until a look-up shows it. " +
			"By the clocks of two machines if the services run on two.",
		"order_visible_seconds", inNamespace, visibleBudget,
	},
}

// orderWayDashboard follows orders from the request to the look-up that shows them.
func orderWayDashboard() dashboard {
	return dashboard{
		name: "an-orders-way", title: "An order's way",
		about: "From the client's request through Cart's outbox and Kafka to the look-up that shows it: " +
			"how long each stage takes, how many orders pass, and which do not.",
		variables: []variable{namespace, release, orderGroups},
		rows: []row{
			{"Latency budget, now", wayBudget()},
			{"Latency", wayLatency()},
			{"Flow", wayFlow()},
			{"What falls out", wayFaults()},
		},
	}
}

// wayBudget shows each stage against its part of the budget.
func wayBudget() []panel {
	var panels []panel
	for _, s := range stages {
		panels = append(panels, panel{
			kind: "stat", title: s.title + ", p99", width: 5, unit: "s",
			about: fmt.Sprintf("%s Its part of the budget is %g s.", s.about, s.budget),
			// The comparison drops NaN, the quantile of no observations.
			queries:      []query{{expr: quantile(0.99, s.histogram, s.selector) + " >= 0"}},
			limits:       []limit{{"green", 0}, {"yellow", s.budget / 2}, {"red", s.budget}},
			defaultValue: "none",
		})
	}
	return append(panels, panel{
		kind: "stat", title: "Waits in Kafka now", width: 4, unit: "s",
		alert: "ConsumerGroupObjectiveBurnFast",
		about: fmt.Sprintf("Age of the oldest event that Order has not read, by the lag operator. "+
			"It grows while the times beside it, which are of applied events, stay the same. "+
			"The objective is %d s.", orderObjective),
		queries: []query{{
			expr: `max(kafka_consumergroup_topic_max_lag_seconds{consumergroup=~"$consumergroup"})`,
		}},
		limits:       []limit{{"green", 0}, {"yellow", orderObjective / 2}, {"red", orderObjective}},
		defaultValue: "not known",
	})
}

// wayLatency shows the latencies over time, and every event of the last two stages.
func wayLatency() []panel {
	var panels []panel
	for _, s := range stages {
		panels = append(panels, panel{
			kind: "timeseries", title: s.title, width: 6, unit: "s",
			about:   s.about + " Dashed: the budget of the slowest in a hundred.",
			queries: quantiles(s.histogram, s.selector),
			limits:  bad(s.budget),
		})
	}
	heat := func(title, histogram, about string) panel {
		expr := fmt.Sprintf("sum by (le) (%s)", increase(histogram+"_bucket", inNamespace))
		return panel{
			kind: "heatmap", title: title, width: 12, unit: "s", about: about,
			queries: []query{{expr: expr, legend: "{{le}}"}},
		}
	}
	return append(panels,
		heat("Applied: all", "order_event_age_seconds",
			"Every event by its age when it was applied. "+
				"Two bands: two kinds of partitions, or a consumer that pauses. "+
				"A band that rises by a second each second is a backlog."),
		heat("Visible: all", "order_visible_seconds",
			"Every version of an order by the time until it could be seen. "+
				"The points are single events: topic, partition and offset."))
}

// wayFlow shows where orders wait.
func wayFlow() []panel {
	count := func(counter, selector string) string { return fmt.Sprintf("sum(%s)", rate(counter, selector)) }
	return []panel{
		{
			kind: "timeseries", title: "Orders per second", width: 12, unit: "ops",
			about: "What was accepted, what Kafka acknowledged, and what was applied. " +
				"Lines that differ mean that something waits: in the outbox after the first, " +
				"in the topic after the second.",
			queries: []query{
				{expr: count("http_request_duration_seconds_count", writes+`,code=~"2.."`), legend: "accepted"},
				{expr: count("cart_produce_ack_seconds_count", inNamespace), legend: "published"},
				{expr: count("order_event_age_seconds_count", inNamespace), legend: "applied"},
			},
		},
		{
			kind: "timeseries", title: "Waiting", width: 12,
			about: "Events in Cart's outbox, and records that Order has not read, by the lag operator. " +
				"The operator sees them also while Order is away.",
			queries: []query{
				{expr: "max(cart_outbox_rows{" + inNamespace + "})", legend: "in the outbox"},
				{
					expr: "sum(max by (kafka_cluster, consumergroup, topic) " +
						`(kafka_consumergroup_topic_lag{consumergroup=~"$consumergroup"}))`,
					legend: "in the topics",
				},
			},
		},
	}
}

// wayFaults shows orders that do not get to the end.
func wayFaults() []panel {
	return []panel{
		{
			kind: "timeseries", title: "Refused", width: 8, unit: "reqps",
			about: "Responses other than success, by code. " +
				"4xx: a mistake of the client; 409: an order that exists or does not change; 503: a full outbox.",
			queries: []query{{
				expr:   perSecond("code", "http_request_duration_seconds_count", writes+`,code!~"2.."`) + " > 0",
				legend: "{{code}}",
			}},
		},
		{
			kind: "timeseries", title: "Delivery failures", width: 8,
			alert: "DeliveryFailing",
			about: "Messages that Kafka refused, by code. Each is sent again. " +
				"An outage is no failure, but the outbox grows.",
			queries: []query{{
				expr:   fmt.Sprintf("sum by (code) (%s) > 0", increase("cart_delivery_failures_total", inNamespace)),
				legend: "{{code}}",
			}},
		},
		{
			kind: "timeseries", title: "Dead letters", width: 8, decimals: new(0),
			alert:   "OrderDeadLetters",
			about:   "Records that hold no order, by reason. They are kept in order-dead-letter-topic.",
			queries: []query{deadLetters()},
		},
	}
}

// deadLetters counts dead letters by their reason.
func deadLetters() query {
	return query{
		expr:   fmt.Sprintf("sum by (reason) (%s)", increase("order_dead_letters_total", inNamespace)),
		legend: "{{reason}}",
	}
}
