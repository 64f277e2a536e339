package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/child"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/lag"
)

// Every expression in k8s/ names metrics and labels that the running system exposes, with the
// labels that Prometheus adds. A panel with a wrong name is empty and an alert with one never
// fires, and neither reports an error.
func TestWhatPanelsAndRulesNameExists(t *testing.T) {
	t.Parallel()
	found := scrapeSystem(t)
	expressions := declaredExpressions(t)
	// The order matters: a rule may use what an earlier rule records.
	for _, e := range expressions {
		at, err := found.labels(e.text)
		if err != nil {
			t.Errorf("%s: %v\n%s", e.where, err, e.text)
			continue
		}
		for _, name := range e.shown {
			if !slices.Contains(at, name) {
				t.Errorf("%s shows the label %s, which the result does not have: it has %q\n%s", e.where, name, at,
					e.text)
			}
		}
		if e.records != "" {
			found.add(e.records, at...)
		}
	}
	t.Logf("%d expressions, %d series", len(expressions), len(found))
}

// The test finds a mistake of each kind. Otherwise the test above would prove nothing.
func TestExpressionsThatNameWhatIsNotThere(t *testing.T) {
	t.Parallel()
	found := samples{}
	found.parse(t, map[string]string{"job": "a"}, `
# HELP no sample
age_seconds{topic="x",partition="0"} 1
age_seconds{topic="y",partition="0"} 1
limit_seconds{topic="x"} 2
took_seconds_bucket{topic="x",le="1"} 2
`)
	for _, tt := range []struct{ expression, want string }{
		{`max by (topic) (age_seconds{topic="x"}) > on (topic) limit_seconds`, ""},
		{`age_seconds > on (job, topic) group_left limit_seconds`, ""},
		{`histogram_quantile(0.9, sum by (le, topic) (rate(took_seconds_bucket{topic=~"$topic"}[$__rate_interval])))`,
			""},
		{`sum(age_seconds) / 2 or vector(0)`, ""},
		{`old_seconds`, "there is no metric"},
		{`absent(old_seconds)`, "there is no metric"},
		{`age_seconds{topic="z"}`, "no series"},
		{`age_seconds{group=~"$group"}`, "no series"},
		{`age_seconds{group!="a"}`, "no series"},
		{`sum by (group) (age_seconds)`, "by (group)"},
		{`sum by (partition) (sum by (topic) (age_seconds))`, "by (partition)"},
		{`sum without (group) (age_seconds)`, "without (group)"},
		{`age_seconds > on (partition) limit_seconds`, "on (partition)"},
		{`age_seconds > ignoring (le) limit_seconds`, "ignoring (le)"},
		{`age_seconds > limit_seconds`, "never match"},
		{`limit_seconds * on (topic) group_right (cluster) age_seconds`, "(cluster)"},
		{`histogram_quantile(0.9, sum by (topic) (rate(took_seconds_bucket[5m])))`, "no le"},
		{`sum(`, "parse"},
	} {
		if _, err := found.labels(tt.expression); (err == nil) != (tt.want == "") || err != nil &&
			!strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error about %q", tt.expression, err, tt.want)
		}
	}
}

// samples holds the label sets that exist, by metric.
type samples map[string][]map[string]string

// failures are metrics that have no series before something fails, or unless an API asks for tokens or speaks
// HTTPS. Nothing fails in this test, and none does, so their labels are listed here.
var failures = map[string][]string{
	"auth_keys_read_timestamp_seconds":             {},
	"http_certificate_not_after_timestamp_seconds": {},
	"cart_delivery_failures_total":                 {"code"},
	"order_delivery_failures_total":                {"code"},
	"lag_collector_errors_total":                   {"kafka_cluster", "api", "code"},
	"lag_collector_unauthorized":                   {"kafka_cluster", "api", "consumergroup", "topic"},
}

// scrapeSystem runs the whole system and provokes everything that panels show. It returns the
// samples of all targets.
func scrapeSystem(t *testing.T) samples {
	t.Helper()
	reporter := local(child.FreePort())
	kafka := testenv.StartKafkaWith(t, localkafka.Options{Settings: localkafka.MetricsSettings(reporter)})
	declare(t, kafka.Addr)
	cart, order := newCart(t, kafka.Addr).start().ready(), newOrder(t, kafka.Addr).start().ready()
	collector, err := lag.New(lag.Config{
		Name: "orders", Kafka: kafkaconfig.Client{Brokers: []string{kafka.Addr}, ClientID: "lag-collector"},
		Interval: 100 * time.Millisecond, Groups: regexp.MustCompile(""),
	}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	collector.Want(map[string][]lag.Objective{contract.GroupOrder: {{Age: 30 * time.Second}}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- collector.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})

	measured := 0
	// produce has both producers send something. Order's sends only dead letters.
	produce := func() (id string) {
		testenv.Produce(t, kafka.Addr,
			contract.Message{Topic: contract.TopicCreated, Key: []byte("bad"), Value: []byte("{")})
		measured++
		id = fmt.Sprint("measured-", measured)
		cart.create(id)
		return id
	}
	id := produce()
	eventually(t, patience, "there is a dead letter", func() (bool, string) {
		return order.metric("order_dead_letters_total") == 1 && order.metric("order_produce_ack_seconds_count") == 1, ""
	})
	order.sees(id, cart.update(id, "Shipped"), "Shipped")
	do(t, http.MethodGet, order.api+"/order/getAllOrderIdsFromTopic?topicName="+contract.TopicCreated, "")

	registry := prometheus.NewRegistry()
	registry.MustRegister(collector)
	const rtt, outbuf = "kafka_client_rtt_seconds", "kafka_client_outbuf_seconds"
	var shown samples
	eventually(t, patience, "all is measured", func() (bool, string) {
		// A client that is idle for five seconds shows no quantiles. What it has shown before counts.
		shown = samples{rtt: shown[rtt], outbuf: shown[outbuf]}
		for _, target := range []struct{ job, text string }{
			{"cart", do(t, http.MethodGet, cart.ops+"/metrics", "").body},
			{"order", do(t, http.MethodGet, order.ops+"/metrics", "").body},
			{"lag-operator", gathered(registry)},
			{"monitoring/kafka", do(t, http.MethodGet, "http://"+reporter+"/metrics", "").body},
		} {
			at := map[string]string{"job": target.job, "namespace": "orders", "pod": "p", "container": "c",
				"instance": "i", "endpoint": "e"}
			switch target.job {
			case "cart", "order": // by the PodMonitor of the chart
				at["app_kubernetes_io_instance"] = "orders"
			case "monitoring/kafka": // by k8s/monitoring/pod-monitors.yaml
				maps.Copy(at,
					map[string]string{"strimzi_io_cluster": "orders", "strimzi_io_name": "orders-kafka",
						"strimzi_io_pool_name": "dual-role", "kubernetes_pod_name": "p"})
			}
			shown.parse(t, at, target.text+"\nup 1\n")
		}
		// Some series appear only after a while: a commit, the statistics of each client.
		for _, name := range []string{"kafka_consumergroup_lag",
			"kafka_consumergroup_last_progress_timestamp_seconds", "order_consumer_lag"} {
			if shown[name] == nil {
				return false, name
			}
		}
		for _, client := range []struct{ job, name string }{
			{"cart", "producer"}, {"order", "producer"}, {"order", "consumer"},
		} {
			if !slices.ContainsFunc(shown[rtt], func(of map[string]string) bool {
				return of["job"] == client.job && of["client"] == client.name
			}) {
				if client.name == "producer" {
					// On a busy machine, what it sent is measured and shown no more by now.
					produce()
				}
				return false, fmt.Sprintf("the statistics of %s's %s", client.job, client.name)
			}
		}
		return true, ""
	})
	// Its last samples from before the PodMonitor gave the label.
	shown.add("service_ready", "job", "namespace", "pod", "container", "instance", "endpoint")
	for name, own := range failures {
		if shown[name] == nil {
			shown.add(name, append(own, "job", "namespace", "pod", "container", "instance", "endpoint",
				"app_kubernetes_io_instance")...)
		}
	}
	return shown
}

func gathered(registry *prometheus.Registry) string {
	response := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(response,
		httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return response.Body.String()
}

// add adds a metric with these labels. Its value does not matter.
func (s samples) add(name string, labels ...string) {
	series := map[string]string{}
	for _, l := range labels {
		series[l] = variable
	}
	s[name] = append(s[name], series)
}

// parse adds what a target exposes. The target's own labels win over those in the text.
func (s samples) parse(t *testing.T, target map[string]string, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		metric, err := promql.ParseMetric(line[:strings.LastIndexByte(line, ' ')])
		if err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		series := metric.Map()
		maps.Copy(series, target)
		name := series[nameLabel]
		delete(series, nameLabel)
		s[name] = append(s[name], series)
	}
}

var promql = parser.NewParser(parser.Options{})

// nameLabel is the label that holds a metric's name.
const nameLabel = "__name__"

// variable stands for a dashboard's variable and matches any value.
const variable = "ANY"

// resolved returns an expression without Grafana's variables.
func resolved(text string) string {
	text = regexp.MustCompile(
		`\$__(rate_interval|interval|range)\b|\$\{__(rate_interval|interval|range)\}`).ReplaceAllString(text, "5m")
	text = regexp.MustCompile(`"[^"]*\$[^"]*"`).ReplaceAllString(text, `"`+variable+`"`)
	return regexp.MustCompile(`\$\w+|\$\{[^}]*\}`).ReplaceAllString(text, "5")
}

// labels returns the labels of an expression's result. It returns an error if the expression names
// something that does not exist.
func (s samples) labels(text string) ([]string, error) {
	expr, err := promql.ParseExpr(resolved(text))
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	return s.of(expr)
}

func (s samples) of(e parser.Expr) ([]string, error) {
	switch e := e.(type) {
	case *parser.VectorSelector:
		return s.selected(e)
	case *parser.MatrixSelector:
		return s.of(e.VectorSelector)
	case *parser.SubqueryExpr:
		return s.of(e.Expr)
	case *parser.ParenExpr:
		return s.of(e.Expr)
	case *parser.UnaryExpr:
		return s.of(e.Expr)
	case *parser.NumberLiteral, *parser.StringLiteral:
		return nil, nil
	case *parser.Call:
		return s.called(e)
	case *parser.AggregateExpr:
		return s.aggregated(e)
	case *parser.BinaryExpr:
		return s.combined(e)
	}
	return nil, fmt.Errorf("this test does not know %T", e)
}

func (s samples) selected(e *parser.VectorSelector) (all []string, err error) {
	series, is := s[e.Name]
	if !is {
		return nil, fmt.Errorf("there is no metric %q", e.Name)
	}
	for _, one := range series {
		if !slices.ContainsFunc(e.LabelMatchers, func(m *labels.Matcher) bool { return !matches(m, one) }) {
			all = append(all, slices.Collect(maps.Keys(one))...)
		}
	}
	if all == nil {
		return nil, fmt.Errorf("no series of %s is selected; one of them has %v", e, series[0])
	}
	return unique(all), nil
}

func matches(m *labels.Matcher, series map[string]string) bool {
	value, is := series[m.Name]
	switch {
	case m.Name == nameLabel:
		return true
	case !is:
		// A series without the label never matches, even if the matcher accepts an empty value: whoever
		// names a label expects it to exist, or says that it must not.
		return m.Type == labels.MatchEqual && m.Value == ""
	case m.Value == variable, value == variable, m.Name == "code":
		// Failures have other codes than the successes of this test.
		return true
	}
	return m.Matches(value)
}

func (s samples) called(e *parser.Call) (all []string, err error) {
	for _, arg := range e.Args {
		of, err := s.of(arg)
		if err != nil {
			return nil, err
		}
		all = append(all, of...)
	}
	all = unique(all)
	text := func(i int) string { return e.Args[i].(*parser.StringLiteral).Val }
	switch e.Func.Name {
	case "absent", "absent_over_time":
		var known []string
		parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
			if selector, is := n.(*parser.VectorSelector); is {
				for _, m := range selector.LabelMatchers {
					if m.Type == labels.MatchEqual && m.Name != nameLabel {
						known = append(known, m.Name)
					}
				}
			}
			return nil
		})
		return known, nil
	case "scalar":
		return nil, nil
	case "label_replace":
		if !slices.Contains(all, text(3)) {
			return nil, fmt.Errorf("label_replace of %s, which is not there", text(3))
		}
		return unique(append(all, text(1))), nil
	case "histogram_quantile":
		if !slices.Contains(all, "le") {
			return nil, fmt.Errorf("no le in %s", e.Args[1])
		}
		return without(all, "le"), nil
	}
	return all, nil
}

func (s samples) aggregated(e *parser.AggregateExpr) ([]string, error) {
	inner, err := s.of(e.Expr)
	if err != nil {
		return nil, err
	}
	word := "by"
	if e.Without {
		word = "without"
	}
	if err := has(inner, word, e.Grouping); err != nil {
		return nil, err
	}
	switch e.Op {
	case parser.TOPK, parser.BOTTOMK, parser.LIMITK:
		return inner, nil
	case parser.COUNT_VALUES:
		return append(slices.Clone(e.Grouping), e.Param.(*parser.StringLiteral).Val), nil
	}
	if e.Without {
		return without(inner, e.Grouping...), nil
	}
	return e.Grouping, nil
}

func (s samples) combined(e *parser.BinaryExpr) ([]string, error) {
	left, err := s.of(e.LHS)
	if err != nil {
		return nil, err
	}
	right, err := s.of(e.RHS)
	if err != nil {
		return nil, err
	}
	m := e.VectorMatching
	switch {
	case m == nil && e.LHS.Type() == parser.ValueTypeScalar:
		return right, nil
	case m == nil:
		return left, nil
	case e.Op == parser.LOR:
		return unique(slices.Concat(left, right)), nil
	}
	word, pair := "ignoring", [2][]string{without(left, m.MatchingLabels...), without(right, m.MatchingLabels...)}
	if m.On {
		word = "on"
		if err := errors.Join(has(left, word, m.MatchingLabels), has(right, word, m.MatchingLabels)); err != nil {
			return nil, err
		}
	} else {
		if err := has(slices.Concat(left, right), word, m.MatchingLabels); err != nil {
			return nil, err
		}
		if !slices.Equal(unique(pair[0]), unique(pair[1])) {
			return nil, fmt.Errorf("%q and %q never match in %s", pair[0], pair[1], e)
		}
	}
	if e.Op.IsSetOperator() {
		return left, nil
	}
	many, one := left, right
	switch m.Card {
	case parser.CardOneToMany:
		many, one = right, left
	case parser.CardOneToOne:
		if m.On {
			return m.MatchingLabels, nil
		}
		return pair[0], nil
	}
	if err := has(one, "group_left or group_right", m.Include); err != nil {
		return nil, err
	}
	return unique(slices.Concat(many, m.Include)), nil
}

// has returns an error unless all wanted labels exist.
func has(there []string, word string, wanted []string) error {
	if missing := without(wanted, there...); len(missing) > 0 {
		return fmt.Errorf("%s (%s), of labels %q", word, strings.Join(missing, ", "), there)
	}
	return nil
}

func without(names []string, less ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(less, name) })
}

func unique(names []string) []string { return slices.Compact(slices.Sorted(slices.Values(names))) }

// expression is an expression that is declared in k8s/.
type expression struct {
	where, text string
	// shown holds the labels of the result that a legend or a text names.
	shown []string
	// records is the metric that a rule makes of the result.
	records string
}

// declaredExpressions returns those of the rules, then of the dashboards, then of the autoscaler.
func declaredExpressions(t *testing.T) (all []expression) {
	t.Helper()
	const k8s = "../../k8s"
	var rules struct {
		Spec struct {
			Groups []struct {
				Rules []struct {
					Alert, Record, Expr string
					Labels, Annotations map[string]string
				}
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(k8s, "monitoring/rules.yaml"))
	if err == nil {
		err = yaml.Unmarshal(text, &rules)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range rules.Spec.Groups {
		for _, r := range group.Rules {
			e := expression{where: "rule " + r.Alert + r.Record, text: r.Expr, records: r.Record}
			for _, annotation := range r.Annotations {
				e.shown = append(e.shown,
					without(named(`\$labels\.(\w+)`, annotation), slices.Collect(maps.Keys(r.Labels))...)...)
			}
			all = append(all, e)
		}
	}
	files, err := filepath.Glob(filepath.Join(k8s, "monitoring/dashboards/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	for _, file := range files {
		all = append(all, ofDashboard(t, file)...)
	}
	return append(all, ofAutoscalers(t, filepath.Join(k8s, "keda"))...)
}

type panels []struct {
	Title string
	// Panels of a collapsed row.
	Panels  panels
	Targets []struct{ Expr, LegendFormat string }
}

func (ps panels) expressions(file string) (all []expression) {
	for _, p := range ps {
		for _, target := range p.Targets {
			all = append(all,
				expression{where: fmt.Sprintf("%s, panel %q", file, p.Title), text: target.Expr,
					shown: named(`\{\{ *(\w+) *\}\}`, target.LegendFormat)})
		}
		all = append(all, p.Panels.expressions(file)...)
	}
	return all
}

func ofDashboard(t *testing.T, file string) []expression {
	t.Helper()
	var dashboard struct {
		Panels     panels
		Templating struct {
			List []struct {
				Name, Type string
				Query      any
			}
		}
		Annotations struct{ List []struct{ Name, Expr string } }
	}
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	file = filepath.Base(file)
	all := dashboard.Panels.expressions(file)
	if len(all) == 0 {
		t.Errorf("%s has no panels", file)
	}
	for _, v := range dashboard.Templating.List {
		if v.Type != "query" {
			continue
		}
		query := v.Query.(map[string]any)["query"].(string)
		m := regexp.MustCompile(`^label_values\((.+), *(\w+)\)$`).FindStringSubmatch(query)
		if m == nil {
			t.Errorf("%s, variable %s: this test does not know %s", file, v.Name, query)
			continue
		}
		all = append(all,
			expression{where: fmt.Sprintf("%s, variable %s", file, v.Name), text: m[1], shown: []string{m[2]}})
	}
	for _, a := range dashboard.Annotations.List {
		if a.Expr != "" {
			all = append(all, expression{where: fmt.Sprintf("%s, annotation %s", file, a.Name), text: a.Expr})
		}
	}
	return all
}

// ofAutoscalers returns the queries of KEDA's triggers.
func ofAutoscalers(t *testing.T, dir string) (all []expression) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no autoscalers: %v", err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for manifests := yaml.NewDecoder(f); ; {
			var scaled struct {
				Spec struct {
					Triggers []struct{ Metadata map[string]string }
				}
			}
			if err := manifests.Decode(&scaled); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			for _, trigger := range scaled.Spec.Triggers {
				// The query is about a service that may scale.
				query := regexp.MustCompile(`consumergroup="[^"]*"`).ReplaceAllString(trigger.Metadata["query"],
					`consumergroup=~"$$any"`)
				all = append(all, expression{where: file, text: query})
			}
		}
	}
	if len(all) == 0 {
		t.Errorf("no trigger in %s", dir)
	}
	return all
}

// named returns the names in a template.
func named(pattern, text string) (names []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}
