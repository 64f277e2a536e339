package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/testenv"
)

// newDemo prepares the demo on ports of its own.
func newDemo(t testing.TB) *process {
	t.Helper()
	port := freePorts(5)
	d := newProcess(t, "demo", "LAG_OPS_ADDR="+local(port+4), "CART_HTTP_ADDR="+local(port),
		"ORDER_HTTP_ADDR="+local(port+2))
	d.api, d.ops = "http://"+local(port), "http://"+local(port+1)
	return d
}

// welcome waits for the text that the demo prints when it runs, and returns the requests in it.
func welcome(t testing.TB, d *process) (requests []string) {
	t.Helper()
	const end = "Stop it with Ctrl-C"
	eventually(t, patience, "the demo says that it runs", func() (bool, string) {
		if !d.running() {
			t.Fatalf("the demo has ended: %v\n%s", d.cmd.ProcessState, d.log())
		}
		out, _ := os.ReadFile(d.file(".out"))
		if !strings.Contains(string(out), end) {
			return false, string(out)
		}
		for line := range strings.Lines(string(out)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "curl ") {
				requests = append(requests, line)
			}
		}
		return true, ""
	})
	if err := os.Truncate(d.file(".out"), 0); err != nil {
		t.Fatal(err)
	}
	return requests
}

// run sends a request as the demo prints it, with curl.
func run(t testing.TB, request string) string {
	t.Helper()
	testenv.RequireProgram(t, "curl", "curl")
	out, err := exec.CommandContext(t.Context(), "sh", "-c",
		strings.Replace(request, "curl ", "curl -sS ", 1)).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v %s", request, err, out)
	}
	return string(out)
}

// The requests that the demo prints work, and a kill -9 of the demo loses nothing.
func TestDemo(t *testing.T) {
	t.Parallel()
	d := newDemo(t).start()
	requests := welcome(t, d)
	if len(requests) != 5 {
		t.Fatalf("it prints %d requests, want 5: %q", len(requests), requests)
	}
	shown := func(request string, parts ...string) {
		t.Helper()
		// Order gets an event a moment after Cart's response.
		eventually(t, patience, request, func() (bool, string) {
			got := run(t, request)
			for _, part := range parts {
				if !strings.Contains(got, part) {
					return false, got
				}
			}
			return true, ""
		})
	}
	holds := func() {
		t.Helper()
		shown(requests[2], `"orderId":"test-order-101"`, `"status":"Shipped"`, `"version":2`, `"shippingCost":`)
		shown(requests[3], "Total orders in topic 'order-updated-topic': 1", `"orderId":"test-order-101"`)
		// The metric appears a moment after the start, and grep finds nothing until then.
		eventually(t, patience, "the lag is known", func() (bool, string) {
			page := do(t, http.MethodGet, strings.Fields(requests[4])[1], "").body
			return strings.Contains(page, "kafka_consumergroup_topic_max_lag_seconds{"), page
		})
		shown(requests[4], `{consumergroup="order-service",kafka_cluster="demo",topic="order-created-topic"} 0`,
			`topic="order-updated-topic"} 0`)
	}
	if got := run(t, requests[0]); got != "Order created successfully" {
		t.Errorf("%s: %s", requests[0], got)
	}
	if got := run(t, requests[1]); got != "Order updated successfully" {
		t.Errorf("%s: %s", requests[1], got)
	}
	holds()

	d.kill()
	d.start()
	welcome(t, d)
	holds()
	if got := run(t, requests[0]); got != "Order already exists" {
		t.Errorf("%s after a kill: %s", requests[0], got)
	}

	// The demo's files have one owner.
	second := newDemo(t)
	second.env = append(second.env, "DATA_DIR="+d.dir)
	second.start().ends(patience)
	if code, log := second.cmd.ProcessState.ExitCode(),
		second.log(); code != 1 || !strings.Contains(log, "a demo runs in "+d.dir+" already") {
		t.Errorf("a second demo with the same DATA_DIR ended with %d: %s", code, log)
	}
	holds()
	d.stop()
}

// The demo shows lag as a cluster does, from the first event on.
func TestLagOfTheDemo(t *testing.T) {
	t.Parallel()
	d := newDemo(t).start()
	metrics := strings.Fields(welcome(t, d)[4])[1]
	page := func() string { return do(t, http.MethodGet, metrics, "").body }
	const orders = 20
	for i := range orders {
		if got := do(t, http.MethodPost, d.api+"/order/create-order",
			fmt.Sprintf(`{"orderId":"lag-%d","itemsNum":1}`, i)); got.status != http.StatusOK {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	sum := func(page, name, labels string) (sum float64, series int) {
		for line := range strings.Lines(page) {
			of, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
			if v, err := strconv.ParseFloat(value, 64); ok && err == nil && strings.HasPrefix(of, name+"{") &&
				strings.Contains(of, labels) {
				sum, series = sum+v, series+1
			}
		}
		return sum, series
	}
	const group = `consumergroup="order-service"`
	for _, want := range []struct {
		name, labels string
		sum          float64
		series       int
	}{
		{"kafka_consumergroup_lag", group, 0, 24},
		{"kafka_consumergroup_lag_seconds", group, 0, 24},
		{"kafka_consumergroup_topic_max_lag_seconds", group, 0, 2},
		{"kafka_consumergroup_members", group, 1, 1},
		{"kafka_consumergroup_unassigned_partitions", group, 0, 2},
		{"kafka_consumergroup_state", `state="Stable"`, 1, 1},
		{"kafka_consumergroup_objective_seconds", group, 5, 1},
		{"kafka_consumergroup_objective_breached", group, 0, 1},
		{"kafka_consumergroup_partition_status", `status="ok"`, 24, 2},
		{"lag_collector_up", `kafka_cluster="demo"`, 1, 1},
	} {
		eventually(t, patience, want.name, func() (bool, string) {
			got, series := sum(page(), want.name, want.labels)
			return got == want.sum && series == want.series,
				fmt.Sprintf("%d series, sum %v, want %d and %v", series, got, want.series, want.sum)
		})
	}
	// Transaction markers have offsets too.
	ends, partitions := sum(page(), "kafka_topic_partition_current_offset", `topic="order-created-topic"`)
	updated, _ := sum(page(), "kafka_topic_partition_current_offset", `topic="order-updated-topic"`)
	positions, assigned := sum(page(), "kafka_consumergroup_current_offset", group)
	if ends <= orders || partitions != 12 || positions != ends+updated || assigned != 24 {
		t.Errorf("%d partitions end at %v in all, the group is at %v in %d; want both behind the %d records",
			partitions, ends, positions, assigned, orders)
	}
	if body := page(); !strings.Contains(body, "service_ready 1\n") || strings.Contains(body, `group="cart`) {
		t.Errorf("%s", body)
	}
	d.stop()
	if log := d.log(); strings.Contains(log, `"level":"WARN","msg":"some of kafka`) ||
		strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("the log has complaints: %s", log)
	}
}

func TestDemoAtTakenPort(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"CART_HTTP_ADDR", "ORDER_HTTP_ADDR", "LAG_OPS_ADDR"} {
		ln := listen(t)
		defer ln.Close()
		d := newDemo(t)
		d.env = append(d.env, variable+"="+ln.Addr().String())
		d.start().ends(patience)
		want := fmt.Sprintf("port of %s is taken by another program", ln.Addr())
		if code, log := d.cmd.ProcessState.ExitCode(), d.log(); code != 1 || !strings.Contains(log, want) ||
			!strings.Contains(log, "set "+variable+" to move it") {
			t.Errorf("%s taken: it ended with %d: %s", variable, code, log)
		}
	}
}

// The demo reports all mistakes of the configuration at once, before it touches anything.
func TestWrongConfiguration(t *testing.T) {
	t.Parallel()
	for name, variables := range map[string][]string{
		"cart":  {"KAFKA_BROKERS", "HTTP_ADDR", "MAX_BACKLOG"},
		"order": {"KAFKA_BROKERS", "HTTP_ADDR"},
	} {
		p := newProcess(t, name, "HTTP_ADDR=nowhere", "MAX_BACKLOG=none", "KAFKA_BROKERS=")
		p.start().ends(patience)
		for _, variable := range variables {
			if !strings.Contains(p.log(), variable) {
				t.Errorf("%s does not name %s: %s", name, variable, p.log())
			}
		}
		if code := p.cmd.ProcessState.ExitCode(); code != 2 {
			t.Errorf("%s ended with %d, want 2", name, code)
		}
		if files, _ := filepath.Glob(filepath.Join(p.dir, "*")); files != nil {
			t.Errorf("%s has made %v", name, files)
		}
	}
}

// No password is logged.
func TestSecretsStayOutOfTheLog(t *testing.T) {
	t.Parallel()
	const secret = "open-sesame-4711"
	for _, name := range []string{"cart", "order"} {
		p := newService(t, name, local(freePorts(1)), "LOG_LEVEL=debug", "KAFKA_SECURITY_PROTOCOL=sasl_plaintext",
			"KAFKA_SASL_MECHANISM=SCRAM-SHA-512", "KAFKA_SASL_USERNAME=someone", "KAFKA_SASL_PASSWORD="+secret)
		p.start()
		p.notReady("Kafka is unreachable")
		p.stop()
		if log := p.log(); strings.Contains(log, secret) || !strings.Contains(log, "someone") {
			t.Errorf("the log of %s: %s", name, log)
		}
	}
}

// The requests of the Postman collection work on the demo too.
func TestPostmanRequestsOnTheDemo(t *testing.T) {
	t.Parallel()
	d := newDemo(t).start()
	welcome(t, d)
	order := strings.TrimPrefix(d.env[len(d.env)-1], "ORDER_HTTP_ADDR=")
	if got := do(t, http.MethodGet, d.ops+"/readyz", ""); got.status != http.StatusOK {
		t.Errorf("it says that it runs, and yet: %d %s", got.status, got.body)
	}
	postman(t, d.api, "http://"+order)
	d.stop()
}
