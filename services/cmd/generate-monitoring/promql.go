package main

import "fmt"

// What the viewer chose. Series of the lag operator are always aggregated over its pods: while the
// leader changes there are two.
const (
	ofCluster = `kafka_cluster=~"$kafka_cluster"`
	ofGroup   = ofCluster + `,consumergroup=~"$consumergroup"`
	ofTopic   = ofGroup + `,topic=~"$topic"`
	// A namespace may have several releases.
	inNamespace = `namespace=~"$namespace",` + releaseLabel + `=~"$release"`
)

// What the brokers report themselves, with the label of Strimzi.
const (
	// ofBrokers selects the series of the Strimzi Metrics Reporter. The label comes from Strimzi's
	// pods, through the PodMonitor. The lag operator uses the same name for a cluster.
	ofBrokers = `strimzi_io_cluster=~"$kafka_cluster"`

	// ofNodes selects the series that every process has, of Kafka's pods only: series of the lag
	// operator have the name of the cluster too.
	ofNodes = ofBrokers + `,strimzi_io_pool_name!=""`
)

// of selects a service's series by the job that the chart's PodMonitor gives it.
func of(job string) string { return fmt.Sprintf(`job="%s",%s`, job, inNamespace) }

// writes are the requests that create or update an order.
var writes = of("cart") + `,method=~"POST|PUT"`

// perSecond returns the rate of a counter, summed by some labels.
func perSecond(by, counter, selector string) string {
	return fmt.Sprintf("sum by (%s) (%s)", by, rate(counter, selector))
}

// rate returns a counter per second, over the interval that Grafana thinks right.
func rate(counter, selector string) string {
	return fmt.Sprintf("rate(%s{%s}[$__rate_interval])", counter, selector)
}

// increase returns how much a counter grew in that interval.
func increase(counter, selector string) string {
	return fmt.Sprintf("increase(%s{%s}[$__rate_interval])", counter, selector)
}

// mean returns the mean of a histogram or summary.
func mean(histogram, selector string) string {
	return fmt.Sprintf("sum(%s) / sum(%s)", rate(histogram+"_sum", selector), rate(histogram+"_count", selector))
}

// quantile returns a quantile of a histogram, over all its series.
func quantile(q float64, histogram, selector string) string {
	return fmt.Sprintf("histogram_quantile(%g, sum by (le) (%s))", q, rate(histogram+"_bucket", selector))
}

// quantiles are the lines of a graph of a histogram.
func quantiles(histogram, selector string) (all []query) {
	for _, q := range []float64{0.5, 0.95, 0.99} {
		all = append(all, query{expr: quantile(q, histogram, selector), legend: fmt.Sprintf("p%g", 100*q)})
	}
	return all
}
